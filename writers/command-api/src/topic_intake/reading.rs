//! From records of a command topic to commands, or to what is wrong with them. Stop 1 of an event's path, for topics.
//!
//! It waits for nothing but a registry that is asked for a schema.

use std::sync::Arc;

use event_log::{CommandDecoder, DecodeError, Record, SchemaRegistry, TopicPartition};
use event_store::{RecordIdentity, bounded_message};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::handler::RecordCommand;

/// Names the ids under which refused records are stored. They follow from a record's place, so that the sender may give
/// a corrected command under the same command id.
const PLACE_NAMESPACE: Uuid = Uuid::from_u128(0x3b0c_54c7_91d2_4d35_8a0e_6f7b_20c9_d1e4);
/// Longest record key that is kept for the outcome of an unreadable command.
const MAX_KEY: usize = 200;

pub(super) struct Reader {
    decoder: CommandDecoder,
    now: fn() -> i64,
}

/// Records of one partition, and what was read of them.
pub(super) struct Batch {
    pub(super) at: TopicPartition,
    pub(super) records: Vec<Record>,
    /// Of the first records, with their identities: of all, unless there is a problem.
    pub(super) commands: Vec<(RecordIdentity, RecordCommand)>,
    /// Why the next one cannot be read now.
    pub(super) problem: Option<String>,
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(registry: Arc<dyn SchemaRegistry>, now: fn() -> i64) -> Self {
        Self { decoder: CommandDecoder::new(registry), now }
    }

    /// Reads up to the first record that cannot be read now.
    pub(super) async fn read(self: Arc<Self>, at: TopicPartition, records: Vec<Record>) -> Batch {
        let mut commands = Vec::with_capacity(records.len());
        let mut problem = None;
        for record in &records {
            match self.read_one(record).await {
                Ok(command) => commands.push((identity_of(record), command)),
                Err(error) => {
                    problem = Some(error.to_string());
                    break;
                }
            }
        }
        Batch { at, records, commands, problem }
    }

    async fn read_one(&self, record: &Record) -> Result<RecordCommand, DecodeError> {
        let received_at = (self.now)();
        let place = format!("{}/{}", record.at, record.offset);
        let place_id = place_id(&place, record);
        let (id, code, problem) = match self.decoder.decode(record, received_at).await {
            Ok(envelope) => {
                let right = envelope.command.context().commands_topic();
                let problem = if right == record.at.topic {
                    envelope.check().err().map(|error| (error.code(), error.to_string()))
                } else {
                    Some(("wrong_topic", format!("{} belongs on {right}", envelope.command.command_type())))
                };
                match problem {
                    None => return Ok(RecordCommand::Command { envelope: Box::new(envelope), place_id }),
                    Some((code, problem)) => (Some(envelope.id), code, problem),
                }
            }
            // A registry that is down says nothing about the command: it waits.
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => (readable_id(record), error.code(), error.to_string()),
        };
        let problem = bounded_message(&problem);
        tracing::info!(place, code, %problem, "command refused");
        Ok(RecordCommand::Unreadable {
            place_id,
            command_id: id.unwrap_or(place_id),
            key: readable_key(record),
            code,
            problem: bounded_message(&format!("{} offset {}: {problem}", record.at, record.offset)).into_owned(),
            received_at,
        })
    }
}

/// What the event store keeps of the last record that was taken: a digest of all that makes a record, each part behind
/// its length, so that none can flow into the next.
pub(super) fn identity_of(record: &Record) -> RecordIdentity {
    let mut hash = Sha256::new();
    for part in [&record.key[..], record.headers.as_bytes(), &record.value[..], &record.timestamp.to_be_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    RecordIdentity { offset: record.offset, digest: hash.finalize().into() }
}

/// Of the record at a place, which is another one once the topic is made anew.
fn place_id(place: &str, record: &Record) -> Uuid {
    let id = record.headers.get("ce_id").unwrap_or_default();
    Uuid::new_v5(&PLACE_NAMESPACE, &[place.as_bytes(), b"\0", id.as_bytes(), b"\0", &record.value].concat())
}

fn readable_id(record: &Record) -> Option<Uuid> {
    record.headers.get("ce_id")?.parse().ok()
}

/// A key that is safe to store and to publish: it came from outside.
fn readable_key(record: &Record) -> String {
    String::from_utf8_lossy(&record.key).chars().filter(|character| !character.is_control()).take(MAX_KEY).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is stored: a build that makes another one takes every topic for one that was made anew.
    #[test]
    fn a_record_has_the_same_identity_in_every_build() {
        let record = Record {
            at: TopicPartition::new("inventory.commands", 0),
            offset: 7,
            key: "TEA".into(),
            headers: [("ce_id", "1")].into_iter().collect(),
            value: "{}".into(),
            timestamp: 1_700_000_000_000,
        };
        let identity = identity_of(&record);
        let digest: String = identity.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(identity.offset, 7);
        assert_eq!(digest, "999444b402977c663b34a5a598d4da92aeb2d475611df259993d07ef456a3bd4");
        for other in [
            Record { key: "TE".into(), ..record.clone() },
            Record { headers: [("ce_id", "2")].into_iter().collect(), ..record.clone() },
            Record { value: "{ }".into(), ..record.clone() },
            Record { timestamp: record.timestamp + 1, ..record.clone() },
        ] {
            assert_ne!(identity_of(&other), identity, "{other:?}");
        }
    }
}
