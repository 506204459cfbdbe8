//! A dry run: a fold and the upcasters of this program over the real log, in memory, without writing anything.
//!
//! It tells what would not decode, which keys would be parked, which rows would differ from those that serve, and what
//! it costs. One partition's rows are in memory at a time.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use event_log::{EventEnvelope, TopicPartition};
use projectors::{Facts, Projection, fold_event};
use read_models::{Checkpoint, Loaded, PartitionRef, PartitionStatus, ReadModelError, ReadModelStatus, RowPage};
use serde::Serialize;
use tokio::time::Instant;

use crate::error::ReplayError;
use crate::log_reader::LogReader;
use crate::parity::{self, Progress, Room, Sides};
use crate::report::{KeyDifference, MOST_LISTED, PartitionParity};
use crate::rules::Rules;
use crate::sides::{Compared, GenerationRows};

const PAGE: usize = 2_000;
/// Events that may have come meanwhile for the comparison to catch up with.
const CLOSE: u64 = 20_000;
/// Failures that are listed; beyond them they are counted.
const FAILURES_LISTED: usize = 1_000;

/// What a fold would do.
#[derive(Debug, Default, Serialize)]
pub struct DryRunReport {
    pub projection: String,
    pub fold: u32,
    /// Generation that it is compared with.
    pub live: u32,
    pub events: u64,
    /// Records that are no events of ours.
    pub foreign: u64,
    /// Records that repeat an event.
    pub duplicates: u64,
    /// Events that do not decode or do not fold, and the first of them.
    pub failed_events: u64,
    pub failures: Vec<Failure>,
    /// Keys that would be parked, and all their later events with them.
    pub parked_keys: u64,
    pub parked_events: u64,
    pub rows: u64,
    pub partitions: Vec<PartitionParity>,
    /// Keys whose rows would differ from those that serve, in a way that no rule covers.
    pub differing: u64,
    pub differences: Vec<KeyDifference>,
    /// Reading, decoding and folding, without the comparison.
    pub fold_seconds: f64,
    pub events_per_second: f64,
    pub seconds: f64,
}

/// An event that would be parked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    pub partition: String,
    pub offset: u64,
    pub sequence: u64,
    pub key: String,
    pub event_type: String,
    pub reason: String,
}

/// One partition, folded in memory.
struct Folded<P: Projection> {
    partition: PartitionRef,
    fold: u32,
    checkpoint: Checkpoint,
    rows: HashMap<P::Key, P::Row>,
    parked: HashSet<String>,
    /// The rows that are still to be given to a scan.
    page: Mutex<Option<Vec<P::Key>>>,
}

// === impl DryRunReport ===

impl DryRunReport {
    /// Whether nothing would fail, and no row would differ in a way that no rule covers.
    pub fn is_clean(&self) -> bool {
        self.failed_events == 0 && self.differing == 0
    }
}

/// Runs `fold` over the log and compares with what `live` holds, built by `live_fold`.
pub async fn dry_run<P: Compared>(
    live: &dyn GenerationRows<P>,
    live_fold: u32,
    fold: u32,
    log: &LogReader,
    rules: &Rules,
    progress: &Progress,
) -> Result<DryRunReport, ReplayError> {
    let begun = Instant::now();
    let status = live.status().await?;
    let mut report =
        DryRunReport { projection: P::NAME.to_owned(), fold, live: status.generation, ..Default::default() };
    progress.expect(status.partitions.len());
    let room = Room::new(MOST_LISTED);
    for partition in &status.partitions {
        let folding = Instant::now();
        let folded = Folded::<P>::of_log(partition.partition, fold, log, progress, &mut report).await?;
        report.fold_seconds += folding.elapsed().as_secs_f64();
        report.rows += folded.rows.len() as u64;
        report.parked_keys += folded.parked.len() as u64;
        let sides = Sides { live, live_fold, candidate: &folded, candidate_fold: fold };
        let mut found = parity::compare_partition(&sides, log, rules, progress, &room, partition.partition).await?;
        report.differing += found.parity.differing;
        report.partitions.push(found.parity);
        found.listed.sort_by(|left, right| left.key.cmp(&right.key));
        report.differences.append(&mut found.listed);
    }
    report.differences.truncate(MOST_LISTED);
    report.events_per_second = report.events as f64 / report.fold_seconds.max(f64::EPSILON);
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

// === impl Folded ===

impl<P: Projection> Folded<P> {
    /// Reads up to the log's end, and what came meanwhile, until that is little: the comparison catches up with the rest.
    async fn of_log(
        partition: PartitionRef,
        fold: u32,
        log: &LogReader,
        progress: &Progress,
        report: &mut DryRunReport,
    ) -> Result<Self, ReplayError> {
        let at = TopicPartition::new(partition.context.events_topic(), partition.partition);
        // Without patience: a log that is away before a partition is begun is an error at once.
        let ends = log.log.ends_of(&at).await?;
        let (first, mut end) = ends.map_or((0, 0), |ends| (ends.first, ends.next));
        let mut folded = Self {
            partition,
            fold,
            checkpoint: Checkpoint { next_offset: first, ..Checkpoint::default() },
            rows: HashMap::new(),
            parked: HashSet::new(),
            page: Mutex::new(None),
        };
        loop {
            while folded.checkpoint.next_offset < end {
                let records = log.read(&at, folded.checkpoint.next_offset, PAGE).await?;
                if records.is_empty() {
                    break;
                }
                for record in &records {
                    folded.checkpoint.next_offset = record.offset + 1;
                    let Ok(envelope) = EventEnvelope::from_headers(&record.headers) else {
                        report.foreign += 1;
                        continue;
                    };
                    // Retention may have taken the first ones: then the log itself begins later.
                    let is_first = folded.checkpoint.sequence == 0;
                    if !is_first && envelope.sequence != folded.checkpoint.sequence + 1 {
                        report.duplicates += 1;
                        continue;
                    }
                    folded.take(record, envelope, log, report).await?;
                }
                progress.rows(records.len());
            }
            let newest = log.log.ends_of(&at).await?.map_or(end, |ends| ends.next);
            if newest.saturating_sub(end) < CLOSE {
                break;
            }
            end = newest;
        }
        Ok(folded)
    }

    async fn take(
        &mut self,
        record: &event_log::Record,
        envelope: EventEnvelope,
        log: &LogReader,
        report: &mut DryRunReport,
    ) -> Result<(), ReplayError> {
        report.events += 1;
        self.checkpoint.sequence = envelope.sequence;
        self.checkpoint.position = envelope.position;
        self.checkpoint.event_time = envelope.time;
        if self.parked.contains(&envelope.partition_key) {
            report.parked_events += 1;
            return Ok(());
        }
        let folded = match log.decode(record).await {
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => Err(error.to_string()),
            Ok(decoded) => fold_event::<P>(self.fold, &decoded.event, Facts::of(&envelope), |key| self.rows.get(key))
                .map_err(|error| error.to_string()),
        };
        match folded {
            Ok(None) => {}
            Ok(Some((key, row))) => {
                self.rows.insert(key, row);
            }
            Err(reason) => {
                report.failed_events += 1;
                report.parked_events += 1;
                if report.failures.len() < FAILURES_LISTED {
                    report.failures.push(Failure {
                        partition: self.partition.to_string(),
                        offset: record.offset,
                        sequence: envelope.sequence,
                        key: envelope.partition_key.clone(),
                        event_type: envelope.event_type,
                        reason,
                    });
                }
                self.parked.insert(envelope.partition_key);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl<P: Compared> GenerationRows<P> for Folded<P> {
    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        let partition = PartitionStatus {
            partition: self.partition,
            checkpoint: self.checkpoint,
            live: true,
            head: None,
            parked_keys: self.parked.len() as u64,
            parked_events: 0,
        };
        Ok(ReadModelStatus {
            name: P::NAME.to_owned(),
            generation: 0,
            fold_version: self.fold,
            partitions: vec![partition],
        })
    }

    async fn rows(
        &self,
        _: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<P::Key, P::Row>, ReadModelError> {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if from.is_none() {
            *page = Some(self.rows.keys().cloned().collect());
        }
        let left = page.get_or_insert_default();
        let keys = left.split_off(left.len().saturating_sub(limit.max(1)));
        let rows = keys.into_iter().filter_map(|key| Some((key.clone(), Ok(self.rows.get(&key)?.clone())))).collect();
        let next = (!left.is_empty()).then(|| left.len().to_string());
        Ok(RowPage { rows, foreign: Vec::new(), next })
    }

    async fn load(&self, _: PartitionRef, keys: &[P::Key]) -> Result<Loaded<P::Row>, ReadModelError> {
        let rows = keys.iter().map(|key| self.rows.get(key).cloned()).collect();
        Ok(Loaded { checkpoint: self.checkpoint, rows })
    }

    async fn parked_keys(&self, _: PartitionRef) -> Result<HashSet<String>, ReadModelError> {
        Ok(self.parked.clone())
    }
}
