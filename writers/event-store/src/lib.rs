//! The event store: the one place where facts are written, on Postgres or in a SQLite file.
//!
//! The event table is the outbox. SQL stays in this crate.

pub mod adapter;
mod connect;
mod error;
mod outcome_row;
mod postgres;
mod rebuild;
mod sqlite;
mod store;

pub use connect::{connect_event_store, connect_event_store_read_only};
pub use domain::StreamId;
pub use error::EventStoreError;
pub use outcome_row::{NewestPositions, bounded_message, positioned};
pub use postgres::PostgresEventStore;
pub use sqlite::SqliteEventStore;
pub use store::{
    AppendBatch, Appended, Claim, DecidedCommand, EventStore, LoadRequest, Loaded, LoadedStream, MOST_COUNTED,
    NewEvent, NewSnapshot, OffsetAdvance, RecordIdentity, RelayCursor, RelayLease, RestoredOutcome, RestoredRows,
    ServerRun, StoredEvent, StoredOffset, StoredOutcome, Timer, TimerChange, Topology,
};
