//! Postgres, durable as in production. Each scenario has a database of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_postgres::{Client, NoTls};

use super::Places;
use crate::process::{Program, until};
use crate::proxy::Proxy;

pub struct Postgres {
    pub program: Program,
    pub data: PathBuf,
    port: u16,
    pub proxy: Proxy,
    database: String,
    made: usize,
    pub is_spoilt: bool,
}

// === impl Postgres ===

impl Postgres {
    pub async fn new(places: &mut Places) -> anyhow::Result<Self> {
        let (folder, port) = (places.folder("postgres")?, places.port());
        let data = folder.join("data");
        Self::in_folder(&folder, data, port).await
    }

    async fn in_folder(folder: &Path, data: PathBuf, port: u16) -> anyhow::Result<Self> {
        let programs = programs()?;
        std::fs::create_dir_all(&data)?;
        let user = is_root().then_some("postgres");
        let mut initialise = match user {
            Some(user) => {
                run(Command::new("chown").arg("postgres:").arg(&data))?;
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={user}"), "--init-groups".to_owned()]);
                command.arg(programs.join("initdb"));
                command
            }
            None => Command::new(programs.join("initdb")),
        };
        initialise.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        run(initialise.arg("--pgdata").arg(&data).current_dir(&data))?;
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", data.display()),
            "max_connections=200".to_owned(),
            "fsync=on".to_owned(),
            "synchronous_commit=on".to_owned(),
            "wal_sync_method=fdatasync".to_owned(),
            "shared_buffers=256MB".to_owned(),
        ];
        let mut arguments = vec!["-D".to_owned(), data.display().to_string(), "-p".to_owned(), port.to_string()];
        arguments.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        let program = Program::new("postgres", programs.join("postgres"), folder).arguments(arguments).user(user);
        let proxy = Proxy::start(port).await?;
        Ok(Self { program, data, port, proxy, database: "postgres".to_owned(), made: 0, is_spoilt: false })
    }

    /// Starts it and waits until it takes queries. After a kill its own children may hold the data for a moment more.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        loop {
            self.program.start()?;
            let answers = self.connect_to("postgres").await.is_ok();
            if answers {
                return Ok(());
            }
            if begun.elapsed() > Duration::from_secs(60) {
                bail!("Postgres does not answer; the end of its log:\n{}", self.program.log_end(20));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Makes an empty database and drops the one before.
    pub async fn new_database(&mut self) -> anyhow::Result<()> {
        let client = self.connect_to("postgres").await?;
        if self.database != "postgres" {
            client.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.database)).await?;
        }
        self.made += 1;
        self.database = format!("millrace_{}", self.made);
        client.batch_execute(&format!("CREATE DATABASE {}", self.database)).await?;
        Ok(())
    }

    /// Past the proxy.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{}", self.port, self.database)
    }

    pub fn proxied(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{}", self.proxy.port(), self.database)
    }

    /// A session of the harness's own in the scenario's database.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        self.connect_to(&self.database).await
    }

    async fn connect_to(&self, database: &str) -> anyhow::Result<Client> {
        let url = format!("postgres://postgres@127.0.0.1:{}/{database}?connect_timeout=3", self.port);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        // Its end shows in the client's calls.
        tokio::spawn(connection);
        Ok(client)
    }

    /// kill -9, and gone when this returns: its children let go of the data a little later than it dies.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.program.kill()?;
        let port = self.port;
        until("Postgres is gone", Duration::from_secs(20), async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err()
        })
        .await
    }
}

fn programs() -> anyhow::Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .context("Postgres is not installed: run system-tests/servers/install")?
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("bin"))
        .filter(|path| path.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().context("no initdb under /usr/lib/postgresql")
}

pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
