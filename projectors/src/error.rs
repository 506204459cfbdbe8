//! What can stop a projector, and what can make an event poison.

use event_log::{EventLogError, TopicPartition};
use read_models::{PartitionRef, ReadModelError};
use uuid::Uuid;

/// An event that cannot be folded: poison, parked with its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    #[error("{field} is {value}, which no aggregate decides ({rule})")]
    Impossible { field: &'static str, value: i64, rule: &'static str },
    /// The engine refuses such a generation before it reads an event; a caller of the fold alone gets to know here.
    #[error("this program has no fold version {fold}")]
    UnknownFold { fold: u32 },
    /// A mistake in the fold, which shows with this event.
    #[error("the fold panicked: {problem}")]
    Panicked { problem: String },
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
    /// The log no longer holds, or not yet again, what follows the checkpoint (faults 6, 19 and 21).
    #[error(
        "{at} holds sequences {lowest} to {highest}, the read model needs {wanted}: {}; it goes on by itself once sequence {wanted} is there",
        lost(*wanted, *highest)
    )]
    NotOnLog { at: TopicPartition, wanted: u64, lowest: u64, highest: u64 },
    /// The same, of a generation that is built from the event table, in a process that has none.
    #[error(
        "generation {generation} is built from the event table and needs sequence {wanted} of {partition}, which the topic does not have any more, and this process has no event store: start it with `--event-store`, or leave this generation to a process that has it"
    )]
    NoEventTable { partition: PartitionRef, generation: u32, wanted: u64 },
    /// Neither the event table nor the topic has what follows.
    #[error(
        "{at} begins with sequence {lowest}, and the relay's cursor does not reach {wanted}: run `millrace relay reconcile`; it goes on by itself once sequence {wanted} is there"
    )]
    NotInTable { at: TopicPartition, wanted: u64, lowest: u64 },
    /// The topic was made anew, or holds the events of another event table (faults 21 and 22).
    #[error(
        "{at} holds event {id} as sequence {sequence}, another one than the read model has applied there: the topic was made anew or belongs to another event table; run `millrace relay reconcile --dry-run`, and rebuild the read model if the topic is right"
    )]
    HistoryDiffers { at: TopicPartition, sequence: u64, id: Uuid },
    /// Keys would move between partitions (fault 20).
    #[error(
        "{at} is beyond the {partitions} partitions of this generation: partitions were added to the topic, and keys would move; see docs/runbooks/20-partitions-raised.md"
    )]
    AddedPartition { at: TopicPartition, partitions: u32 },
    /// Readers would look for the key in another partition (fault 20).
    #[error(
        "{at} holds key {key}, which is in partition {expected} of the {partitions} that this generation was begun with: partitions were added to the topic since the event was published; see docs/runbooks/20-partitions-raised.md"
    )]
    OtherPartition { at: TopicPartition, key: String, expected: u32, partitions: u32 },
    /// So many keys are parked that the fold must be wrong, not the data.
    #[error("{partition}: {parked} keys would be parked, the limit is {limit}; the projection halts")]
    TooManyParked { partition: PartitionRef, parked: usize, limit: usize },
    /// The generation is of a fold that is not in this program, or no longer.
    #[error(
        "{generation} is of fold version {fold_version}, and this program has {}: a replay is due, into a generation of a version that it has; until then run the program that built it",
        listed(folds)
    )]
    UnknownFold { generation: String, fold_version: u32, folds: &'static [u32] },
    /// A piece of work ended early, by a panic perhaps: it is begun again, from what the store has.
    #[error("work broke off: {problem}")]
    BrokeOff { problem: String },
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
            ProjectorError::BrokeOff { .. } => true,
            ProjectorError::Gap { .. }
            | ProjectorError::NotOnLog { .. }
            | ProjectorError::NoEventTable { .. }
            | ProjectorError::NotInTable { .. }
            | ProjectorError::HistoryDiffers { .. }
            | ProjectorError::AddedPartition { .. }
            | ProjectorError::OtherPartition { .. }
            | ProjectorError::TooManyParked { .. }
            | ProjectorError::UnknownFold { .. }
            | ProjectorError::ForeignTopic { .. } => false,
        }
    }

    /// Whether the log may come to hold what is missing: published again, or brought back.
    pub(crate) fn may_come_back(&self) -> bool {
        matches!(
            self,
            ProjectorError::Gap { .. }
                | ProjectorError::NotOnLog { .. }
                | ProjectorError::NoEventTable { .. }
                | ProjectorError::NotInTable { .. }
                | ProjectorError::HistoryDiffers { .. }
                | ProjectorError::Log(EventLogError::OffsetOutOfRange { .. } | EventLogError::UnknownTopic { .. })
        )
    }
}

fn listed(folds: &[u32]) -> String {
    folds.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn lost(wanted: u64, highest: u64) -> &'static str {
    // Of an emptied partition that was never read only retention is known.
    if highest == 0 && wanted > 1 {
        "the log lost its records or was made anew, run `millrace relay reconcile`, or retention removed them, then with `--from-start`"
    } else if highest < wanted && wanted > 1 {
        "the log lost records or was made anew, run `millrace relay reconcile`"
    } else {
        "retention removed it or it was never published, run `millrace relay reconcile --from-start`, or rebuild the read model with `millrace replay start --from event-table`"
    }
}
