//! The event table as a source of records: what a walk gives is what was published, byte for byte.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use event_log::{
    EmbeddedRegistry, EventEnvelope, EventLog, EventLogError, EventTable, NewRecord, Record, SqliteEventLog,
    TablePlace, TopicPartition,
};
use event_store::{EventStore, EventStoreError, PostgresEventStore, RelayCursor};
use outbox_relay::PublishedRows;
use schemas::StorePosition;
use uuid::Uuid;

use fixture::{DEADLINE, TOPOLOGY, append, open_store, records, start};

const TOPIC: &str = "pricing.events";

fn table_of(store: &Arc<dyn EventStore>) -> PublishedRows {
    let store = Arc::clone(store);
    let connect =
        move || -> futures::future::BoxFuture<'static, _> { Box::pin(std::future::ready(Ok(Arc::clone(&store)))) };
    PublishedRows::new(Box::new(connect), Arc::new(EmbeddedRegistry::default()))
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new(TOPIC, partition)
}

/// All that a walk gives, some records at a time.
async fn walked(table: &dyn EventTable, partition: u32, after: TablePlace, limit: usize) -> Vec<NewRecord> {
    let mut walk = table.walk(at(partition), after);
    let mut all = Vec::new();
    loop {
        let some = walk.next(limit).await.unwrap();
        assert!(some.len() <= limit);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn published(record: &Record) -> NewRecord {
    let Record { at, key, headers, value, timestamp, .. } = record.clone();
    NewRecord { at, key: key.to_vec(), headers, value: value.to_vec(), timestamp }
}

fn place(record: &NewRecord) -> TablePlace {
    let envelope = EventEnvelope::from_headers(&record.headers).unwrap();
    TablePlace { position: envelope.position, sequence: envelope.sequence }
}

/// Relays all that is appended, and stops the relay.
async fn relay_all(store: &Arc<dyn EventStore>, log: &Arc<dyn EventLog>, wanted: usize) -> Vec<NewRecord> {
    let (shutdown, relay) = start(store.clone(), log, 33);
    let all = records(&**log, wanted).await.iter().map(published).collect();
    let begun = Instant::now();
    while store.relay_lag(0).await.unwrap().0 > 0 {
        assert!(begun.elapsed() < DEADLINE, "the cursor is not saved");
        tokio::task::yield_now().await;
    }
    shutdown.cancel();
    relay.await.unwrap();
    all
}

async fn a_walk_gives_what_was_published(store: Arc<dyn EventStore>) {
    let folder = tempfile::tempdir().unwrap();
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    append(&*store, 1..=5).await;
    let all = relay_all(&store, &log, 100).await;
    // Committed, and not published.
    append(&*store, 6..=7).await;
    let table = table_of(&store);
    for partition in 0..TOPOLOGY.partitions {
        let of_partition: Vec<NewRecord> = all.iter().filter(|record| record.at == at(partition)).cloned().collect();
        assert_eq!(walked(&table, partition, TablePlace::default(), 7).await, of_partition);
        // From each place on, be it within a page that others have read or not.
        for (index, record) in of_partition.iter().enumerate() {
            let rest = walked(&table, partition, place(record), 1_000).await;
            assert_eq!(rest, of_partition[index + 1..], "behind {:?}", place(record));
        }
    }
    // What is published meanwhile is given by a walk that had come to the end.
    let mut walk = table.walk(at(0), TablePlace::default());
    let mut given = Vec::new();
    let (mut all, mut wanted) = (all, 100);
    loop {
        loop {
            let some = walk.next(1_000).await.unwrap();
            if some.is_empty() {
                break;
            }
            given.extend(some);
        }
        let of_partition: Vec<&NewRecord> = all.iter().filter(|record| record.at == at(0)).collect();
        assert_eq!(given.iter().collect::<Vec<_>>(), of_partition, "after {wanted}");
        if wanted == 140 {
            break;
        }
        wanted = 140;
        all = relay_all(&store, &log, wanted).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_gives_what_was_published_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    a_walk_gives_what_was_published(open_store(&folder.path().join("events.db")).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn a_walk_gives_what_was_published_on_postgres() {
    let url = std::env::var("MILLRACE_TEST_POSTGRES").expect("MILLRACE_TEST_POSTGRES is set by make test");
    let name = format!("rows_{}", Uuid::new_v4().simple());
    // By the client program: only the event store's crate knows the library.
    let sql = format!("CREATE DATABASE {name}");
    let done = Command::new("psql").args([&url, "-v", "ON_ERROR_STOP=1", "-qc", &sql]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let (server, _) = url.rsplit_once('/').unwrap();
    let store = PostgresEventStore::connect(&format!("{server}/{name}")).await.unwrap();
    store.fix_topology(TOPOLOGY).await.unwrap();
    a_walk_gives_what_was_published(Arc::new(store)).await;
}

#[tokio::test]
async fn a_table_that_lost_rows_is_no_end() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder.path().join("events.db")).await;
    append(&*store, 1..=2).await;
    // As of a table that had more of them when they were published.
    let lease = store.lease_relay().await.unwrap();
    let last = store.read_committed(StorePosition::default(), 1_000).await.unwrap().last().unwrap().position;
    let sequences = [((TOPIC.to_owned(), 1), 1_000)].into();
    store.save_cursor(lease.epoch, &RelayCursor { position: last, sequences }).await.unwrap();
    let table = table_of(&store);
    let error = table.walk(at(1), TablePlace::default()).next(1_000).await.unwrap_err();
    assert!(!error.is_transient());
    let told = error.to_string();
    assert!(told.contains("and 1000 were published: rows were removed from it"), "{told}");
}

#[tokio::test]
async fn a_store_that_is_away_is_asked_again_and_the_walk_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder.path().join("events.db")).await;
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    append(&*store, 1..=1).await;
    let all = relay_all(&store, &log, 20).await;
    let (asked, there) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&store));
    let counted = Arc::clone(&asked);
    let connect = move || -> futures::future::BoxFuture<'static, _> {
        let (address, problem) = ("here".to_owned(), "away".to_owned());
        let is_away = counted.fetch_add(1, Ordering::SeqCst) == 0;
        let found =
            if is_away { Err(EventStoreError::Unavailable { address, problem }) } else { Ok(Arc::clone(&there)) };
        Box::pin(std::future::ready(found))
    };
    let table = PublishedRows::new(Box::new(connect), Arc::new(EmbeddedRegistry::default()));
    let mut walk = table.walk(at(0), TablePlace::default());
    assert_eq!(asked.load(Ordering::SeqCst), 0, "nobody needed it");
    let error = walk.next(1_000).await.unwrap_err();
    assert!(matches!(error, EventLogError::EventTable { is_transient: true, .. }), "{error}");
    let of_partition: Vec<NewRecord> = all.into_iter().filter(|record| record.at == at(0)).collect();
    assert_eq!(walk.next(1_000).await.unwrap(), of_partition);
    assert_eq!(asked.load(Ordering::SeqCst), 2, "once connected it stays so");
}
