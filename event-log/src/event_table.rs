//! The port: what was published, read from where it is kept for good, whatever retention took from the topics.
//!
//! The event table's rows, walked in the relay's order, give each topic partition the same records with the same
//! sequences that the relay published. Who keeps a table implements it (the outbox relay's crate); projectors read it.

use std::fmt;

use async_trait::async_trait;
use schemas::StorePosition;

use crate::error::EventLogError;
use crate::log::{NewRecord, TopicPartition};

/// Where a walk over one partition begins: behind an event, which both its numbers name. Default: before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TablePlace {
    pub position: StorePosition,
    pub sequence: u64,
}

/// An event table, to read what was published.
#[async_trait]
pub trait EventTable: Send + Sync + fmt::Debug {
    /// Begins a walk over the records of one partition. Walks that are open at once share what they read.
    fn walk(&self, at: TopicPartition, after: TablePlace) -> Box<dyn TableWalk>;

    /// The last sequence that a partition must have. `None` while what the topics lost is published again: where they
    /// end says nothing then of how much there is.
    async fn published(&self, at: &TopicPartition) -> Result<Option<u64>, EventLogError>;
}

/// A walk over one partition.
#[async_trait]
pub trait TableWalk: Send {
    /// The next records, in order and without a gap, `limit` at most; fewer do not mean the end, none do: what is not
    /// published yet is never given. After an error, or when it was dropped, the same records are given again.
    async fn next(&mut self, limit: usize) -> Result<Vec<NewRecord>, EventLogError>;
}
