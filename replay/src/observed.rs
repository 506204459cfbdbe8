//! How the generations of a read model stand and what their readers see: what gates and triggers look at.

use std::collections::BTreeMap;

use read_models::process_report::{Lately, ProcessReport, ReadFigures, is_of_late};
use read_models::{Generations, PartitionStatus, ReadModelStatus};

use crate::error::ReplayError;
use crate::record::EnteredStage;

/// Looked at once, judged as a whole.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    pub generations: BTreeMap<u32, ObservedGeneration>,
    /// Of processes that reported lately.
    pub reports: Vec<ProcessReport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObservedGeneration {
    /// Events that it is behind the log; `None` where nobody has looked at the log's end lately: who feeds it may be
    /// gone. Also where it has applied more than the log holds.
    pub lag_events: Option<u64>,
    /// Whether it has: the log lost records or was made anew, for every generation alike.
    pub is_beyond_log: bool,
    /// Whether reads of all its partitions are answered.
    pub is_live: bool,
}

/// What all processes together mirrored of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MirroredReads {
    /// Since the stage began.
    pub whole: ReadFigures,
    pub lately: Lately,
}

/// A process that was not heard of for so long, in milliseconds, does not count.
pub const REPORT_MAX_AGE_MS: i64 = 15_000;

/// The end of the log is noted by who feeds a generation, twice a second: one that is older is nobody's news.
const HEAD_MAX_AGE_MS: i64 = 15_000;

// === impl ObservedGeneration ===

impl ObservedGeneration {
    fn of(status: &ReadModelStatus, reports: &[ProcessReport], now: i64) -> Self {
        let is_known = |partition: &PartitionStatus| {
            partition.head.is_some_and(|head| is_of_late(head.seen_at, now, HEAD_MAX_AGE_MS))
        };
        let halted = status.halted(reports);
        let lag_events = if status.partitions.iter().all(is_known) { status.known_lag(&halted) } else { None };
        Self { lag_events, is_beyond_log: status.is_beyond_log(&halted), is_live: status.is_live() }
    }
}

// === impl Observed ===

impl Observed {
    /// From the status of each generation that is fed, and the reports of its readers.
    pub async fn gather(
        generations: &dyn Generations,
        statuses: &[ReadModelStatus],
        now: i64,
    ) -> Result<Self, ReplayError> {
        let reports = generations.reports(now, REPORT_MAX_AGE_MS).await?;
        let observed = |status: &ReadModelStatus| (status.generation, ObservedGeneration::of(status, &reports, now));
        Ok(Self { generations: statuses.iter().map(observed).collect(), reports })
    }

    pub fn of(&self, generation: u32) -> ObservedGeneration {
        self.generations.get(&generation).copied().unwrap_or_default()
    }

    /// Reads of callers that a generation answered, or was to.
    pub fn answered(&self, generation: u32) -> Lately {
        let of_generation = self.reports.iter().filter_map(|report| report.reads.get(&generation));
        of_generation.copied().fold(Lately::default(), Lately::plus)
    }

    /// Reads that were mirrored to a generation in its stage: those of the stage before are nobody's any more.
    pub fn mirrored(&self, generation: u32, stage: &EnteredStage) -> MirroredReads {
        let of_stage = self
            .reports
            .iter()
            .filter_map(|report| report.mirror.as_ref())
            .filter(|mirror| mirror.generation == generation && mirror.stage == stage.version);
        of_stage.fold(MirroredReads::default(), |sums, mirror| MirroredReads {
            whole: sums.whole.plus(mirror.whole),
            lately: sums.lately.plus(mirror.lately),
        })
    }
}
