//! P2 to P4 and Q1: what a read model holds is the fold of exactly the events up to its checkpoint, and only its owner
//! writes.

use std::collections::{BTreeSet, HashMap, HashSet};

use event_log::TopicPartition;
use read_models::{Checkpoint, PartitionRef};

use super::{Checker, Told};
use crate::projection::Modelled;
use crate::read_model::Part;
use crate::world::Violation;

/// What a partition must hold at a checkpoint.
struct Expected<M: Modelled> {
    checkpoint: Checkpoint,
    rows: HashMap<M::Key, M::Row>,
    /// Key and sequence of parked events; `None` with an offset for records of nobody.
    parked: BTreeSet<(String, u64)>,
    foreign: BTreeSet<u64>,
}

impl Checker {
    /// An owner took a partition.
    pub fn claimed(&mut self, model: &'static str, partition: PartitionRef, epoch: u64) {
        self.epochs.insert((model, partition), epoch);
    }

    /// A store forgot who owned its partitions.
    pub fn forgot_owners(&mut self, model: &'static str) {
        self.epochs.retain(|(name, _), _| *name != model);
    }

    /// P3: a write went through.
    pub fn written(&mut self, model: &'static str, partition: PartitionRef, epoch: u64) -> Result<(), Violation> {
        let owner = self.epochs.entry((model, partition)).or_insert(epoch);
        if epoch < *owner {
            let what = format!("{model} {partition}: epoch {epoch} wrote after epoch {owner} had claimed");
            return Err(Violation::new("P3", what));
        }
        *owner = epoch;
        Ok(())
    }

    /// P2, P4 and Q1: whoever reads a partition now reads a state that follows from the log, named by its checkpoint.
    pub(crate) fn holds<M: Modelled>(
        &self,
        partition: PartitionRef,
        part: &Part<M>,
        after: &str,
    ) -> Result<(), Violation> {
        let bad = |invariant, what: String| {
            Err(Violation::new(invariant, format!("{} {partition} after {after}: {what}", M::NAME)))
        };
        let expected = match self.expected::<M>(partition, part.checkpoint) {
            Ok(expected) => expected,
            Err(what) => return bad("P2", what),
        };
        let (held, wanted) = (part.checkpoint, expected.checkpoint);
        if held != wanted {
            return bad("P2", format!("the checkpoint is {held}, at that sequence and offset it must be {wanted}"));
        }
        if part.rows != expected.rows {
            let differs = |key: &&M::Key| part.rows.get(*key) != expected.rows.get(*key);
            let keys: HashSet<&M::Key> = part.rows.keys().chain(expected.rows.keys()).collect();
            let mut told: Vec<String> = keys
                .iter()
                .filter(|key| differs(key))
                .map(|key| format!("{key:?}: {:?}, not {:?}", part.rows.get(*key), expected.rows.get(*key)))
                .collect();
            told.sort();
            return bad("P2", format!("at {held}: {}", told.join("; ")));
        }
        let mut parked = BTreeSet::new();
        let mut foreign = BTreeSet::new();
        for event in part.parked.values() {
            let is_new = match event.key.as_str() {
                "!foreign" => foreign.insert(event.offset),
                key => parked.insert((key.to_owned(), event.sequence)),
            };
            if !is_new {
                return bad("P4", format!("event {} of {} is parked twice", event.sequence, event.key));
            }
        }
        if parked != expected.parked {
            return bad("P4", format!("at {held} parked are {parked:?}, must be {:?}", expected.parked));
        }
        if foreign != expected.foreign {
            return bad("P4", format!("at {held} parked are offsets {foreign:?}, must be {:?}", expected.foreign));
        }
        Ok(())
    }

    fn expected<M: Modelled>(&self, partition: PartitionRef, held: Checkpoint) -> Result<Expected<M>, String> {
        let at = TopicPartition::new(partition.context.events_topic(), partition.partition);
        let seen = self.log.get(&at).map(Vec::as_slice).unwrap_or_default();
        let records = self.records.get(&at).map(Vec::as_slice).unwrap_or_default();
        let (sequence, offset) = (held.sequence as usize, held.next_offset as usize);
        if sequence > seen.len() || offset > records.len() {
            return Err(format!("{held} is ahead of the log, which has {} events", seen.len()));
        }
        let mut expected =
            Expected { checkpoint: held, rows: HashMap::new(), parked: BTreeSet::new(), foreign: BTreeSet::new() };
        let mut last = 0;
        for (place, told) in records[..offset].iter().enumerate() {
            match told {
                Told::Event { sequence } => last = last.max(*sequence),
                Told::Foreign => {
                    expected.foreign.insert(place as u64);
                }
            }
        }
        expected.checkpoint.sequence = last;
        let newest = seen[..sequence].last();
        expected.checkpoint.position = newest.map(|event| event.position).unwrap_or_default();
        expected.checkpoint.event_time = newest.map(|event| event.time).unwrap_or_default();

        let mut parked_keys: HashSet<&str> = HashSet::new();
        let mut versions: HashMap<M::Key, u64> = HashMap::new();
        for (index, event) in seen[..sequence].iter().enumerate() {
            let is_poison = event.event.is_none();
            if is_poison || parked_keys.contains(event.key.as_str()) {
                parked_keys.insert(&event.key);
                expected.parked.insert((event.key.clone(), index as u64 + 1));
                continue;
            }
            let Some((key, row)) = event.event.as_ref().and_then(|told| M::row(told, event.version)) else { continue };
            let version = versions.entry(key.clone()).or_default();
            if event.version > *version {
                *version = event.version;
                expected.rows.insert(key, row);
            }
        }
        Ok(expected)
    }
}
