//! An instant as milliseconds since 1970 (Avro, JSON) or RFC 3339 (JSON).

use std::fmt;

use chrono::DateTime;
use serde::de::{Deserializer, Error, Visitor};

struct InstantVisitor;

impl Visitor<'_> for InstantVisitor {
    type Value = i64;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an instant: RFC 3339 such as 2030-01-31T12:00:00Z, or milliseconds since 1970")
    }

    fn visit_i64<E: Error>(self, milliseconds: i64) -> Result<i64, E> {
        // Outside this range no calendar date can be printed for it.
        DateTime::from_timestamp_millis(milliseconds)
            .map(|_| milliseconds)
            .ok_or_else(|| E::custom(format!("{milliseconds} is out of range for an instant")))
    }

    fn visit_u64<E: Error>(self, milliseconds: u64) -> Result<i64, E> {
        let milliseconds = i64::try_from(milliseconds).map_err(E::custom)?;
        self.visit_i64(milliseconds)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<i64, E> {
        DateTime::parse_from_rfc3339(text)
            .map(|instant| instant.timestamp_millis())
            .map_err(|error| E::custom(format!("{text:?} is not an RFC 3339 instant ({error})")))
    }
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    deserializer.deserialize_any(InstantVisitor)
}
