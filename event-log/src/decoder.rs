//! From a record to what it says: envelope, frame, schema, body. Stop 7 of an event's path, and the entry of a command
//! topic.

use std::sync::Arc;

use schemas::{CodecError, Command, CommandEnvelope, CommandError, Event, WriterSchema, codec, decode_event};

use crate::envelope::{CommandEnvelopeHeaders, EnvelopeError, EventEnvelope};
use crate::error::EventLogError;
use crate::frame::{FrameError, unframe};
use crate::log::Record;
use crate::registry::SchemaRegistry;

/// An event with its envelope.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodedEvent {
    pub envelope: EventEnvelope,
    pub event: Event,
}

/// A record that does not read as what its topic is for.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Body(#[from] CodecError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("header ce_type says {header}, the body is a {body}")]
    TypeDiffers { header: String, body: String },
    #[error("content type {content_type} is not application/json or application/avro")]
    ContentType { content_type: String },
    /// The schema of the body could not be had.
    #[error(transparent)]
    Registry(#[from] EventLogError),
}

/// Decodes records of event topics.
pub struct EventDecoder {
    registry: Arc<dyn SchemaRegistry>,
}

/// Decodes records of command topics.
pub struct CommandDecoder {
    registry: Arc<dyn SchemaRegistry>,
}

// === impl DecodeError ===

impl DecodeError {
    /// Whether trying again may help: only the registry can be away.
    pub fn is_transient(&self) -> bool {
        matches!(self, DecodeError::Registry(error) if error.is_transient())
    }

    /// For programs.
    pub fn code(&self) -> &'static str {
        match self {
            DecodeError::Envelope(_) => "bad_envelope",
            DecodeError::Frame(_) => "bad_frame",
            DecodeError::Body(CodecError::Command(error)) | DecodeError::Command(error) => error.code(),
            DecodeError::Body(_) => "bad_body",
            DecodeError::TypeDiffers { .. } => "type_differs",
            DecodeError::ContentType { .. } => "bad_content_type",
            DecodeError::Registry(_) => "unknown_schema",
        }
    }
}

// === impl EventDecoder ===

impl EventDecoder {
    pub fn new(registry: Arc<dyn SchemaRegistry>) -> Self {
        Self { registry }
    }

    pub async fn decode(&self, record: &Record) -> Result<DecodedEvent, DecodeError> {
        let envelope = EventEnvelope::from_headers(&record.headers)?;
        let event = self.decode_body(&envelope, &record.value).await?;
        Ok(DecodedEvent { envelope, event })
    }

    /// What a record says whose headers were read before.
    pub async fn decode_body(&self, envelope: &EventEnvelope, value: &[u8]) -> Result<Event, DecodeError> {
        let (writer, body) = framed(&*self.registry, value).await?;
        if writer.name() != envelope.event_type {
            let (header, body) = (envelope.event_type.clone(), writer.name().to_owned());
            return Err(DecodeError::TypeDiffers { header, body });
        }
        Ok(decode_event(&writer, body)?)
    }
}

// === impl CommandDecoder ===

impl CommandDecoder {
    pub fn new(registry: Arc<dyn SchemaRegistry>) -> Self {
        Self { registry }
    }

    /// `received_at` in milliseconds since 1970.
    pub async fn decode(&self, record: &Record, received_at: i64) -> Result<CommandEnvelope, DecodeError> {
        let headers = CommandEnvelopeHeaders::from_headers(&record.headers)?;
        let command = match headers.content_type.as_str() {
            // CloudEvents, binary mode: the value is the command's data, the headers say the rest.
            "application/json" => Command::from_json(&headers.command_type, &record.value)?,
            "application/avro" => {
                let (writer, body) = framed(&*self.registry, &record.value).await?;
                codec::decode_command(&writer, body)?
            }
            _ => return Err(DecodeError::ContentType { content_type: headers.content_type }),
        };
        check_type(&headers, &command)?;
        let envelope = CommandEnvelope {
            id: headers.id,
            correlation_id: headers.correlation_id,
            causation_id: headers.causation_id,
            // Who speaks is all that a record says of who asked.
            actor: headers.source,
            traceparent: headers.traceparent,
            received_at,
            command,
        };
        envelope.check()?;
        Ok(envelope)
    }
}

fn check_type(headers: &CommandEnvelopeHeaders, command: &Command) -> Result<(), DecodeError> {
    let said = &headers.command_type;
    if said == command.command_type() || *said == command.full_name() {
        return Ok(());
    }
    Err(DecodeError::TypeDiffers { header: said.clone(), body: command.full_name() })
}

async fn framed<'a>(
    registry: &dyn SchemaRegistry,
    value: &'a [u8],
) -> Result<(Arc<WriterSchema>, &'a [u8]), DecodeError> {
    let (id, body) = unframe(value)?;
    Ok((registry.schema(id).await?, body))
}
