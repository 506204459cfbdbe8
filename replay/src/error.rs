//! What can go wrong with a replay. What a gate refuses is an answer, not an error.

use event_log::EventLogError;
use projectors::ProjectorError;
use read_models::ReadModelError;

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    ReadModel(#[from] ReadModelError),
    #[error(transparent)]
    Log(#[from] EventLogError),
    #[error(transparent)]
    Projector(#[from] ProjectorError),
}

// === impl ReplayError ===

impl ReplayError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            ReplayError::ReadModel(error) => error.is_transient(),
            ReplayError::Log(error) => error.is_transient(),
            ReplayError::Projector(error) => error.is_transient(),
        }
    }
}
