//! From an acknowledged command to an answer that shows it.
//!
//! Commands are given one per request at a steady rate, on a schedule that does not wait for slow answers. A sample of
//! them is read back at once with `Millrace-Min-Position`; the read returns when the view shows the write, so its
//! time is the visibility. The read's own round trip is part of the figure, as it is for a user.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::ingest::println_result;
use crate::on_loopback;

#[derive(clap::Args)]
pub struct Args {
    /// Query API
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Command API, where it is another process
    #[arg(long)]
    commands: Option<String>,
    /// Commands a second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// How long, at most 600 seconds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// SKUs that are written to
    #[arg(long, default_value_t = 2000)]
    skus: u32,
    /// One command of so many is read back
    #[arg(long, default_value_t = 20)]
    sample: u64,
}

struct Figures {
    acknowledged: Histogram<u64>,
    stock: Histogram<u64>,
    search: Histogram<u64>,
    failed: u64,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.seconds <= 600 && args.rate <= 50_000, "at most 600 seconds and 50,000 commands a second");
    let url = on_loopback(&args.url)?;
    let commands = on_loopback(args.commands.as_deref().unwrap_or(&args.url))?;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).pool_max_idle_per_host(256).build()?;
    register(&client, &commands, args.skus).await?;

    let histogram = || Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).context("histogram");
    let figures = Arc::new(Mutex::new(Figures {
        acknowledged: histogram()?,
        stock: histogram()?,
        search: histogram()?,
        failed: 0,
    }));
    let mut under_way = JoinSet::new();
    let total = u64::from(args.rate) * args.seconds;
    let started = Instant::now();
    for number in 0..total {
        let due = started + Duration::from_secs_f64(number as f64 / f64::from(args.rate));
        tokio::time::sleep_until(due.into()).await;
        let (client, url, commands, figures) = (client.clone(), url.clone(), commands.clone(), Arc::clone(&figures));
        let sku = format!("BENCH-{}", number % u64::from(args.skus));
        let is_sample = (number / 2) % (args.sample / 2).max(1) == 0 && args.sample > 0;
        under_way.spawn(async move {
            if let Err(error) = one(&client, &url, &commands, &sku, number, is_sample, &figures).await {
                let mut figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
                figures.failed += 1;
                if figures.failed == 1 {
                    eprintln!("first failure: {error:#}");
                }
            }
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
    let seconds = started.elapsed().as_secs_f64();
    let figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
    println_result(&serde_json::json!({
        "bench": "visibility",
        "commands": total,
        "commands_per_second": total as f64 / seconds,
        "failed": figures.failed,
        "acknowledged_ms": quantiles(&figures.acknowledged),
        "visible_in_stock_ms": quantiles(&figures.stock),
        "visible_in_search_ms": quantiles(&figures.search),
    }));
    Ok(())
}

/// One command; a sample of them is read back, in turn from stock and from search.
async fn one(
    client: &reqwest::Client,
    url: &str,
    commands: &str,
    sku: &str,
    number: u64,
    is_sample: bool,
    figures: &Mutex<Figures>,
) -> anyhow::Result<()> {
    let reads_search = is_sample && number % 2 == 1;
    let command = if reads_search || number % 10 == 9 {
        let name = format!("Bench {sku} number {number}");
        serde_json::json!({"id": Uuid::new_v4(), "type": "ReviseProduct", "data": {"sku": sku, "name": name}})
    } else {
        let data = serde_json::json!({"sku": sku, "warehouse": "bench-1", "region": "bench", "quantity": 1});
        serde_json::json!({"id": Uuid::new_v4(), "type": "ReceiveStock", "data": data})
    };
    let given = Instant::now();
    let answer = client.post(format!("{commands}/v1/commands")).json(&command).send().await?;
    let status = answer.status();
    let outcome: serde_json::Value = answer.json().await?;
    ensure!(status.is_success(), "{status}: {outcome}");
    let acknowledged = Instant::now();
    record(figures, |figures| &mut figures.acknowledged, given.elapsed());
    if !is_sample {
        return Ok(());
    }
    let Some(position) = outcome["position"].as_str() else { bail!("no position in {outcome}") };
    let address =
        if reads_search { format!("{url}/v1/search?q={sku}&limit=1") } else { format!("{url}/v1/stock/{sku}") };
    loop {
        let answer = client.get(&address).header("Millrace-Min-Position", position).send().await?;
        let status = answer.status();
        answer.bytes().await?;
        if status.is_success() {
            break;
        }
        ensure!(status == reqwest::StatusCode::SERVICE_UNAVAILABLE, "{address}: {status}");
    }
    let histogram: fn(&mut Figures) -> &mut Histogram<u64> =
        if reads_search { |figures| &mut figures.search } else { |figures| &mut figures.stock };
    record(figures, histogram, acknowledged.elapsed());
    Ok(())
}

fn record(figures: &Mutex<Figures>, of: impl Fn(&mut Figures) -> &mut Histogram<u64>, took: Duration) {
    let mut figures = figures.lock().unwrap_or_else(PoisonError::into_inner);
    // Past the highest bound a value counts as that bound.
    of(&mut figures).saturating_record(took.as_micros() as u64);
}

fn quantiles(histogram: &Histogram<u64>) -> serde_json::Value {
    let milliseconds = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    serde_json::json!({
        "count": histogram.len(),
        "p50": milliseconds(0.5),
        "p99": milliseconds(0.99),
        "max": histogram.max() as f64 / 1000.0,
    })
}

/// The products that are then revised; registering them again changes nothing.
async fn register(client: &reqwest::Client, url: &str, skus: u32) -> anyhow::Result<()> {
    let lines: Vec<String> = (0..skus)
        .map(|number| {
            let sku = format!("BENCH-{number}");
            let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, sku.as_bytes());
            let data = serde_json::json!({"sku": sku, "name": format!("Bench product {number}")});
            serde_json::json!({"id": id, "type": "RegisterProduct", "data": data}).to_string()
        })
        .collect();
    let answer = client
        .post(format!("{url}/v1/commands"))
        .header("content-type", "application/x-ndjson")
        .body(lines.join("\n"))
        .send()
        .await
        .with_context(|| format!("{url} does not answer; start `millrace up` first"))?;
    let outcomes = answer.error_for_status()?.text().await?;
    ensure!(!outcomes.contains("\"failed\""), "products could not be registered");
    Ok(())
}
