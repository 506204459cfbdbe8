//! What was found, for people and for programs.

use event_store::RelayCursor;
use serde::Serialize;

use super::PublishAgain;
use super::log_walk::LogWalk;
use super::table_walk::TableFingerprints;

/// What the comparison comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Nothing is missing anywhere; what is not published yet, the relay will.
    Level,
    /// Events that were published are not on their topics.
    LogIsBehind,
    /// The topics hold events that the table does not.
    TableIsBehind,
    /// A sequence stands for one event in the table and for another on its topic.
    HistoriesDiffer,
}

#[derive(Debug, Clone, Serialize)]
pub struct ReconcileReport {
    pub finding: Finding,
    pub repaired: bool,
    pub restored_events: u64,
    /// The saved cursor, `<xid>.<position>`.
    pub cursor: String,
    /// Where the relay goes on after the repair.
    pub cursor_after: String,
    /// In order of topic and partition, those that hold or should hold something.
    pub partitions: Vec<PartitionReport>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PartitionReport {
    pub topic: String,
    pub partition: u32,
    /// Events in the table.
    pub stored: u64,
    /// Sequence that the cursor says is published.
    pub published: u64,
    /// Lowest and highest sequence on the topic; 0 without one.
    pub lowest: u64,
    pub highest: u64,
    /// Whether older records were removed from the topic.
    pub is_cut: bool,
    /// Published, and not on the topic; without what retention removed, unless that was asked for.
    pub missing: u64,
    /// On the topic alone.
    pub only_on_topic: u64,
    /// First sequence that stands for two events.
    pub differs_at: Option<u64>,
}

pub(super) fn report(
    table: &TableFingerprints,
    log: &LogWalk,
    saved: &RelayCursor,
    cursor: &RelayCursor,
    again: PublishAgain,
) -> ReconcileReport {
    let mut partitions: Vec<PartitionReport> = log
        .partitions
        .iter()
        .map(|(at, held)| {
            let (stored, published) = (table.stored(at), saved.sequence_of(at));
            let kept_from = if held.is_cut { held.lowest.unwrap_or(published + 1) } else { 1 };
            let wanted_from = match again {
                PublishAgain::NotWhatRetentionRemoved => kept_from,
                PublishAgain::From(from) => kept_from.min(from.max(1)),
            };
            PartitionReport {
                topic: at.0.clone(),
                partition: at.1,
                stored,
                published,
                lowest: held.lowest.unwrap_or(0),
                highest: held.highest,
                is_cut: held.is_cut,
                missing: held.missing(wanted_from, published.min(stored)),
                only_on_topic: held.extra.len() as u64,
                differs_at: held.differs.map(|(sequence, _)| sequence),
            }
        })
        .filter(|partition| partition.stored > 0 || partition.published > 0 || partition.highest > 0)
        .collect();
    partitions.sort_by(|left, right| (&left.topic, left.partition).cmp(&(&right.topic, right.partition)));
    let any = |found: fn(&PartitionReport) -> bool| partitions.iter().any(found);
    let finding = if any(|partition| partition.differs_at.is_some()) {
        Finding::HistoriesDiffer
    } else if any(|partition| partition.only_on_topic > 0) {
        Finding::TableIsBehind
    } else if any(|partition| partition.missing > 0) {
        Finding::LogIsBehind
    } else {
        Finding::Level
    };
    ReconcileReport {
        finding,
        repaired: false,
        restored_events: 0,
        cursor: saved.position.to_string(),
        cursor_after: cursor.position.to_string(),
        partitions,
    }
}

// === impl ReconcileReport ===

impl ReconcileReport {
    /// Whether something is left to do.
    pub fn is_open(&self) -> bool {
        self.finding != Finding::Level && !self.repaired
    }
}
