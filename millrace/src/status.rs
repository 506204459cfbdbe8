//! `millrace status`: asks a query API how its projections stand.

use anyhow::{Context, ensure};
use comfy_table::Table;
use serde::Deserialize;

use crate::cli::StatusArgs;
use crate::exit::Exit;
use crate::output;

#[derive(Deserialize)]
struct Status {
    head: String,
    projections: Vec<Projection>,
}

#[derive(Deserialize)]
struct Projection {
    name: String,
    generation: u32,
    state: String,
    lag_events: Option<u64>,
    freshness_seconds: Option<f64>,
    parked_keys: u64,
    /// A query API of before does not tell.
    #[serde(default)]
    halted: Vec<HaltedPartition>,
}

#[derive(Deserialize)]
struct HaltedPartition {
    partition: String,
    why: String,
}

pub async fn run(args: StatusArgs) -> anyhow::Result<Exit> {
    let address = format!("{}/v1/status", args.url.as_str().trim_end_matches('/'));
    let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(10)).build()?;
    let answer = client.get(&address).send().await.with_context(|| {
        format!("{address} does not answer; is `millrace up` or `millrace serve` running there? (--url)")
    })?;
    let code = answer.status();
    ensure!(
        code.is_success(),
        "{address} answers {code}; only `millrace up` and `millrace serve` have a status (--url)"
    );
    let body: serde_json::Value = answer.json().await.with_context(|| format!("{address} gave no JSON"))?;
    if args.json {
        output::json(&body)?;
        return Ok(Exit::Done);
    }
    let status: Status = serde_json::from_value(body).with_context(|| format!("{address} gave no status"))?;
    let mut table = Table::new();
    table.set_header(["projection", "state", "lag (events)", "freshness (s)", "parked keys"]);
    let mut halted = Vec::new();
    for projection in status.projections {
        let unknown = || "-".to_owned();
        let name = format!("{}@{}", projection.name, projection.generation);
        let told = projection.halted.iter().map(|one| format!("{name}: {} halted: {}", one.partition, one.why));
        halted.extend(told);
        table.add_row([
            name,
            projection.state,
            projection.lag_events.map_or_else(unknown, |lag| lag.to_string()),
            projection.freshness_seconds.map_or_else(unknown, |seconds| format!("{seconds:.1}")),
            projection.parked_keys.to_string(),
        ]);
    }
    output::line(table.to_string())?;
    for told in halted {
        output::line(told)?;
    }
    output::line(format!("head {}", status.head))?;
    Ok(Exit::Done)
}
