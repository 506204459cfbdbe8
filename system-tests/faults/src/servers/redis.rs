//! Redis, alone with an append-only file as in production, and a Cluster of three.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use redis::aio::MultiplexedConnection;

use super::Places;
use super::postgres::run;
use crate::process::{Program, until};
use crate::proxy::Proxy;

pub struct Redis {
    pub program: Program,
    pub data: PathBuf,
    port: u16,
    pub proxy: Proxy,
    pub is_spoilt: bool,
}

pub struct RedisCluster {
    pub nodes: Vec<Redis>,
    is_made: bool,
}

// === impl Redis ===

impl Redis {
    pub async fn new(places: &mut Places) -> anyhow::Result<Self> {
        Self::with(places, &[]).await
    }

    async fn with(places: &mut Places, flags: &[String]) -> anyhow::Result<Self> {
        let (folder, port) = (places.folder("redis")?, places.port());
        let data = folder.join("data");
        std::fs::create_dir(&data)?;
        let program = Program::new("redis", "redis-server", &folder)
            .arguments(["--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""])
            .arguments(["--port".to_owned(), port.to_string(), "--dir".to_owned(), data.display().to_string()])
            .arguments(flags.iter().cloned());
        Ok(Self { program, data, port, proxy: Proxy::start(port).await?, is_spoilt: false })
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn proxied(&self) -> String {
        format!("redis://127.0.0.1:{}", self.proxy.port())
    }

    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.program.start()?;
        until("Redis answers", Duration::from_secs(30), async || {
            let Ok(mut connection) = self.connect().await else { return false };
            redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
        })
        .await
    }

    pub async fn connect(&self) -> anyhow::Result<MultiplexedConnection> {
        Ok(redis::Client::open(self.url())?.get_multiplexed_async_connection().await?)
    }

    pub async fn empty(&self) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await?;
        redis::cmd("FUNCTION").arg("FLUSH").query_async::<()>(&mut connection).await?;
        Ok(())
    }

    /// A copy of what the append-only file holds at this moment, the way a disk would that lost what came later.
    pub fn copy_of_data(&self, to: &Path) -> anyhow::Result<()> {
        copy(&self.data, to)
    }

    /// Puts such a copy back. It must not run.
    pub fn restore(&self, from: &Path) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.data)?;
        copy(from, &self.data)
    }
}

pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to))
}

// === impl RedisCluster ===

impl RedisCluster {
    pub async fn new(places: &mut Places) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let bus = places.port();
            let flags = ["--cluster-enabled", "yes", "--cluster-node-timeout", "3000", "--cluster-port"];
            let mut flags: Vec<String> = flags.map(str::to_owned).to_vec();
            flags.push(bus.to_string());
            nodes.push(Redis::with(places, &flags).await?);
        }
        Ok(Self { nodes, is_made: false })
    }

    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    pub async fn start(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            node.start().await?;
        }
        if !self.is_made {
            let mut create = Command::new("redis-cli");
            create.args(["--cluster", "create", "--cluster-yes"]);
            create.args(self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
            run(&mut create)?;
            self.is_made = true;
        }
        for node in &self.nodes {
            until("the Redis Cluster is whole", Duration::from_secs(60), async || {
                let Ok(mut connection) = node.connect().await else { return false };
                let told = redis::cmd("CLUSTER").arg("INFO").query_async::<String>(&mut connection).await;
                told.is_ok_and(|told| told.contains("cluster_state:ok"))
            })
            .await?;
        }
        Ok(())
    }

    pub async fn empty(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            node.empty().await?;
        }
        Ok(())
    }
}
