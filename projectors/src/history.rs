//! Whether the log still is the one that a checkpoint was written from, and where on it the checkpoint stands.
//!
//! Kafka's own id of a topic is not told by its client library, and would say nothing of a topic that was filled again
//! with the same events. So a log is recognised by its records: the one that carried the checkpoint's sequence must
//! have the checkpoint's position and time. Offsets may have changed, sequences cannot.

use event_log::{EventEnvelope, EventLog, EventLogError, PartitionEnds, TopicPartition};
use read_models::Checkpoint;
use uuid::Uuid;

use crate::error::ProjectorError;

const PAGE: usize = 1_000;
/// Records looked through before the checkpoint: twins and foreign ones may stand between it and its record.
const MOST_BACK: u64 = 20_000;
/// Sequences whose event is remembered.
const REMEMBERED: usize = 4_096;

/// The events applied last, by sequence: a twin must be the same event.
pub(crate) struct RecentEvents {
    /// At index `sequence % REMEMBERED`.
    events: Vec<(u64, Uuid)>,
}

/// What a walk over a whole partition found.
#[derive(Debug, Default)]
struct Found {
    /// Offset of the first record with the checkpoint's sequence, and behind it.
    behind_checkpoint: Option<u64>,
    /// Offset of the first record with the next sequence.
    next: Option<u64>,
    lowest: Option<u64>,
    highest: u64,
}

// === impl RecentEvents ===

impl RecentEvents {
    pub(crate) fn new() -> Self {
        Self { events: vec![(0, Uuid::nil()); REMEMBERED] }
    }

    pub(crate) fn note(&mut self, sequence: u64, id: Uuid) {
        self.events[(sequence % REMEMBERED as u64) as usize] = (sequence, id);
    }

    /// Whether another event is known under this sequence.
    pub(crate) fn contradicts(&self, sequence: u64, id: Uuid) -> bool {
        let (known, known_id) = self.events[(sequence % REMEMBERED as u64) as usize];
        known == sequence && known_id != id
    }
}

/// The offset to go on from. `after_halt`: the record there was not the one that follows, so it is looked for.
pub(crate) async fn place_of(
    log: &dyn EventLog,
    at: &TopicPartition,
    checkpoint: &Checkpoint,
    after_halt: bool,
) -> Result<u64, ProjectorError> {
    let ends = ends_of(log, at).await?;
    let is_held = ends.holds(checkpoint.next_offset);
    let is_emptied = ends.first == ends.next && ends.first > 0;
    if checkpoint.sequence == 0 && is_emptied && checkpoint.next_offset < ends.first {
        // Retention took what this read model has never seen (fault 19).
        return Err(ProjectorError::NotOnLog { at: at.clone(), wanted: 1, lowest: 0, highest: 0 });
    }
    // What retention left may begin with a later event: it is found now, and not by its gap.
    let is_new = checkpoint.sequence == 0 && ends.first > 0;
    let is_begun_late = is_new && first_sequence(log, at, ends).await?.is_some_and(|first| first > 1);
    if checkpoint.sequence == 0 && !after_halt && !is_begun_late {
        return Ok(if is_held { checkpoint.next_offset } else { ends.first });
    }
    if is_held && !after_halt && anchors(log, at, ends, checkpoint).await? {
        return Ok(checkpoint.next_offset);
    }
    // At another offset, or not at all.
    let found = walk(log, at, ends, checkpoint).await?;
    let wanted = checkpoint.sequence + 1;
    let lost = || ProjectorError::NotOnLog {
        at: at.clone(),
        wanted,
        lowest: found.lowest.unwrap_or(0),
        highest: found.highest,
    };
    match found {
        Found { next: Some(offset), .. } => Ok(offset),
        // All that is there is applied.
        Found { behind_checkpoint: Some(offset), highest, .. } if highest < wanted => Ok(offset),
        Found { lowest: None, .. } if checkpoint.sequence == 0 => Ok(ends.first),
        // Retention removed what was applied, and nothing else. Of what it removed beyond that nobody knows whether it
        // was twins: the next event says so.
        Found { lowest: None, .. } if is_emptied && checkpoint.next_offset == ends.next => Ok(ends.next),
        _ => Err(lost()),
    }
}

/// Sequence of the first event that a partition still has.
pub(crate) async fn first_sequence(
    log: &dyn EventLog,
    at: &TopicPartition,
    ends: PartitionEnds,
) -> Result<Option<u64>, ProjectorError> {
    let mut next = ends.first;
    while next < ends.next {
        let records = log.read(at, next, PAGE).await?;
        let Some(last) = records.last() else { break };
        next = last.offset + 1;
        let mut envelopes = records.iter().filter_map(|record| EventEnvelope::from_headers(&record.headers).ok());
        if let Some(envelope) = envelopes.next() {
            return Ok(Some(envelope.sequence));
        }
    }
    Ok(None)
}

/// Whether the record with the checkpoint's sequence stands before its offset. An error when another event does.
async fn anchors(
    log: &dyn EventLog,
    at: &TopicPartition,
    ends: PartitionEnds,
    checkpoint: &Checkpoint,
) -> Result<bool, ProjectorError> {
    let mut end = checkpoint.next_offset;
    let mut size = 16;
    let (mut has_events, mut is_anchored, mut is_beyond) = (false, false, false);
    while end > ends.first && checkpoint.next_offset - end < MOST_BACK {
        let start = end.saturating_sub(size).max(ends.first);
        let mut next = start;
        while next < end {
            let records = log.read(at, next, PAGE.min((end - next) as usize)).await?;
            let Some(last) = records.last() else { break };
            next = last.offset + 1;
            for record in records.iter().filter(|record| record.offset < end) {
                let Ok(envelope) = EventEnvelope::from_headers(&record.headers) else { continue };
                has_events = true;
                if envelope.sequence == checkpoint.sequence {
                    check_same(at, &envelope, checkpoint)?;
                    is_anchored = true;
                }
                // To be applied yet: the offset is of another log, or was passed over behind a gap.
                is_beyond |= envelope.sequence > checkpoint.sequence;
            }
        }
        if is_beyond || is_anchored {
            return Ok(!is_beyond);
        }
        end = start;
        size *= 8;
    }
    // Retention may have removed all that was applied.
    Ok(!has_events && end == ends.first && ends.first > 0)
}

async fn walk(
    log: &dyn EventLog,
    at: &TopicPartition,
    ends: PartitionEnds,
    checkpoint: &Checkpoint,
) -> Result<Found, ProjectorError> {
    let mut found = Found::default();
    let mut next = ends.first;
    while next < ends.next && found.next.is_none() {
        let records = log.read(at, next, PAGE).await?;
        let Some(last) = records.last() else { break };
        next = last.offset + 1;
        for record in &records {
            let Ok(envelope) = EventEnvelope::from_headers(&record.headers) else { continue };
            let sequence = envelope.sequence;
            found.lowest = Some(found.lowest.map_or(sequence, |lowest| lowest.min(sequence)));
            found.highest = found.highest.max(sequence);
            if sequence == checkpoint.sequence {
                check_same(at, &envelope, checkpoint)?;
                found.behind_checkpoint.get_or_insert(record.offset + 1);
            }
            if sequence == checkpoint.sequence + 1 {
                found.next.get_or_insert(record.offset);
            }
        }
    }
    Ok(found)
}

pub(crate) fn check_same(
    at: &TopicPartition,
    envelope: &EventEnvelope,
    checkpoint: &Checkpoint,
) -> Result<(), ProjectorError> {
    if envelope.position == checkpoint.position && envelope.time == checkpoint.event_time {
        return Ok(());
    }
    Err(ProjectorError::HistoryDiffers { at: at.clone(), sequence: envelope.sequence, id: envelope.id })
}

/// The ends of a partition that must be there.
pub(crate) async fn ends_of(log: &dyn EventLog, at: &TopicPartition) -> Result<PartitionEnds, ProjectorError> {
    let ends = log.ends_of(at).await?;
    ends.ok_or_else(|| EventLogError::UnknownTopic { topic: at.topic.clone() }.into())
}

#[cfg(test)]
mod tests;
