//! What is compared of an event, the same on both sides: in the event table and on its topic.

use event_log::{EventEnvelope, Record, frame::unframe};
use event_store::StoredEvent;
use schemas::{SchemaRef, StorePosition};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// What the registry id of a record stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdMeans {
    Ours(SchemaRef),
    /// A schema that is none of ours, or no id at all.
    Foreign,
    /// The registry does not know it.
    Nothing,
}

/// In place of a version: no schema has these.
const FOREIGN_ID: u32 = 0;
pub(crate) const UNKNOWN_ID: u32 = u32::MAX;

/// An event as a side has it, without its place there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Face {
    pub(crate) sequence: u64,
    pub(crate) id: Uuid,
    pub(crate) schema: String,
    pub(crate) schema_version: u32,
    pub(crate) stream: String,
    pub(crate) version: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) position: StorePosition,
    /// Of the body.
    pub(crate) body: u128,
}

// === impl Face ===

impl Face {
    pub(crate) fn of_row(event: &StoredEvent, sequence: u64) -> Self {
        Self {
            sequence,
            id: event.id,
            schema: event.schema.name.to_owned(),
            schema_version: event.schema.version,
            stream: event.stream.to_string(),
            version: event.version,
            key: event.key.clone().into_bytes(),
            position: event.position,
            body: digest_of(&[&event.body]),
        }
    }

    /// `Err` says why a record is no event of ours.
    pub(crate) fn of_record(record: &Record, schema: IdMeans) -> Result<Self, String> {
        let envelope = EventEnvelope::from_headers(&record.headers).map_err(|error| error.to_string())?;
        let (_, body) = unframe(&record.value).map_err(|error| error.to_string())?;
        let schema_version = match schema {
            IdMeans::Ours(schema) if schema.name == envelope.event_type => schema.version,
            IdMeans::Ours(_) | IdMeans::Foreign => FOREIGN_ID,
            IdMeans::Nothing => UNKNOWN_ID,
        };
        // The key that brought the record here, unless the header tells another.
        let mut key = record.key.to_vec();
        if key != envelope.partition_key.as_bytes() {
            key.push(b'/');
            key.extend_from_slice(envelope.partition_key.as_bytes());
        }
        Ok(Self {
            sequence: envelope.sequence,
            id: envelope.id,
            schema: envelope.event_type,
            schema_version,
            stream: envelope.subject,
            version: envelope.stream_version,
            key,
            position: envelope.position,
            body: digest_of(&[body]),
        })
    }

    /// Of everything, the sequence included.
    pub(crate) fn digest(&self) -> u128 {
        digest_of(&[
            &self.sequence.to_be_bytes(),
            self.id.as_bytes(),
            self.schema.as_bytes(),
            &self.schema_version.to_be_bytes(),
            self.stream.as_bytes(),
            &self.version.to_be_bytes(),
            &self.key,
            &self.position.xid.to_be_bytes(),
            &self.position.position.to_be_bytes(),
            &self.body.to_be_bytes(),
        ])
    }

    /// Whether it is the same event, whatever the sequence.
    pub(crate) fn is_but_for_sequence(&self, other: &Face) -> bool {
        Face { sequence: other.sequence, ..self.clone() } == *other
    }

    /// Whether nothing can be said against it but that the registry does not know its schema id.
    pub(crate) fn is_but_for_schema_id(&self, wanted: &Face) -> bool {
        self.schema_version == UNKNOWN_ID && Face { schema_version: wanted.schema_version, ..self.clone() } == *wanted
    }

    /// What is not as in `wanted`.
    pub(crate) fn differing(&self, wanted: &Face) -> Vec<&'static str> {
        let parts = [
            ("sequence", self.sequence == wanted.sequence),
            ("id", self.id == wanted.id),
            ("schema", (&self.schema, self.schema_version) == (&wanted.schema, wanted.schema_version)),
            ("stream", self.stream == wanted.stream),
            ("version", self.version == wanted.version),
            ("key", self.key == wanted.key),
            ("position", self.position == wanted.position),
            ("body", self.body == wanted.body),
        ];
        parts.into_iter().filter(|(_, is_same)| !is_same).map(|(name, _)| name).collect()
    }

    /// For people.
    pub(crate) fn shown(&self) -> String {
        format!("{} v{} ({})", self.stream, self.version, self.id)
    }
}

/// The first 128 bits of the SHA-256 of some parts, each with its length before it.
pub(crate) fn digest_of(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let bytes = hash.finalize();
    bytes.iter().take(16).fold(0, |digest, byte| (digest << 8) | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_not_run_together() {
        assert_ne!(digest_of(&[b"ab", b"c"]), digest_of(&[b"a", b"bc"]));
        assert_eq!(digest_of(&[b"ab"]), digest_of(&[b"ab"]));
    }
}
