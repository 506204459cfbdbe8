//! Bulk: how many commands a second are acknowledged.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::on_loopback;

#[derive(clap::Args)]
pub struct Args {
    /// Command API
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// NDJSON commands, as `millrace generate` writes them
    #[arg(long)]
    file: PathBuf,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let url = on_loopback(&args.url)?;
    let body = std::fs::read(&args.file).with_context(|| format!("{} cannot be read", args.file.display()))?;
    let given = body.iter().filter(|byte| **byte == b'\n').count();
    let started = Instant::now();
    let answer = reqwest::Client::new()
        .post(format!("{url}/v1/commands"))
        .header("content-type", "application/x-ndjson")
        .body(body)
        .send()
        .await?
        .error_for_status()?;
    let outcomes = answer.text().await?;
    let seconds = started.elapsed().as_secs_f64();
    let count = |kind: &str| outcomes.lines().filter(|line| line.contains(&format!("\"outcome\":\"{kind}\""))).count();
    let answered = outcomes.lines().count();
    ensure!(answered == given, "{given} commands were given, {answered} outcomes came");
    println_result(&serde_json::json!({
        "bench": "ingest",
        "commands": given,
        "seconds": seconds,
        "commands_per_second": given as f64 / seconds,
        "accepted": count("accepted"),
        "rejected": count("rejected"),
        "failed": count("failed"),
    }));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the bench")]
pub fn println_result(result: &serde_json::Value) {
    println!("{result}");
}
