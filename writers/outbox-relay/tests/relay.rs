//! The relay between a real event store and a real log, both in files: nothing is lost, nothing changes its sequence.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use event_log::{EventEnvelope, EventLog, HttpRegistry, SqliteEventLog, TopicSpec};
use event_store::{
    AppendBatch, Appended, EventStore, EventStoreError, LoadRequest, Loaded, RelayCursor, RelayLease, RestoredRows,
    StoredEvent, StoredOffset, StoredOutcome, StreamId, Timer, Topology,
};
use outbox_relay::{Relay, RelaySettings, topic_specs};
use schemas::StorePosition;
use schemas::contract::{CONTRACTS, ContractKind};
use telemetry::Health;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use fixture::{DEADLINE, TOPOLOGY, append, open_store, records, sequences, start};

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

    async fn release_relay(&self) -> Result<(), EventStoreError> {
        self.store.release_relay().await
    }

    async fn reset_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        self.store.reset_cursor(epoch, cursor).await
    }

    async fn restore(&self, rows: &RestoredRows) -> Result<(), EventStoreError> {
        self.store.restore(rows).await
    }

    async fn read_committed(&self, after: StorePosition, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        self.store.read_committed(after, limit).await
    }

    async fn relay_cursor(&self) -> Result<RelayCursor, EventStoreError> {
        self.store.relay_cursor().await
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

    async fn command_offsets(&self, topic: &str) -> Result<HashMap<u32, StoredOffset>, EventStoreError> {
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

/// A registry that answers everything, until it is gone; tells how many subjects it was asked for.
async fn answering_registry(asked: watch::Sender<HashSet<String>>) -> (HttpRegistry, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let mut connection = BufReader::new(connection);
            let (mut line, mut length) = (String::new(), 0);
            connection.read_line(&mut line).await.unwrap();
            let subject = line.split(' ').nth(1).unwrap().to_owned();
            while line != "\r\n" {
                line.clear();
                connection.read_line(&mut line).await.unwrap();
                if let Some(told) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                    length = told.trim().parse().unwrap();
                }
            }
            connection.read_exact(&mut vec![0; length]).await.unwrap();
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\nconnection: close\r\n\r\n{\"id\":7}";
            connection.write_all(answer.as_bytes()).await.unwrap();
            asked.send_modify(|asked| asked.extend([subject]));
        }
    });
    (HttpRegistry::new(&url, None).unwrap(), answering)
}

/// Fault 13: ids are known before the first event that needs them.
#[tokio::test]
async fn a_registry_that_goes_away_stops_no_kind_of_event() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder.path().join("events.db")).await;
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    let (told, mut asked) = watch::channel(HashSet::new());
    let (registry, answering) = answering_registry(told).await;
    let published = CONTRACTS.iter().filter(|contract| contract.kind != ContractKind::Command);
    let subjects: HashSet<String> =
        published.flat_map(|contract| contract.topics().into_iter().map(|topic| contract.subject(topic))).collect();
    let shutdown = CancellationToken::new();
    let health = Health::default().component("relay");
    let relay = Relay::new(store.clone(), log.clone(), Arc::new(registry), TOPOLOGY, RelaySettings::default(), health);
    let running = tokio::spawn(relay.run(shutdown.clone()));
    let all = asked.wait_for(|asked| asked.len() >= subjects.len());
    drop(tokio::time::timeout(DEADLINE, all).await.expect("every kind is asked for").unwrap());

    answering.abort();
    assert!(answering.await.unwrap_err().is_cancelled());
    append(store.as_ref(), 1..=1).await;
    assert_eq!(records(log.as_ref(), 20).await.len(), 20);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

/// Partitions that were added to a command topic are for those who take commands.
#[tokio::test]
async fn the_partition_count_of_a_topic_that_the_relay_does_not_stamp_stops_no_event() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder.path().join("events.db")).await;
    append(store.as_ref(), 1..=1).await;
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    for name in ["inventory.commands", "inventory.dead-letters"] {
        log.ensure_topics(&[TopicSpec { name: name.to_owned(), partitions: 9 }]).await.unwrap();
    }
    let (shutdown, relay) = start(store, &log, 10);
    records(log.as_ref(), 20).await;
    for spec in topic_specs(TOPOLOGY) {
        let partitions = if spec.name.starts_with("inventory.") && !is_stamped(&spec.name) { 9 } else { 4 };
        assert_eq!(log.ends(&spec.name).await.unwrap().len(), partitions, "{}", spec.name);
    }
    shutdown.cancel();
    relay.await.unwrap();
}

fn is_stamped(topic: &str) -> bool {
    topic.ends_with(".events") || topic.ends_with(".command-outcomes")
}
