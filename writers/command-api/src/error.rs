//! What can go wrong between a command's arrival and its outcome.

use event_log::EventLogError;
use event_store::EventStoreError;

#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// Another handler took the records: this one's partition was given away.
    #[error("offset of {topic}/{partition} is {stored}, this handler holds {expected}: another handler took over")]
    OffsetTaken { topic: String, partition: u32, expected: u64, stored: u64 },
    /// Records that must be taken again, from `next` on. Those before it are committed.
    #[error("{problem}")]
    NotDecided { next: u64, problem: String },
    #[error("the process is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Store(#[from] EventStoreError),
    #[error(transparent)]
    Log(#[from] EventLogError),
}

impl HandlerError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            HandlerError::NotDecided { .. } => true,
            HandlerError::OffsetTaken { .. } | HandlerError::ShuttingDown => false,
            HandlerError::Store(error) => error.is_transient(),
            HandlerError::Log(error) => error.is_transient(),
        }
    }
}
