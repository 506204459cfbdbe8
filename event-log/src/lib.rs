//! The event log: topics of partitions of records, on Kafka or in a SQLite file, and the envelope and schema
//! registry that go with it.
//!
//! The only crate that knows Kafka and the registry.

mod connect;
mod decoder;
pub mod envelope;
mod error;
mod event_table;
pub mod frame;
mod headers;
mod kafka;
mod log;
pub mod metrics;
mod registry;
mod sqlite;

pub use connect::{connect_event_log, connect_event_log_with, connect_registry};
pub use decoder::{CommandDecoder, DecodeError, DecodedEvent, EventDecoder};
pub use envelope::{CommandEnvelopeHeaders, EnvelopeError, EventEnvelope};
pub use error::EventLogError;
pub use event_table::{EventTable, TablePlace, TableWalk};
pub use headers::Headers;
pub use kafka::{KafkaEventLog, KafkaSettings};
pub use log::{EventLog, NewRecord, PartitionEnds, Record, Signal, Subscription, TopicPartition, TopicSpec};
pub use registry::{EmbeddedRegistry, HttpRegistry, SchemaRegistry};
pub use sqlite::SqliteEventLog;
