//! What the log has beyond a checkpoint: which rows it touched, and the events to fold a lagging row forward.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use event_log::{EventEnvelope, TopicPartition};
use projectors::{Facts, Projection};
use read_models::Checkpoint;
use schemas::Event;
use tokio::time::Instant;

use crate::error::ReplayError;
use crate::log_reader::LogReader;

const PAGE: usize = 1_000;
/// How long a read model may be ahead of what the log gives.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// An event behind the checkpoint that the tail began at.
pub(super) struct TailEvent<K> {
    pub(super) sequence: u64,
    /// Events of one partition key are parked together.
    pub(super) partition_key: String,
    /// The row that it touches.
    pub(super) key: K,
    pub(super) event: Event,
    pub(super) facts: Facts,
}

/// One partition of the log from a checkpoint on. Records that do not follow are passed over, as consumers do.
pub(super) struct Tail<'a, P: Projection> {
    log: &'a LogReader,
    at: TopicPartition,
    next_offset: u64,
    /// Sequence that was met last.
    last: u64,
    events: VecDeque<TailEvent<P::Key>>,
    /// Rows touched by events that were let go.
    forgotten: HashSet<P::Key>,
}

// === impl Tail ===

impl<'a, P: Projection> Tail<'a, P> {
    pub(super) fn new(log: &'a LogReader, at: TopicPartition, from: &Checkpoint) -> Self {
        let (next_offset, last) = (from.next_offset, from.sequence);
        Self { log, at, next_offset, last, events: VecDeque::new(), forgotten: HashSet::new() }
    }

    /// Reads what the log has now.
    pub(super) async fn read_to_end(&mut self) -> Result<(), ReplayError> {
        let Some(ends) = self.log.ends_of(&self.at).await? else { return Ok(()) };
        while self.next_offset < ends.next && self.read_page().await? {}
        Ok(())
    }

    /// Reads on until a sequence was met.
    pub(super) async fn read_to(&mut self, sequence: u64) -> Result<(), ReplayError> {
        let begun = Instant::now();
        while self.last < sequence {
            if self.read_page().await? {
                continue;
            }
            if begun.elapsed() > PATIENCE {
                return Err(ReplayError::NotOnLog { at: self.at.to_string(), wanted: sequence, last: self.last });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// `false` when nothing was there.
    async fn read_page(&mut self) -> Result<bool, ReplayError> {
        let records = self.log.read(&self.at, self.next_offset, PAGE).await?;
        let Some(last) = records.last() else { return Ok(false) };
        self.next_offset = last.offset + 1;
        for record in &records {
            let Ok(envelope) = EventEnvelope::from_headers(&record.headers) else { continue };
            if envelope.sequence != self.last + 1 {
                continue;
            }
            self.last = envelope.sequence;
            match self.log.decode(record).await {
                Ok(decoded) => {
                    let Some(key) = P::key(&decoded.event) else { continue };
                    self.events.push_back(TailEvent {
                        sequence: envelope.sequence,
                        facts: Facts::of(&envelope),
                        partition_key: envelope.partition_key,
                        key,
                        event: decoded.event,
                    });
                }
                Err(error) if error.is_transient() => return Err(error.into()),
                // Both generations park it: no row is touched.
                Err(_) => {}
            }
        }
        Ok(true)
    }

    /// Rows that events after `sequence` touched; all of them where events that old were let go.
    pub(super) fn touched_after(&self, sequence: u64) -> HashSet<P::Key> {
        let newer = self.events.iter().filter(|event| event.sequence > sequence);
        newer.map(|event| event.key.clone()).collect()
    }

    /// Rows that events in `after + 1 ..= to` touched, with the last of them.
    pub(super) fn touched_between(&self, after: u64, to: u64) -> HashMap<P::Key, u64> {
        let between = self.events.iter().filter(|event| (after + 1..=to).contains(&event.sequence));
        between.map(|event| (event.key.clone(), event.sequence)).collect()
    }

    /// Rows that any event from the tail's beginning on touched.
    pub(super) fn touched(&self) -> HashSet<P::Key> {
        self.events.iter().map(|event| event.key.clone()).chain(self.forgotten.iter().cloned()).collect()
    }

    /// Events in `after + 1 ..= to` by row, in order.
    pub(super) fn by_row(&self, after: u64, to: u64) -> HashMap<&P::Key, Vec<&TailEvent<P::Key>>> {
        let mut rows: HashMap<&P::Key, Vec<&TailEvent<P::Key>>> = HashMap::new();
        for event in self.events.iter().filter(|event| (after + 1..=to).contains(&event.sequence)) {
            rows.entry(&event.key).or_default().push(event);
        }
        rows
    }

    /// Lets events up to `sequence` go: no row will be folded over them.
    pub(super) fn forget_to(&mut self, sequence: u64) {
        while self.events.front().is_some_and(|event| event.sequence <= sequence) {
            if let Some(event) = self.events.pop_front() {
                self.forgotten.insert(event.key);
            }
        }
    }
}
