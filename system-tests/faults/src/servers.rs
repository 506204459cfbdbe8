//! Real servers, each one that can be killed, frozen, wiped and started again on its data: Kafka brokers, registry,
//! Postgres, Redis, Redis Cluster. Their programs are those that `system-tests/servers/install` prepares.
//!
//! They are started when a scenario first asks for them, and shared by the next ones where nothing was spoilt: topics are
//! deleted, a database is made anew, Redis is emptied. What a scenario spoils it says (`spoil`), and it is made again.

pub mod kafka;
pub mod postgres;
pub mod redis;
pub mod registry;

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rand::RngExt;

pub use kafka::Kafka;
pub use postgres::Postgres;
pub use redis::{Redis, RedisCluster};
pub use registry::Registry;

/// Everything that runs beside Millrace.
pub struct Servers {
    places: Places,
    pub kafka: Kafka,
    pub registry: Registry,
    pub postgres: Postgres,
    pub redis: Redis,
    pub cluster: Option<RedisCluster>,
}

/// What a scenario needs beside one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    pub brokers: usize,
    pub cluster: bool,
}

/// Where servers keep their data, and their ports.
pub struct Places {
    folder: tempfile::TempDir,
    made: usize,
    ports: HashSet<u16>,
}

// === impl Servers ===

impl Servers {
    pub async fn start(needs: Needs) -> anyhow::Result<Self> {
        let mut places = Places::new()?;
        let kafka = Kafka::new(&mut places, needs.brokers).await?;
        let registry = Registry::new(&mut places).await?;
        let postgres = Postgres::new(&mut places).await?;
        let redis = Redis::new(&mut places).await?;
        let mut servers = Self { places, kafka, registry, postgres, redis, cluster: None };
        servers.renew(needs).await?;
        Ok(servers)
    }

    /// Fresh and answering: what is spoilt or missing is made, what is there is emptied.
    pub async fn renew(&mut self, needs: Needs) -> anyhow::Result<()> {
        if self.kafka.is_spoilt || self.kafka.brokers.len() != needs.brokers {
            self.kafka.stop();
            self.kafka = Kafka::new(&mut self.places, needs.brokers).await?;
        }
        if self.registry.is_spoilt {
            self.registry = Registry::new(&mut self.places).await?;
        }
        if self.postgres.is_spoilt {
            self.postgres = Postgres::new(&mut self.places).await?;
        }
        if self.redis.is_spoilt {
            self.redis = Redis::new(&mut self.places).await?;
        }
        match (needs.cluster, self.cluster.is_some()) {
            (true, false) => self.cluster = Some(RedisCluster::new(&mut self.places).await?),
            (false, true) => self.cluster = None,
            _ => {}
        }
        tokio::try_join!(self.kafka.start(), self.registry.start(), self.postgres.start(), self.redis.start())?;
        tokio::try_join!(self.kafka.empty(), self.postgres.new_database(), self.redis.empty())?;
        if let Some(cluster) = &mut self.cluster {
            cluster.start().await?;
            cluster.empty().await?;
        }
        for proxy in [&self.kafka.brokers[0].proxy, &self.registry.proxy, &self.postgres.proxy, &self.redis.proxy] {
            proxy.pass();
        }
        Ok(())
    }

    pub fn copy_logs(&self, to: &Path) -> anyhow::Result<()> {
        self.places.copy_logs(to)
    }
}

// === impl Places ===

impl Places {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("millrace-faults.").tempdir()?;
        open_to_all(folder.path())?;
        Ok(Self { folder, made: 0, ports: HashSet::new() })
    }

    /// A folder of its own for a server's next life.
    pub fn folder(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        self.made += 1;
        let folder = self.folder.path().join(format!("{name}-{}", self.made));
        std::fs::create_dir_all(&folder)?;
        open_to_all(&folder)?;
        Ok(folder)
    }

    pub fn port(&mut self) -> u16 {
        free_port(&mut self.ports)
    }

    /// What the servers printed, of scenarios before too: they are shared.
    fn copy_logs(&self, to: &Path) -> anyhow::Result<()> {
        for folder in std::fs::read_dir(self.folder.path())? {
            let folder = folder?;
            let logs = std::fs::read_dir(folder.path()).into_iter().flatten().flatten();
            for log in logs.filter(|file| file.path().extension().is_some_and(|extension| extension == "log")) {
                let mut name = folder.file_name();
                name.push(".log");
                std::fs::copy(log.path(), to.join(name))?;
            }
        }
        Ok(())
    }
}

/// Postgres runs as another user when we are root.
fn open_to_all(folder: &Path) -> anyhow::Result<()> {
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    Ok(std::fs::set_permissions(folder, permissions)?)
}

/// Below the ports that the kernel hands out by itself, at random, so that harnesses side by side seldom meet.
pub fn free_port(taken: &mut HashSet<u16>) -> u16 {
    loop {
        let port = rand::rng().random_range(20_000..32_000);
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
}

/// Where `servers/install` keeps the jars.
pub fn cache() -> anyhow::Result<PathBuf> {
    if let Some(cache) = std::env::var_os("MILLRACE_CACHE") {
        return Ok(cache.into());
    }
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(cache).join("millrace"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(PathBuf::from(home).join(".cache/millrace"))
}

/// The newest folder of the cache whose name begins so.
pub fn cached(beginning: &str) -> anyhow::Result<PathBuf> {
    let cache = cache()?;
    let found = std::fs::read_dir(&cache).with_context(|| format!("{} cannot be read", cache.display()))?;
    let mut folders: Vec<PathBuf> = found
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning)))
        .collect();
    folders.sort();
    folders.pop().with_context(|| format!("no {beginning}… in {}: run system-tests/servers/install", cache.display()))
}
