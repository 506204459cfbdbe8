//! Millrace as its operators run it: one process per role on real servers, or one process on files.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::operator::Operator;
use crate::process::{Program, until};
use crate::servers::{Servers, free_port};

/// How long a role may take until it is ready.
const READY: Duration = Duration::from_secs(60);

/// Where Millrace keeps what, as the oracle reads it.
#[derive(Debug, Clone)]
pub enum Deployment {
    Roles { postgres: String, kafka: String, redis: Vec<String> },
    Embedded { data: PathBuf },
}

pub struct System {
    pub binary: PathBuf,
    pub folder: PathBuf,
    pub deployment: Deployment,
    environment: Vec<(String, String)>,
    roles: BTreeMap<String, Role>,
    /// Addresses of processes that were removed.
    removed: BTreeMap<String, String>,
    ports: HashSet<u16>,
    client: reqwest::Client,
}

struct Role {
    program: Program,
    address: String,
}

/// How roles reach the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Direct,
    /// Through the proxies, so that the network can be cut.
    Proxied,
    /// The stock store is the Redis Cluster.
    Cluster,
}

// === impl System ===

impl System {
    /// One process per role, all ready.
    pub async fn roles(
        binary: &Path,
        folder: &Path,
        servers: &Servers,
        reach: Reach,
        more: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let search = folder.join("search");
        let (kafka, redis) = match reach {
            Reach::Proxied => (servers.kafka.proxied(), servers.redis.proxied()),
            _ => (servers.kafka.address(), servers.redis.url()),
        };
        let (postgres, registry) = match reach {
            Reach::Proxied => (servers.postgres.proxied(), servers.registry.proxied()),
            _ => (servers.postgres.url(), servers.registry.url()),
        };
        let mut shown = vec![servers.redis.url()];
        let stock = match (reach, &servers.cluster) {
            (Reach::Cluster, Some(cluster)) => {
                shown = cluster.nodes.iter().map(crate::servers::Redis::url).collect();
                cluster.url()
            }
            _ => redis,
        };
        let environment = [
            ("MILLRACE_EVENT_STORE", postgres),
            ("MILLRACE_EVENT_LOG", format!("kafka://{kafka}")),
            ("MILLRACE_SCHEMA_REGISTRY", registry),
            ("MILLRACE_STOCK_STORE", stock),
            ("MILLRACE_SEARCH_DIR", search.display().to_string()),
        ];
        let mut environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        environment.extend_from_slice(more);
        let deployment =
            Deployment::Roles { postgres: servers.postgres.url(), kafka: servers.kafka.address(), redis: shown };
        let mut system = Self::new(binary, folder, deployment, environment)?;
        system.register()?;
        for role in ["relay", "write", "stock", "search", "serve"] {
            system.add(role, role, &[])?;
        }
        for role in ["relay", "write", "stock", "search", "serve"] {
            system.ready(role).await?;
        }
        Ok(system)
    }

    /// One process on files.
    pub async fn embedded(
        binary: &Path,
        folder: &Path,
        data: &Path,
        more: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let deployment = Deployment::Embedded { data: data.to_owned() };
        let mut environment = vec![("MILLRACE_DATA".to_owned(), data.display().to_string())];
        environment.extend_from_slice(more);
        let mut system = Self::new(binary, folder, deployment, environment)?;
        system.add("up", "up", &[])?;
        system.ready("up").await?;
        Ok(system)
    }

    fn new(
        binary: &Path,
        folder: &Path,
        deployment: Deployment,
        environment: Vec<(String, String)>,
    ) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        Ok(Self {
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            deployment,
            environment,
            roles: BTreeMap::new(),
            removed: BTreeMap::new(),
            ports: HashSet::new(),
            client,
        })
    }

    pub fn is_embedded(&self) -> bool {
        matches!(self.deployment, Deployment::Embedded { .. })
    }

    /// `millrace …` with the settings of the roles; exit code and output.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<(i32, String)> {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MILLRACE_")) {
            command.env_remove(name);
        }
        let output = command
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{} does not start", self.binary.display()))?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
    }

    /// Who gives commands beside what goes on here.
    pub fn operator(&self) -> Operator {
        Operator { binary: self.binary.clone(), folder: self.folder.clone(), environment: self.environment.clone() }
    }

    /// Schemas into the registry.
    pub fn register(&self) -> anyhow::Result<()> {
        match self.run(&["contracts", "register"])? {
            (0, _) => Ok(()),
            (code, told) => bail!("contracts register: exit code {code}: {told}"),
        }
    }

    /// Starts another process of a kind: `relay`, `write`, `stock`, `search`, `serve`, `up`.
    pub fn add(&mut self, name: &str, kind: &str, flags: &[&str]) -> anyhow::Result<()> {
        let address = format!("127.0.0.1:{}", free_port(&mut self.ports));
        self.add_at(name, kind, address, flags)
    }

    fn add_at(&mut self, name: &str, kind: &str, address: String, flags: &[&str]) -> anyhow::Result<()> {
        let mut arguments: Vec<String> = match kind {
            "stock" | "search" => vec!["project".to_owned(), kind.to_owned()],
            other => vec![other.to_owned()],
        };
        arguments.extend(["--listen".to_owned(), address.clone()]);
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let cache = self.folder.join(format!("registry-cache-{name}.json"));
        let mut program = Program::new(name, &self.binary, &self.folder)
            .arguments(arguments)
            .environment(&self.environment)
            .environment(&[("MILLRACE_LOG".to_owned(), "info".to_owned())]);
        if !self.is_embedded() {
            program.set_variable("MILLRACE_REGISTRY_CACHE", &cache.display().to_string());
        }
        program.start()?;
        self.roles.insert(name.to_owned(), Role { program, address });
        Ok(())
    }

    /// Starts a process that was removed again, where it was, with other flags.
    pub fn add_at_same_address(&mut self, name: &str, flags: &[&str]) -> anyhow::Result<()> {
        let address = self.removed.get(name).cloned().with_context(|| format!("{name} was not removed"))?;
        self.add_at(name, name, address, flags)
    }

    /// Ends a process for good.
    pub fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        match self.roles.remove(name) {
            Some(mut role) => {
                self.removed.insert(name.to_owned(), role.address);
                role.program.kill()
            }
            None => bail!("no process {name}"),
        }
    }

    pub fn program(&mut self, name: &str) -> anyhow::Result<&mut Program> {
        let role = self.roles.get_mut(name).with_context(|| format!("no process {name}"))?;
        Ok(&mut role.program)
    }

    pub fn names(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    /// `http://host:port` of a process.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}", self.roles.get(name).map_or("", |role| &role.address))
    }

    pub fn commands_url(&self) -> String {
        self.url(if self.is_embedded() { "up" } else { "write" })
    }

    pub fn queries_url(&self) -> String {
        self.url(if self.is_embedded() { "up" } else { "serve" })
    }

    pub async fn ready(&mut self, name: &str) -> anyhow::Result<()> {
        self.ready_within(name, READY).await
    }

    pub async fn ready_within(&mut self, name: &str, within: Duration) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        while !self.is_ready(name).await {
            let why = self.readiness(name).await;
            let program = self.program(name)?;
            if !program.is_running() {
                bail!("{name} has ended; the end of its log:\n{}", program.log_end(15));
            }
            if begun.elapsed() > within {
                bail!("{name} is not ready after {within:?}: {why}; the end of its log:\n{}", program.log_end(15));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    pub async fn is_ready(&self, name: &str) -> bool {
        let url = format!("{}/readyz", self.url(name));
        self.client.get(url).send().await.is_ok_and(|answer| answer.status().is_success())
    }

    /// What `/readyz` says.
    pub async fn readiness(&self, name: &str) -> String {
        let url = format!("{}/readyz", self.url(name));
        match self.client.get(url).send().await {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(error) => error.to_string(),
        }
    }

    /// Waits until `/readyz` is refused with a text that has `word` in it, or the process has ended with it in its log.
    pub async fn complains(&mut self, name: &str, word: &str, within: Duration) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        loop {
            if !self.is_ready(name).await {
                let told = self.readiness(name).await;
                let program = self.program(name)?;
                if told.contains(word) || (!program.is_running() && program.log_end(5).contains(word)) {
                    return Ok(());
                }
            }
            if begun.elapsed() > within {
                let (told, end) = (self.readiness(name).await, self.program(name)?.log_end(5));
                bail!("{name} does not speak of {word:?} within {within:?}: {told}; the end of its log:\n{end}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a process has ended by itself, with `word` at the end of its log.
    pub async fn ends(&mut self, name: &str, word: &str, within: Duration) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        while self.program(name)?.is_running() {
            if begun.elapsed() > within {
                bail!("{name} does not end within {within:?}: {}", self.readiness(name).await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let end = self.program(name)?.log_end(5);
        if !end.contains(word) {
            bail!("{name} ended and does not speak of {word:?}: {end}");
        }
        Ok(())
    }

    /// Starts a process again and waits until it is ready.
    pub async fn start(&mut self, name: &str) -> anyhow::Result<()> {
        self.program(name)?.start()?;
        self.ready(name).await
    }

    pub async fn kill_and_start(&mut self, name: &str) -> anyhow::Result<()> {
        self.program(name)?.kill()?;
        self.start(name).await
    }

    /// The value of a metric, all its labels added up.
    pub async fn metric(&self, name: &str, metric: &str) -> f64 {
        let url = format!("{}/metrics", self.url(name));
        let Ok(answer) = self.client.get(url).send().await else { return 0.0 };
        crate::counters::sum(&answer.text().await.unwrap_or_default(), metric)
    }

    /// Waits until something shows in a process's log.
    pub async fn logged(&mut self, name: &str, word: &str, within: Duration) -> anyhow::Result<()> {
        let program = self.program(name)?;
        let what = format!("{name} logs {word:?}");
        let program: &Program = program;
        until(&what, within, async || program.log_text().contains(word)).await
    }
}
