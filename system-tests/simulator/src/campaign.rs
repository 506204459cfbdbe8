//! Many seeds, on all cores.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::guard::Guard;
use crate::scenario::{Verdict, run};
use crate::world::{Plan, Stats};

/// Which seeds to run.
#[derive(Debug, Clone, Copy)]
pub struct Campaign {
    pub first: u64,
    pub seeds: u64,
    pub guard_off: Option<Guard>,
    /// No further seed is begun after that.
    pub most: Option<Duration>,
    /// Ends at the first failure.
    pub stops_at_failure: bool,
    pub threads: usize,
}

/// What they came to.
#[derive(Debug, Default)]
pub struct Report {
    pub stats: Stats,
    pub run: u64,
    /// Those with a violation, by seed.
    pub failed: Vec<Verdict>,
    pub time: Duration,
}

/// Runs a campaign; `progress` is told after each seed.
pub fn run_campaign(campaign: &Campaign, progress: impl Fn(&Verdict) + Sync) -> Report {
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    std::thread::scope(|threads| {
        for _ in 0..campaign.threads.max(1) {
            threads.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let is_late = campaign.most.is_some_and(|most| begun.elapsed() > most);
                    if number >= campaign.seeds || is_late || is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = campaign.first.wrapping_add(number);
                    let verdict = run(&Plan { seed, guard_off: campaign.guard_off, ..Plan::default() });
                    progress(&verdict);
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    report.run += 1;
                    report.stats.add(&verdict.stats);
                    if verdict.violation.is_some() {
                        report.failed.push(verdict);
                        is_over.fetch_or(campaign.stops_at_failure, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.failed.sort_by_key(|verdict| verdict.seed);
    report.time = begun.elapsed();
    report
}
