//! Against an embedded log whose answers fail now and then, as a broker's do while it restarts.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use event_log::{EmbeddedRegistry, NewRecord, PartitionEnds, SqliteEventLog, Subscription, TopicSpec};

use super::*;

const TOPIC: &str = "inventory.events";

/// Every subscription gives one signal and is then cut off, until no failures are left.
struct Flaky {
    inner: SqliteEventLog,
    failures: Arc<AtomicU32>,
}

struct FlakySubscription {
    inner: Box<dyn Subscription>,
    signals: u32,
    failures: Arc<AtomicU32>,
}

fn away(failures: &AtomicU32) -> Result<(), EventLogError> {
    let is_away = failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
    let unavailable = EventLogError::Unavailable { address: "broker".to_owned(), problem: "restarts".to_owned() };
    if is_away { Err(unavailable) } else { Ok(()) }
}

#[async_trait]
impl EventLog for Flaky {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), EventLogError> {
        self.inner.ensure_topics(topics).await
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), EventLogError> {
        self.inner.publish(records).await
    }

    async fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        self.inner.ends(topic).await
    }

    async fn read(&self, at: &TopicPartition, from: u64, limit: usize) -> Result<Vec<Record>, EventLogError> {
        self.inner.read(at, from, limit).await
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, EventLogError> {
        away(&self.failures)?;
        let inner = self.inner.subscribe(group, topics).await?;
        Ok(Box::new(FlakySubscription { inner, signals: 0, failures: Arc::clone(&self.failures) }))
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.inner.ping().await
    }
}

#[async_trait]
impl Subscription for FlakySubscription {
    async fn next(&mut self) -> Result<Signal, EventLogError> {
        self.signals += 1;
        // The assignment and the first records come through.
        if self.signals > 2 {
            away(&self.failures)?;
        }
        self.inner.next().await
    }

    async fn start(&mut self, at: &TopicPartition, offset: u64) -> Result<(), EventLogError> {
        self.inner.start(at, offset).await
    }

    async fn pause(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        self.inner.pause(at).await
    }

    async fn resume(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        self.inner.resume(at).await
    }

    async fn commit(&mut self, at: &TopicPartition, next_offset: u64) -> Result<(), EventLogError> {
        self.inner.commit(at, next_offset).await
    }
}

async fn publish(log: &dyn EventLog, records: u32) {
    let record = |number: u32| NewRecord {
        at: TopicPartition::new(TOPIC, number % 4),
        key: b"A".to_vec(),
        headers: event_log::Headers::default(),
        value: b"not an event, shown all the same".to_vec(),
        timestamp: 0,
    };
    log.publish((0..records).map(record).collect()).await.unwrap();
}

#[tokio::test]
async fn a_log_that_is_away_for_a_while_is_waited_for_and_nothing_is_printed_twice() {
    let folder = tempfile::tempdir().unwrap();
    let failures = Arc::new(AtomicU32::new(3));
    let inner = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
    let log: Arc<dyn EventLog> = Arc::new(Flaky { inner, failures: Arc::clone(&failures) });
    log.ensure_topics(&[TopicSpec { name: TOPIC.to_owned(), partitions: 4 }]).await.unwrap();
    publish(log.as_ref(), 20).await;
    let args = TailArgs {
        data: crate::cli::DataArgs { data: folder.path().to_owned() },
        event_log: crate::cli::EventLogArgs { event_log: None, kafka_replicas: None, registry: Default::default() },
        topic: vec![TOPIC.to_owned()],
        sku: None,
        from: TailFrom::Beginning,
        no_follow: true,
        limit: None,
        json: false,
    };
    let decoder = EventDecoder::new(Arc::new(EmbeddedRegistry::default()));
    let mut tail = Tail::begin(args, log, decoder).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), tail.follow()).await.unwrap().unwrap();
    assert_eq!((tail.printed, failures.load(Ordering::SeqCst)), (20, 0));
}

#[tokio::test]
async fn what_will_not_go_away_ends_the_tail() {
    let lasting = EventLogError::UnknownTopic { topic: TOPIC.to_owned() };
    assert!(!is_transient(&lasting.into()));
    let passing = EventLogError::Unavailable { address: String::new(), problem: String::new() };
    assert!(is_transient(&passing.into()));
}
