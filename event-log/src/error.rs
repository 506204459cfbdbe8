//! What can go wrong with the log or the registry.

use schemas::{CodecError, SchemaRef};

use crate::log::TopicPartition;

#[derive(Debug, thiserror::Error)]
pub enum EventLogError {
    /// The server cannot be reached or does not answer in time: trying again may help.
    #[error("event log {address} does not answer: {problem}")]
    Unavailable { address: String, problem: String },
    #[error("schema registry {address} does not answer: {problem}")]
    RegistryUnavailable { address: String, problem: String },
    #[error(
        "{topic} has {found} partitions, {wanted} are wanted: keys would move; see docs/runbooks/20-partitions-raised.md"
    )]
    PartitionCount { topic: String, found: u32, wanted: u32 },
    #[error("topic {topic} does not exist; start `millrace relay` or `millrace up` once to create it")]
    UnknownTopic { topic: String },
    #[error("{at} holds offsets {first} to {next}, {asked} was asked for")]
    OffsetOutOfRange { at: TopicPartition, asked: u64, first: u64, next: u64 },
    #[error("{schema} is not registered on {topic} at {address}; run `millrace contracts register`")]
    NotRegistered { topic: String, schema: SchemaRef, address: String },
    #[error("schema registry {address} knows no schema {id}")]
    UnknownSchemaId { id: u32, address: String },
    #[error("schema registry {address} refused {subject}: {problem}")]
    Refused { subject: String, address: String, problem: String },
    /// Refused by us, whatever the registry would take.
    #[error("{subject} at {address} does not go with this build: {problem}")]
    Incompatible { subject: String, address: String, problem: String },
    #[error("schema {id}: {source}")]
    Schema { id: u32, source: CodecError },
    #[error("setting {key}: {problem}")]
    Setting { key: &'static str, problem: String },
    #[error("event log file {path}: {problem}")]
    File { path: String, problem: String },
    #[error("event log refused: {problem}")]
    Permanent { problem: String },
    /// Of the event table, where records are read from it.
    #[error("event table: {source}")]
    EventTable { source: Box<dyn std::error::Error + Send + Sync>, is_transient: bool },
}

impl EventLogError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            EventLogError::Unavailable { .. }
                | EventLogError::RegistryUnavailable { .. }
                | EventLogError::NotRegistered { .. }
                | EventLogError::EventTable { is_transient: true, .. }
        )
    }
}
