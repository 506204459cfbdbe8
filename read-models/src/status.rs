//! How a read model stands: what `status` and `GET /v1/status` are made from.

use crate::checkpoint::{Checkpoint, PartitionRef};
use crate::process_report::{Halted, ProcessReport};
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

    /// The partitions of it that are halted, as those say that feed it. `reports` are to be of late.
    pub fn halted(&self, reports: &[ProcessReport]) -> Halted {
        let told = reports.iter().filter_map(|report| report.halted.get(&self.generation)).flatten();
        told.map(|(partition, why)| (partition.clone(), why.clone())).collect()
    }

    /// As [`Self::lag_events`], but `None` also where a partition [has applied more than the log
    /// holds](PartitionStatus::is_beyond_log).
    pub fn known_lag(&self, halted: &Halted) -> Option<u64> {
        if self.is_beyond_log(halted) { None } else { self.lag_events() }
    }

    /// Whether any partition has applied more than the log holds.
    pub fn is_beyond_log(&self, halted: &Halted) -> bool {
        self.partitions.iter().any(|partition| partition.is_beyond_log(halted))
    }
}

// === impl PartitionStatus ===

impl PartitionStatus {
    /// Records of this partition that are not applied yet; `None` while its end was never seen.
    pub fn lag_events(&self) -> Option<u64> {
        Some(self.head?.next_offset.saturating_sub(self.checkpoint.next_offset))
    }

    /// Whether the log lost records that are applied, or was made anew: by offsets nobody can tell then how many wait.
    /// While events come a checkpoint is ahead of the end that was noted before them, too; that one is not halted.
    pub fn is_beyond_log(&self, halted: &Halted) -> bool {
        let is_ahead = self.head.is_some_and(|head| head.next_offset < self.checkpoint.next_offset);
        is_ahead && halted.contains_key(&self.partition.to_string())
    }
}
