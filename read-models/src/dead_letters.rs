//! Dead letters: parked events as operators see them, what they ask to be done with them, and what became of it.
//!
//! Anybody may read and ask; only the partition's owner acts, in a batch that is fenced like every other (invariant
//! P4). So a request is a row of the read model, and its answer is written with its effect: after a crash both are
//! there or none is. What was asked goes back with the rest when the store loses its last second.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::parked::{ParkedEvent, ParkedKey, ParkedPlace};

/// Requests of one partition that may wait for its owner.
pub const MAX_REQUESTS: usize = 1_000;
/// Answers kept of one partition, the newest.
pub const KEPT_ANSWERS: usize = 1_000;

/// What is asked of a partition's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterRequest {
    pub id: Uuid,
    pub key: String,
    pub action: DeadLetterAction,
    /// Who asks.
    pub by: Option<String>,
    /// Why, where somebody said so; a discard has its reason in the action.
    pub note: Option<String>,
    /// Milliseconds since 1970.
    pub requested_at: i64,
}

/// What is to be done with a key's parked events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum DeadLetterAction {
    /// Fold them, in order, as far as it goes.
    Redrive,
    /// Take them out for good, and record why; only the first when `first_only`. None behind `to`, and with
    /// `first_only` none but that one: who asks twice, or late, must not take out what nobody has looked at. A request
    /// of before that was said has no `to`.
    Discard {
        reason: String,
        first_only: bool,
        #[serde(default)]
        to: Option<ParkedPlace>,
    },
    /// Fold all events of these partition keys anew from the log, and write the rows that come of it: a replay of
    /// single keys into the generation that is fed. The request's own key is the first of them.
    Refold { keys: Vec<String> },
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterAnswer {
    pub request: DeadLetterRequest,
    pub outcome: DeadLetterOutcome,
    /// For people: which event stopped a redrive, and why.
    pub message: String,
    /// Events that left the queue.
    pub resolved: u64,
    /// Events of the key that are still parked; of a refold, keys that were left out.
    pub left: u64,
    /// Milliseconds since 1970.
    pub answered_at: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterOutcome {
    Done,
    /// Something is still parked that should not be.
    Failed,
}

/// Why an event was taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscardNote {
    /// The request that asked for it.
    pub request: Uuid,
    pub reason: String,
    pub by: Option<String>,
    /// Milliseconds since 1970.
    pub discarded_at: i64,
}

/// An event that was taken out, kept for whoever asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscardedEvent {
    pub event: ParkedEvent,
    pub note: DiscardNote,
}

/// Names a parked event that leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub key: String,
    pub place: ParkedPlace,
}

/// What a batch does to events that are parked already.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resolution {
    /// Events that were folded and leave.
    pub redriven: Vec<Resolved>,
    /// Events that leave and are recorded.
    pub discarded: Vec<(Resolved, DiscardNote)>,
    /// Events that stay, with a new reason.
    pub kept: Vec<ParkedEvent>,
    /// Requests that wait no longer. An answer to one that is not there any more is not kept.
    pub answers: Vec<DeadLetterAnswer>,
}

/// The dead letters of a read model, whatever its rows are: those of the generation that this process writes, or else
/// of the one that serves.
#[async_trait]
pub trait DeadLetters: Send + Sync + 'static {
    /// All partitions of the generation.
    async fn partitions(&self) -> Result<Vec<PartitionRef>, ReadModelError>;

    /// Parked events of one partition, in order, those behind `after`; at most `limit`.
    async fn parked(
        &self,
        partition: PartitionRef,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadModelError>;

    /// The same, of one key only.
    async fn parked_of(
        &self,
        partition: PartitionRef,
        key: &str,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadModelError>;

    /// Keys of one partition that have parked events, sorted, those behind `after`; at most `limit`.
    async fn parked_keys(
        &self,
        partition: PartitionRef,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ParkedKey>, ReadModelError>;

    /// Events that were discarded, in their order, those behind `after`; at most `limit`.
    async fn discarded(
        &self,
        partition: PartitionRef,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<DiscardedEvent>, ReadModelError>;

    /// Asks the partition's owner for something; the same id asks once. [`ReadModelError::TooManyRequests`] while
    /// [`MAX_REQUESTS`] wait.
    async fn request_dead_letter(
        &self,
        partition: PartitionRef,
        request: &DeadLetterRequest,
    ) -> Result<(), ReadModelError>;

    /// Requests that wait, the oldest first.
    async fn dead_letter_requests(&self, partition: PartitionRef) -> Result<Vec<DeadLetterRequest>, ReadModelError>;

    /// Answers, the newest first; at most `limit` of the [`KEPT_ANSWERS`].
    async fn dead_letter_answers(
        &self,
        partition: PartitionRef,
        limit: usize,
    ) -> Result<Vec<DeadLetterAnswer>, ReadModelError>;

    /// How far the parked events are mirrored to the dead-letter topic.
    async fn mirrored(&self, partition: PartitionRef) -> Result<Option<ParkedPlace>, ReadModelError>;

    /// Notes how far they are; it only goes on. Not fenced: two owners that mirror the same only repeat it.
    async fn set_mirrored(&self, partition: PartitionRef, place: ParkedPlace) -> Result<(), ReadModelError>;
}

// === impl Resolution ===

impl Resolution {
    pub fn is_empty(&self) -> bool {
        self.redriven.is_empty() && self.discarded.is_empty() && self.kept.is_empty() && self.answers.is_empty()
    }
}
