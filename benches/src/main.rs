//! Load against a running Millrace, and what its users then see; and rebuilds. Loopback only, bounded, ends by itself.
//!
//! `cargo run --release -p benches -- visibility --url http://127.0.0.1:8080`

mod ingest;
mod rebuild;
mod visibility;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

/// That of `millrace`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load against a running Millrace on this machine.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Give commands at a steady rate; measure from acknowledgement to visibility in stock and in search
    Visibility(visibility::Args),
    /// Give a file of NDJSON commands in bulk; measure commands per second
    Ingest(ingest::Args),
    /// Fill a log with generated events and rebuild a stock read model from it; measure events per second
    Rebuild(rebuild::Args),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().bench {
        Bench::Visibility(args) => visibility::run(args).await,
        Bench::Ingest(args) => ingest::run(args).await,
        Bench::Rebuild(args) => rebuild::run(args).await,
    }
}

/// Refuses to load anything but this machine.
fn on_loopback(url: &str) -> anyhow::Result<String> {
    let parsed = reqwest::Url::parse(url).with_context(|| format!("{url} is not a URL"))?;
    let host = parsed.host_str().unwrap_or_default();
    if host != "localhost" && !host.starts_with("127.") && host != "[::1]" {
        bail!("{url} is not on this machine; load goes to loopback only");
    }
    Ok(url.trim_end_matches('/').to_owned())
}
