//! What can go wrong with a read model. The fields tell the whole situation.

use crate::checkpoint::{Checkpoint, PartitionRef};

#[derive(Debug, thiserror::Error)]
pub enum ReadModelError {
    /// The store cannot be reached or does not answer in time: trying again may help.
    #[error("read model {name} at {address} does not answer: {problem}")]
    Unavailable { name: String, address: String, problem: String },
    /// Not asked: reads before found it away. In a moment one looks again.
    #[error("read model {name}: {open}")]
    BreakerOpen { name: String, open: resilience::Open },
    /// Another owner claimed the partition: this one must stop.
    #[error("{name} {partition}: epoch {epoch} was superseded by epoch {current}")]
    Superseded { name: String, partition: PartitionRef, epoch: u64, current: u64 },
    /// The stored checkpoint is not the one that the batch starts from: claim again and resume from the stored one.
    #[error("{name} {partition}: the batch starts at {expected}, the store is at {found}")]
    CheckpointMoved { name: String, partition: PartitionRef, expected: Checkpoint, found: Checkpoint },
    /// The store has no data of this generation, or not all of it yet: never answer from it.
    #[error("read model {name} is being rebuilt")]
    Rebuilding { name: String },
    /// The generation in the store was built by another fold, or for another number of partitions.
    #[error("read model {name} holds {found}, this program needs {needed}; {remedy}")]
    Generation { name: String, found: String, needed: String, remedy: String },
    /// Its rows are removed, or will be: nobody writes there any more.
    #[error("{name} is retired: it is not written any more")]
    Retired { name: String },
    #[error("there is no {name}@{wanted}; there is {there}")]
    UnknownGeneration { name: String, wanted: u32, there: String },
    /// Somebody else changed the catalogue meanwhile: look again, and decide on what is there now.
    #[error("the catalogue of {name} is at version {found}, the change was made for version {expected}")]
    CatalogueMoved { name: String, expected: u64, found: u64 },
    /// Too many requests wait for the partition's owner: it may be away.
    #[error("{name} {partition}: {waiting} requests wait for its projector; is it running?")]
    TooManyRequests { name: String, partition: PartitionRef, waiting: usize },
    #[error("{path} is in use by another process; stop it, or choose another directory")]
    Locked { path: String },
    /// Another process went on with a newer build while this one was frozen: this one must stop.
    #[error("{path} was replaced by a newer build, which another process writes")]
    Replaced { path: String },
    #[error("search query: {problem}")]
    Query { problem: String },
    #[error("setting {key}: {problem}")]
    Setting { key: &'static str, problem: String },
    #[error("read model {name}: stored data is damaged: {problem}")]
    Damaged { name: String, problem: String },
    #[error("read model {name} refused: {problem}")]
    Permanent { name: String, problem: String },
}

impl ReadModelError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            ReadModelError::Unavailable { .. }
                | ReadModelError::BreakerOpen { .. }
                | ReadModelError::Rebuilding { .. }
                | ReadModelError::TooManyRequests { .. }
        )
    }
}
