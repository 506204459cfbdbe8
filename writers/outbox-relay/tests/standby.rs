//! Who leads where several could: a relay that gets nothing done gives way, and one that waits says so.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use event_log::{EventLog, SqliteEventLog, TopicSpec};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use telemetry::Health;

use fixture::{DEADLINE, Picky, append, open_store, records, sequences, start, start_with};

/// Keeps the value of one gauge.
struct Kept {
    name: &'static str,
    value: Arc<AtomicU64>,
}

impl Recorder for Kept {
    fn describe_counter(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    fn describe_gauge(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    fn describe_histogram(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    fn register_counter(&self, _key: &Key, _metadata: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        if key.name() == self.name { Gauge::from_arc(self.value.clone()) } else { Gauge::noop() }
    }

    fn register_histogram(&self, _key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

async fn says(health: &Health, wanted: &str) {
    let begun = Instant::now();
    loop {
        let told = health.report().components["relay"].clone();
        if told.contains(wanted) {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "{told:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// It reaches the log, and nothing that it publishes arrives.
#[tokio::test(start_paused = true)]
async fn a_relay_that_gets_nothing_done_lets_another_lead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    let cut_off: Arc<dyn EventLog> = Arc::new(Picky { log: log.clone(), takes: Box::new(|_| false) });
    let store = open_store(&path).await;
    append(store.as_ref(), 1..=2).await;
    let health = Health::default();
    let (stop_first, first) = start_with(store, &cut_off, 10, &health);
    says(&health, "takes too long").await;

    let (stop_second, second) = start(open_store(&path).await, &log, 10);
    let found = records(log.as_ref(), 40).await;
    says(&health, "waits to lead").await;
    stop_second.cancel();
    second.await.unwrap();
    // Alone it leads again.
    says(&health, "ready").await;
    stop_first.cancel();
    first.await.unwrap();
    assert_eq!((found.len(), sequences(&found).len()), (40, 40));
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_halted_and_now_waits_is_no_longer_halted() {
    let halted = Arc::new(AtomicU64::new(7));
    let recorder = Kept { name: "millrace_relay_halted", value: halted.clone() };
    let _recorded = metrics::set_default_local_recorder(&recorder);
    let halted = || f64::from_bits(halted.load(Ordering::SeqCst));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    log.ensure_topics(&[TopicSpec { name: "pricing.events".to_owned(), partitions: 9 }]).await.unwrap();
    let health = Health::default();
    let (shutdown, relay) = start_with(open_store(&path).await, &log, 10, &health);
    says(&health, "has 9 partitions").await;
    assert_eq!(halted(), 1.0);

    let other = open_store(&path).await;
    let _leads = other.lease_relay().await.unwrap();
    says(&health, "waits to lead").await;
    assert_eq!(halted(), 0.0);
    other.release_relay().await.unwrap();
    says(&health, "has 9 partitions").await;
    assert_eq!(halted(), 1.0);
    shutdown.cancel();
    relay.await.unwrap();
}
