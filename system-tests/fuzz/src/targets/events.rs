//! Records of event topics, the schemas behind them, their headers, and outcomes.

use std::sync::Arc;

use bytes::Bytes;
use event_log::frame::frame;
use event_log::{EmbeddedRegistry, EventDecoder, EventEnvelope, Headers, Record, TopicPartition};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use schemas::codec::{decode_outcome, encode_outcome};
use schemas::contract::{CONTRACTS, embedded_id};
use schemas::event::{PriceSet, Product};
use schemas::{
    Event, Outcome, OutcomeKind, PositionToken, RegionId, SchemaRef, Sku, StorePosition, WriterSchema, decode_event,
    encode_event,
};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::mutation::{number, one_of, text};
use crate::target::{Target, reads_back, refusal};

const WORDS: &[&str] = &[
    "ce_id",
    "ce_type",
    "ce_time",
    "ce_sequence",
    "ce_position",
    "2023-11-14T22:13:20.123Z",
    "millrace.pricing.PriceSet",
    "millrace.catalogue.ProductRegistered",
    "millrace.inventory.StockUpdated",
    "\u{0}\u{0}\u{0}\u{0}\u{6}",
    "\u{7f}",
    "application/avro",
];

pub fn headers_of(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().copied().collect()
}

pub fn headers_text(headers: &Headers) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
}

/// Header lines, a blank line, the value.
pub fn record_text(headers: &Headers, value: &[u8]) -> Vec<u8> {
    [headers_text(headers).as_bytes(), b"\n", value].concat()
}

/// Reads what [`record_text`] wrote; of anything else some headers and some value.
pub fn split(input: &[u8]) -> (Headers, &[u8]) {
    let end = input.windows(2).position(|bytes| bytes == b"\n\n");
    let (head, value) = end.map_or((&input[..0], input), |end| (&input[..end], &input[end + 2..]));
    let text = String::from_utf8_lossy(head);
    let pairs = text.lines().filter_map(|line| line.split_once(": "));
    (pairs.collect(), value)
}

fn event(product: bool) -> Option<Event> {
    let sku = Sku::new("TEA").ok()?;
    Some(if product {
        Event::ProductRegistered(Product {
            sku,
            name: "Assam Tea".to_owned(),
            brand: Some("Bergamot".to_owned()),
            category_path: vec!["Pantry".to_owned(), "Tea".to_owned()],
            description: Some("é".repeat(40)),
            pack_size: None,
            tags: vec!["hot".to_owned()],
        })
    } else {
        let region = RegionId::new("north").ok()?;
        Event::PriceSet(PriceSet { sku, region, currency: "EUR".to_owned(), amount_minor: 349 })
    })
}

fn envelope(event_type: &str) -> EventEnvelope {
    EventEnvelope {
        id: Uuid::from_u128(0x77),
        source: "/millrace/pricing".to_owned(),
        event_type: event_type.to_owned(),
        time: 1_700_000_000_000,
        subject: "price-TEA@north".to_owned(),
        partition_key: "TEA".to_owned(),
        sequence: 1,
        stream_version: 1,
        position: StorePosition { xid: 0, position: 9 },
        correlation_id: Some("c".to_owned()),
        causation_id: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    }
}

fn record(headers: Headers, value: &[u8]) -> Record {
    Record {
        at: TopicPartition::new("pricing.events", 0),
        offset: 3,
        key: Bytes::from_static(b"TEA"),
        headers,
        value: Bytes::copy_from_slice(value),
        timestamp: 0,
    }
}

/// An Avro body that claims lengths which it does not have.
fn bomb(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..random.random_range(1..12_u32) {
        if random.random() {
            body.extend_from_slice(b"\x06TEA");
        } else {
            let number = if random.random() { number(random) } else { random.random_range(-4..4) };
            let mut zigzag = ((number << 1) ^ (number >> 63)) as u64;
            while zigzag >= 0x80 {
                body.push((zigzag as u8) | 0x80);
                zigzag >>= 7;
            }
            body.push(zigzag as u8);
        }
    }
    body
}

pub struct EventRecord {
    runtime: Runtime,
    decoder: EventDecoder,
}

impl EventRecord {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
        Self { runtime, decoder: EventDecoder::new(Arc::new(EmbeddedRegistry::default())) }
    }
}

impl Target for EventRecord {
    fn name(&self) -> &'static str {
        "event-record"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let events = [true, false].into_iter().filter_map(event);
        let encoded = events.filter_map(|event| encode_event(&event).ok());
        encoded
            .map(|event| {
                record_text(&envelope(event.schema.name).to_headers(), &frame(embedded_id(event.schema), &event.body))
            })
            .collect()
    }

    fn words(&self) -> &'static [&'static str] {
        WORDS
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        let contract = &CONTRACTS[random.random_range(0..CONTRACTS.len())];
        Some(record_text(
            &envelope(contract.schema.name).to_headers(),
            &frame(embedded_id(contract.schema), &bomb(random)),
        ))
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let (headers, value) = split(input);
        match self.runtime.block_on(self.decoder.decode(&record(headers, value))) {
            Ok(decoded) => {
                let encoded = encode_event(&decoded.event).map_err(|error| format!("{error}: {:?}", decoded.event))?;
                let writer = WriterSchema::of(encoded.schema).ok_or("an event without a schema")?;
                reads_back(&decoded.event, decode_event(writer, &encoded.body))
            }
            Err(error) if error.is_transient() => Err(format!("waits for ever: {error}")),
            Err(error) => refusal(error, &[]),
        }
    }
}

/// A schema that a registry gives for an id, and a body: two lines of text and the rest.
pub struct EventSchema;

impl Target for EventSchema {
    fn name(&self) -> &'static str {
        "event-schema"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let one_line = |avsc: &str| avsc.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let mut corpus: Vec<Vec<u8>> = Vec::new();
        for event in [true, false].into_iter().filter_map(event) {
            let Ok(encoded) = encode_event(&event) else { continue };
            corpus.push([one_line(encoded.schema.contract().avsc).as_bytes(), b"\n", &encoded.body].concat());
        }
        let newer = r#"{"type":"record","name":"PriceSet","namespace":"millrace.pricing","fields":[{"name":"sku","type":"string"},{"name":"region","type":"string"},{"name":"currency","type":"string"},{"name":"amount_minor","type":"long"},{"name":"extra","type":{"type":"array","items":"null"}},{"name":"more","type":{"type":"map","values":"bytes"}}]}"#;
        corpus.push([newer.as_bytes(), b"\n\x06TEA\x0anorth\x06EUR\x18\x02\x00\x00\x02\x02a\x02b\x00"].concat());
        corpus
    }

    fn words(&self) -> &'static [&'static str] {
        &[
            "\"null\"",
            "\"array\"",
            "\"map\"",
            "\"fixed\",\"size\":",
            "\"enum\"",
            "\"record\"",
            "\"type\":",
            "\"items\":",
            "\"fields\":[",
            "\"decimal\"",
            "\"logicalType\":",
            "\"default\":",
            "\"duration\"",
        ]
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        let item = one_of(
            random,
            &[
                "\"null\"",
                "\"bytes\"",
                "{\"type\":\"fixed\",\"name\":\"f\",\"size\":0}",
                "{\"type\":\"record\",\"name\":\"r\",\"fields\":[]}",
                "\"millrace.pricing.PriceSet\"",
            ],
        );
        let around = one_of(random, &["{\"type\":\"array\",\"items\":", "{\"type\":\"map\",\"values\":"]);
        let schema = format!(
            r#"{{"type":"record","name":"PriceSet","namespace":"millrace.pricing","fields":[{{"name":"extra","type":{around}{item}}}}}]}}"#
        );
        Some([schema.as_bytes(), b"\n", &bomb(random)].concat())
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
        let avsc = String::from_utf8_lossy(&input[..end]);
        match WriterSchema::parse(&avsc) {
            Err(error) => refusal(error, &["schema"]),
            Ok(schema) => match decode_event(&schema, input.get(end + 1..).unwrap_or_default()) {
                Ok(_) => Ok(()),
                Err(error) => refusal(error, &[]),
            },
        }
    }
}

/// Headers as they come, and as a log that stores them itself keeps them.
pub struct EventHeaders;

impl Target for EventHeaders {
    fn name(&self) -> &'static str {
        "event-headers"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let headers = envelope("millrace.pricing.PriceSet").to_headers();
        vec![record_text(&headers, b""), headers.as_bytes().to_vec()]
    }

    fn words(&self) -> &'static [&'static str] {
        WORDS
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        if let Some(stored) = Headers::from_bytes(input.to_vec().into()) {
            reads_back(&stored, Ok::<_, &str>(stored.iter().collect()))?;
        }
        let (headers, _) = split(input);
        match EventEnvelope::from_headers(&headers) {
            Ok(envelope) => reads_back(&envelope, EventEnvelope::from_headers(&envelope.to_headers())),
            Err(error) => refusal(error, &["header"]),
        }
    }
}

/// Outcomes: stored as JSON, published as Avro.
pub struct OutcomeBody;

fn outcome() -> Outcome {
    let mut outcome =
        Outcome::refused(Uuid::from_u128(7), OutcomeKind::Rejected, "insufficient_stock", "7 asked, 5 there");
    outcome.position = "inventory-7-812.4021".parse::<PositionToken>().ok();
    outcome.version = Some(3);
    outcome
}

impl Target for OutcomeBody {
    fn name(&self) -> &'static str {
        "outcome"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let json = serde_json::to_vec(&outcome()).unwrap_or_default();
        let avro = encode_outcome(&outcome(), Some("ReserveStock")).map(|encoded| encoded.body).unwrap_or_default();
        vec![json, avro]
    }

    fn words(&self) -> &'static [&'static str] {
        &["accepted", "\"outcome\":", "\"version\":", "\"position\":", "failed", "\"reason\":"]
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        if random.random() {
            return Some(bomb(random));
        }
        let mut outcome = outcome();
        outcome.stream = Some(text(random));
        outcome.version = Some(number(random) as u64);
        serde_json::to_vec(&outcome).ok()
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let schema = SchemaRef { name: "millrace.platform.CommandOutcome", version: 1 };
        let writer = WriterSchema::of(schema).ok_or("no schema of outcomes")?;
        if let Err(error) = decode_outcome(writer, input) {
            refusal(error, &["CommandOutcome"])?;
        }
        match serde_json::from_slice::<Outcome>(input) {
            Ok(outcome) => {
                let json = serde_json::to_vec(&outcome).map_err(|error| error.to_string())?;
                reads_back(&outcome, serde_json::from_slice(&json))?;
                let encoded = encode_outcome(&outcome, None).map_err(|error| error.to_string())?;
                decode_outcome(writer, &encoded.body).map(drop).map_err(|error| error.to_string())
            }
            Err(error) => refusal(error, &[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_apart_as_it_was_put_together() {
        let headers = envelope("a.b").to_headers();
        assert_eq!(split(&record_text(&headers, b"v\n\nw")), (headers, b"v\n\nw".as_slice()));
    }
}
