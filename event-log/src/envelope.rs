//! CloudEvents in Kafka binary mode: the headers of an event, and of a command that a service sends.
//!
//! Source: CloudEvents 1.0.2, "Kafka Protocol Binding", binary content mode; extensions `partitionkey`,
//! `sequence` and "Distributed Tracing". `sequence` is 20 digits, zero-padded, because the extension wants strings that
//! sort.

use chrono::{DateTime, SecondsFormat};
use schemas::StorePosition;
use uuid::Uuid;

use crate::headers::{Headers, HeadersBuilder};

/// What the headers of an event say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventEnvelope {
    pub id: Uuid,
    /// URI reference of the sender, such as `/millrace/inventory`.
    pub source: String,
    /// Full Avro name of the body.
    pub event_type: String,
    /// Milliseconds since 1970.
    pub time: i64,
    /// Stream of the event.
    pub subject: String,
    /// The SKU; the projection of a decision.
    pub partition_key: String,
    /// Gapless per topic and partition, from 1.
    pub sequence: u64,
    /// Version of the stream, from 1.
    pub stream_version: u64,
    /// Place in the event table.
    pub position: StorePosition,
    pub correlation_id: Option<String>,
    pub causation_id: Option<String>,
    pub traceparent: Option<String>,
}

/// What the headers of a command on a command topic say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandEnvelopeHeaders {
    /// Command id.
    pub id: Uuid,
    /// Short (`ReceiveStock`) or full (`millrace.inventory.commands.ReceiveStock`) command type.
    pub command_type: String,
    pub source: Option<String>,
    /// `application/json` or `application/avro`.
    pub content_type: String,
    pub correlation_id: Option<String>,
    pub causation_id: Option<String>,
    pub traceparent: Option<String>,
}

/// Headers that are not a CloudEvent of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("header {header} is missing")]
    Missing { header: &'static str },
    #[error("header {header}: {value:?} is not {wanted}")]
    Malformed { header: &'static str, value: String, wanted: &'static str },
}

const AVRO: &str = "application/avro";

// === reading ===

fn required<'h>(headers: &'h Headers, header: &'static str) -> Result<&'h str, EnvelopeError> {
    headers.get(header).ok_or(EnvelopeError::Missing { header })
}

fn parsed<T>(
    headers: &Headers,
    header: &'static str,
    wanted: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, EnvelopeError> {
    let value = required(headers, header)?;
    parse(value).ok_or_else(|| EnvelopeError::Malformed { header, value: value.chars().take(120).collect(), wanted })
}

fn owned(headers: &Headers, name: &str) -> Option<String> {
    headers.get(name).map(str::to_owned)
}

// === impl EventEnvelope ===

impl EventEnvelope {
    pub fn to_headers(&self) -> Headers {
        let time = DateTime::from_timestamp_millis(self.time).unwrap_or_default();
        let mut headers = HeadersBuilder::of_an_event();
        headers.put("ce_specversion", "1.0");
        headers.put("ce_id", self.id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
        headers.put("ce_source", &self.source);
        headers.put("ce_type", &self.event_type);
        headers.put("ce_time", &time.to_rfc3339_opts(SecondsFormat::Millis, true));
        headers.put("ce_subject", &self.subject);
        headers.put("ce_partitionkey", &self.partition_key);
        headers.put("ce_sequence", &format!("{:020}", self.sequence));
        headers.put("ce_streamversion", &self.stream_version.to_string());
        headers.put("ce_position", &self.position.to_string());
        headers.put("content-type", AVRO);
        let optional = [
            ("ce_correlationid", &self.correlation_id),
            ("ce_causationid", &self.causation_id),
            ("traceparent", &self.traceparent),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                headers.put(name, value);
            }
        }
        headers.build()
    }

    pub fn from_headers(headers: &Headers) -> Result<Self, EnvelopeError> {
        parsed(headers, "ce_specversion", "1.0", |value| (value == "1.0").then_some(()))?;
        Ok(Self {
            id: parsed(headers, "ce_id", "a UUID", |value| value.parse().ok())?,
            source: required(headers, "ce_source")?.to_owned(),
            event_type: required(headers, "ce_type")?.to_owned(),
            time: parsed(headers, "ce_time", "an RFC 3339 instant", |value| {
                DateTime::parse_from_rfc3339(value).ok().map(|time| time.timestamp_millis())
            })?,
            subject: required(headers, "ce_subject")?.to_owned(),
            partition_key: required(headers, "ce_partitionkey")?.to_owned(),
            sequence: parsed(headers, "ce_sequence", "a number", |value| value.parse().ok())?,
            stream_version: parsed(headers, "ce_streamversion", "a number", |value| value.parse().ok())?,
            position: parsed(headers, "ce_position", "<xid>.<position>", |value| value.parse().ok())?,
            correlation_id: owned(headers, "ce_correlationid"),
            causation_id: owned(headers, "ce_causationid"),
            traceparent: owned(headers, "traceparent"),
        })
    }
}

// === impl CommandEnvelopeHeaders ===

impl CommandEnvelopeHeaders {
    pub fn from_headers(headers: &Headers) -> Result<Self, EnvelopeError> {
        parsed(headers, "ce_specversion", "1.0", |value| (value == "1.0").then_some(()))?;
        Ok(Self {
            id: parsed(headers, "ce_id", "a UUID", |value| value.parse().ok())?,
            command_type: required(headers, "ce_type")?.to_owned(),
            source: owned(headers, "ce_source"),
            // RFC 9110: parameters such as charset may follow the media type.
            content_type: headers
                .get("content-type")
                .or_else(|| headers.get("ce_datacontenttype"))
                .map_or("application/json", |value| value.split(';').next().unwrap_or(value).trim())
                .to_ascii_lowercase(),
            correlation_id: owned(headers, "ce_correlationid"),
            causation_id: owned(headers, "ce_causationid"),
            traceparent: owned(headers, "traceparent"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> EventEnvelope {
        EventEnvelope {
            id: Uuid::from_u128(7),
            source: "/millrace/inventory".to_owned(),
            event_type: "millrace.inventory.StockUpdated".to_owned(),
            time: 1_700_000_000_123,
            subject: "stock-A@w1".to_owned(),
            partition_key: "A".to_owned(),
            sequence: 42,
            stream_version: 3,
            position: StorePosition { xid: 9, position: 10 },
            correlation_id: Some("c".to_owned()),
            causation_id: None,
            traceparent: None,
        }
    }

    #[test]
    fn headers_read_back_as_the_envelope() {
        let headers = envelope().to_headers();
        assert_eq!(headers.get("ce_sequence"), Some("00000000000000000042"));
        assert_eq!(headers.get("ce_time"), Some("2023-11-14T22:13:20.123Z"));
        assert_eq!(EventEnvelope::from_headers(&headers), Ok(envelope()));
    }

    #[test]
    fn a_missing_or_malformed_header_is_named() {
        for header in ["ce_id", "ce_type", "ce_source", "ce_specversion", "ce_sequence", "ce_position", "ce_time"] {
            let headers: Headers = envelope().to_headers().iter().filter(|(name, _)| *name != header).collect();
            assert_eq!(EventEnvelope::from_headers(&headers), Err(EnvelopeError::Missing { header }));
        }
        let headers = envelope().to_headers();
        let headers: Headers =
            headers.iter().map(|(name, value)| (name, if name == "ce_sequence" { "x" } else { value })).collect();
        assert!(EventEnvelope::from_headers(&headers).unwrap_err().to_string().contains("ce_sequence"));
    }
}
