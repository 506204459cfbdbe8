//! What the reads of one read model cost and, while a candidate is mirrored, how its answers compare: written to the
//! store, where triggers and the throttle of a replay look.
//!
//! Reads are told apart by the generation that answers, so that what a few ask of a candidate is not lost among what
//! the others ask of the live one. Figures are of the last seconds and the last minute; what is older is forgotten.
//!
//! Mirrored reads are made beside the answer that a caller gets, and never hold it up: where too many are under way, a
//! request is not mirrored.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use read_models::generations::Candidate;
use read_models::process_report::{Lately, MirrorReport, ProcessReport, ReadFigures};
use read_models::{Catalogue, Generations, ReadChoice, ReadModelError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::latency::Latencies;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between two reports; figures are kept by the same measure.
const SECOND: Duration = Duration::from_secs(1);
/// Seconds of the two spans that figures are told of.
const SHORT: usize = 10;
const LONG: usize = 60;
/// Mirrored reads under way at once.
const MIRRORED_AT_ONCE: usize = 16;
/// What reads are counted under that a store did not answer for any generation: no generation has this number.
const OF_THE_STORE: u32 = 0;
/// Differing answers that are named.
const SAMPLES: usize = 20;

/// The reads of one read model by this process.
pub(crate) struct Watch {
    stores: Stores,
    process: String,
    catalogue: ArcSwapOption<Catalogue>,
    answered: Mutex<BTreeMap<u32, Minute>>,
    mirrored: Mutex<Option<Mirrored>>,
    permits: Arc<Semaphore>,
    requests: AtomicU64,
}

/// A read that is under way. One that nobody waits for any more when its deadline is over has failed.
pub(crate) struct Noted<'w> {
    watch: &'w Watch,
    choice: &'w ReadChoice,
    deadline: Duration,
    begun: Instant,
    is_over: bool,
}

/// The last minute, a second at a time, the current one at the end.
#[derive(Default)]
struct Minute {
    seconds: VecDeque<Counts>,
}

/// Where the generations of a read model lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stores {
    /// All on one server.
    Shared,
    /// Each in files of its own, or on servers of which one may be away.
    Own,
}

#[derive(Default, Clone)]
struct Counts {
    latencies: Latencies,
    errors: u64,
    differing: u64,
}

/// What mirrored reads of one stage showed.
struct Mirrored {
    generation: u32,
    stage: u64,
    whole: Counts,
    minute: Minute,
    samples: Vec<String>,
}

/// A request that is to be read from the candidate too.
pub(crate) struct MirrorOrder {
    pub(crate) candidate: Candidate,
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
    pub(crate) fn new(stores: Stores) -> Self {
        Self {
            stores,
            process: Uuid::new_v4().to_string(),
            catalogue: ArcSwapOption::empty(),
            answered: Mutex::default(),
            mirrored: Mutex::default(),
            permits: Arc::new(Semaphore::new(MIRRORED_AT_ONCE)),
            requests: AtomicU64::new(0),
        }
    }

    /// Begins to watch a read that is given up after `deadline`.
    pub(crate) fn begin<'w>(&'w self, choice: &'w ReadChoice, deadline: Duration) -> Noted<'w> {
        Noted { watch: self, choice, deadline, begun: Instant::now(), is_over: false }
    }

    fn note(&self, generation: u32, took: Duration, is_error: bool) {
        locked(&self.answered).entry(generation).or_default().note(took, |second| second.errors += u64::from(is_error));
    }

    /// Whether a failed read says nothing about the generation that it was meant for.
    pub(crate) fn is_of_the_store(&self, error: &ReadModelError) -> bool {
        let is_away = matches!(error, ReadModelError::Unavailable { .. } | ReadModelError::BreakerOpen { .. });
        self.stores == Stores::Shared && is_away
    }

    /// The generation that a read without an answer was meant for.
    fn meant(&self, choice: &ReadChoice) -> u32 {
        let catalogue = self.catalogue.load();
        let chosen = catalogue.as_ref().map(|catalogue| catalogue.choose("", choice).unwrap_or(catalogue.serving));
        chosen.or(choice.generation).unwrap_or(0)
    }

    /// Whether a request that `answered` answered is mirrored.
    pub(crate) fn order(&self, answered: u32) -> Option<MirrorOrder> {
        let catalogue = self.catalogue.load();
        let candidate = catalogue.as_ref()?.candidate.as_ref()?;
        // Spread evenly: 37 and 100 have no common divisor.
        let turn = self.requests.fetch_add(37, Ordering::Relaxed) % 100;
        if candidate.generation == answered || turn >= u64::from(candidate.mirror_percent) {
            return None;
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(MirrorOrder { candidate: candidate.clone(), _permit: permit })
    }

    fn stage_of_now(&self) -> Option<u64> {
        let catalogue = self.catalogue.load();
        Some(catalogue.as_ref()?.candidate.as_ref()?.since)
    }

    /// A mirrored read that ended after `took`.
    pub(crate) fn mirrored(&self, order: &MirrorOrder, took: Duration, how: Mirroring) {
        let mut mirrored = locked(&self.mirrored);
        let (generation, stage) = (order.candidate.generation, order.candidate.since);
        // One of a stage that is over, unless its number came back with a store that was wiped.
        let is_of_now = || self.stage_of_now() == Some(stage);
        if mirrored.as_ref().is_some_and(|mirrored| mirrored.stage > stage) && !is_of_now() {
            return;
        }
        let counts = match mirrored.as_mut().filter(|mirrored| mirrored.stage == stage) {
            Some(counts) => counts,
            None => {
                let (whole, minute, samples) = (Counts::default(), Minute::default(), Vec::new());
                mirrored.insert(Mirrored { generation, stage, whole, minute, samples })
            }
        };
        let (mut errors, mut differing) = (0, 0);
        match how {
            Mirroring::Passed => return,
            Mirroring::Same => {}
            Mirroring::Failed => errors = 1,
            Mirroring::Differs(what) => {
                differing = 1;
                if counts.samples.len() < SAMPLES && !counts.samples.contains(&what) {
                    counts.samples.push(what);
                }
            }
        }
        let more = |counts: &mut Counts| {
            counts.errors += errors;
            counts.differing += differing;
        };
        counts.whole.latencies.note(took);
        more(&mut counts.whole);
        counts.minute.note(took, more);
    }

    /// Follows the catalogue, and reports while more than one generation is fed.
    pub(crate) async fn run(&self, generations: &dyn Generations, now: fn() -> i64, shutdown: CancellationToken) {
        let mut turned_at = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
            // A store that does not answer is told by who reads from it.
            if let Ok(catalogue) = generations.catalogue().await {
                self.catalogue.store(Some(Arc::new(catalogue)));
            }
            // A store that is slow does not make the minute longer.
            let passed = turned_at.elapsed().as_secs();
            if passed == 0 {
                continue;
            }
            let report = self.report(now());
            self.turn(passed);
            turned_at += SECOND * u32::try_from(passed).unwrap_or(u32::MAX);
            let is_replaying = self.catalogue.load().as_ref().is_some_and(|catalogue| catalogue.fed().count() > 1);
            if is_replaying && let Err(error) = generations.note_report(&report).await {
                tracing::debug!(%error, "reads are not reported");
            }
        }
    }

    fn turn(&self, seconds: u64) {
        for _ in 0..seconds.min(LONG as u64) {
            let mut answered = locked(&self.answered);
            answered.values_mut().for_each(Minute::turn);
            answered.retain(|_, minute| !minute.is_idle());
            if let Some(mirrored) = locked(&self.mirrored).as_mut() {
                mirrored.minute.turn();
            }
        }
    }

    fn report(&self, now: i64) -> ProcessReport {
        let mirror = locked(&self.mirrored).as_ref().map(|mirrored| MirrorReport {
            generation: mirrored.generation,
            stage: mirrored.stage,
            whole: mirrored.whole.figures(),
            lately: mirrored.minute.lately(),
            samples: mirrored.samples.clone(),
        });
        let answered = locked(&self.answered);
        let reads = answered.iter().map(|(generation, minute)| (*generation, minute.lately()));
        ProcessReport {
            process: self.process.clone(),
            at: now,
            reads: reads.collect(),
            mirror,
            ..ProcessReport::default()
        }
    }
}

// === impl Noted ===

impl Noted<'_> {
    /// The generation that answered, or why none did. What is the caller's own fault is nobody's figure. A store that is
    /// away from all generations alike is no generation's, since a trigger would roll back to where no read goes better;
    /// but it is told of: builds yield to it.
    pub(crate) fn ended(mut self, ended: Result<u32, &ReadModelError>) {
        self.is_over = true;
        match ended {
            Ok(generation) => self.watch.note(generation, self.begun.elapsed(), false),
            Err(ReadModelError::Query { .. } | ReadModelError::UnknownGeneration { .. }) => {}
            Err(error) if self.watch.is_of_the_store(error) => {
                self.watch.note(OF_THE_STORE, self.begun.elapsed(), true);
            }
            Err(_) => self.watch.note(self.watch.meant(self.choice), self.begun.elapsed(), true),
        }
    }
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        // A caller that went away earlier says nothing.
        if !self.is_over && self.begun.elapsed() >= self.deadline {
            self.watch.note(self.watch.meant(self.choice), self.begun.elapsed(), true);
        }
    }
}

// === impl Minute ===

impl Minute {
    fn note(&mut self, took: Duration, count: impl FnOnce(&mut Counts)) {
        if self.seconds.is_empty() {
            self.seconds.push_back(Counts::default());
        }
        if let Some(second) = self.seconds.back_mut() {
            second.latencies.note(took);
            count(second);
        }
    }

    fn turn(&mut self) {
        self.seconds.push_back(Counts::default());
        while self.seconds.len() > LONG {
            self.seconds.pop_front();
        }
    }

    fn is_idle(&self) -> bool {
        self.seconds.iter().all(|second| second.latencies.count() == 0)
    }

    fn lately(&self) -> Lately {
        Lately { seconds: self.figures(SHORT), minute: self.figures(LONG) }
    }

    fn figures(&self, seconds: usize) -> ReadFigures {
        let mut all = Counts::default();
        for second in self.seconds.iter().rev().take(seconds) {
            all.latencies.merge(&second.latencies);
            all.errors += second.errors;
            all.differing += second.differing;
        }
        all.figures()
    }
}

// === impl Counts ===

impl Counts {
    fn figures(&self) -> ReadFigures {
        let Self { latencies, errors, differing } = self;
        ReadFigures { requests: latencies.count(), errors: *errors, differing: *differing, p99_ms: latencies.p99_ms() }
    }
}

/// A poisoned lock is only a lock: counts that a panic left half-way are counts.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
