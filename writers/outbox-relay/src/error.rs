//! What can stop the relay.

use event_log::EventLogError;
use event_store::EventStoreError;
use event_store::StreamId;

#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error(transparent)]
    Store(#[from] EventStoreError),
    #[error(transparent)]
    Log(#[from] EventLogError),
    /// The stored order contradicts itself: publishing on would hand consumers a wrong history (fault 3).
    #[error("stream {stream} goes from version {last} to {found} in the relay's order; the relay halts")]
    VersionsOutOfOrder { stream: StreamId, last: u64, found: u64 },
}

impl RelayError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            RelayError::Store(error) => error.is_transient(),
            RelayError::Log(error) => error.is_transient(),
            RelayError::VersionsOutOfOrder { .. } => false,
        }
    }
}
