//! What can go wrong with the event store.

use schemas::StorePosition;

#[derive(Debug, thiserror::Error)]
pub enum EventStoreError {
    /// The server cannot be reached, timed out or shut down: trying again may help. Nothing was acknowledged.
    #[error("event store {address} does not answer: {problem}")]
    Unavailable { address: String, problem: String },
    /// Not asked: calls before found the server away. In a moment one looks again. Nothing was acknowledged.
    #[error("event store: {0}")]
    BreakerOpen(resilience::Open),
    /// Somebody else was faster: load again and decide again, in a fresh transaction. Nothing was written.
    #[error("append conflicts on {what}")]
    Conflict { what: String },
    /// The topology was fixed with other numbers: keys would move between partitions.
    #[error("the event store was set up for {stored} partitions, {asked} were asked for; partitions cannot change")]
    Topology { stored: u32, asked: u32 },
    /// Another relay took over: its epoch is higher.
    #[error("relay epoch {epoch} was superseded by epoch {current}")]
    RelaySuperseded { epoch: u64, current: u64 },
    /// A cursor stands on a row that was read, and rows are not deleted.
    #[error("the event table ends at {end}, before {cursor}: rows were removed from it")]
    TableEndsBefore { end: StorePosition, cursor: StorePosition },
    /// Rows that come back belong behind its last row, and another came there.
    #[error(
        "the event table went on from {behind} to {end} meanwhile; stop all writers, end transactions that are open for long, then restore again: nothing was changed"
    )]
    TableWentOn { behind: StorePosition, end: StorePosition },
    #[error("stored row is damaged: {what}: {problem}")]
    Damaged { what: String, problem: String },
    #[error("setting {key}: {problem}")]
    Setting { key: &'static str, problem: String },
    #[error("event store refused: {problem}")]
    Permanent { problem: String },
}

impl EventStoreError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            EventStoreError::Unavailable { .. } | EventStoreError::BreakerOpen(_) | EventStoreError::Conflict { .. }
        )
    }
}
