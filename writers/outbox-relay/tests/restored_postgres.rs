//! Fault 22 on a real server: an event table that is restored to an earlier copy, within one cluster.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use event_log::{EmbeddedRegistry, EventLog, SqliteEventLog};
use event_store::{EventStore, PostgresEventStore, RestoredRows};
use outbox_relay::{Finding, PublishAgain, ReconcileOptions, reconcile};
use telemetry::Health;
use uuid::Uuid;

use fixture::{DEADLINE, TOPOLOGY, append, records, sequences, start, start_with};

/// By the client program: only the event store's crate knows the library.
fn administer(sql: &str) {
    let url = std::env::var("MILLRACE_TEST_POSTGRES").expect("MILLRACE_TEST_POSTGRES is set by make test");
    let done = Command::new("psql").args([&url, "-v", "ON_ERROR_STOP=1", "-qc", sql]).output().unwrap();
    assert!(done.status.success(), "{sql}: {}", String::from_utf8_lossy(&done.stderr));
}

async fn open(name: &str) -> Arc<dyn EventStore> {
    let url = std::env::var("MILLRACE_TEST_POSTGRES").unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    let store = PostgresEventStore::connect(&format!("{server}/{name}")).await.unwrap();
    store.fix_topology(TOPOLOGY).await.unwrap();
    Arc::new(store)
}

async fn relay(name: &str, log: &Arc<dyn EventLog>, versions: std::ops::RangeInclusive<u64>, wanted: usize) {
    let store = open(name).await;
    append(&*store, versions).await;
    let (shutdown, relay) = start(store.clone(), log, 33);
    records(&**log, wanted).await;
    let begun = Instant::now();
    while store.relay_lag(0).await.unwrap().0 > 0 {
        assert!(begun.elapsed() < DEADLINE, "the cursor is not saved");
        tokio::task::yield_now().await;
    }
    shutdown.cancel();
    relay.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn a_restored_database_halts_the_relay_and_gets_its_events_back() {
    let folder = tempfile::tempdir().unwrap();
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    let name = format!("relay_{}", Uuid::new_v4().simple());
    let restored = format!("{name}_restored");
    administer(&format!("CREATE DATABASE {name}"));
    relay(&name, &log, 1..=2, 40).await;
    // Sessions of the store end in the background.
    let close = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ";
    administer(&format!("{close} '{name}'"));
    administer(&format!("CREATE DATABASE {restored} TEMPLATE {name}"));
    relay(&name, &log, 3..=5, 100).await;
    let all = sequences(&records(&*log, 100).await);

    let store = open(&restored).await;
    let health = Health::default();
    let (shutdown, halted) = start_with(store.clone(), &log, 33, &health);
    let begun = Instant::now();
    while !health.report().components["relay"].contains("restored to an earlier point") {
        assert!(begun.elapsed() < DEADLINE, "{:?}", health.report());
        tokio::task::yield_now().await;
    }
    let options = ReconcileOptions { again: PublishAgain::NotWhatRetentionRemoved, restore: true, dry_run: false };
    let also = |events| Ok(RestoredRows { events, ..RestoredRows::default() });
    let other = open(&restored).await;
    let report =
        reconcile(&*other, &*log, &EmbeddedRegistry::default(), TOPOLOGY, options, also, |_, _| {}).await.unwrap();
    assert_eq!((report.finding, report.restored_events), (Finding::Level, 60));
    // The halted relay goes on by itself, behind what came back.
    append(&*store, 6..=6).await;
    let after = sequences(&records(&*log, 120).await);
    assert_eq!(after.len(), 120);
    assert!(all.iter().all(|(id, place)| after[id] == *place));
    shutdown.cancel();
    halted.await.unwrap();
    drop((store, other));
    administer(&format!("DROP DATABASE {name} WITH (FORCE)"));
    administer(&format!("DROP DATABASE {restored} WITH (FORCE)"));
}
