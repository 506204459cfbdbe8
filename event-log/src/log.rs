//! The port: what Millrace needs of an event log, whatever keeps it.
//!
//! Every adapter passes the same contract suite.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::EventLogError;
use crate::headers::Headers;

/// A topic that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: String,
    pub partitions: u32,
}

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: String,
    pub partition: u32,
}

/// A record to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    pub at: TopicPartition,
    pub key: Vec<u8>,
    pub headers: Headers,
    pub value: Vec<u8>,
    /// Milliseconds since 1970.
    pub timestamp: i64,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub at: TopicPartition,
    pub offset: u64,
    pub key: Bytes,
    pub headers: Headers,
    pub value: Bytes,
    /// Milliseconds since 1970: that of the new record, or when the broker appended it.
    pub timestamp: i64,
}

/// The offsets that a partition holds: `first` is the oldest kept, `next` the one that the next record gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionEnds {
    pub partition: u32,
    pub first: u64,
    pub next: u64,
}

impl PartitionEnds {
    /// Whether reading can go on from an offset.
    pub fn holds(&self, offset: u64) -> bool {
        (self.first..=self.next).contains(&offset)
    }
}

/// What a subscription has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// These partitions are ours now. Nothing of one is delivered before [`Subscription::start`].
    Assigned(Vec<TopicPartition>),
    /// These are no longer ours; nothing more of them is delivered.
    Revoked(Vec<TopicPartition>),
    /// Records of one partition, in order of their offsets.
    Records(Vec<Record>),
}

/// An append-only log of partitioned topics.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Creates the topics that are missing. A topic with another partition count is an error: keys would move.
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), EventLogError>;

    /// Publishes records, in their order within each partition; returns when every one is acknowledged by all
    /// replicas. After an error some may be in the log: publish the same ones again, consumers drop the twins.
    /// A topic or partition that a cluster does not know is transient: it may not know it yet. Whether it is there is
    /// for [`EventLog::ensure_topics`] to say.
    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), EventLogError>;

    /// The ends of every partition of a topic.
    async fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError>;

    /// The ends of one partition; `None` where the topic has fewer. Asks for the whole topic: who needs several
    /// partitions of it takes [`EventLog::ends`].
    async fn ends_of(&self, at: &TopicPartition) -> Result<Option<PartitionEnds>, EventLogError> {
        Ok(self.ends(&at.topic).await?.into_iter().find(|ends| ends.partition == at.partition))
    }

    /// Records of one partition from offset `from` on, `limit` at most: what is there now, without a group and without
    /// waiting for more. Fewer than `limit` do not mean that the end is reached; none do. An offset outside
    /// `first..=next` is [`EventLogError::OffsetOutOfRange`]; one that the log skips (a control record of a
    /// transaction) reads as the next record behind it.
    ///
    /// For checks of what a topic holds, page by page.
    async fn read(&self, at: &TopicPartition, from: u64, limit: usize) -> Result<Vec<Record>, EventLogError>;

    /// Joins a group of consumers that share the partitions of some topics. A topic that a cluster does not know is
    /// transient, as in [`EventLog::publish`].
    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, EventLogError>;

    /// Whether the log answers; for readiness.
    async fn ping(&self) -> Result<(), EventLogError>;
}

/// A member of a consumer group.
#[async_trait]
pub trait Subscription: Send {
    /// Waits for what comes next. Safe to drop and call again: nothing is lost.
    async fn next(&mut self) -> Result<Signal, EventLogError>;

    /// Begins the delivery of an assigned partition at `offset`. An offset that the log no longer or not yet
    /// holds is an error ([`EventLogError::OffsetOutOfRange`]), never a silent jump.
    async fn start(&mut self, at: &TopicPartition, offset: u64) -> Result<(), EventLogError>;

    /// Stops the delivery of a partition for a while, without leaving the group.
    async fn pause(&mut self, at: &TopicPartition) -> Result<(), EventLogError>;

    /// Goes on where [`Subscription::pause`] stopped.
    async fn resume(&mut self, at: &TopicPartition) -> Result<(), EventLogError>;

    /// Tells the log how far a partition is applied (`next_offset` is the first not applied): for lag tools only,
    /// Millrace never resumes from it.
    async fn commit(&mut self, at: &TopicPartition, next_offset: u64) -> Result<(), EventLogError>;

    /// Leaves the group and waits, for some seconds at most, until others may take over. Dropping a subscription does
    /// the same in the background, which a process's end may cut short: others then wait for its session to expire.
    async fn close(&mut self) {}
}

impl TopicPartition {
    pub fn new(topic: impl Into<String>, partition: u32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.topic, self.partition)
    }
}
