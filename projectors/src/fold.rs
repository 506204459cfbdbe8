//! Folds a batch of events in memory: the exact-sequence rule, coalescing per key, parking in order.
//!
//! Pure but for the rows that it is given; the worker does the reading and the writing. Kept apart from the worker so
//! that the rules can be tested, and simulated, without a log or a store.

use std::collections::{HashMap, HashSet};

use event_log::{EventEnvelope, Record};
use read_models::{Checkpoint, FOREIGN_KEY, ParkedEvent};
use resilience::{Guard, guard};
use schemas::Event;

use crate::projection::{Facts, Projection, fold_event};

/// What a record turned out to be.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large variant is the rule, a foreign record the rare exception")]
pub(crate) enum Read {
    /// An event of ours. `event` is what it says, or why it cannot be decoded.
    Event { envelope: EventEnvelope, event: Result<Event, String> },
    /// Not an event of ours: no readable envelope, hence no sequence.
    Foreign { why: String },
}

/// How a record's sequence stands to the last one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Next,
    Duplicate,
    Gap { last: u64, found: u64 },
}

/// Consumers accept exactly `last + 1`.
pub(crate) fn order(last: u64, found: u64) -> Order {
    if found == last + 1 || !guard::holds(Guard::SequenceRule) {
        Order::Next
    } else if found <= last {
        Order::Duplicate
    } else {
        Order::Gap { last, found }
    }
}

/// A batch as it is folded.
pub(crate) struct Fold<P: Projection> {
    /// Version of the projection's fold.
    fold: u32,
    pub(crate) checkpoint: Checkpoint,
    /// Newest row per key: one write per key, however many events it had.
    pub(crate) changes: HashMap<P::Key, P::Row>,
    pub(crate) parked: Vec<ParkedEvent>,
    pub(crate) newly_parked: HashSet<String>,
    pub(crate) applied: u64,
    pub(crate) duplicates: u64,
    pub(crate) foreign: u64,
    /// How many more records that are nobody's may be kept.
    pub(crate) foreign_room: u64,
    /// Those that were not kept.
    pub(crate) foreign_dropped: u64,
}

/// Records that are nobody's which are kept of one partition, and the bytes of each: a hostile sender must not fill the
/// store. The log has the rest.
pub(crate) const FOREIGN_KEPT: u64 = 1_000;
const FOREIGN_BYTES: usize = 4 * 1024;

const BEHIND: &str = "behind a parked event of the same key";

// === impl Fold ===

impl<P: Projection> Fold<P> {
    pub(crate) fn new(fold: u32, checkpoint: Checkpoint) -> Self {
        Self {
            fold,
            checkpoint,
            changes: HashMap::new(),
            parked: Vec::new(),
            newly_parked: HashSet::new(),
            applied: 0,
            duplicates: 0,
            foreign: 0,
            foreign_room: FOREIGN_KEPT,
            foreign_dropped: 0,
        }
    }

    /// Takes the next record; its order was found to be [`Order::Next`] or a duplicate, or it is foreign.
    ///
    /// `row` gives the stored row of a key that this batch has not changed yet. `now` is in milliseconds since 1970.
    pub(crate) fn take<'r>(
        &mut self,
        record: &Record,
        read: Read,
        parked_keys: &HashSet<String>,
        row: impl Fn(&P::Key) -> Option<&'r P::Row>,
        now: i64,
    ) where
        P::Row: 'r,
    {
        self.checkpoint.next_offset = record.offset + 1;
        let (envelope, event) = match read {
            Read::Event { envelope, event } => (envelope, event),
            Read::Foreign { why } => {
                self.foreign += 1;
                if self.foreign_room == 0 {
                    self.foreign_dropped += 1;
                    return;
                }
                self.foreign_room -= 1;
                let mut parked = self.parked_event(record, FOREIGN_KEY.to_owned(), why, now);
                cut(&mut parked);
                self.parked.push(parked);
                return;
            }
        };
        if order(self.checkpoint.sequence, envelope.sequence) == Order::Duplicate {
            self.duplicates += 1;
            return;
        }
        self.checkpoint.sequence = envelope.sequence;
        self.checkpoint.position = envelope.position;
        self.checkpoint.event_time = envelope.time;

        let key = &envelope.partition_key;
        let is_behind =
            (parked_keys.contains(key) || self.newly_parked.contains(key)) && guard::holds(Guard::KeyParking);
        let poison = if is_behind {
            Some(BEHIND.to_owned())
        } else {
            match event {
                Err(why) => Some(why),
                Ok(event) => self.fold(&event, Facts::of(&envelope), row).err(),
            }
        };
        match poison {
            None => self.applied += 1,
            // As if it had not been there.
            Some(_) if !guard::holds(Guard::KeyParking) => {}
            Some(why) => {
                self.newly_parked.insert(key.clone());
                let parked = self.parked_event(record, key.clone(), why, now);
                self.parked.push(parked);
            }
        }
    }

    pub(crate) fn fold<'r>(
        &mut self,
        event: &Event,
        facts: Facts,
        row: impl Fn(&P::Key) -> Option<&'r P::Row>,
    ) -> Result<(), String>
    where
        P::Row: 'r,
    {
        let folded = tracing::trace_span!("project")
            .in_scope(|| fold_event::<P>(self.fold, event, facts, |key| self.changes.get(key).or_else(|| row(key))));
        if let Some((key, new)) = folded.map_err(|error| error.to_string())? {
            self.changes.insert(key, new);
        }
        Ok(())
    }

    fn parked_event(&self, record: &Record, key: String, reason: String, now: i64) -> ParkedEvent {
        ParkedEvent {
            key,
            sequence: self.checkpoint.sequence,
            offset: record.offset,
            position: self.checkpoint.position,
            headers: record.headers.to_pairs(),
            value: record.value.to_vec(),
            reason,
            parked_at: now,
        }
    }
}

// === impl Facts ===

impl Facts {
    /// Of the event in an envelope.
    pub fn of(envelope: &EventEnvelope) -> Self {
        Self { version: envelope.stream_version, time: envelope.time }
    }
}

/// Keeps the beginning of a record that is nobody's.
fn cut(parked: &mut ParkedEvent) {
    parked.value.truncate(FOREIGN_BYTES);
    let mut room = FOREIGN_BYTES;
    parked.headers.retain(|(name, value)| {
        let takes = name.len() + value.len();
        let fits = takes <= room;
        room -= if fits { takes } else { 0 };
        fits
    });
}

#[cfg(test)]
pub(crate) mod tests;
