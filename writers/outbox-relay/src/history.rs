//! Whether log and event table still tell the same history.
//!
//! A relay that takes the lead looks at the end of every partition. It must hold the last sequence that was saved as
//! published, or the log lost it (faults 6 and 21). What it holds there, and beyond (a crash between publishing and
//! saving, fault 1), must be what the event table holds at that place, or the table was restored to an earlier point
//! and sequences would be given out twice (fault 22).
//!
//! The newest record is proof for all before it: rows are neither changed nor deleted, and what is below the horizon
//! keeps its order. Up to [`MOST_AHEAD`] records beyond the cursor are compared one by one all the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_log::{EventEnvelope, EventLog, EventLogError, NewRecord, PartitionEnds, TopicPartition};
use event_store::{EventStore, EventStoreError, RelayCursor, StoredEvent, Topology};
use futures::{StreamExt, TryStreamExt, stream};
use schemas::StorePosition;
use uuid::Uuid;

use crate::error::RelayError;
use crate::topics::stamped_topics;

/// Records read back from the end of a partition in search of the saved sequence. One relay may repeat the batch of
/// another behind newer records, no more.
const MOST_BACK: u64 = 100_000;
/// Sequences beyond the cursor that are compared one by one.
const MOST_AHEAD: usize = 100_000;
/// Partitions looked at together.
const AT_ONCE: usize = 4;
const PAGE: usize = 1_000;
/// How often a topic that is not known is asked for, and how long after the last time.
const GONE_AFTER: u32 = 10;
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How often the relay looks whether the log shrank.
const SHRINK_CHECK_EVERY: Duration = Duration::from_secs(3);

/// The end of each partition.
pub(crate) type Ends = HashMap<TopicPartition, u64>;

/// What each partition reached at least: where it was seen to end, and what was acknowledged since.
pub(crate) struct SeenEnds {
    topology: Topology,
    ends: Mutex<Ends>,
}

/// The end of one partition: the records of ours from the saved sequence on.
struct Tail {
    at: TopicPartition,
    saved: u64,
    /// The highest sequence; 0 without one.
    highest: u64,
    /// Whether older records were removed from it.
    is_cut: bool,
    /// Sequence of its first event, where none was removed and events were published to it.
    first: Option<u64>,
    /// By sequence, the saved one and those above.
    events: BTreeMap<u64, (Uuid, StorePosition)>,
}

/// Compares what the log holds with the saved cursor and the event table.
pub(crate) async fn check_history(
    log: &dyn EventLog,
    store: &dyn EventStore,
    topology: Topology,
    cursor: &RelayCursor,
    at_least: usize,
) -> Result<Ends, RelayError> {
    let mut seen = Ends::new();
    let mut wanted = Vec::new();
    for topic in stamped_topics() {
        let ends = log.ends(topic).await?;
        check_partitions(topic, &ends, topology)?;
        for ends in ends {
            let at = TopicPartition::new(topic, ends.partition);
            let saved = cursor.sequence_of(&(topic.to_owned(), ends.partition));
            seen.insert(at.clone(), ends.next);
            wanted.push((at, ends, saved));
        }
    }
    let tails: Vec<Tail> = stream::iter(wanted)
        .map(|(at, ends, saved)| Tail::read(log, at, ends, saved, at_least as u64))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    for tail in &tails {
        tail.check_not_behind()?;
        tail.check_begins(log).await?;
        tail.check_ends(store).await?;
    }
    check_ahead(store, topology, cursor, tails).await?;
    Ok(seen)
}

/// An error where a topic is gone that was published to: made anew, it would be empty, and whoever reads it would take
/// that for all there is.
pub(crate) async fn check_topics(log: &dyn EventLog, cursor: &RelayCursor) -> Result<(), RelayError> {
    for topic in stamped_topics() {
        let Some((partition, published)) = cursor.published_to(topic) else { continue };
        if is_gone(log, topic).await? {
            let at = TopicPartition::new(topic, partition);
            return Err(RelayError::LogLost { at, published, found: 0 });
        }
    }
    Ok(())
}

/// A broker that was just started may not know a topic yet: it is asked for a while.
async fn is_gone(log: &dyn EventLog, topic: &str) -> Result<bool, RelayError> {
    for _ in 0..GONE_AFTER {
        match log.ends(topic).await {
            Err(EventLogError::UnknownTopic { .. }) => tokio::time::sleep(ASK_AGAIN).await,
            known => return Ok(known.map(|_| false)?),
        }
    }
    Ok(true)
}

/// Looks again and again whether a partition ends before where it was seen to end. Returns only with an error.
pub(crate) async fn watch_log(log: &dyn EventLog, seen: &SeenEnds) -> RelayError {
    let mut ticks = tokio::time::interval(SHRINK_CHECK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for topic in stamped_topics() {
            match seen.look(log, [topic]).await {
                Ok(()) => {}
                Err(error @ (RelayError::LogShrank { .. } | RelayError::Log(EventLogError::PartitionCount { .. }))) => {
                    return error;
                }
                // What cannot be asked now is asked again; that publishing fails is told where it does.
                Err(error) => tracing::debug!(%error, topic, "log ends not seen"),
            }
        }
    }
}

/// Whether a sequence is missing from a partition for those who read it from its beginning: what stands behind a gap
/// counts once what is missing has come, as it does for consumers. Reads all of it.
pub(crate) async fn has_gap(log: &dyn EventLog, at: &TopicPartition) -> Result<bool, RelayError> {
    let Some(held) = Held::walk(log, at).await? else { return Ok(true) };
    Ok(held.highest > held.whole_to)
}

/// What a partition holds, whatever stands between.
struct Held {
    /// Every sequence up to here is there in its order, with those before it; what retention removed is not missing.
    whole_to: u64,
    highest: u64,
}

impl Held {
    /// `None` where the partition is not there.
    async fn walk(log: &dyn EventLog, at: &TopicPartition) -> Result<Option<Self>, RelayError> {
        let Some(ends) = log.ends_of(at).await? else { return Ok(None) };
        let mut whole_to = (ends.first == 0).then_some(0);
        let mut highest = 0;
        let mut next = ends.first;
        while next < ends.next {
            let records = log.read(at, next, PAGE).await?;
            let Some(last) = records.last() else { break };
            next = last.offset + 1;
            for record in &records {
                let Ok(EventEnvelope { sequence, .. }) = EventEnvelope::from_headers(&record.headers) else { continue };
                highest = highest.max(sequence);
                if whole_to.is_none_or(|whole_to| sequence == whole_to + 1) {
                    whole_to = Some(sequence);
                }
            }
        }
        Ok(Some(Self { whole_to: whole_to.unwrap_or(0), highest }))
    }
}

// === impl SeenEnds ===

impl SeenEnds {
    pub fn new(ends: Ends, topology: Topology) -> Self {
        Self { topology, ends: Mutex::new(ends) }
    }

    /// [`RelayError::LogShrank`] where a partition ends before what it reached before the log was asked.
    pub async fn look<'t>(
        &self,
        log: &dyn EventLog,
        topics: impl IntoIterator<Item = &'t str>,
    ) -> Result<(), RelayError> {
        for topic in topics {
            let before = self.lock().clone();
            let ends = log.ends(topic).await?;
            check_partitions(topic, &ends, self.topology)?;
            for ends in ends {
                let at = TopicPartition::new(topic, ends.partition);
                let seen = before.get(&at).copied().unwrap_or(0);
                if ends.next < seen {
                    return Err(RelayError::LogShrank { at, seen, found: ends.next });
                }
                self.reached(at, ends.next);
            }
        }
        Ok(())
    }

    /// Where partitions end, at least, once these are acknowledged. To be asked before they are published: after it, a
    /// look may have counted them already.
    pub fn behind(&self, records: &[NewRecord]) -> Ends {
        let ends = self.lock();
        let mut behind = Ends::new();
        for record in records {
            match behind.get_mut(&record.at) {
                Some(next) => *next += 1,
                None => {
                    let end = ends.get(&record.at).copied().unwrap_or(0);
                    behind.insert(record.at.clone(), end + 1);
                }
            }
        }
        behind
    }

    pub fn acknowledged(&self, behind: Ends) {
        for (at, next) in behind {
            self.reached(at, next);
        }
    }

    fn reached(&self, at: TopicPartition, next: u64) {
        let mut ends = self.lock();
        let known = ends.entry(at).or_default();
        *known = next.max(*known);
    }

    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Partitions that someone adds would take keys away from those that have them (fault 20).
fn check_partitions(topic: &str, ends: &[PartitionEnds], topology: Topology) -> Result<(), RelayError> {
    let found = ends.len() as u32;
    if found == topology.partitions {
        return Ok(());
    }
    let topic = topic.to_owned();
    Err(EventLogError::PartitionCount { topic, found, wanted: topology.partitions }.into())
}

// === impl Tail ===

impl Tail {
    /// Reads backwards until the saved sequence, and `at_least` that many records: behind newer ones there may stand
    /// the batch of a relay that was superseded.
    async fn read(
        log: &dyn EventLog,
        at: TopicPartition,
        ends: PartitionEnds,
        saved: u64,
        at_least: u64,
    ) -> Result<Self, RelayError> {
        let mut tail = Self { at, saved, highest: 0, is_cut: ends.first > 0, first: None, events: BTreeMap::new() };
        let mut end = ends.next;
        let mut size = at_least.max(PAGE as u64);
        let mut has_passed = false;
        // Where there are only foreign records nothing is known yet, however many they are; nor where all that was met
        // is before the saved sequence: a superseded relay repeated its batch there.
        while end > ends.first
            && !(has_passed && tail.highest >= saved)
            && (tail.highest == 0 || ends.next - end < MOST_BACK)
        {
            let start = end.saturating_sub(size).max(ends.first);
            has_passed |= tail.read_page(log, start, end).await?;
            end = start;
            size = (size * 4).min(MOST_BACK);
        }
        if !tail.is_cut && saved > 0 {
            let records = log.read(&tail.at, 0, PAGE).await?;
            let mut events = records.iter().filter_map(|record| EventEnvelope::from_headers(&record.headers).ok());
            tail.first = events.next().map(|envelope| envelope.sequence);
        }
        Ok(tail)
    }

    /// Whether the saved sequence or one before it was met.
    async fn read_page(&mut self, log: &dyn EventLog, start: u64, end: u64) -> Result<bool, RelayError> {
        let mut has_passed = false;
        let mut next = start;
        while next < end {
            let records = log.read(&self.at, next, PAGE.min((end - next) as usize)).await?;
            let Some(last) = records.last() else { break };
            next = last.offset + 1;
            for record in records.iter().filter(|record| record.offset < end) {
                // A foreign record has no place in the order.
                let Ok(envelope) = EventEnvelope::from_headers(&record.headers) else { continue };
                let sequence = envelope.sequence;
                self.highest = self.highest.max(sequence);
                has_passed |= sequence <= self.saved;
                if sequence < self.saved.max(1) {
                    continue;
                }
                let (id, _) = *self.events.entry(sequence).or_insert((envelope.id, envelope.position));
                if id != envelope.id {
                    let at = self.at.clone();
                    return Err(RelayError::LogContradicts { at, sequence, one: id, other: envelope.id });
                }
            }
        }
        Ok(has_passed)
    }

    fn check_not_behind(&self) -> Result<(), RelayError> {
        if self.highest >= self.saved {
            return Ok(());
        }
        if self.highest == 0 && self.is_cut {
            tracing::warn!(at = %self.at, saved = self.saved, "retention left no record to compare the history by");
            return Ok(());
        }
        Err(RelayError::LogLost { at: self.at.clone(), published: self.saved, found: self.highest })
    }

    /// A topic that was made anew between two batches of a relay that ended before it looked again has the newest
    /// events, and none of those before. Once they were published again they stand behind: then nothing is missing.
    async fn check_begins(&self, log: &dyn EventLog) -> Result<(), RelayError> {
        let Some(first) = self.first.filter(|first| *first > 1) else { return Ok(()) };
        match Held::walk(log, &self.at).await? {
            Some(held) if held.whole_to >= self.saved => Ok(()),
            _ => Err(RelayError::LogBeginsLate { at: self.at.clone(), published: self.saved, first }),
        }
    }

    /// The events of the saved sequence and of the newest one.
    async fn check_ends(&self, store: &dyn EventStore) -> Result<(), RelayError> {
        let newest = self.events.get_key_value(&self.highest);
        let saved = self.events.get_key_value(&self.saved).filter(|(sequence, _)| **sequence != self.highest);
        for (sequence, (id, position)) in saved.into_iter().chain(newest) {
            let found = event_at(store, *position).await?.map(|event| event.id);
            if found != Some(*id) {
                return Err(self.differs(*sequence, *id, *position, found));
            }
        }
        Ok(())
    }

    fn differs(&self, sequence: u64, id: Uuid, position: StorePosition, found: Option<Uuid>) -> RelayError {
        RelayError::StoreDiffers { at: self.at.clone(), sequence, position, id, found }
    }
}

/// The row at a place of the event table.
pub(crate) async fn event_at(
    store: &dyn EventStore,
    position: StorePosition,
) -> Result<Option<StoredEvent>, RelayError> {
    let before = StorePosition { position: position.position.saturating_sub(1), ..position };
    match store.read_committed(before, 1).await {
        Ok(events) => Ok(events.into_iter().next().filter(|event| event.position == position)),
        Err(EventStoreError::TableEndsBefore { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Stamps what follows the cursor, as the relay will, and compares it with what the log holds beyond it.
async fn check_ahead(
    store: &dyn EventStore,
    topology: Topology,
    cursor: &RelayCursor,
    tails: Vec<Tail>,
) -> Result<(), RelayError> {
    let mut ahead: HashMap<(String, u32), Tail> = HashMap::new();
    let mut left = 0;
    for mut tail in tails {
        tail.events.retain(|sequence, _| *sequence > tail.saved);
        left += tail.events.len();
        ahead.insert((tail.at.topic.clone(), tail.at.partition), tail);
    }
    if left > MOST_AHEAD {
        tracing::warn!(events = left, "the log is far ahead of the cursor; its newest events were compared");
        return Ok(());
    }
    let mut walked = cursor.clone();
    while left > 0 {
        let events = store.read_committed(walked.position, PAGE).await?;
        if events.is_empty() {
            break;
        }
        for event in events {
            let (partition, sequence) = walked.advance(&event, topology);
            let Some(tail) = ahead.get_mut(&(event.topic, partition)) else { continue };
            let Some((id, published_at)) = tail.events.remove(&sequence) else { continue };
            left -= 1;
            if id != event.id {
                return Err(tail.differs(sequence, id, published_at, Some(event.id)));
            }
        }
    }
    let missing = ahead.values().find_map(|tail| Some((tail, tail.events.first_key_value()?)));
    match missing {
        Some((tail, (sequence, (id, position)))) => Err(tail.differs(*sequence, *id, *position, None)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
