//! The relay between a real event store and a real log, both in files: nothing is lost, nothing changes its sequence.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use event_log::{EmbeddedRegistry, EventEnvelope, EventLog, Record, Signal, SqliteEventLog};
use event_store::{
    AppendBatch, Appended, DecidedCommand, EventStore, EventStoreError, LoadRequest, Loaded, NewEvent, RelayCursor,
    RelayLease, SqliteEventStore, StoredEvent, StoredOutcome, StreamId, Timer, Topology,
};
use outbox_relay::{Relay, RelaySettings};
use schemas::event::PriceSet;
use schemas::{Context, Event, Outcome, OutcomeKind, RegionId, Sku, StorePosition, encode_event};
use telemetry::Health;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const TOPOLOGY: Topology = Topology { partitions: 4 };
const DEADLINE: Duration = Duration::from_secs(20);

async fn open_store(path: &Path) -> Arc<dyn EventStore> {
    let store = SqliteEventStore::open(path).unwrap();
    store.fix_topology(TOPOLOGY).await.unwrap();
    Arc::new(store)
}

/// Version `version` of the price of SKU `number`.
fn command(number: u32, version: u64) -> DecidedCommand {
    let sku = Sku::new(format!("SKU-{number}")).unwrap();
    let region = RegionId::new("north").unwrap();
    let amount_minor = version as i64;
    let event = Event::PriceSet(PriceSet { sku: sku.clone(), region, currency: "EUR".to_owned(), amount_minor });
    let encoded = encode_event(&event).unwrap();
    let id = Uuid::from_u128((u128::from(number) << 64) | u128::from(version));
    DecidedCommand {
        id,
        digest: [0; 32],
        received_at: 0,
        stream: StreamId::from_stored(format!("price-{sku}@north")),
        expected_version: version - 1,
        outcome: Outcome {
            id,
            outcome: OutcomeKind::Accepted,
            position: None,
            stream: None,
            version: None,
            reason: None,
        },
        events: vec![NewEvent {
            id,
            context: Context::Pricing,
            key: sku.to_string(),
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
        outcome_key: sku.to_string(),
        command_type: None,
    }
}

async fn append(store: &dyn EventStore, versions: std::ops::RangeInclusive<u64>) {
    for version in versions {
        let commands = (0..20).map(|number| command(number, version)).collect();
        store.append(&AppendBatch { commands, ..AppendBatch::default() }).await.unwrap();
    }
}

fn start(
    store: Arc<dyn EventStore>,
    log: &Arc<dyn EventLog>,
    batch: usize,
) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let settings = RelaySettings { batch, ..RelaySettings::default() };
    let health = Health::default().component("relay");
    let registry = Arc::new(EmbeddedRegistry::default());
    let relay = Relay::new(store, log.clone(), registry, TOPOLOGY, settings, health);
    let stopped = shutdown.clone();
    (shutdown, tokio::spawn(async move { relay.run(stopped).await.unwrap() }))
}

/// Reads the price topic until it has `count` records.
async fn records(log: &dyn EventLog, count: usize) -> Vec<Record> {
    let begun = Instant::now();
    loop {
        let there = log.ends("pricing.events").await.map(|ends| ends.iter().map(|end| end.next).sum::<u64>());
        if there.is_ok_and(|there| there >= count as u64) {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "the relay publishes no {count} records");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut subscription = log.subscribe("test", &["pricing.events"]).await.unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        match tokio::time::timeout(DEADLINE, subscription.next()).await.unwrap().unwrap() {
            Signal::Assigned(partitions) => {
                for at in partitions {
                    subscription.start(&at, 0).await.unwrap();
                }
            }
            Signal::Records(records) => found.extend(records),
            Signal::Revoked(_) => {}
        }
    }
    found
}

/// Event id to (partition, sequence); twins must agree. Sequences of a partition are 1, 2, 3 … without a gap.
fn sequences(records: &[Record]) -> HashMap<Uuid, (u32, u64)> {
    let mut found = HashMap::new();
    for record in records {
        let envelope = EventEnvelope::from_headers(&record.headers).unwrap();
        let place = (record.at.partition, envelope.sequence);
        assert_eq!(*found.entry(envelope.id).or_insert(place), place, "twins of {} differ", envelope.id);
    }
    let mut by_partition: HashMap<u32, Vec<u64>> = HashMap::new();
    for (partition, sequence) in found.values() {
        by_partition.entry(*partition).or_default().push(*sequence);
    }
    for sequences in by_partition.values_mut() {
        sequences.sort_unstable();
        assert!(sequences.iter().copied().eq(1..=sequences.len() as u64), "{sequences:?}");
    }
    found
}

/// A store whose lag cannot be measured: the first time it fails, after that it never comes to an end.
struct LagUnknown {
    store: Arc<dyn EventStore>,
    asked: AtomicUsize,
}

#[async_trait]
impl EventStore for LagUnknown {
    async fn relay_lag(&self, _now: i64) -> Result<(u64, Option<i64>), EventStoreError> {
        if self.asked.fetch_add(1, Ordering::SeqCst) > 0 {
            std::future::pending::<()>().await;
        }
        Err(EventStoreError::Unavailable { address: "test".to_owned(), problem: "the count takes too long".to_owned() })
    }

    async fn lease_relay(&self) -> Result<RelayLease, EventStoreError> {
        self.store.lease_relay().await
    }

    async fn read_committed(&self, after: StorePosition, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        self.store.read_committed(after, limit).await
    }

    async fn save_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        self.store.save_cursor(epoch, cursor).await
    }

    async fn wait_for_appends(&self, timeout: Duration) {
        self.store.wait_for_appends(timeout).await;
    }

    async fn topology(&self) -> Result<Option<Topology>, EventStoreError> {
        self.store.topology().await
    }

    async fn fix_topology(&self, asked: Topology) -> Result<Topology, EventStoreError> {
        self.store.fix_topology(asked).await
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, EventStoreError> {
        self.store.load(request).await
    }

    async fn append(&self, batch: &AppendBatch) -> Result<Appended, EventStoreError> {
        self.store.append(batch).await
    }

    async fn command_offsets(&self, topic: &str) -> Result<HashMap<u32, u64>, EventStoreError> {
        self.store.command_offsets(topic).await
    }

    async fn due_timers(&self, now: i64, limit: usize) -> Result<Vec<Timer>, EventStoreError> {
        self.store.due_timers(now, limit).await
    }

    async fn outcome(&self, id: Uuid) -> Result<Option<StoredOutcome>, EventStoreError> {
        self.store.outcome(id).await
    }

    async fn forget_outcomes(&self, before: i64, limit: usize) -> Result<u64, EventStoreError> {
        self.store.forget_outcomes(before, limit).await
    }

    async fn read_stream(&self, of: &StreamId, from: u64, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        self.store.read_stream(of, from, limit).await
    }

    async fn ping(&self) -> Result<(), EventStoreError> {
        self.store.ping().await
    }
}

#[tokio::test]
async fn events_go_out_while_the_lag_cannot_be_measured() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder.path().join("events.db")).await;
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    append(store.as_ref(), 1..=2).await;
    let unknown = Arc::new(LagUnknown { store, asked: AtomicUsize::new(0) });
    let (shutdown, relay) = start(unknown.clone(), &log, 7);
    assert_eq!(records(log.as_ref(), 40).await.len(), 40);
    assert!(unknown.asked.load(Ordering::SeqCst) > 0);
    shutdown.cancel();
    relay.await.unwrap();
}

#[tokio::test]
async fn every_event_goes_out_once_in_order_while_commands_come_in() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder.path().join("events.db")).await;
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    append(store.as_ref(), 1..=3).await;
    let (shutdown, relay) = start(store.clone(), &log, 7);
    append(store.as_ref(), 4..=10).await;
    let found = records(log.as_ref(), 200).await;
    shutdown.cancel();
    relay.await.unwrap();
    assert_eq!(found.len(), 200);
    assert_eq!(sequences(&found).len(), 200);
    // Versions of a stream follow each other within its partition.
    let mut versions: HashMap<String, u64> = HashMap::new();
    for record in &found {
        let envelope = EventEnvelope::from_headers(&record.headers).unwrap();
        let last = versions.entry(envelope.subject).or_default();
        assert_eq!(envelope.stream_version, *last + 1);
        *last = envelope.stream_version;
    }
    assert_eq!(store.relay_lag(0).await.unwrap().0, 0);
}

#[tokio::test]
async fn a_relay_that_died_before_it_saved_its_cursor_publishes_twins_of_the_same_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let (path, earlier) = (folder.path().join("events.db"), folder.path().join("earlier.db"));
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    {
        let store = open_store(&path).await;
        append(store.as_ref(), 1..=5).await;
    }
    // The store as it was before the cursor was saved: that is what the next relay finds after a crash.
    std::fs::copy(&path, &earlier).unwrap();
    for (path, wanted) in [(&path, 100), (&earlier, 200)] {
        let (shutdown, relay) = start(open_store(path).await, &log, 33);
        let found = records(log.as_ref(), wanted).await;
        shutdown.cancel();
        relay.await.unwrap();
        assert_eq!(sequences(&found).len(), 100);
    }
}

#[tokio::test]
async fn a_second_relay_waits_and_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    let first_store = open_store(&path).await;
    let (stop_first, first) = start(first_store.clone(), &log, 10);
    append(first_store.as_ref(), 1..=1).await;
    records(log.as_ref(), 20).await;
    let second_store = open_store(&path).await;
    let (stop_second, second) = start(second_store.clone(), &log, 10);
    append(first_store.as_ref(), 2..=2).await;
    records(log.as_ref(), 40).await;
    stop_first.cancel();
    first.await.unwrap();
    drop(first_store);
    append(second_store.as_ref(), 3..=3).await;
    let found = records(log.as_ref(), 60).await;
    stop_second.cancel();
    second.await.unwrap();
    assert_eq!((found.len(), sequences(&found).len()), (60, 60));
}
