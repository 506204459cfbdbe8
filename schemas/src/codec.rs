//! Avro bodies: how events, outcomes and commands become bytes and come back.
//!
//! Bodies are plain Avro data without a header; the Confluent frame (magic byte and registry id) is put before
//! them by the relay. Encoding always uses the newest schema; decoding takes the writer's schema, lifts old
//! versions through the upcasters, and reads a version newer than this build by the fields that it knows.

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::LazyLock;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_avro_fast::de::{DeserializerConfig, DeserializerState, read::SliceRead};
use serde_avro_fast::ser::SerializerConfig;

use crate::command::{Command, CommandError};
use crate::contract::{CONTRACTS, SchemaRef};
use crate::event::{Event, PriceSet, Product, ProductDiscontinued, StockUpdated};
use crate::outcome::{Outcome, OutcomeKind};
use crate::upcasters::ProductRegisteredV1;

/// An event as it is stored: body and the name of its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedEvent {
    pub schema: SchemaRef,
    /// Avro data, no header.
    pub body: Vec<u8>,
}

/// A schema that something was written with, ready to decode.
pub struct WriterSchema {
    /// Full Avro name.
    name: String,
    /// Which of our contracts it is, when it is one.
    known: Option<SchemaRef>,
    avro: serde_avro_fast::Schema,
}

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("schema is not valid Avro: {problem}")]
    Schema { problem: String },
    #[error("{name} is not an event of this build")]
    UnknownEvent { name: String },
    #[error("{name}: body does not fit its schema: {problem}")]
    Body { name: String, problem: String },
    #[error("{name}: {surplus} bytes left over after the body")]
    Surplus { name: String, surplus: usize },
    #[error("{name}: cannot be encoded: {problem}")]
    Encode { name: &'static str, problem: String },
    #[error(transparent)]
    Command(#[from] CommandError),
}

static KNOWN: LazyLock<HashMap<SchemaRef, WriterSchema>> = LazyLock::new(|| {
    CONTRACTS
        .iter()
        .filter_map(|contract| {
            let avro = contract.avsc.parse().ok()?;
            let schema = contract.schema;
            Some((schema, WriterSchema { name: schema.name.to_owned(), known: Some(schema), avro }))
        })
        .collect()
});

/// Encodes an event with the newest version of its schema.
pub fn encode_event(event: &Event) -> Result<EncodedEvent, CodecError> {
    let schema = event.schema();
    let body = match event {
        Event::ProductRegistered(product) | Event::ProductRevised(product) => encode(schema, product),
        Event::ProductDiscontinued(event) => encode(schema, event),
        Event::StockUpdated(event) => encode(schema, event),
        Event::PriceSet(event) => encode(schema, event),
    }?;
    Ok(EncodedEvent { schema, body })
}

/// Decodes a body written with `writer` into the newest shape of its event.
pub fn decode_event(writer: &WriterSchema, body: &[u8]) -> Result<Event, CodecError> {
    match writer.name.as_str() {
        "millrace.catalogue.ProductRegistered" if writer.known.is_some_and(|schema| schema.version == 1) => {
            decode::<ProductRegisteredV1>(writer, body).map(|old| Event::ProductRegistered(old.into()))
        }
        "millrace.catalogue.ProductRegistered" => decode::<Product>(writer, body).map(Event::ProductRegistered),
        "millrace.catalogue.ProductRevised" => decode::<Product>(writer, body).map(Event::ProductRevised),
        "millrace.catalogue.ProductDiscontinued" => {
            decode::<ProductDiscontinued>(writer, body).map(Event::ProductDiscontinued)
        }
        "millrace.inventory.StockUpdated" => decode::<StockUpdated>(writer, body).map(Event::StockUpdated),
        "millrace.pricing.PriceSet" => decode::<PriceSet>(writer, body).map(Event::PriceSet),
        other => Err(CodecError::UnknownEvent { name: other.to_owned() }),
    }
}

/// Decodes the Avro form of a command. `writer` names the command type.
pub fn decode_command(writer: &WriterSchema, body: &[u8]) -> Result<Command, CodecError> {
    let command_type = Command::known_type(&writer.name)?;
    let mut state = DeserializerState::with_config(SliceRead::new(body), bounded(&writer.avro));
    let command = Command::read(command_type, state.deserializer())?;
    refuse_surplus(writer, state)?;
    Ok(command)
}

/// What an outcome looks like on `<context>.command-outcomes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommandOutcomeBody {
    pub command_id: String,
    pub command_type: Option<String>,
    pub outcome: OutcomeKind,
    pub position: Option<String>,
    pub stream: Option<String>,
    pub version: Option<i64>,
    pub reason_code: Option<String>,
    pub reason_message: Option<String>,
}

/// Encodes the outcome of a command for the outcome topic. The position is the one known when it is written;
/// the command's events commit with it.
pub fn encode_outcome(outcome: &Outcome, command_type: Option<&str>) -> Result<EncodedEvent, CodecError> {
    let schema = SchemaRef { name: "millrace.platform.CommandOutcome", version: 1 };
    let body = CommandOutcomeBody {
        command_id: outcome.id.to_string(),
        command_type: command_type.map(str::to_owned),
        outcome: outcome.outcome,
        position: outcome.position.as_ref().map(ToString::to_string),
        stream: outcome.stream.clone(),
        version: outcome.version.map(|version| version as i64),
        reason_code: outcome.reason.as_ref().map(|reason| reason.code.clone()),
        reason_message: outcome.reason.as_ref().map(|reason| reason.message.clone()),
    };
    Ok(EncodedEvent { schema, body: encode(schema, &body)? })
}

/// Decodes what [`encode_outcome`] wrote.
pub fn decode_outcome(writer: &WriterSchema, body: &[u8]) -> Result<CommandOutcomeBody, CodecError> {
    decode(writer, body)
}

// === impl WriterSchema ===

impl WriterSchema {
    /// The writer's schema of one of this build's contracts.
    pub fn of(schema: SchemaRef) -> Option<&'static WriterSchema> {
        KNOWN.get(&schema)
    }

    /// A schema text from a registry. It counts as known when its canonical form is that of a contract of ours.
    pub fn parse(avsc: &str) -> Result<Self, CodecError> {
        let problem = |problem: String| CodecError::Schema { problem };
        let avro: serde_avro_fast::Schema = avsc.parse().map_err(|error| problem(format!("{error}")))?;
        let parsed = apache_avro::Schema::parse_str(avsc).map_err(|error| problem(error.to_string()))?;
        let name = parsed
            .name()
            .map(|name| name.fullname(None))
            .ok_or_else(|| problem("it is not a record with a name".to_owned()))?;
        let known = KNOWN
            .values()
            .find(|known| known.avro.rabin_fingerprint() == avro.rabin_fingerprint())
            .and_then(|known| known.known);
        Ok(Self { name, known, avro })
    }

    /// Full Avro name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which of our contracts it is, when it is one.
    pub fn known(&self) -> Option<SchemaRef> {
        self.known
    }

    /// The schema text.
    pub fn avsc(&self) -> &str {
        self.avro.json()
    }
}

impl std::fmt::Debug for WriterSchema {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("WriterSchema")
            .field("name", &self.name)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

fn encode<T: Serialize>(schema: SchemaRef, value: &T) -> Result<Vec<u8>, CodecError> {
    let error = |problem: String| CodecError::Encode { name: schema.name, problem };
    let writer = WriterSchema::of(schema).ok_or_else(|| error("no schema of that version in this build".to_owned()))?;
    serde_avro_fast::to_datum_vec(value, &mut SerializerConfig::new(&writer.avro))
        .map_err(|problem| error(problem.to_string()))
}

fn decode<T: DeserializeOwned>(writer: &WriterSchema, body: &[u8]) -> Result<T, CodecError> {
    let mut state = DeserializerState::with_config(SliceRead::new(body), bounded(&writer.avro));
    let value = T::deserialize(state.deserializer())
        .map_err(|error| CodecError::Body { name: writer.name.clone(), problem: error.to_string() })?;
    refuse_surplus(writer, state)?;
    Ok(value)
}

/// A hostile body may claim a list of any length; ours are short.
fn bounded(schema: &serde_avro_fast::Schema) -> DeserializerConfig<'_> {
    let mut config = DeserializerConfig::new(schema);
    config.max_seq_size = 100_000;
    config
}

fn refuse_surplus(writer: &WriterSchema, state: DeserializerState<'_, SliceRead<'_>>) -> Result<(), CodecError> {
    let mut rest = state.into_reader();
    match rest.fill_buf().map_or(0, <[u8]>::len) {
        0 => Ok(()),
        surplus => Err(CodecError::Surplus { name: writer.name.clone(), surplus }),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::samples;
