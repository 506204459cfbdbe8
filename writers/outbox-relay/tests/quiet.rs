//! What the log lost while nothing was published is noticed before the next event goes out (fault 6).
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use event_log::{
    EventLog, EventLogError, NewRecord, PartitionEnds, Record, SqliteEventLog, Subscription, TopicPartition, TopicSpec,
};
use telemetry::Health;

use fixture::{DEADLINE, append, open_store, records, start_with};

/// A log that can lose all that it holds.
struct Losing {
    log: Arc<dyn EventLog>,
    has_lost: AtomicBool,
}

#[async_trait]
impl EventLog for Losing {
    async fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        let mut ends = self.log.ends(topic).await?;
        if self.has_lost.load(Ordering::SeqCst) {
            ends.iter_mut().for_each(|ends| (ends.first, ends.next) = (0, 0));
        }
        Ok(ends)
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), EventLogError> {
        self.log.ensure_topics(topics).await
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), EventLogError> {
        self.log.publish(records).await
    }

    async fn read(&self, at: &TopicPartition, from: u64, limit: usize) -> Result<Vec<Record>, EventLogError> {
        self.log.read(at, from, limit).await
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, EventLogError> {
        self.log.subscribe(group, topics).await
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.log.ping().await
    }
}

#[tokio::test]
async fn a_relay_that_was_quiet_looks_before_it_publishes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder.path().join("events.db")).await;
    let file: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    let losing = Arc::new(Losing { log: Arc::clone(&file), has_lost: AtomicBool::new(false) });
    let log: Arc<dyn EventLog> = losing.clone();
    let health = Health::default();
    let (shutdown, relay) = start_with(store.clone(), &log, 33, &health);
    append(&*store, 1..=2).await;
    records(&*file, 40).await;
    let before = file.ends("pricing.events").await.unwrap();

    // The clock looks every three seconds, from the start on.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    losing.has_lost.store(true, Ordering::SeqCst);
    append(&*store, 3..=3).await;
    let begun = Instant::now();
    while !health.report().components["relay"].contains("the log lost records") {
        assert!(begun.elapsed() < DEADLINE, "{:?}", health.report());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(file.ends("pricing.events").await.unwrap(), before, "nothing is published");
    shutdown.cancel();
    relay.await.unwrap();
}
