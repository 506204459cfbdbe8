//! A small Millrace in this process: an event store, a log in a file, a stock store, and the audit that checks them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit::{AuditSettings, Auditor, Kind, Report};
use event_log::{EmbeddedRegistry, EventEnvelope, EventLog, NewRecord, SchemaRegistry, SqliteEventLog, TopicPartition};
use event_store::{
    AppendBatch, DecidedCommand, EventStore, NewEvent, PostgresEventStore, SqliteEventStore, StreamId, Topology,
};
use outbox_relay::{Relay, RelaySettings};
use projectors::{ProjectorSettings, StockProjection, run_projector};
use read_models::PartitionRef;
use read_models::stock::{SharedStock, StockKey, StockReadModel, connect_stock};
use schemas::event::{StockChange, StockUpdated};
use schemas::{Context, Event, Outcome, OutcomeKind, RegionId, Sku, WarehouseId, encode_event, partition_of};
use telemetry::Health;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longest time that anything in these tests may take.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const TOPOLOGY: Topology = Topology { partitions: 2 };

pub struct World {
    pub store: Arc<dyn EventStore>,
    pub log: Arc<dyn EventLog>,
    pub stock: SharedStock,
    /// Of the Postgres database, where there is one.
    pub postgres: Option<String>,
    registry: Arc<dyn SchemaRegistry>,
    folder: tempfile::TempDir,
}

/// A relay or a projector, until it is told to stop.
pub struct Running {
    shutdown: CancellationToken,
    /// Why it ended by itself.
    task: JoinHandle<Option<String>>,
    health: Health,
}

// === impl World ===

impl World {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteEventStore::open(folder.path().join("events.db")).unwrap();
        Self::on(Arc::new(store), None, folder).await
    }

    /// On a database of its own.
    pub async fn postgres() -> Self {
        let server = std::env::var("MILLRACE_TEST_POSTGRES").expect("MILLRACE_TEST_POSTGRES is set by make test");
        let name = format!("guards_{}", Uuid::new_v4().simple());
        connect_raw(&server).await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        let store = PostgresEventStore::connect(&url).await.unwrap();
        Self::on(Arc::new(store), Some(url), tempfile::tempdir().unwrap()).await
    }

    async fn on(store: Arc<dyn EventStore>, postgres: Option<String>, folder: tempfile::TempDir) -> Self {
        store.fix_topology(TOPOLOGY).await.unwrap();
        let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
        log.ensure_topics(&outbox_relay::topic_specs(TOPOLOGY)).await.unwrap();
        let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
        Self { store, log, stock, postgres, registry: Arc::new(EmbeddedRegistry::default()), folder }
    }

    /// A connection beside the store's.
    pub async fn raw(&self) -> tokio_postgres::Client {
        connect_raw(self.postgres.as_ref().unwrap()).await
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub fn relay(&self) -> Running {
        let store = Arc::clone(&self.store);
        let health = Health::default();
        let (settings, component) = (RelaySettings::default(), health.component("relay"));
        let relay = Relay::new(store, Arc::clone(&self.log), Arc::clone(&self.registry), TOPOLOGY, settings, component);
        Running::spawn(health, |shutdown| async move { relay.run(shutdown).await.err().map(|error| error.to_string()) })
    }

    pub fn projector(&self) -> Running {
        let settings = ProjectorSettings {
            group: "guards".to_owned(),
            partitions: TOPOLOGY.partitions,
            gap_patience: Duration::from_millis(200),
            ..ProjectorSettings::default()
        };
        let (stock, log, registry) = (Arc::clone(&self.stock), Arc::clone(&self.log), Arc::clone(&self.registry));
        let health = Health::default();
        let component = health.component("stock projector");
        Running::spawn(health, |shutdown| async move {
            let ran = run_projector::<StockProjection, dyn StockReadModel>(
                stock, log, registry, settings, component, shutdown,
            );
            ran.await.err().map(|error| error.to_string())
        })
    }

    pub async fn append(&self, commands: Vec<DecidedCommand>) {
        self.store.append(&AppendBatch { commands, ..AppendBatch::default() }).await.unwrap();
    }

    /// Records on the stock topic.
    pub async fn published(&self) -> u64 {
        let ends = self.log.ends(Context::Inventory.events_topic()).await.unwrap();
        ends.iter().map(|ends| ends.next - ends.first).sum()
    }

    pub async fn until_published(&self, records: u64) {
        until(async || self.published().await >= records).await;
    }

    /// Until the stock has all that is on the log.
    pub async fn until_folded(&self) {
        let published = self.published().await;
        until(async || {
            let status = self.stock.status().await;
            let applied =
                status.map(|status| status.partitions.iter().map(|at| at.checkpoint.next_offset).sum::<u64>());
            applied.is_ok_and(|applied| applied >= published)
        })
        .await;
    }

    /// Sequence of the checkpoint, all partitions together.
    pub async fn applied(&self) -> u64 {
        let status = self.stock.status().await;
        status.map(|status| status.partitions.iter().map(|at| at.checkpoint.sequence).sum()).unwrap_or(0)
    }

    /// Version of the stored row of a SKU.
    pub async fn version(&self, name: &str) -> Option<u64> {
        let partition = partition_of(name.as_bytes(), TOPOLOGY.partitions);
        let at = PartitionRef { context: Context::Inventory, partition };
        let key = StockKey { sku: sku(name), warehouse: WarehouseId::new("w-1").unwrap() };
        self.stock.load(at, &[key]).await.unwrap().rows.remove(0).map(|row| row.version)
    }

    /// Puts another log in the place of this one: all of the records of a SKU's partition but that of one sequence.
    pub async fn lose_on_the_log(&mut self, name: &str, sequence: u64) {
        let partition = partition_of(name.as_bytes(), TOPOLOGY.partitions);
        let at = TopicPartition::new(Context::Inventory.events_topic(), partition);
        let records = self.log.read(&at, 0, 1_000).await.unwrap();
        let kept = records
            .into_iter()
            .filter(|record| EventEnvelope::from_headers(&record.headers).unwrap().sequence != sequence);
        let kept = kept.map(|record| NewRecord {
            at: record.at,
            key: record.key.to_vec(),
            headers: record.headers,
            value: record.value.to_vec(),
            timestamp: record.timestamp,
        });
        let log = SqliteEventLog::open(self.folder.path().join("less.db")).unwrap();
        log.ensure_topics(&outbox_relay::topic_specs(TOPOLOGY)).await.unwrap();
        log.publish(kept.collect()).await.unwrap();
        self.log = Arc::new(log);
    }

    /// Relays and folds everything, with whatever guards are off, and stops.
    pub async fn relay_and_fold(&self, records: u64) {
        let relay = self.relay();
        self.until_published(records).await;
        relay.stop().await;
        let projector = self.projector();
        self.until_folded().await;
        projector.stop().await;
    }

    /// The checker: what the audit of the product says.
    pub async fn audit(&self) -> Report {
        let (store, log, registry) = (Arc::clone(&self.store), Arc::clone(&self.log), Arc::clone(&self.registry));
        let stock = Some(Arc::clone(&self.stock));
        let mut auditor = Auditor::new(store, log, registry, stock, None, AuditSettings::default());
        auditor.audit_once().await.unwrap()
    }

    pub async fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.audit().await.counts.iter().map(|found| found.kind).collect();
        kinds.dedup();
        kinds
    }
}

// === impl Running ===

impl Running {
    fn spawn<F: Future<Output = Option<String>> + Send + 'static>(
        health: Health,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(work(shutdown.clone()));
        Self { shutdown, task, health }
    }

    /// Ends it; says why, if it had halted before.
    pub async fn stop(self) -> Option<String> {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap()
    }

    /// Until the topic has that many records, or it halted.
    pub async fn until_published_or_halted(self, world: &World, records: u64) -> Option<String> {
        let halted = async || {
            let found = self.health.report().components.into_values().find(|state| state.contains("version"));
            found.filter(|state| state != "ready")
        };
        until(async || halted().await.is_some() || world.published().await >= records).await;
        let why = halted().await;
        self.stop().await.or(why)
    }
}

pub async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < DEADLINE, "it does not come to pass");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn connect_raw(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub fn sku(name: &str) -> Sku {
    Sku::new(name).unwrap()
}

pub fn stream(sku: &str) -> StreamId {
    StreamId::from_stored(format!("stock-{sku}@w-1"))
}

pub fn updated(name: &str, on_hand: i64) -> StockUpdated {
    StockUpdated {
        sku: sku(name),
        warehouse: WarehouseId::new("w-1").unwrap(),
        region: RegionId::new("north").unwrap(),
        change: StockChange::Counted,
        quantity: on_hand,
        on_hand,
        reserved: 0,
        reservation_id: None,
        expires_at: None,
        reason: None,
    }
}

/// A decided command that leaves `on_hand` units, on a stream that is at `expected_version`.
pub fn counted(name: &str, expected_version: u64, on_hand: i64) -> DecidedCommand {
    decided(name, expected_version, Event::StockUpdated(updated(name, on_hand)))
}

pub fn decided(name: &str, expected_version: u64, event: Event) -> DecidedCommand {
    let encoded = encode_event(&event).unwrap();
    let id = Uuid::new_v4();
    DecidedCommand {
        id,
        digest: [0; 32],
        received_at: 0,
        stream: stream(name),
        expected_version,
        outcome: Outcome {
            id,
            outcome: OutcomeKind::Accepted,
            position: None,
            stream: Some(stream(name).to_string()),
            version: Some(expected_version + 1),
            reason: None,
        },
        events: vec![NewEvent {
            id: Uuid::new_v4(),
            context: Context::Inventory,
            key: name.to_owned(),
            schema: encoded.schema,
            body: encoded.body,
            time: 0,
            correlation_id: None,
            causation_id: None,
            actor: None,
            traceparent: None,
        }],
        claims: Vec::new(),
        timers: Vec::new(),
        snapshot: None,
        publish_outcome_on: None,
        outcome_key: name.to_owned(),
        command_type: None,
    }
}
