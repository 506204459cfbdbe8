//! A log that loses its records under a relay that leads (fault 6): what it lost while nothing was published is noticed
//! before the next event goes out, and what is published behind a loss does not hide it.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use event_log::{
    EventLog, EventLogError, NewRecord, PartitionEnds, Record, SqliteEventLog, Subscription, TopicPartition, TopicSpec,
};
use event_store::EventStore;
use telemetry::Health;
use tokio_util::sync::CancellationToken;

use fixture::{DEADLINE, append, open_store, records, start_with};

/// A log that can lose all that it holds.
struct Losing {
    log: Arc<dyn EventLog>,
    /// How many records of each partition.
    lost: Mutex<HashMap<TopicPartition, u64>>,
    /// Loses what it holds of [`TOPIC`] with the next records that are published, in one step.
    loses_with_the_next: AtomicBool,
}

impl Losing {
    async fn lose(&self, topic: &str) {
        let ends = self.log.ends(topic).await.unwrap();
        self.forget(topic, ends);
    }

    fn forget(&self, topic: &str, ends: Vec<PartitionEnds>) {
        let places = ends.into_iter().map(|ends| (TopicPartition::new(topic, ends.partition), ends.next));
        self.lost.lock().unwrap().extend(places);
    }

    fn lost(&self, at: &TopicPartition) -> u64 {
        self.lost.lock().unwrap().get(at).copied().unwrap_or(0)
    }
}

#[async_trait]
impl EventLog for Losing {
    async fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        let mut ends = self.log.ends(topic).await?;
        for ends in &mut ends {
            ends.next = ends.next.saturating_sub(self.lost(&TopicPartition::new(topic, ends.partition)));
        }
        Ok(ends)
    }

    async fn read(&self, at: &TopicPartition, from: u64, limit: usize) -> Result<Vec<Record>, EventLogError> {
        let lost = self.lost(at);
        let mut records = self.log.read(at, from + lost, limit).await?;
        records.iter_mut().for_each(|record| record.offset -= lost);
        Ok(records)
    }

    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), EventLogError> {
        self.log.ensure_topics(topics).await
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), EventLogError> {
        let before = self.log.ends(TOPIC).await?;
        self.log.publish(records).await?;
        if self.loses_with_the_next.swap(false, Ordering::SeqCst) {
            self.forget(TOPIC, before);
        }
        Ok(())
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, EventLogError> {
        self.log.subscribe(group, topics).await
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.log.ping().await
    }
}

const TOPIC: &str = "pricing.events";

/// A relay on such a log, which has published forty events.
struct Running {
    folder: tempfile::TempDir,
    store: Arc<dyn EventStore>,
    losing: Arc<Losing>,
    health: Health,
    shutdown: CancellationToken,
    relay: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(&folder.path().join("events.db")).await;
        let file: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
        let losing = Arc::new(Losing {
            log: Arc::clone(&file),
            lost: Mutex::default(),
            loses_with_the_next: AtomicBool::new(false),
        });
        let log: Arc<dyn EventLog> = losing.clone();
        let health = Health::default();
        let (shutdown, relay) = start_with(store.clone(), &log, 33, &health);
        append(&*store, 1..=2).await;
        records(&*file, 40).await;
        Self { folder, store, losing, health, shutdown, relay }
    }

    async fn published(&self) -> u64 {
        self.losing.log.ends(TOPIC).await.unwrap().iter().map(|ends| ends.next).sum()
    }

    fn told(&self) -> String {
        self.health.report().components["relay"].clone()
    }

    async fn halts(&self) {
        let begun = Instant::now();
        while !self.told().contains("the log lost records") {
            assert!(begun.elapsed() < DEADLINE, "{}", self.told());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.relay.await.unwrap();
    }
}

#[tokio::test]
async fn a_relay_that_was_quiet_looks_before_it_publishes() {
    let running = Running::start().await;
    // The clock looks every three seconds, from the start on.
    tokio::time::sleep(Duration::from_secs(2)).await;
    running.losing.lose(TOPIC).await;
    append(&*running.store, 3..=3).await;
    running.halts().await;
    assert_eq!(running.published().await, 40);
    running.stop().await;
}

#[tokio::test]
async fn what_was_published_behind_a_loss_does_not_hide_it() {
    let running = Running::start().await;
    running.losing.loses_with_the_next.store(true, Ordering::SeqCst);
    append(&*running.store, 3..=3).await;
    let begun = Instant::now();
    while running.published().await < 60 {
        assert!(begun.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.halts().await;
    append(&*running.store, 4..=4).await;
    // It looks every five seconds whether it may go on, and the end of the log is as its cursor says.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(7) {
        assert!(running.told().contains("the log lost records"), "{}", running.told());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(running.published().await, 60);
    running.stop().await;
}

/// Another relay need not see what this one saw, and leads: that must not end the alarm.
#[tokio::test(start_paused = true)]
async fn a_loss_that_nobody_else_sees_is_told_while_another_leads() {
    let running = Running::start().await;
    running.losing.loses_with_the_next.store(true, Ordering::SeqCst);
    append(&*running.store, 3..=3).await;
    running.halts().await;
    let other = open_store(&running.folder.path().join("events.db")).await;
    let _leads = other.lease_relay().await.unwrap();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        assert!(running.told().contains("the log lost records"), "{}", running.told());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Published again.
    running.losing.lost.lock().unwrap().clear();
    let begun = Instant::now();
    while !running.told().contains("waits to lead") {
        assert!(begun.elapsed() < DEADLINE, "{}", running.told());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.stop().await;
}
