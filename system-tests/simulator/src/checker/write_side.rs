//! W1 to W4 and P1: commits, outcomes and records.

use event_log::{EventEnvelope, Record};
use event_store::{StoredEvent, StoredOutcome};
use schemas::event::StockChange;
use schemas::{Event, Outcome, OutcomeKind, WriterSchema, decode_event, partition_of};
use uuid::Uuid;

use super::{Checker, Committed, Seen, Told};
use crate::world::{Violation, World};

impl Checker {
    /// A transaction committed.
    pub fn committed(&mut self, rows: &[StoredEvent], outcomes: &[(Uuid, StoredOutcome)]) -> Result<(), Violation> {
        for row in rows {
            self.commit_row(row)?;
        }
        for (id, stored) in outcomes {
            if let Some(first) = self.stored.get(id) {
                let first = first.outcome.outcome.as_str();
                return Err(Violation::new("W2", format!("command {id} is decided twice; it was {first} first")));
            }
            self.stored.insert(*id, stored.clone());
            let events = self.caused.get(id).map_or(0, Vec::len);
            let outcome = &stored.outcome;
            if outcome.outcome != OutcomeKind::Accepted && events > 0 {
                let what = format!("command {id} is {} and has {events} events", outcome.outcome.as_str());
                return Err(Violation::new("W2", what));
            }
            if events > 0 && outcome.position.is_none() {
                return Err(Violation::new("W2", format!("accepted command {id} names no position")));
            }
        }
        Ok(())
    }

    fn commit_row(&mut self, row: &StoredEvent) -> Result<(), Violation> {
        let stream = &row.stream;
        let version = self.versions.entry(stream.clone()).or_default();
        if row.version != *version + 1 {
            return Err(Violation::new("W1", format!("{stream}: version {} follows {version}", row.version)));
        }
        *version = row.version;
        if let Some(first) = self.committed.get(&row.id) {
            let what = format!("event {} is there twice: at {} and at {}", row.id, first.position, row.position);
            return Err(Violation::new("W2", what));
        }
        if row.topic.ends_with(".events")
            && let Some(command) = row.causation_id.as_ref().and_then(|id| id.parse::<Uuid>().ok())
        {
            self.caused.entry(command).or_default().push(row.id);
        }
        let event = WriterSchema::of(row.schema).and_then(|writer| decode_event(writer, &row.body).ok());
        if let Some(Event::StockUpdated(event)) = &event {
            let (on_hand, reserved) = self.stock.get(stream).copied().unwrap_or_default();
            let quantity = event.quantity;
            let expected = match event.change {
                StockChange::Received | StockChange::Adjusted => (on_hand + quantity, reserved),
                StockChange::Reserved => (on_hand, reserved + quantity),
                StockChange::Released => (on_hand, reserved - quantity),
                StockChange::Shipped => (on_hand - quantity, reserved - quantity),
                StockChange::Counted => (quantity, reserved),
            };
            let found = (event.on_hand, event.reserved);
            if found != expected || event.reserved < 0 || event.on_hand < event.reserved {
                let what = format!("{stream} v{}: {found:?} on hand and reserved, {expected:?} follows", row.version);
                return Err(Violation::new("W3", what));
            }
            self.stock.insert(stream.clone(), found);
        }
        self.order.insert(row.position, row.id);
        let committed = Committed {
            position: row.position,
            topic: row.topic.clone(),
            key: row.key.clone(),
            stream: stream.clone(),
            version: row.version,
            is_published: false,
        };
        self.committed.insert(row.id, committed);
        Ok(())
    }

    /// A command was answered.
    pub fn answered(&mut self, digest: [u8; 32], outcome: &Outcome) -> Result<(), Violation> {
        let id = outcome.id;
        if outcome.outcome == OutcomeKind::Failed {
            return Ok(());
        }
        let first = self.answered.entry((id, digest)).or_insert_with(|| outcome.clone());
        if first != outcome {
            return Err(Violation::new("W2", format!("command {id} is answered {outcome:?} after {first:?}")));
        }
        let Some(stored) = self.stored.get(&id) else {
            return Err(Violation::new("W2", format!("command {id} is answered and was not committed: {outcome:?}")));
        };
        let is_reused = stored.digest.is_some_and(|first| first != digest);
        if is_reused && outcome.outcome != OutcomeKind::Invalid {
            return Err(Violation::new("W2", format!("command id {id} is taken and answered {outcome:?}")));
        }
        if !is_reused && stored.outcome != *outcome {
            return Err(Violation::new("W2", format!("command {id}: {:?} stored, {outcome:?} told", stored.outcome)));
        }
        Ok(())
    }

    /// Whether a command was decided.
    pub fn is_decided(&self, id: Uuid) -> bool {
        self.stored.contains_key(&id)
    }

    /// A record of ours is in the log.
    pub fn appended(&mut self, world: &World, record: &Record) -> Result<(), Violation> {
        let at = &record.at;
        let bad = |invariant, what: String| Violation::new(invariant, format!("{at} offset {}: {what}", record.offset));
        let envelope = EventEnvelope::from_headers(&record.headers).map_err(|error| bad("P1", error.to_string()))?;
        let id = envelope.id;
        let Some(committed) = self.committed.get_mut(&id) else {
            return Err(bad("W4", format!("event {id} was never committed")));
        };
        committed.is_published = true;
        let found = (&envelope.position, &envelope.partition_key, envelope.subject.as_str(), envelope.stream_version);
        let wanted = (&committed.position, &committed.key, committed.stream.as_str(), committed.version);
        if found != wanted || committed.topic != at.topic {
            return Err(bad("W4", format!("{found:?} is published, {wanted:?} was committed for {}", committed.topic)));
        }
        if partition_of(committed.key.as_bytes(), self.partitions) != at.partition {
            return Err(bad("P1", format!("key {} is of another partition", committed.key)));
        }
        let seen = self.log.entry(at.clone()).or_default();
        let sequence = envelope.sequence;
        self.records.entry(at.clone()).or_default().push(Told::Event { sequence });
        let last = seen.len() as u64;
        if (1..=last).contains(&sequence) {
            world.count(|stats| stats.duplicate_records += 1);
            let first = seen[sequence as usize - 1].id;
            if first != id {
                return Err(bad("P1", format!("sequence {sequence} is of event {first} and of {id}")));
            }
            return Ok(());
        }
        if sequence != last + 1 {
            return Err(bad("P1", format!("sequence {sequence} follows {last}")));
        }
        if seen.last().is_some_and(|last| last.position >= envelope.position) {
            return Err(bad("P1", format!("position {} comes late", envelope.position)));
        }
        let body = record.value.get(5..).unwrap_or_default();
        let schema_id = record.value.get(1..5).and_then(|id| id.try_into().ok()).map(u32::from_be_bytes);
        let contract = schema_id.and_then(schemas::contract::by_embedded_id);
        let writer = contract.and_then(|contract| WriterSchema::of(contract.schema));
        let event = writer.and_then(|writer| decode_event(writer, body).ok()).filter(is_possible);
        seen.push(Seen {
            id,
            key: envelope.partition_key,
            version: envelope.stream_version,
            position: envelope.position,
            time: envelope.time,
            event,
        });
        Ok(())
    }

    /// A record of somebody else is in the log.
    pub fn foreign(&mut self, record: &Record) {
        self.records.entry(record.at.clone()).or_default().push(Told::Foreign);
    }

    /// W4, at the end: what was committed is on its topic. How many are not.
    pub fn unpublished(&self) -> Vec<String> {
        let told = |id: &Uuid| {
            let event = self.committed.get(id).filter(|event| !event.is_published)?;
            Some(format!("{} v{} at {}", event.stream, event.version, event.position))
        };
        self.order.values().filter_map(told).collect()
    }
}

/// W3, as an event shows it: anything else is poison.
fn is_possible(event: &Event) -> bool {
    match event {
        Event::StockUpdated(event) => event.reserved >= 0 && event.on_hand >= event.reserved,
        _ => true,
    }
}
