//! Why an audit could not be made. A difference is no error.

use event_log::EventLogError;
use event_store::EventStoreError;
use read_models::ReadModelError;

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    Store(#[from] EventStoreError),
    #[error(transparent)]
    Log(#[from] EventLogError),
    #[error(transparent)]
    ReadModel(#[from] ReadModelError),
    #[error("the event store has no topology yet: nothing was ever written")]
    NoTopology,
}

impl AuditError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            AuditError::Store(error) => error.is_transient(),
            AuditError::Log(error) => error.is_transient(),
            AuditError::ReadModel(error) => error.is_transient(),
            AuditError::NoTopology => true,
        }
    }
}
