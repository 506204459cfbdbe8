//! Avro bodies: how events, outcomes and commands become bytes and come back.
//!
//! Bodies are plain Avro data without a header; the Confluent frame (magic byte and registry id) is put before
//! them by the relay. Encoding always uses the newest schema; decoding takes the writer's schema, lifts old
//! versions through the upcasters, and reads a version newer than this build by the fields that it knows.

mod hostile_schema;

use std::collections::HashMap;
use std::sync::LazyLock;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{AvroResult, Schema};
use serde::de::{DeserializeOwned, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use crate::command::{Command, CommandError};
use crate::contract::{CONTRACTS, SchemaRef};
use crate::event::{DecisionRecorded, Event, PriceSet, Product, ProductDiscontinued, StockUpdated};
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
    /// The text it was parsed from.
    avsc: String,
    avro: Schema,
}

/// The longest string or list that a body may claim, in bytes: a hostile one may claim any.
const MAX_ALLOCATION: usize = 4 * 1024 * 1024;

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
    // Set before anything is decoded: every schema is compared with these first.
    apache_avro::util::max_allocation_bytes(MAX_ALLOCATION);
    CONTRACTS
        .iter()
        .filter_map(|contract| {
            let (schema, avsc) = (contract.schema, contract.avsc.to_owned());
            let avro = Schema::parse_str(&avsc).ok()?;
            Some((schema, WriterSchema { name: schema.name.to_owned(), known: Some(schema), avsc, avro }))
        })
        .collect()
});

/// Reads and writes bodies of one of our contracts.
struct Datum {
    reader: GenericDatumReader<'static>,
    writer: GenericDatumWriter<'static>,
}

/// Made once: making them takes longer than most bodies do.
static DATA: LazyLock<HashMap<SchemaRef, Datum>> = LazyLock::new(|| {
    KNOWN.iter().filter_map(|(schema, writer)| Some((*schema, Datum::of(&writer.avro).ok()?))).collect()
});

/// Encodes an event with the newest version of its schema.
pub fn encode_event(event: &Event) -> Result<EncodedEvent, CodecError> {
    let schema = event.schema();
    let body = match event {
        Event::ProductRegistered(product) | Event::ProductRevised(product) => encode(schema, product),
        Event::ProductDiscontinued(event) => encode(schema, event),
        Event::StockUpdated(event) => encode(schema, event),
        Event::PriceSet(event) => encode(schema, event),
        Event::DecisionRecorded(event) => encode(schema, event),
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
        "millrace.platform.DecisionRecorded" => decode::<DecisionRecorded>(writer, body).map(Event::DecisionRecorded),
        other => Err(CodecError::UnknownEvent { name: other.to_owned() }),
    }
}

/// Decodes the Avro form of a command. `writer` names the command type.
pub fn decode_command(writer: &WriterSchema, body: &[u8]) -> Result<Command, CodecError> {
    let command_type = Command::known_type(&writer.name)?;
    match command_type {
        "RegisterProduct" => decode(writer, body).map(Command::RegisterProduct),
        "ReviseProduct" => decode(writer, body).map(Command::ReviseProduct),
        "DiscontinueProduct" => decode(writer, body).map(Command::DiscontinueProduct),
        "ReceiveStock" => decode(writer, body).map(Command::ReceiveStock),
        "AdjustStock" => decode(writer, body).map(Command::AdjustStock),
        "CountStock" => decode(writer, body).map(Command::CountStock),
        "ReserveStock" => decode(writer, body).map(Command::ReserveStock),
        "ReleaseReservation" => decode(writer, body).map(Command::ReleaseReservation),
        "ShipReservation" => decode(writer, body).map(Command::ShipReservation),
        "SetPrice" => decode(writer, body).map(Command::SetPrice),
        "RecordDecision" => decode(writer, body).map(Command::RecordDecision),
        other => return Err(CommandError::UnknownType { given: other.to_owned() }.into()),
    }
    .and_then(|command| command.checked().map_err(CodecError::from))
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
        let avro = Schema::parse_str(avsc).map_err(|error| problem(error.to_string()))?;
        hostile_schema::check(&avro).map_err(problem)?;
        let name = avro
            .name()
            .map(|name| name.fullname(None))
            .ok_or_else(|| problem("it is not a record with a name".to_owned()))?;
        let canonical = hostile_schema::has_canonical_form(&avro).then(|| avro.canonical_form());
        let is_known = |known: &&WriterSchema| canonical.as_ref() == Some(&known.avro.canonical_form());
        let known = KNOWN.values().find(is_known).and_then(|known| known.known);
        Ok(Self { name, known, avsc: avsc.to_owned(), avro })
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
        &self.avsc
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

// === impl Datum ===

impl Datum {
    fn of(avro: &'static Schema) -> AvroResult<Self> {
        let writer = GenericDatumWriter::builder(avro).human_readable(false).build()?;
        Ok(Self { reader: reader(avro)?, writer })
    }
}

fn reader(avro: &Schema) -> AvroResult<GenericDatumReader<'_>> {
    GenericDatumReader::builder(avro).human_readable(false).build()
}

fn encode<T: Serialize>(schema: SchemaRef, value: &T) -> Result<Vec<u8>, CodecError> {
    let error = |problem: String| CodecError::Encode { name: schema.name, problem };
    let datum = DATA.get(&schema).ok_or_else(|| error("no schema of that version in this build".to_owned()))?;
    datum.writer.write_ser_to_vec(value).map_err(|problem| error(problem.to_string()))
}

/// A record, whatever it is called: apache-avro holds the name of a struct against that of the record, while one struct
/// of ours stands for several records (`Product`) or for one version of a record.
struct AnyRecord<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for AnyRecord<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(ByFields(deserializer)).map(Self)
    }
}

/// Asks for whatever the schema says, which no name is held against.
struct ByFields<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for ByFields<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

fn decode<T: DeserializeOwned>(writer: &WriterSchema, mut body: &[u8]) -> Result<T, CodecError> {
    // One that counts as known has the fields of ours, in their order.
    let read = match writer.known.and_then(|schema| DATA.get(&schema)) {
        Some(datum) => datum.reader.read_deser(&mut body),
        None => reader(&writer.avro).and_then(|reader| reader.read_deser(&mut body)),
    };
    let AnyRecord(value) =
        read.map_err(|error| CodecError::Body { name: writer.name.clone(), problem: error.to_string() })?;
    match body.len() {
        0 => Ok(value),
        surplus => Err(CodecError::Surplus { name: writer.name.clone(), surplus }),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::samples;
