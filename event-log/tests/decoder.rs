//! What records of event and command topics read as, and how a bad one is named.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;

use bytes::Bytes;
use event_log::frame::frame;
use event_log::{
    CommandDecoder, DecodeError, EmbeddedRegistry, EventDecoder, EventEnvelope, Headers, Record, TopicPartition,
};
use schemas::contract::embedded_id;
use schemas::event::PriceSet;
use schemas::{Event, RegionId, Sku, StorePosition, encode_event};
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(0x77);

fn event() -> Event {
    Event::PriceSet(PriceSet {
        sku: Sku::new("TEA").unwrap(),
        region: RegionId::new("north").unwrap(),
        currency: "EUR".to_owned(),
        amount_minor: 349,
    })
}

fn envelope() -> EventEnvelope {
    EventEnvelope {
        id: ID,
        source: "/millrace/pricing".to_owned(),
        event_type: "millrace.pricing.PriceSet".to_owned(),
        time: 1_700_000_000_000,
        subject: "price-TEA@north".to_owned(),
        partition_key: "TEA".to_owned(),
        sequence: 1,
        stream_version: 1,
        position: StorePosition { xid: 0, position: 9 },
        correlation_id: None,
        causation_id: None,
        traceparent: None,
    }
}

fn record(topic: &str, headers: Headers, value: Vec<u8>) -> Record {
    Record {
        at: TopicPartition::new(topic, 0),
        offset: 3,
        key: Bytes::from_static(b"TEA"),
        headers,
        value: Bytes::from(value),
        timestamp: 0,
    }
}

fn framed() -> Vec<u8> {
    let encoded = encode_event(&event()).unwrap();
    frame(embedded_id(encoded.schema), &encoded.body)
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().copied().collect()
}

fn command_headers(command_type: &str, content_type: &str) -> Headers {
    let id = ID.to_string();
    headers(&[
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_type", command_type),
        ("ce_source", "/till-7"),
        ("ce_correlationid", "basket-1"),
        ("content-type", content_type),
    ])
}

#[tokio::test]
async fn an_event_reads_back() {
    let decoder = EventDecoder::new(Arc::new(EmbeddedRegistry::default()));
    let decoded = decoder.decode(&record("pricing.events", envelope().to_headers(), framed())).await.unwrap();
    assert_eq!((decoded.envelope, decoded.event), (envelope(), event()));
}

#[tokio::test]
async fn a_bad_event_is_named_and_waits_for_nothing() {
    let decoder = EventDecoder::new(Arc::new(EmbeddedRegistry::default()));
    let good = envelope().to_headers();
    let mut short = framed();
    short.truncate(7);
    let mut other_type = envelope();
    other_type.event_type = "millrace.inventory.StockUpdated".to_owned();
    let cases = [
        (headers(&[]), framed(), "ce_specversion"),
        (good.clone(), b"{\"json\":1}".to_vec(), "begins with byte 123"),
        (good.clone(), frame(4_242, b""), "knows no schema 4242"),
        (good, short, "body does not fit"),
        (other_type.to_headers(), framed(), "the body is a millrace.pricing.PriceSet"),
    ];
    for (headers, value, said) in cases {
        let error = decoder.decode(&record("pricing.events", headers, value)).await.unwrap_err();
        assert!(error.to_string().contains(said) && !error.is_transient(), "{error}");
    }
}

#[tokio::test]
async fn a_command_reads_from_json_and_from_avro_alike() {
    let decoder = CommandDecoder::new(Arc::new(EmbeddedRegistry::default()));
    let json = br#"{"sku":"TEA","warehouse":"ham-1","quantity":12}"#.to_vec();
    let from_json = decoder
        .decode(
            &record("inventory.commands", command_headers("ReceiveStock", "application/json; charset=utf-8"), json),
            5,
        )
        .await
        .unwrap();
    assert_eq!((from_json.id, from_json.received_at), (ID, 5));
    assert_eq!(from_json.correlation_id.as_deref(), Some("basket-1"));
    assert_eq!(from_json.actor.as_deref(), Some("/till-7"));

    // The golden bytes were written by another Avro implementation.
    let schema = schemas::SchemaRef::newest("millrace.inventory.commands.ReceiveStock").unwrap();
    // sku, warehouse, null region, quantity 12.
    let body = [b"\x06TEA".as_slice(), b"\x0aham-1", b"\x00", b"\x18"].concat();
    let full = "millrace.inventory.commands.ReceiveStock";
    let from_avro = decoder
        .decode(
            &record("inventory.commands", command_headers(full, "application/avro"), frame(embedded_id(schema), &body)),
            5,
        )
        .await
        .unwrap();
    assert_eq!(from_avro.command, from_json.command);
    assert_eq!(from_avro.command.digest(), from_json.command.digest());
}

#[tokio::test]
async fn a_bad_command_says_what_is_wrong() {
    let decoder = CommandDecoder::new(Arc::new(EmbeddedRegistry::default()));
    let good = br#"{"sku":"TEA","warehouse":"ham-1","quantity":12}"#.as_slice();
    let cases: [(&str, &str, &[u8], &str, &str); 6] = [
        ("ReceiveStock", "application/xml", good, "bad_content_type", "application/xml"),
        ("BurnStock", "application/json", good, "unknown_command_type", "BurnStock"),
        ("ReceiveStock", "application/json", b"{\"sku\":", "invalid_data", "EOF"),
        ("ReceiveStock", "application/json", br#"{"sku":"TEA","colour":1}"#, "invalid_data", "colour"),
        ("ReceiveStock", "application/avro", b"\x00\x00", "bad_frame", "5"),
        ("ReceiveStock", "application/avro", b"\x00\x00\x00\x0f\xff", "unknown_schema", "4095"),
    ];
    for (command_type, content_type, value, code, said) in cases {
        let record = record("inventory.commands", command_headers(command_type, content_type), value.to_vec());
        let error = decoder.decode(&record, 5).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    let no_id = headers(&[("ce_specversion", "1.0"), ("ce_type", "ReceiveStock")]);
    let error = decoder.decode(&record("inventory.commands", no_id, good.to_vec()), 5).await.unwrap_err();
    assert!(matches!(error, DecodeError::Envelope(_)) && error.to_string().contains("ce_id"), "{error}");
}
