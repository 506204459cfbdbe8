//! Kafka brokers (KRaft, each broker and controller), with a proxy before each for whoever comes by `proxied`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{Places, cached};
use crate::process::{Program, until};
use crate::proxy::Proxy;

/// Any 22 characters of base64 do; a broker that lost its disk is formatted for the same cluster again.
const CLUSTER_ID: &str = "TWlsbHJhY2VGYXVsdHMxMg";
const LOG4J: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../servers/kafka-log4j2.properties");

pub struct Kafka {
    pub brokers: Vec<Broker>,
    /// To be made anew before the next scenario.
    pub is_spoilt: bool,
}

pub struct Broker {
    pub program: Program,
    pub port: u16,
    pub proxy: Proxy,
    pub data: PathBuf,
    properties: PathBuf,
}

// === impl Kafka ===

impl Kafka {
    pub async fn new(places: &mut Places, count: usize) -> anyhow::Result<Self> {
        let ports: Vec<[u16; 3]> = (0..count).map(|_| [places.port(), places.port(), places.port()]).collect();
        let voters: Vec<String> =
            ports.iter().enumerate().map(|(index, ports)| format!("{}@127.0.0.1:{}", index + 1, ports[2])).collect();
        let mut brokers = Vec::new();
        for (index, [port, proxied, controller]) in ports.iter().copied().enumerate() {
            let folder = places.folder("kafka")?;
            let proxy = Proxy::start(port).await?;
            let replicas = count.min(3);
            let properties = folder.join("kafka.properties");
            let data = folder.join("data");
            std::fs::create_dir(&data)?;
            let text = format!(
                "process.roles=broker,controller\n\
                 node.id={id}\n\
                 controller.quorum.voters={voters}\n\
                 listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxied},CONTROLLER://127.0.0.1:{controller}\n\
                 advertised.listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{through}\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
                 controller.listener.names=CONTROLLER\n\
                 inter.broker.listener.name=PLAINTEXT\n\
                 log.dirs={data}/log\n\
                 auto.create.topics.enable=false\n\
                 default.replication.factor={replicas}\n\
                 offsets.topic.replication.factor={replicas}\n\
                 offsets.topic.num.partitions=4\n\
                 transaction.state.log.replication.factor={replicas}\n\
                 transaction.state.log.min.isr=1\n\
                 transaction.state.log.num.partitions=4\n\
                 share.coordinator.state.topic.replication.factor={replicas}\n\
                 share.coordinator.state.topic.min.isr=1\n\
                 group.initial.rebalance.delay.ms=0\n\
                 controlled.shutdown.enable=true\n",
                id = index + 1,
                voters = voters.join(","),
                through = proxy.port(),
                data = data.display(),
            );
            std::fs::write(&properties, text)?;
            proxy.to(proxied);
            let libraries = format!("{}/*", cached("kafka-")?.display());
            let program = Program::new(&format!("kafka-{}", index + 1), "java", &folder).arguments([
                "-XX:+UseSerialGC".to_owned(),
                "-Xmx768m".to_owned(),
                format!("-Dlog4j2.configurationFile={LOG4J}"),
                "-cp".to_owned(),
                libraries,
                "kafka.Kafka".to_owned(),
                properties.display().to_string(),
            ]);
            let broker = Broker { program, port, proxy, data, properties };
            broker.format()?;
            brokers.push(broker);
        }
        Ok(Self { brokers, is_spoilt: false })
    }

    /// `host:port,…` past the proxies.
    pub fn address(&self) -> String {
        let addresses: Vec<String> = self.brokers.iter().map(|broker| format!("127.0.0.1:{}", broker.port)).collect();
        addresses.join(",")
    }

    /// `host:port,…` through the proxies.
    pub fn proxied(&self) -> String {
        let addresses: Vec<String> =
            self.brokers.iter().map(|broker| format!("127.0.0.1:{}", broker.proxy.port())).collect();
        addresses.join(",")
    }

    pub async fn start(&mut self) -> anyhow::Result<()> {
        for broker in &mut self.brokers {
            broker.program.start()?;
        }
        for broker in &mut self.brokers {
            broker.answers(Duration::from_secs(60)).await?;
        }
        let all = self.brokers.len();
        until("every broker is in the cluster", Duration::from_secs(30), async || {
            self.metadata().await.is_ok_and(|metadata| metadata.0 == all)
        })
        .await
    }

    pub fn stop(&mut self) {
        for broker in &mut self.brokers {
            // Its data is not looked at again.
            let _ = broker.program.kill();
        }
    }

    /// Count of brokers, and the topics.
    async fn metadata(&self) -> anyhow::Result<(usize, Vec<String>)> {
        let address = self.address();
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client(&address).create()?;
            let found = consumer.fetch_metadata(None, Duration::from_secs(3))?;
            let topics = found.topics().iter().map(|topic| topic.name().to_owned());
            Ok((found.brokers().len(), topics.filter(|name| !name.starts_with("__")).collect()))
        })
        .await?
    }

    pub fn admin(&self) -> anyhow::Result<AdminClient<DefaultClientContext>> {
        Ok(client(&self.address()).create()?)
    }

    /// Deletes every topic, and what consumer groups remember of them.
    pub async fn empty(&mut self) -> anyhow::Result<()> {
        let (_, topics) = self.metadata().await?;
        if topics.is_empty() {
            return Ok(());
        }
        self.delete_topics(&topics).await
    }

    pub async fn delete_topics(&self, topics: &[String]) -> anyhow::Result<()> {
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
        let admin = self.admin()?;
        for deleted in admin.delete_topics(&names, &options).await? {
            if let Err((topic, code)) = deleted {
                bail!("topic {topic} cannot be deleted: {code}");
            }
        }
        until("deleted topics are gone", Duration::from_secs(30), async || {
            self.metadata().await.is_ok_and(|(_, left)| !left.iter().any(|topic| topics.contains(topic)))
        })
        .await
    }
}

// === impl Broker ===

impl Broker {
    fn format(&self) -> anyhow::Result<()> {
        let output = Command::new("java")
            .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(format!("{}/*", cached("kafka-")?.display()))
            .args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"])
            .arg(&self.properties)
            .output()
            .context("java is needed")?;
        if !output.status.success() {
            bail!("Kafka's folder cannot be formatted: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Waits until it answers.
    pub async fn answers(&mut self, within: Duration) -> anyhow::Result<()> {
        let address = format!("127.0.0.1:{}", self.port);
        let what = format!("{} answers", self.program.name);
        let answers = until(&what, within, async || {
            let address = address.clone();
            let asked = tokio::task::spawn_blocking(move || {
                let consumer: Result<BaseConsumer, _> = client(&address).create();
                consumer.is_ok_and(|consumer| {
                    consumer.fetch_metadata(None, Duration::from_secs(3)).is_ok_and(|found| !found.brokers().is_empty())
                })
            });
            asked.await.unwrap_or(false)
        });
        if let Err(error) = answers.await {
            bail!("{error}; the end of its log:\n{}", self.program.log_end(20));
        }
        Ok(())
    }

    /// Forgets everything that the broker has stored. It must not run.
    pub fn wipe(&self) -> anyhow::Result<()> {
        clear(&self.data)?;
        self.format()
    }
}

/// Empties a folder, which may be a mount point.
fn clear(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
    }
    Ok(())
}

pub fn client(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address).set("client.id", "faults").set("reconnect.backoff.max.ms", "500");
    config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    config
}
