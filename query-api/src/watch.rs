//! What the reads of one read model cost and, while a candidate is mirrored, how its answers compare: written to the
//! store, where triggers and the throttle of a replay look.
//!
//! Mirrored reads are made beside the answer that a caller gets, and never hold it up: where too many are under way, a
//! request is not mirrored.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use read_models::generations::{Candidate, MirrorReport, ReadReport};
use read_models::{Catalogue, Generations};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::latency::Latencies;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks between two reports.
const REPORT_EVERY: u32 = 4;
/// Seconds that a report's figures cover.
const WINDOW: usize = 10;
/// Mirrored reads under way at once.
const MIRRORED_AT_ONCE: usize = 16;
/// Differing answers that are named.
const SAMPLES: usize = 20;

/// The reads of one read model by this process.
pub(crate) struct Watch {
    process: String,
    catalogue: ArcSwapOption<Catalogue>,
    window: Mutex<Window>,
    mirrored: Mutex<Option<Mirrored>>,
    permits: Arc<Semaphore>,
    requests: AtomicU64,
}

/// The last seconds, the current one at the end.
#[derive(Default)]
struct Window {
    seconds: VecDeque<Second>,
}

#[derive(Default, Clone)]
struct Second {
    latencies: Latencies,
    errors: u64,
}

/// What mirrored reads of one stage showed.
struct Mirrored {
    generation: u32,
    catalogue_version: u64,
    latencies: Latencies,
    errors: u64,
    differing: u64,
    samples: Vec<String>,
}

/// A request that is to be read from the candidate too.
pub(crate) struct MirrorOrder {
    pub(crate) candidate: Candidate,
    catalogue_version: u64,
    _permit: OwnedSemaphorePermit,
}

/// How a mirrored read ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Mirroring {
    Same,
    /// Names the SKU or the query.
    Differs(String),
    Failed,
    /// The two were never true at one position while one looked.
    Passed,
}

// === impl Watch ===

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            process: Uuid::new_v4().to_string(),
            catalogue: ArcSwapOption::empty(),
            window: Mutex::default(),
            mirrored: Mutex::default(),
            permits: Arc::new(Semaphore::new(MIRRORED_AT_ONCE)),
            requests: AtomicU64::new(0),
        }
    }

    /// A read that ended; an error is one that is the server's.
    pub(crate) fn note(&self, took: Duration, is_error: bool) {
        let mut window = locked(&self.window);
        if window.seconds.is_empty() {
            window.seconds.push_back(Second::default());
        }
        if let Some(second) = window.seconds.back_mut() {
            second.latencies.note(took);
            second.errors += u64::from(is_error);
        }
    }

    /// Whether a request that `answered` answered is mirrored.
    pub(crate) fn order(&self, answered: u32) -> Option<MirrorOrder> {
        let catalogue = self.catalogue.load();
        let catalogue = catalogue.as_ref()?;
        let candidate = catalogue.candidate.as_ref()?;
        // Spread evenly: 37 and 100 have no common divisor.
        let turn = self.requests.fetch_add(37, Ordering::Relaxed) % 100;
        if candidate.generation == answered || turn >= u64::from(candidate.mirror_percent) {
            return None;
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        let (candidate, catalogue_version) = (candidate.clone(), catalogue.version);
        Some(MirrorOrder { candidate, catalogue_version, _permit: permit })
    }

    /// A mirrored read that ended after `took`.
    pub(crate) fn mirrored(&self, order: &MirrorOrder, took: Duration, how: Mirroring) {
        let mut mirrored = locked(&self.mirrored);
        let version = order.catalogue_version;
        // One of a stage that is over.
        if mirrored.as_ref().is_some_and(|mirrored| mirrored.catalogue_version > version) {
            return;
        }
        let counts = match mirrored.as_mut().filter(|mirrored| mirrored.catalogue_version == version) {
            Some(counts) => counts,
            None => mirrored.insert(Mirrored {
                generation: order.candidate.generation,
                catalogue_version: version,
                latencies: Latencies::default(),
                errors: 0,
                differing: 0,
                samples: Vec::new(),
            }),
        };
        match how {
            Mirroring::Passed => return,
            Mirroring::Same => {}
            Mirroring::Failed => counts.errors += 1,
            Mirroring::Differs(what) => {
                counts.differing += 1;
                if counts.samples.len() < SAMPLES && !counts.samples.contains(&what) {
                    counts.samples.push(what);
                }
            }
        }
        counts.latencies.note(took);
    }

    /// Follows the catalogue, and reports while more than one generation is fed.
    pub(crate) async fn run(&self, generations: &dyn Generations, now: fn() -> i64, shutdown: CancellationToken) {
        let mut looks = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
            // A store that does not answer is told by who reads from it.
            if let Ok(catalogue) = generations.catalogue().await {
                self.catalogue.store(Some(Arc::new(catalogue)));
            }
            looks += 1;
            if looks % REPORT_EVERY != 0 {
                continue;
            }
            let report = self.report(now());
            locked(&self.window).turn();
            let is_replaying = self.catalogue.load().as_ref().is_some_and(|catalogue| catalogue.fed().count() > 1);
            if is_replaying && let Err(error) = generations.note_reads(&report).await {
                tracing::debug!(%error, "reads are not reported");
            }
        }
    }

    fn report(&self, now: i64) -> ReadReport {
        let (latencies, errors, seconds) = locked(&self.window).sum();
        let mirror = locked(&self.mirrored).as_ref().map(|mirrored| MirrorReport {
            generation: mirrored.generation,
            catalogue_version: mirrored.catalogue_version,
            requests: mirrored.latencies.count(),
            errors: mirrored.errors,
            differing: mirrored.differing,
            p99_ms: mirrored.latencies.p99_ms(),
            samples: mirrored.samples.clone(),
        });
        ReadReport {
            process: self.process.clone(),
            at: now,
            seconds: seconds as f64,
            requests: latencies.count(),
            errors,
            p99_ms: latencies.p99_ms(),
            mirror,
        }
    }
}

// === impl Window ===

impl Window {
    fn turn(&mut self) {
        self.seconds.push_back(Second::default());
        while self.seconds.len() > WINDOW {
            self.seconds.pop_front();
        }
    }

    fn sum(&self) -> (Latencies, u64, usize) {
        let mut latencies = Latencies::default();
        self.seconds.iter().for_each(|second| latencies.merge(&second.latencies));
        (latencies, self.seconds.iter().map(|second| second.errors).sum(), self.seconds.len())
    }
}

/// A poisoned lock is only a lock: counts that a panic left half-way are counts.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use read_models::Generation;
    use read_models::generations::Share;

    use super::*;

    fn watch(mirror_percent: u8, version: u64) -> Watch {
        let watch = Watch::new();
        mirror(&watch, mirror_percent, version);
        watch
    }

    fn mirror(watch: &Watch, mirror_percent: u8, version: u64) {
        let built = Generation { name: "stock".to_owned(), number: 1, fold_version: 1, partitions: 4 };
        let mut catalogue = Catalogue::of_built(Some(&built));
        catalogue.version = version;
        catalogue.candidate =
            Some(Candidate { generation: 2, share: Share::None, mirror_percent, excused_fields: Vec::new() });
        watch.catalogue.store(Some(Arc::new(catalogue)));
    }

    #[test]
    fn a_share_of_the_requests_is_mirrored_and_none_twice() {
        let watch = watch(30, 1);
        let mirrored = (0..1_000).filter(|_| watch.order(1).is_some()).count();
        assert_eq!(mirrored, 300);
        assert!((0..100).all(|_| watch.order(2).is_none()), "the candidate answered itself");
        let held: Vec<MirrorOrder> = (0..1_000).filter_map(|_| watch.order(1)).collect();
        assert_eq!(held.len(), MIRRORED_AT_ONCE);
    }

    #[test]
    fn counts_begin_again_with_each_stage() {
        let watch = watch(100, 1);
        let (millisecond, first) = (Duration::from_millis(1), watch.order(1).unwrap());
        watch.mirrored(&first, millisecond, Mirroring::Differs("A".to_owned()));
        watch.mirrored(&first, millisecond, Mirroring::Differs("A".to_owned()));
        watch.mirrored(&first, millisecond, Mirroring::Failed);
        watch.mirrored(&first, millisecond, Mirroring::Passed);
        let report = watch.report(9).mirror.unwrap();
        assert_eq!((report.requests, report.errors, report.differing), (3, 1, 2));
        assert_eq!(report.samples, ["A"]);
        mirror(&watch, 100, 2);
        watch.mirrored(&watch.order(1).unwrap(), millisecond, Mirroring::Same);
        watch.mirrored(&first, millisecond, Mirroring::Failed);
        let report = watch.report(9).mirror.unwrap();
        assert_eq!((report.requests, report.errors, report.catalogue_version), (1, 0, 2));
    }

    #[test]
    fn a_report_covers_the_last_seconds_only() {
        let watch = Watch::new();
        watch.note(Duration::from_secs(1), true);
        for _ in 0..WINDOW {
            locked(&watch.window).turn();
        }
        assert_eq!((watch.report(0).requests, watch.report(0).errors), (0, 0));
        watch.note(Duration::from_millis(2), false);
        let report = watch.report(0);
        assert!(report.requests == 1 && report.p99_ms < 3.0, "{report:?}");
    }
}
