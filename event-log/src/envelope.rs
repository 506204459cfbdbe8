//! CloudEvents in Kafka binary mode: the headers of an event, and of a command that a service sends.
//!
//! Source: CloudEvents 1.0.2, "Kafka Protocol Binding", binary content mode; extensions `partitionkey`,
//! `sequence` and "Distributed Tracing". `sequence` is 20 digits, zero-padded, because the extension wants strings that
//! sort.

use chrono::{DateTime, SecondsFormat};
use schemas::StorePosition;
use uuid::Uuid;

/// Record headers in their order. Values are text in all of ours; a foreign one that is not UTF-8 is read lossily.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers(pub Vec<(String, String)>);

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

// === impl Headers ===

impl Headers {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// One piece of bytes, for logs that store headers themselves: for each header the length of its name (2 bytes,
    /// big endian), the name, the length of its value (4 bytes) and the value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.iter().map(|(name, value)| 6 + name.len() + value.len()).sum());
        for (name, value) in &self.0 {
            // A longer name is cut at a length that no header comes near to: Kafka's own bound is 32,767 bytes.
            let name = name.get(..name.len().min(usize::from(u16::MAX))).unwrap_or_default();
            bytes.extend_from_slice(&(name.len() as u16).to_be_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
            bytes.extend_from_slice(value.as_bytes());
        }
        bytes
    }

    /// Reads what [`Headers::to_bytes`] wrote. `None` when the bytes are damaged.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        fn text(bytes: &mut &[u8], length: usize) -> Option<String> {
            let (text, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            String::from_utf8(text.to_vec()).ok()
        }
        let mut headers = Vec::with_capacity(16);
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_first_chunk::<2>()?;
            bytes = rest;
            let name = text(&mut bytes, usize::from(u16::from_be_bytes(*length)))?;
            let (length, rest) = bytes.split_first_chunk::<4>()?;
            bytes = rest;
            let value = text(&mut bytes, u32::from_be_bytes(*length) as usize)?;
            headers.push((name, value));
        }
        Some(Self(headers))
    }

    fn required(&self, header: &'static str) -> Result<&str, EnvelopeError> {
        self.get(header).ok_or(EnvelopeError::Missing { header })
    }

    fn parsed<T>(
        &self,
        header: &'static str,
        wanted: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, EnvelopeError> {
        let value = self.required(header)?;
        parse(value).ok_or_else(|| EnvelopeError::Malformed {
            header,
            value: value.chars().take(120).collect(),
            wanted,
        })
    }

    fn owned(&self, name: &str) -> Option<String> {
        self.get(name).map(str::to_owned)
    }
}

// === impl EventEnvelope ===

impl EventEnvelope {
    pub fn to_headers(&self) -> Headers {
        let time = DateTime::from_timestamp_millis(self.time).unwrap_or_default();
        let mut headers = vec![
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", self.id.to_string()),
            ("ce_source", self.source.clone()),
            ("ce_type", self.event_type.clone()),
            ("ce_time", time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            ("ce_subject", self.subject.clone()),
            ("ce_partitionkey", self.partition_key.clone()),
            ("ce_sequence", format!("{:020}", self.sequence)),
            ("ce_streamversion", self.stream_version.to_string()),
            ("ce_position", self.position.to_string()),
            ("content-type", AVRO.to_owned()),
        ];
        let optional = [
            ("ce_correlationid", &self.correlation_id),
            ("ce_causationid", &self.causation_id),
            ("traceparent", &self.traceparent),
        ];
        headers.extend(optional.into_iter().filter_map(|(name, value)| value.clone().map(|value| (name, value))));
        Headers(headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    pub fn from_headers(headers: &Headers) -> Result<Self, EnvelopeError> {
        headers.parsed("ce_specversion", "1.0", |value| (value == "1.0").then_some(()))?;
        Ok(Self {
            id: headers.parsed("ce_id", "a UUID", |value| value.parse().ok())?,
            source: headers.required("ce_source")?.to_owned(),
            event_type: headers.required("ce_type")?.to_owned(),
            time: headers.parsed("ce_time", "an RFC 3339 instant", |value| {
                DateTime::parse_from_rfc3339(value).ok().map(|time| time.timestamp_millis())
            })?,
            subject: headers.required("ce_subject")?.to_owned(),
            partition_key: headers.required("ce_partitionkey")?.to_owned(),
            sequence: headers.parsed("ce_sequence", "a number", |value| value.parse().ok())?,
            stream_version: headers.parsed("ce_streamversion", "a number", |value| value.parse().ok())?,
            position: headers.parsed("ce_position", "<xid>.<position>", |value| value.parse().ok())?,
            correlation_id: headers.owned("ce_correlationid"),
            causation_id: headers.owned("ce_causationid"),
            traceparent: headers.owned("traceparent"),
        })
    }
}

// === impl CommandEnvelopeHeaders ===

impl CommandEnvelopeHeaders {
    pub fn from_headers(headers: &Headers) -> Result<Self, EnvelopeError> {
        headers.parsed("ce_specversion", "1.0", |value| (value == "1.0").then_some(()))?;
        Ok(Self {
            id: headers.parsed("ce_id", "a UUID", |value| value.parse().ok())?,
            command_type: headers.required("ce_type")?.to_owned(),
            source: headers.owned("ce_source"),
            // RFC 9110: parameters such as charset may follow the media type.
            content_type: headers
                .get("content-type")
                .or_else(|| headers.get("ce_datacontenttype"))
                .map_or("application/json", |value| value.split(';').next().unwrap_or(value).trim())
                .to_ascii_lowercase(),
            correlation_id: headers.owned("ce_correlationid"),
            causation_id: headers.owned("ce_causationid"),
            traceparent: headers.owned("traceparent"),
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
    fn stored_headers_read_back_and_damaged_ones_are_refused() {
        let headers = envelope().to_headers();
        let bytes = headers.to_bytes();
        assert_eq!(Headers::from_bytes(&bytes), Some(headers));
        assert_eq!(Headers::from_bytes(&[]), Some(Headers::default()));
        for length in [1, 3, bytes.len() - 1] {
            assert_eq!(Headers::from_bytes(&bytes[..length]), None);
        }
        assert_eq!(Headers::from_bytes(&[0, 1, 0xff, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_missing_or_malformed_header_is_named() {
        for header in ["ce_id", "ce_type", "ce_source", "ce_specversion", "ce_sequence", "ce_position", "ce_time"] {
            let mut headers = envelope().to_headers();
            headers.0.retain(|(name, _)| name != header);
            assert_eq!(EventEnvelope::from_headers(&headers), Err(EnvelopeError::Missing { header }));
        }
        let mut headers = envelope().to_headers();
        headers.0.iter_mut().filter(|(name, _)| name == "ce_sequence").for_each(|(_, value)| *value = "x".to_owned());
        assert!(EventEnvelope::from_headers(&headers).unwrap_err().to_string().contains("ce_sequence"));
    }
}
