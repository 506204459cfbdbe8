//! The event store: the one place where facts are written, on Postgres or in a SQLite file.
//!
//! The event table is the outbox. SQL stays in this crate.

mod error;
mod store;

pub use error::EventStoreError;
pub use store::{
    AppendBatch, Appended, Claim, DecidedCommand, EventStore, LoadRequest, Loaded, LoadedStream, NewEvent, NewSnapshot,
    OffsetAdvance, RelayCursor, RelayLease, StoredEvent, StoredOutcome, Timer, TimerChange, Topology,
};
