//! Parity: two generations of a read model compared at one position vector, every key, while both go on.

mod listed;
mod partition;
mod tail;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{self, StreamExt, TryStreamExt};
use read_models::{PartitionRef, ReadModelStatus};
use schemas::PositionToken;
use tokio::time::Instant;

use crate::error::ReplayError;
use crate::log_reader::LogReader;
use crate::report::{MOST_LISTED, ParityReport};
use crate::rules::{Rule, Rules};
use crate::sides::{Compared, GenerationRows};
pub(crate) use listed::Room;
pub(crate) use partition::Found;

/// Partitions that are compared at once.
const SIDE_BY_SIDE: usize = 2;

/// What is compared, and by which folds each side is built.
pub struct Sides<'a, P: Compared> {
    pub live: &'a dyn GenerationRows<P>,
    pub live_fold: u32,
    pub candidate: &'a dyn GenerationRows<P>,
    pub candidate_fold: u32,
}

/// How far a comparison has come; for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    rows: AtomicU64,
    partitions: AtomicU64,
    all_partitions: AtomicU64,
    unknown: AtomicU64,
}

// === impl Progress ===

impl Progress {
    pub(crate) fn expect(&self, partitions: usize) {
        self.all_partitions.store(partitions as u64, Ordering::Relaxed);
    }

    pub(crate) fn rows(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn partition_done(&self) {
        self.partitions.fetch_add(1, Ordering::Relaxed);
    }

    fn round(&self, unknown: usize) {
        self.unknown.store(unknown as u64, Ordering::Relaxed);
    }

    /// Rows scanned of both sides, partitions done, partitions in all, rows that the running round looks at.
    pub fn seen(&self) -> (u64, u64, u64, u64) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (read(&self.rows), read(&self.partitions), read(&self.all_partitions), read(&self.unknown))
    }
}

/// Compares every key of two generations. The report's vector names one position for each partition, at which all that
/// it says of that partition is true. `now` in milliseconds since 1970.
pub async fn compare<P: Compared>(
    sides: &Sides<'_, P>,
    log: &LogReader,
    rules: &Rules,
    progress: &Progress,
    now: i64,
) -> Result<ParityReport, ReplayError> {
    let begun = Instant::now();
    let (live, candidate) = (sides.live.status().await?, sides.candidate.status().await?);
    check(&live, &candidate)?;
    let partitions: Vec<PartitionRef> = live.partitions.iter().map(|partition| partition.partition).collect();
    progress.expect(partitions.len());
    let room = &Room::new(MOST_LISTED);
    let compared =
        partitions.into_iter().map(|at| async move { compare_partition(sides, log, rules, progress, room, at).await });
    let found: Vec<Found> = stream::iter(compared).buffer_unordered(SIDE_BY_SIDE).try_collect().await?;

    let mut vector = PositionToken::default();
    let (mut partitions, mut kinds, mut differences) = (Vec::new(), BTreeMap::new(), Vec::new());
    for Found { parity, kinds: of_partition, listed } in found {
        if parity.at.sequence > 0 {
            vector.merge(&parity.partition.token(parity.at.position));
        }
        partitions.push(parity);
        for (kind, count) in of_partition {
            *kinds.entry(kind).or_insert(0) += count;
        }
        differences.extend(listed);
    }
    partitions.sort_by_key(|partition| partition.partition);
    differences.sort_by(|left, right| left.key.cmp(&right.key));
    let rules_sha256 = rules.sha256();
    let rules = rules.iter().map(Rule::in_use);
    let mut report = ParityReport {
        projection: P::NAME.to_owned(),
        live: live.generation,
        candidate: candidate.generation,
        at: now,
        seconds: begun.elapsed().as_secs_f64(),
        vector,
        partitions,
        rules: rules.collect(),
        rules_sha256,
        differing: kinds.values().sum(),
        kinds,
        differences,
        queries: None,
    };
    report.differences.truncate(MOST_LISTED);
    Ok(report)
}

/// One partition alone.
pub(crate) async fn compare_partition<P: Compared>(
    sides: &Sides<'_, P>,
    log: &LogReader,
    rules: &Rules,
    progress: &Progress,
    room: &Room,
    at: PartitionRef,
) -> Result<Found, ReplayError> {
    let found = partition::compare(sides, log, rules, progress, room, at).await?;
    progress.partition_done();
    Ok(found)
}

fn check(live: &ReadModelStatus, candidate: &ReadModelStatus) -> Result<(), ReplayError> {
    let names = |status: &ReadModelStatus| format!("{}@{}", status.name, status.generation);
    if live.generation == candidate.generation {
        return Err(ReplayError::SameGeneration { generation: names(live) });
    }
    if live.partitions.len() != candidate.partitions.len() {
        return Err(ReplayError::OtherPartitions {
            live: names(live),
            candidate: names(candidate),
            found: candidate.partitions.len(),
            wanted: live.partitions.len(),
        });
    }
    for status in [live, candidate] {
        if !status.is_live() {
            let waiting = status.partitions.iter().filter(|partition| !partition.live).count();
            return Err(ReplayError::StillBuilt { generation: names(status), waiting, all: status.partitions.len() });
        }
    }
    Ok(())
}
