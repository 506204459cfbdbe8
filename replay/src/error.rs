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
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
    #[error("setting {key}: {problem}")]
    Setting { key: &'static str, problem: String },
    /// All that is wrong with who owns what.
    #[error("{file}: {}", problems.join("; "))]
    Ownership { file: String, problems: Vec<String> },
    #[error("there is no generation {number}; `millrace replay list` tells which there are")]
    NotThere { number: u32 },
    #[error(
        "no replay of {name} is under way; `millrace replay start {name}` begins one, `millrace replay list` tells what there is"
    )]
    NoReplay { name: &'static str },
    #[error("the catalogue of {name} changed {attempts} times while this was decided; try again")]
    Contended { name: &'static str, attempts: u32 },
    #[error("what a replay keeps of itself is damaged: {problem}")]
    Damaged { problem: String },
}

// === impl ReplayError ===

impl ReplayError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            ReplayError::ReadModel(error) => error.is_transient(),
            ReplayError::Log(error) => error.is_transient(),
            ReplayError::Projector(error) => error.is_transient(),
            ReplayError::Contended { .. } => true,
            ReplayError::File { .. }
            | ReplayError::Setting { .. }
            | ReplayError::Ownership { .. }
            | ReplayError::Damaged { .. }
            | ReplayError::NotThere { .. }
            | ReplayError::NoReplay { .. } => false,
        }
    }
}
