//! What can stop a projector, and what can make an event poison.

use event_log::{EventLogError, TopicPartition};
use read_models::{PartitionRef, ReadModelError};

/// An event that cannot be folded: poison, parked with its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    #[error("{field} is {value}, which no aggregate decides ({rule})")]
    Impossible { field: &'static str, value: i64, rule: &'static str },
    #[error("version {found} follows version {last} of {row}")]
    VersionGap { row: String, last: u64, found: u64 },
}

#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    #[error(transparent)]
    Log(#[from] EventLogError),
    #[error(transparent)]
    ReadModel(#[from] ReadModelError),
    /// An event is missing in the log and did not follow (invariant P1): skipping it would be a silent loss.
    #[error(
        "{partition}: sequence {found} follows {last} at offset {offset}, and the missing ones did not come; {remedy}"
    )]
    Gap { partition: PartitionRef, last: u64, found: u64, offset: u64, remedy: &'static str },
    /// So many keys are parked that the fold must be wrong, not the data.
    #[error("{partition}: {parked} keys would be parked, the limit is {limit}; the projection halts")]
    TooManyParked { partition: PartitionRef, parked: usize, limit: usize },
    /// Not a topic of this projection.
    #[error("{at} is not an event topic")]
    ForeignTopic { at: TopicPartition },
}

impl ProjectorError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            ProjectorError::Log(error) => error.is_transient(),
            ProjectorError::ReadModel(error) => error.is_transient(),
            ProjectorError::Gap { .. } | ProjectorError::TooManyParked { .. } | ProjectorError::ForeignTopic { .. } => {
                false
            }
        }
    }
}
