//! What can go wrong with a replay. What a gate refuses is an answer, not an error.

use event_log::{DecodeError, EventLogError};
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
    #[error(
        "several replays of {name} are under way: name one, as in {name}@{newest}; `millrace replay list` tells which there are"
    )]
    SeveralReplays { name: &'static str, newest: u32 },
    #[error(
        "no generation of {name} served before the one that serves; name the one to retire, as in {name}@2, or end a replay with `millrace replay abort`"
    )]
    NothingBefore { name: &'static str },
    #[error("the catalogue of {name} changed {attempts} times while this was decided; try again")]
    Contended { name: &'static str, attempts: u32 },
    #[error("what a replay keeps of itself is damaged: {problem}")]
    Damaged { problem: String },
    #[error("an event cannot be decoded for now: {0}")]
    Decode(#[from] DecodeError),
    #[error("{generation} cannot be compared with itself")]
    SameGeneration { generation: String },
    #[error("{candidate} has {found} partitions and {live} has {wanted}: their keys lie elsewhere")]
    OtherPartitions { live: String, candidate: String, found: usize, wanted: usize },
    #[error(
        "{generation} is still being built: {waiting} of its {all} partitions are not live; `millrace replay status` tells how far it is"
    )]
    StillBuilt { generation: String, waiting: usize, all: usize },
    #[error("{partition}: the generations are {behind} events apart; compare them once both have caught up")]
    NotLevel { partition: String, behind: u64 },
    #[error(
        "{at}: a read model has applied sequence {wanted}, the log gave no further than {last}: `millrace audit` tells what is missing"
    )]
    NotOnLog { at: String, wanted: u64, last: u64 },
    #[error("{partition}: a store went back to an earlier state meanwhile; compare again once it has caught up")]
    SteppedBack { partition: String },
    #[error(
        "{partition}: events come faster than rows can be read, after {rounds} rounds; compare again at a quieter time"
    )]
    TooBusy { partition: String, rounds: u32 },
}

// === impl ReplayError ===

impl ReplayError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            ReplayError::ReadModel(error) => error.is_transient(),
            ReplayError::Log(error) => error.is_transient(),
            ReplayError::Projector(error) => error.is_transient(),
            ReplayError::Decode(error) => error.is_transient(),
            ReplayError::Contended { .. }
            | ReplayError::StillBuilt { .. }
            | ReplayError::NotLevel { .. }
            | ReplayError::SteppedBack { .. }
            | ReplayError::TooBusy { .. } => true,
            ReplayError::File { .. }
            | ReplayError::Setting { .. }
            | ReplayError::Ownership { .. }
            | ReplayError::Damaged { .. }
            | ReplayError::NotThere { .. }
            | ReplayError::NoReplay { .. }
            | ReplayError::SeveralReplays { .. }
            | ReplayError::NothingBefore { .. }
            | ReplayError::SameGeneration { .. }
            | ReplayError::OtherPartitions { .. }
            | ReplayError::NotOnLog { .. } => false,
        }
    }
}
