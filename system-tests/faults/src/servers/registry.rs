//! The schema registry: Apicurio with its Confluent API, in memory. Killed, it has lost its schemas: whoever starts it
//! again registers again, as one would who restores it.

use std::time::Duration;

use super::{Places, cached};
use crate::process::{Program, until};
use crate::proxy::Proxy;

pub struct Registry {
    pub program: Program,
    port: u16,
    pub proxy: Proxy,
    pub is_spoilt: bool,
}

// === impl Registry ===

impl Registry {
    pub async fn new(places: &mut Places) -> anyhow::Result<Self> {
        let (folder, port) = (places.folder("registry")?, places.port());
        let home = cached("apicurio-registry-")?;
        let jar = std::fs::read_dir(&home)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().ends_with("-runner.jar"));
        let jar = jar.ok_or_else(|| anyhow::anyhow!("no runner jar in {}", home.display()))?;
        let program = Program::new("registry", "java", &folder).arguments([
            "-Xmx512m".to_owned(),
            "-XX:+UseSerialGC".to_owned(),
            "-Dquarkus.profile=prod".to_owned(),
            "-Dquarkus.http.host=127.0.0.1".to_owned(),
            format!("-Dquarkus.http.port={port}"),
            "-jar".to_owned(),
            jar.display().to_string(),
        ]);
        Ok(Self { program, port, proxy: Proxy::start(port).await?, is_spoilt: false })
    }

    /// Past the proxy.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.port)
    }

    pub fn proxied(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.proxy.port())
    }

    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.program.start()?;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(3)).build()?;
        let subjects = format!("{}/subjects", self.url());
        until("the registry answers", Duration::from_secs(90), async || {
            client.get(&subjects).send().await.is_ok_and(|answer| answer.status().is_success())
        })
        .await
    }
}
