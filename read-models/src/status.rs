//! How a read model stands: what `status` and `GET /v1/status` are made from.

use crate::checkpoint::{Checkpoint, PartitionRef};
use crate::read_model::Head;

/// One generation of a read model.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadModelStatus {
    /// `stock` or `search`.
    pub name: String,
    pub generation: u32,
    pub fold_version: u32,
    pub partitions: Vec<PartitionStatus>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PartitionStatus {
    pub partition: PartitionRef,
    pub checkpoint: Checkpoint,
    /// Whether it once reached the head that it found when it was new; reads of it are answered from then on.
    pub live: bool,
    /// The log's end as the projector last saw it.
    pub head: Option<Head>,
    /// Keys that are parked.
    pub parked_keys: u64,
    /// Events that are parked.
    pub parked_events: u64,
}

// === impl ReadModelStatus ===

impl ReadModelStatus {
    /// Whether reads of every partition are answered.
    pub fn is_live(&self) -> bool {
        !self.partitions.is_empty() && self.partitions.iter().all(|partition| partition.live)
    }

    /// Records on the log that are not applied yet; `None` while the log's end was never seen.
    pub fn lag_events(&self) -> Option<u64> {
        self.partitions.iter().filter_map(PartitionStatus::lag_events).reduce(|sum, lag| sum + lag)
    }
}

// === impl PartitionStatus ===

impl PartitionStatus {
    /// Records of this partition that are not applied yet; `None` while its end was never seen.
    pub fn lag_events(&self) -> Option<u64> {
        Some(self.head?.next_offset.saturating_sub(self.checkpoint.next_offset))
    }
}
