//! How the generations of a read model stand and what their readers see: what gates and triggers look at.

use std::collections::BTreeMap;

use read_models::Generations;
use read_models::generations::ReadReport;
use read_models::{PartitionStatus, ReadModelStatus};

use crate::error::ReplayError;
use crate::record::EnteredStage;

/// Looked at once, judged as a whole.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    pub generations: BTreeMap<u32, ObservedGeneration>,
    /// Of serving processes that reported lately.
    pub reads: Vec<ReadReport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObservedGeneration {
    /// Events that it is behind the log; `None` where nobody has looked at the log's end lately: who feeds it may be gone.
    pub lag_events: Option<u64>,
    /// Whether reads of all its partitions are answered.
    pub is_live: bool,
}

/// Reads of all processes together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReadSums {
    pub requests: u64,
    pub errors: u64,
    /// Mirrored answers that differ.
    pub differing: u64,
    /// Of the slowest process.
    pub p99_ms: f64,
}

/// A process that was not heard of for so long, in milliseconds, does not count.
pub const REPORT_MAX_AGE_MS: i64 = 15_000;

/// The end of the log is noted by who feeds a generation, twice a second: one that is older is nobody's news.
const HEAD_MAX_AGE_MS: i64 = 15_000;

fn lag(status: &ReadModelStatus, now: i64) -> Option<u64> {
    let is_known = |partition: &PartitionStatus| {
        partition.head.is_some_and(|head| now.saturating_sub(head.seen_at) <= HEAD_MAX_AGE_MS)
    };
    if status.partitions.iter().all(is_known) { status.lag_events() } else { None }
}

// === impl Observed ===

impl Observed {
    /// From the status of each generation that is fed, and the reports of its readers.
    pub async fn gather(
        generations: &dyn Generations,
        statuses: &[ReadModelStatus],
        now: i64,
    ) -> Result<Self, ReplayError> {
        let reads = generations.read_reports(now, REPORT_MAX_AGE_MS).await?;
        let observed = |status: &ReadModelStatus| {
            (status.generation, ObservedGeneration { lag_events: lag(status, now), is_live: status.is_live() })
        };
        Ok(Self { generations: statuses.iter().map(observed).collect(), reads })
    }

    pub fn of(&self, generation: u32) -> ObservedGeneration {
        self.generations.get(&generation).copied().unwrap_or_default()
    }

    /// All requests that were answered.
    pub fn answered(&self) -> ReadSums {
        self.reads.iter().fold(ReadSums::default(), |sums, report| {
            sums.plus(ReadSums {
                requests: report.requests,
                errors: report.errors,
                differing: 0,
                p99_ms: report.p99_ms,
            })
        })
    }

    /// Reads that were mirrored to a generation since its stage began.
    pub fn mirrored(&self, generation: u32, stage: &EnteredStage) -> ReadSums {
        let of_stage = self
            .reads
            .iter()
            .filter_map(|report| report.mirror.as_ref())
            .filter(|mirror| mirror.generation == generation && mirror.catalogue_version >= stage.version);
        of_stage.fold(ReadSums::default(), |sums, mirror| {
            sums.plus(ReadSums {
                requests: mirror.requests,
                errors: mirror.errors,
                differing: mirror.differing,
                p99_ms: mirror.p99_ms,
            })
        })
    }
}

// === impl ReadSums ===

impl ReadSums {
    /// `None` where there was no request.
    pub fn error_rate(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.errors as f64 / self.requests as f64)
    }

    fn plus(self, more: ReadSums) -> Self {
        Self {
            requests: self.requests + more.requests,
            errors: self.errors + more.errors,
            differing: self.differing + more.differing,
            p99_ms: self.p99_ms.max(more.p99_ms),
        }
    }
}
