//! The topics: which sequences are there, and which of them the event table knows otherwise or not at all.

use std::collections::{BTreeMap, HashMap};

use event_log::{EventEnvelope, EventLog, EventLogError, PartitionEnds, Record, TopicPartition};
use event_store::{RelayCursor, Topology};
use uuid::Uuid;

use super::PublishAgain;
use super::table_walk::{Partition, TableFingerprints, fingerprint};
use crate::error::RelayError;
use crate::topics::stamped_topics;

const PAGE: usize = 5_000;

/// What the topics hold.
#[derive(Default)]
pub(super) struct LogWalk {
    pub(super) partitions: HashMap<Partition, Held>,
}

/// What one partition holds.
#[derive(Default)]
pub(super) struct Held {
    /// Whether older records were removed from it.
    pub(super) is_cut: bool,
    pub(super) lowest: Option<u64>,
    pub(super) highest: u64,
    /// For each sequence that the table knows, from 1: whether it is there.
    present: Vec<bool>,
    /// Records of sequences that the table does not reach.
    pub(super) extra: BTreeMap<u64, Record>,
    /// The first sequence that stands for another event than in the table, and the event that the topic has there.
    pub(super) differs: Option<(u64, Uuid)>,
}

// === impl LogWalk ===

impl LogWalk {
    pub(super) async fn walk(
        log: &dyn EventLog,
        topology: Topology,
        table: &TableFingerprints,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, RelayError> {
        let mut walk = Self::default();
        for topic in stamped_topics() {
            let ends = match log.ends(topic).await {
                // Deleted, and not made again yet: nothing is there.
                Err(EventLogError::UnknownTopic { .. }) => {
                    (0..topology.partitions).map(|partition| PartitionEnds { partition, first: 0, next: 0 }).collect()
                }
                ends => ends?,
            };
            let found = ends.len() as u32;
            if found != topology.partitions {
                let topic = topic.to_owned();
                return Err(EventLogError::PartitionCount { topic, found, wanted: topology.partitions }.into());
            }
            for ends in ends {
                let at = TopicPartition::new(topic, ends.partition);
                let partition = (at.topic.clone(), at.partition);
                let mut held = Held { is_cut: ends.first > 0, ..Held::default() };
                held.present.resize(table.stored(&partition) as usize, false);
                let mut next = ends.first;
                while next < ends.next {
                    let records = match log.read(&at, next, PAGE).await {
                        // Retention passed by meanwhile.
                        Err(EventLogError::OffsetOutOfRange { asked, first, .. }) if asked < first => {
                            next = first;
                            continue;
                        }
                        records => records?,
                    };
                    let Some(last) = records.last() else { break };
                    next = last.offset + 1;
                    progress(records.len() as u64);
                    for record in records {
                        held.take(record, &partition, table);
                    }
                }
                walk.partitions.insert(partition, held);
            }
        }
        Ok(walk)
    }

    /// Whether an event need not be published again.
    pub(super) fn has(&self, partition: &Partition, sequence: u64, saved: &RelayCursor, again: PublishAgain) -> bool {
        let Some(held) = self.partitions.get(partition) else { return false };
        if held.is_present(sequence) {
            return true;
        }
        let was_published = sequence <= saved.sequence_of(partition);
        let is_wanted = match again {
            PublishAgain::NotWhatRetentionRemoved => false,
            PublishAgain::From(from) => sequence >= from,
        };
        held.is_cut && !is_wanted && was_published && held.lowest.is_none_or(|lowest| sequence < lowest)
    }
}

// === impl Held ===

impl Held {
    fn take(&mut self, record: Record, partition: &Partition, table: &TableFingerprints) {
        // A foreign record has no place in the order.
        let Ok(envelope) = EventEnvelope::from_headers(&record.headers) else { return };
        let sequence = envelope.sequence;
        self.lowest = Some(self.lowest.map_or(sequence, |lowest| lowest.min(sequence)));
        self.highest = self.highest.max(sequence);
        match table.at(partition, sequence) {
            Some(event) if event == fingerprint(envelope.id) => {
                if let Some(present) = self.present.get_mut((sequence - 1) as usize) {
                    *present = true;
                }
            }
            Some(_) => self.note_difference(sequence, envelope.id),
            None => {
                let first = self.extra.entry(sequence).or_insert_with(|| record.clone());
                if EventEnvelope::from_headers(&first.headers).is_ok_and(|first| first.id != envelope.id) {
                    self.note_difference(sequence, envelope.id);
                }
            }
        }
    }

    fn note_difference(&mut self, sequence: u64, id: Uuid) {
        if self.differs.is_none_or(|(first, _)| sequence < first) {
            self.differs = Some((sequence, id));
        }
    }

    fn is_present(&self, sequence: u64) -> bool {
        sequence > 0 && self.present.get((sequence - 1) as usize).copied().unwrap_or(false)
    }

    /// Sequences from `from` to `to` that are not there.
    pub(super) fn missing(&self, from: u64, to: u64) -> u64 {
        (from..=to).filter(|sequence| !self.is_present(*sequence)).count() as u64
    }
}
