//! What can stop the relay.

use event_log::{EventLogError, TopicPartition};
use event_store::{EventStoreError, StreamId};
use schemas::StorePosition;
use uuid::Uuid;

#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error(transparent)]
    Store(#[from] EventStoreError),
    #[error(transparent)]
    Log(#[from] EventLogError),
    /// The stored order contradicts itself: publishing on would hand consumers a wrong history (fault 3).
    #[error("stream {stream} goes from version {last} to {found} in the relay's order; the relay halts")]
    VersionsOutOfOrder { stream: StreamId, last: u64, found: u64 },
    /// Acknowledged records are gone from the log, or the topic was made anew (faults 6 and 21).
    #[error(
        "{at} was published up to sequence {published} and ends at {found}: the log lost records or was made anew; stop the relay, then `millrace relay reconcile` has them published again"
    )]
    LogLost { at: TopicPartition, published: u64, found: u64 },
    /// The same, where events came behind it before it was noticed.
    #[error(
        "{at} was published up to sequence {published} and begins with {first}, though retention removed nothing: the log lost records or was made anew; stop the relay, then `millrace relay reconcile` has them published again"
    )]
    LogBeginsLate { at: TopicPartition, published: u64, first: u64 },
    /// The same, noticed while leading.
    #[error(
        "{at} reached offset {seen} and now ends at {found}: the log lost records or was made anew; stop the relay, then `millrace relay reconcile` has them published again"
    )]
    LogShrank { at: TopicPartition, seen: u64, found: u64 },
    /// The event table was restored to an earlier point, or the topic belongs to another one (fault 22).
    #[error(
        "{at} holds event {id} as sequence {sequence}, at position {position}, where the event table has {}: it was restored to an earlier point, or the topic is another's; stop all writers and the relay, then run `millrace relay reconcile --dry-run`",
        id_or_none(*found)
    )]
    StoreDiffers { at: TopicPartition, sequence: u64, position: StorePosition, id: Uuid, found: Option<Uuid> },
    /// Only one may move the cursor.
    #[error("another relay leads; stop it, or wait until it halts, and run this again")]
    AnotherLeads,
    /// An event that only the log has cannot be put back.
    #[error("sequence {sequence} of {at} cannot be restored: {problem}")]
    NotRestorable { at: TopicPartition, sequence: u64, problem: String },
    #[error("events of the topics cannot be restored: {problem}")]
    NotRead { problem: String },
    /// Two histories were published to one topic.
    #[error(
        "{at} holds events {one} and {other} as sequence {sequence}: two histories are in one topic; decide which is right, then make the topic anew: see docs/runbooks/06-log-lost-data.md"
    )]
    LogContradicts { at: TopicPartition, sequence: u64, one: Uuid, other: Uuid },
    /// The event table does not hold what it was published from.
    #[error(
        "the event table gives {found} events of {at}, and {published} were published: rows were removed from it, or the read model is another table's; run `millrace relay reconcile --dry-run`"
    )]
    TableIsShort { at: TopicPartition, published: u64, found: u64 },
}

impl RelayError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            RelayError::Store(error) => error.is_transient(),
            RelayError::Log(error) => error.is_transient(),
            RelayError::VersionsOutOfOrder { .. }
            | RelayError::LogLost { .. }
            | RelayError::LogBeginsLate { .. }
            | RelayError::LogShrank { .. }
            | RelayError::StoreDiffers { .. }
            | RelayError::AnotherLeads
            | RelayError::NotRestorable { .. }
            | RelayError::NotRead { .. }
            | RelayError::LogContradicts { .. }
            | RelayError::TableIsShort { .. } => false,
        }
    }

    /// Whether only another start with other settings can help.
    pub(crate) fn is_of_settings(&self) -> bool {
        matches!(
            self,
            RelayError::Log(EventLogError::Setting { .. }) | RelayError::Store(EventStoreError::Setting { .. })
        )
    }
}

fn id_or_none(id: Option<Uuid>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| id.to_string())
}
