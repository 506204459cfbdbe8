//! A worker that panics: its partition halts and says why, and goes on by itself; the others do not notice.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use event_log::frame::frame;
use event_log::{
    EmbeddedRegistry, EventEnvelope, EventLog, EventLogError, NewRecord, SchemaRegistry, SqliteEventLog,
    TopicPartition, TopicSpec,
};
use projectors::{ProjectorSettings, StockProjection, run_projector};
use read_models::stock::{SharedStock, StockReadModel, connect_stock};
use schemas::contract::{Contract, embedded_id};
use schemas::event::{StockChange, StockUpdated};
use schemas::{
    Context, Event, RegionId, SchemaRef, Sku, StorePosition, WarehouseId, WriterSchema, encode_event, partition_of,
};
use telemetry::Health;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PARTITIONS: u32 = 2;
/// A worker that panicked rests for 15 s.
const DEADLINE: Duration = Duration::from_secs(60);
/// A schema id that the registry stumbles over.
const CURSED: u32 = 4_711;

/// The embedded registry with a mistake.
#[derive(Default)]
struct Stumbling {
    registry: EmbeddedRegistry,
    is_mended: AtomicBool,
}

#[async_trait]
impl SchemaRegistry for Stumbling {
    async fn id_of(&self, topic: &str, schema: SchemaRef) -> Result<u32, EventLogError> {
        self.registry.id_of(topic, schema).await
    }

    async fn schema(&self, id: u32) -> Result<Arc<WriterSchema>, EventLogError> {
        if id != CURSED {
            return self.registry.schema(id).await;
        }
        assert!(self.is_mended.load(Ordering::SeqCst), "cursed");
        let (_, schema) = stock_of(1, 1);
        self.registry.schema(schema).await
    }

    async fn register(&self, topic: &str, contract: &Contract) -> Result<u32, EventLogError> {
        self.registry.register(topic, contract).await
    }

    async fn check(&self, topic: &str, contract: &Contract) -> Result<Result<(), String>, EventLogError> {
        self.registry.check(topic, contract).await
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.registry.ping().await
    }
}

fn sku_of(partition: u32) -> String {
    (0..)
        .map(|number| format!("SKU-{number}"))
        .find(|sku| partition_of(sku.as_bytes(), PARTITIONS) == partition)
        .unwrap()
}

/// The body of a count, and the id of its schema.
fn stock_of(partition: u32, on_hand: i64) -> (Vec<u8>, u32) {
    let event = Event::StockUpdated(StockUpdated {
        sku: Sku::new(sku_of(partition)).unwrap(),
        warehouse: WarehouseId::new("w").unwrap(),
        region: RegionId::new("eu").unwrap(),
        change: StockChange::Counted,
        quantity: on_hand,
        on_hand,
        reserved: 0,
        reservation_id: None,
        expires_at: None,
        reason: None,
    });
    let encoded = encode_event(&event).unwrap();
    (encoded.body.to_vec(), embedded_id(encoded.schema))
}

/// The `sequence`th event of a partition, whose stock is then `sequence`.
fn record(partition: u32, sequence: u64, schema: Option<u32>) -> NewRecord {
    let (body, its_own) = stock_of(partition, sequence as i64);
    let key = sku_of(partition);
    let envelope = EventEnvelope {
        id: Uuid::from_u128(u128::from(partition) << 64 | u128::from(sequence)),
        source: "/millrace/inventory".to_owned(),
        event_type: "StockUpdated".to_owned(),
        time: 1_700_000_000_000,
        subject: format!("stock-{key}@w"),
        partition_key: key.clone(),
        sequence,
        stream_version: sequence,
        position: StorePosition { xid: 0, position: sequence },
        correlation_id: None,
        causation_id: None,
        traceparent: None,
    };
    NewRecord {
        at: TopicPartition::new(Context::Inventory.events_topic(), partition),
        key: key.into_bytes(),
        headers: envelope.to_headers(),
        value: frame(schema.unwrap_or(its_own), &body),
        timestamp: 0,
    }
}

async fn until_applied(stock: &SharedStock, sequences: [u64; 2], health: &Health) {
    let begun = Instant::now();
    loop {
        // Before anything is prepared there is none.
        let partitions = stock.status().await.map_or_else(|_| Vec::new(), |status| status.partitions);
        let found: Vec<u64> = partitions.iter().map(|partition| partition.checkpoint.sequence).collect();
        if found == sequences {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "{found:?}, not {sequences:?}: {:?}", health.report());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until_told(health: &Health, told: &str) {
    let begun = Instant::now();
    while health.report().components["stock"] != told {
        assert!(begun.elapsed() < DEADLINE, "{:?}", health.report());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_panics_halts_its_partition_and_tries_again() {
    let folder = tempfile::tempdir().unwrap();
    let log = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
    let topic = TopicSpec { name: Context::Inventory.events_topic().to_owned(), partitions: PARTITIONS };
    log.ensure_topics(&[topic]).await.unwrap();
    let records = vec![record(0, 1, None), record(0, 2, Some(CURSED)), record(1, 1, None)];
    log.publish(records).await.unwrap();
    let log: Arc<dyn EventLog> = Arc::new(log);
    let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
    let registry = Arc::new(Stumbling::default());
    let (health, shutdown) = (Health::default(), CancellationToken::new());
    // One event at a time, so that the first of the partition is written before the second breaks the worker.
    let settings = ProjectorSettings {
        group: "test".to_owned(),
        partitions: PARTITIONS,
        batch: 1,
        ..ProjectorSettings::default()
    };
    let projector = tokio::spawn(run_projector::<StockProjection, dyn StockReadModel>(
        stock.clone(),
        log.clone(),
        registry.clone(),
        settings,
        health.component("stock"),
        shutdown.clone(),
    ));

    until_applied(&stock, [1, 1], &health).await;
    log.publish(vec![record(1, 2, None)]).await.unwrap();
    until_applied(&stock, [1, 2], &health).await;
    until_told(&health, "inventory.events/0 halted: work broke off: cursed").await;

    registry.is_mended.store(true, Ordering::SeqCst);
    until_applied(&stock, [2, 2], &health).await;
    until_told(&health, "ready").await;
    shutdown.cancel();
    projector.await.unwrap().unwrap();
}
