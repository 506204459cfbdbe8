//! How fast a read model is rebuilt: a log of generated events, folded by the engine into an empty generation.
//!
//! Beside it stands what the same log costs to read and decode alone, in the same run: the machine's load is in both.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use event_log::{
    EmbeddedRegistry, EventDecoder, EventEnvelope, EventLog, NewRecord, SchemaRegistry, Signal, TopicPartition,
    TopicSpec, connect_event_log, frame::frame,
};
use projectors::{ProjectorSettings, Role, StockProjection, run_projector};
use read_models::stock::{SharedStock, StockReadModel, connect_stock};
use schemas::contract::embedded_id;
use schemas::event::{StockChange, StockUpdated};
use schemas::{Context, Event, RegionId, Sku, StorePosition, WarehouseId, encode_event, partition_of};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[derive(clap::Args)]
pub struct Args {
    /// Events of the log
    #[arg(long, default_value_t = 2_000_000)]
    events: u64,
    /// SKUs that they are of, each in two warehouses
    #[arg(long, default_value_t = 50_000)]
    skus: u64,
    #[arg(long, default_value_t = 4)]
    partitions: u32,
    /// Where the log and the stock store are made; a log that is there with as many events is used again
    #[arg(long, default_value = "target/rebuild")]
    dir: PathBuf,
    /// Event log; a SQLite file in the directory by default. A Kafka cluster must have no topic of ours
    #[arg(long)]
    event_log: Option<String>,
    /// Stock store, empty: it is filled as generation 1; a SQLite file in the directory by default
    #[arg(long)]
    stock_store: Option<String>,
    /// Most events in one write, in place of what a shadow generation has
    #[arg(long)]
    batch: Option<usize>,
    /// Do without the measurement of reading and decoding alone
    #[arg(long)]
    rebuild_only: bool,
}

/// Records published with one call while the log is filled.
const FILL: u64 = 20_000;
/// Decoded batches under way at once when nothing else is done.
const DECODING: usize = 8;
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(600);

pub async fn run(args: Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.dir)?;
    let in_dir = |name: &str| format!("sqlite:{}", args.dir.join(name).display());
    let log_url = args.event_log.clone().unwrap_or_else(|| in_dir("log.db"));
    let stock_url = args.stock_store.clone().unwrap_or_else(|| in_dir("stock.db"));
    let log = connect_event_log(&log_url).await?;
    let topic = TopicSpec { name: Context::Inventory.events_topic().to_owned(), partitions: args.partitions };
    log.ensure_topics(&[topic]).await?;
    fill(log.as_ref(), &args).await?;
    let registry: Arc<dyn SchemaRegistry> = Arc::new(EmbeddedRegistry::default());
    let alone = if args.rebuild_only { None } else { Some(decode_alone(&log, &registry, &args).await?) };

    let stock = connect_stock(&stock_url).await?;
    let begun = Instant::now();
    rebuild(&stock, &log, &registry, &args).await?;
    let took = begun.elapsed().as_secs_f64();
    let rate = args.events as f64 / took;
    eprintln!("rebuilt {} events in {took:.2} s: {rate:.0} events/s", args.events);
    if let Some(alone) = alone {
        eprintln!("read and decoded alone: {alone:.0} events/s; the rebuild runs at {:.2} of that", rate / alone);
    }
    Ok(())
}

async fn fill(log: &dyn EventLog, args: &Args) -> anyhow::Result<()> {
    let there: u64 = log.ends(Context::Inventory.events_topic()).await?.iter().map(|ends| ends.next).sum();
    if there == args.events {
        return Ok(());
    }
    if there > 0 {
        bail!("the log has {there} events, not {}: give another --dir, or an empty cluster", args.events);
    }
    let begun = Instant::now();
    let mut sequences = vec![0u64; args.partitions as usize];
    let mut records = Vec::new();
    for number in 0..args.events {
        let sku = format!("SKU-{:07}", number.wrapping_mul(2_654_435_761) % args.skus);
        let warehouse = format!("ams-{}", (number / args.skus) % 2);
        let version = 1 + number / (2 * args.skus);
        let partition = partition_of(sku.as_bytes(), args.partitions);
        let sequence = sequences.get_mut(partition as usize).context("a partition")?;
        *sequence += 1;
        records.push(record(number + 1, &sku, &warehouse, version, *sequence, partition)?);
        if records.len() as u64 == FILL {
            log.publish(std::mem::take(&mut records)).await?;
        }
    }
    log.publish(records).await?;
    eprintln!("log filled with {} events in {:.1} s", args.events, begun.elapsed().as_secs_f64());
    Ok(())
}

fn record(
    number: u64,
    sku: &str,
    warehouse: &str,
    version: u64,
    sequence: u64,
    partition: u32,
) -> anyhow::Result<NewRecord> {
    let event = Event::StockUpdated(StockUpdated {
        sku: Sku::new(sku)?,
        warehouse: WarehouseId::new(warehouse)?,
        region: RegionId::new("eu")?,
        change: StockChange::Counted,
        quantity: number as i64 % 1_000,
        on_hand: number as i64 % 1_000,
        reserved: 0,
        reservation_id: None,
        expires_at: None,
        reason: None,
    });
    let encoded = encode_event(&event)?;
    let time = 1_700_000_000_000 + number as i64;
    let envelope = EventEnvelope {
        id: Uuid::from_u128(number.into()),
        source: "/millrace/inventory".to_owned(),
        event_type: encoded.schema.name.to_owned(),
        time,
        subject: format!("stock-{sku}@{warehouse}"),
        partition_key: sku.to_owned(),
        sequence,
        stream_version: version,
        position: StorePosition { xid: number / 100, position: number },
        correlation_id: Some(Uuid::from_u128(number.into()).to_string()),
        causation_id: Some(Uuid::from_u128(number.into()).to_string()),
        traceparent: None,
    };
    Ok(NewRecord {
        at: TopicPartition::new(Context::Inventory.events_topic(), partition),
        key: sku.as_bytes().to_vec(),
        headers: envelope.to_headers(),
        value: frame(embedded_id(encoded.schema), &encoded.body),
        timestamp: time,
    })
}

/// Events per second of a reader that decodes, on all cores, and does nothing with what it has.
async fn decode_alone(log: &Arc<dyn EventLog>, registry: &Arc<dyn SchemaRegistry>, args: &Args) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let decoder = Arc::new(EventDecoder::new(Arc::clone(registry)));
    let group = format!("millrace-bench-{}", Uuid::new_v4());
    let mut subscription = log.subscribe(&group, &[Context::Inventory.events_topic()]).await?;
    let places = Arc::new(Semaphore::new(DECODING));
    let mut decoding = JoinSet::new();
    let mut read = 0;
    while read < args.events {
        match subscription.next().await? {
            Signal::Assigned(partitions) => {
                for at in partitions {
                    subscription.start(&at, 0).await?;
                }
            }
            Signal::Revoked(_) => {}
            Signal::Records(records) => {
                read += records.len() as u64;
                let place = Arc::clone(&places).acquire_owned().await?;
                let decoder = Arc::clone(&decoder);
                decoding.spawn(async move {
                    for record in &records {
                        decoder.decode(record).await?;
                    }
                    drop(place);
                    Ok::<_, anyhow::Error>(())
                });
            }
        }
        while let Some(decoded) = decoding.try_join_next() {
            decoded??;
        }
    }
    while let Some(decoded) = decoding.join_next().await {
        decoded??;
    }
    let rate = args.events as f64 / begun.elapsed().as_secs_f64();
    subscription.close().await;
    Ok(rate)
}

/// Returns once everything is applied and read from.
async fn rebuild(
    stock: &SharedStock,
    log: &Arc<dyn EventLog>,
    registry: &Arc<dyn SchemaRegistry>,
    args: &Args,
) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut settings = ProjectorSettings {
        group: format!("millrace-bench-{}", Uuid::new_v4()),
        partitions: args.partitions,
        // What a replay builds is fed as a shadow.
        role: watch::channel(Role::Shadow).1,
        ..ProjectorSettings::default()
    };
    if let Some(batch) = args.batch {
        settings.shadow_batch = batch;
    }
    let running = tokio::spawn(run_projector::<StockProjection, dyn StockReadModel>(
        Arc::clone(stock),
        Arc::clone(log),
        Arc::clone(registry),
        settings,
        telemetry::Health::default().component("rebuild"),
        shutdown.clone(),
    ));
    let begun = Instant::now();
    loop {
        if let Ok(status) = stock.status().await {
            let applied: u64 = status.partitions.iter().map(|partition| partition.checkpoint.sequence).sum();
            if applied == args.events && status.is_live() {
                break;
            }
        }
        if begun.elapsed() > PATIENCE || running.is_finished() {
            bail!("the rebuild did not come to its end");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    shutdown.cancel();
    running.await??;
    Ok(())
}
