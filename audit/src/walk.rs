//! The walk over the event table, in the relay's order: what each topic partition should hold, what each read model
//! should hold, and whether each stream is whole (W1).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use event_log::TopicPartition;
use event_store::{EventStore, EventStoreError, RelayCursor, StoredEvent, Topology};
use projectors::{SearchProjection, StockProjection};
use read_models::PartitionRef;
use schemas::{Context, StorePosition, WriterSchema, decode_event};

use crate::digest::Face;
use crate::error::AuditError;
use crate::oracle::{Folds, Oracle};
use crate::pace::{Pace, Progress};
use crate::report::{Difference, Findings, Kind, Place};
use crate::side::Side;

/// Rows of one read.
pub(crate) const PAGE: usize = 5_000;

/// How far the table was walked, and what it said.
pub(crate) struct TableWalk {
    topology: Topology,
    /// As counted by this walk.
    cursor: RelayCursor,
    /// The relay's cursor: what is behind it need not be on a topic yet.
    relayed: StorePosition,
    pub(crate) sides: HashMap<TopicPartition, Side<StorePosition>>,
    /// First sequence of each partition that this walk knows; 1 unless it began in the middle.
    bases: HashMap<TopicPartition, u64>,
    /// Last version by the hash of the stream's name: a name would cost more than all the rest.
    versions: HashMap<u64, u64>,
    /// The walk began in the middle of the table.
    pub(crate) is_partial: bool,
    /// Events that may wait behind the checkpoint of a partition of a read model.
    pub(crate) most_later: usize,
    pub(crate) stock: Oracle<StockProjection>,
    pub(crate) search: Oracle<SearchProjection>,
    pub(crate) events: u64,
    pub(crate) findings: Findings,
}

// === impl TableWalk ===

impl TableWalk {
    pub(crate) fn from_beginning(topology: Topology, folds: Folds, most_later: usize) -> Self {
        Self {
            topology,
            cursor: RelayCursor::default(),
            relayed: StorePosition::default(),
            sides: HashMap::new(),
            bases: HashMap::new(),
            versions: HashMap::new(),
            is_partial: false,
            most_later,
            stock: Oracle::new(folds.stock),
            search: Oracle::new(folds.search),
            events: 0,
            findings: Findings::default(),
        }
    }

    /// Starts behind `since`, with sequences = relay cursor - events published since.
    pub(crate) async fn since(
        store: &dyn EventStore,
        begun: Self,
        since: StorePosition,
        relay: &RelayCursor,
        pace: Pace,
    ) -> Result<Self, AuditError> {
        let (mut published, topology) = (RelayCursor::default(), begun.topology);
        let mut position = since;
        'walk: loop {
            let begun = Instant::now();
            let page = store.read_committed(position, PAGE).await?;
            for event in &page {
                position = event.position;
                if event.position > relay.position {
                    break 'walk;
                }
                published.advance(event, topology);
            }
            if page.is_empty() {
                break;
            }
            pace.rest(begun, page.len()).await;
        }
        let mut walk = Self { is_partial: true, ..begun };
        walk.cursor.position = since;
        for (place, sequence) in &relay.sequences {
            let before = sequence.saturating_sub(published.sequence_of(place));
            walk.cursor.sequences.insert(place.clone(), before);
            let at = TopicPartition::new(place.0.clone(), place.1);
            walk.bases.insert(at.clone(), before + 1);
            walk.sides.entry(at).or_default().raise(before);
        }
        Ok(walk)
    }

    pub(crate) fn position(&self) -> StorePosition {
        self.cursor.position
    }

    /// What the walk folds with.
    pub(crate) fn folds(&self) -> Folds {
        Folds { stock: self.stock.fold(), search: self.search.fold() }
    }

    pub(crate) fn topology(&self) -> Topology {
        self.topology
    }

    pub(crate) fn base(&self, at: &TopicPartition) -> u64 {
        self.bases.get(at).copied().unwrap_or(1)
    }

    /// Highest sequence of a partition up to the relay's cursor.
    pub(crate) fn limit(&self, at: &TopicPartition) -> u64 {
        self.sides.get(at).map_or(0, Side::limit)
    }

    /// What the relay has published by now must be on the topics.
    pub(crate) fn relay_is_at(&mut self, relayed: StorePosition) {
        self.relayed = relayed;
        for side in self.sides.values_mut() {
            let reached = side.waiting().iter().filter(|(_, _, position)| *position <= relayed);
            let limit = reached.map(|(sequence, _, _)| *sequence).max();
            if let Some(limit) = limit {
                side.raise(limit);
            }
        }
    }

    /// Walks on until `target` or the table's end; `false` when the end came first.
    pub(crate) async fn advance(
        &mut self,
        store: &Arc<dyn EventStore>,
        target: StorePosition,
        pace: Pace,
        progress: &Progress,
    ) -> Result<bool, AuditError> {
        while self.cursor.position < target {
            if !self.step(store, pace, progress).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a page of the table; `false` at its end.
    pub(crate) async fn step(
        &mut self,
        store: &Arc<dyn EventStore>,
        pace: Pace,
        progress: &Progress,
    ) -> Result<bool, AuditError> {
        let begun = Instant::now();
        let page = match store.read_committed(self.cursor.position, PAGE).await {
            Err(error @ EventStoreError::TableEndsBefore { .. }) => {
                self.note_end(error.to_string());
                return Ok(false);
            }
            page => page?,
        };
        Progress::add(&progress.events, page.len());
        for event in &page {
            self.take(event);
        }
        pace.rest(begun, page.len()).await;
        Ok(!page.is_empty())
    }

    /// Notes that the table ends too early. Any finding silences it: it is met again in each round, and where the table
    /// is damaged already its end says nothing new.
    pub(crate) fn note_end(&mut self, detail: String) {
        if self.findings.total() == 0 {
            self.findings.push(table(Kind::Lost, String::new(), "the table's end".to_owned(), detail));
        }
    }

    /// Whether more events wait behind a checkpoint than may.
    pub(crate) fn is_full(&self) -> bool {
        self.stock.is_full(self.most_later) || self.search.is_full(self.most_later)
    }

    pub(crate) fn give_up_full(&mut self) {
        self.stock.give_up_full(self.most_later);
        self.search.give_up_full(self.most_later);
    }

    fn take(&mut self, event: &StoredEvent) {
        self.events += 1;
        self.check_version(event);
        let (partition, sequence) = self.cursor.advance(event, self.topology);
        let at = TopicPartition::new(event.topic.clone(), partition);
        let side = self.sides.entry(at).or_default();
        if event.position <= self.relayed {
            side.raise(sequence);
        }
        side.take(sequence, Face::of_row(event, sequence).digest(), event.position);
        let Some(context) = Context::ALL.into_iter().find(|context| context.events_topic() == event.topic) else {
            return;
        };
        let decoded = WriterSchema::of(event.schema).and_then(|schema| decode_event(schema, &event.body).ok());
        let at = PartitionRef { context, partition };
        self.stock.take(at, sequence, event, decoded.as_ref());
        self.search.take(at, sequence, event, decoded.as_ref());
    }

    fn check_version(&mut self, event: &StoredEvent) {
        let mut hasher = DefaultHasher::new();
        event.stream.as_str().hash(&mut hasher);
        let last = self.versions.insert(hasher.finish(), event.version);
        let last = match last {
            None if self.is_partial => return,
            None => 0,
            Some(last) => last,
        };
        if event.version == last + 1 {
            return;
        }
        let topic = event.topic.clone();
        if event.version > last {
            let what = format!("{} v{}..v{}", event.stream, last + 1, event.version - 1);
            let detail = "these versions of the stream are not in the event table".to_owned();
            self.findings.push(table(Kind::Lost, topic, what, detail));
        } else {
            let what = format!("{} v{}", event.stream, event.version);
            let detail = format!("it stands behind version {last} at {}", event.position);
            self.findings.push(table(Kind::OutOfOrder, topic, what, detail));
        }
    }
}

/// A difference in the event table itself.
fn table(kind: Kind, partition: String, what: String, detail: String) -> Difference {
    Difference { place: Place::EventTable, partition, kind, sequence: None, offset: None, what, detail }
}
