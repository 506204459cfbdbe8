//! For tests: a catalogue in memory, changed by compare-and-set as a store does it, and a replay to try things on.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use read_models::generations::{Catalogue, Decision, Source};
use read_models::process_report::ProcessReport;
use read_models::{Generation, Generations, ReadModelError};

use crate::by::By;
use crate::decide::StartRequest;
use crate::evidence::ParityEvidence;
use crate::observed::{Observed, ObservedGeneration};
use crate::ownership::Ownership;
use crate::plan::Plan;
use crate::record::ReplayRecord;

pub(crate) struct MemoryGenerations {
    stored: Mutex<Stored>,
    /// So many changes of somebody else come first.
    pub overtaken: AtomicU32,
    /// The next change is written, and its answer lost.
    pub loses_answer: AtomicBool,
}

struct Stored {
    catalogue: Catalogue,
    decisions: Vec<Decision>,
    published: u64,
    reports: Vec<ProcessReport>,
}

impl MemoryGenerations {
    pub(crate) fn new() -> Self {
        let generation = Generation { name: "stock".to_owned(), number: 1, fold_version: 1, partitions: 4 };
        let stored = Stored {
            catalogue: Catalogue::of_built(Some(&generation)),
            decisions: Vec::new(),
            published: 0,
            reports: Vec::new(),
        };
        Self { stored: Mutex::new(stored), overtaken: AtomicU32::new(0), loses_answer: AtomicBool::new(false) }
    }

    pub(crate) fn all_decisions(&self) -> Vec<Decision> {
        self.stored.lock().unwrap().decisions.clone()
    }

    pub(crate) fn tamper(&self, number: usize, change: impl FnOnce(&mut Decision)) {
        change(&mut self.stored.lock().unwrap().decisions[number - 1]);
    }

    pub(crate) fn actions(&self) -> Vec<String> {
        self.all_decisions().into_iter().map(|decision| decision.action).collect()
    }
}

#[async_trait]
impl Generations for MemoryGenerations {
    fn name(&self) -> &'static str {
        "stock"
    }

    async fn catalogue(&self) -> Result<Catalogue, ReadModelError> {
        // As a store keeps it.
        let json = serde_json::to_string(&self.stored.lock().unwrap().catalogue).unwrap();
        Ok(serde_json::from_str(&json).unwrap())
    }

    async fn replace(&self, expected: u64, to: &Catalogue, decisions: &[Decision]) -> Result<(), ReadModelError> {
        let mut stored = self.stored.lock().unwrap();
        if self.overtaken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            stored.catalogue.version += 1;
        }
        let found = stored.catalogue.version;
        if found != expected {
            return Err(ReadModelError::CatalogueMoved { name: "stock".to_owned(), expected, found });
        }
        stored.catalogue = to.clone();
        stored.decisions.extend_from_slice(decisions);
        if self.loses_answer.swap(false, Ordering::SeqCst) {
            let (name, address, problem) = ("stock".to_owned(), "memory".to_owned(), "the answer is lost".to_owned());
            return Err(ReadModelError::Unavailable { name, address, problem });
        }
        Ok(())
    }

    async fn decisions(&self, after: u64, limit: usize) -> Result<Vec<Decision>, ReadModelError> {
        // As a store keeps them.
        let later = self.all_decisions().into_iter().filter(|decision| decision.number > after).take(limit);
        let json = serde_json::to_string(&later.collect::<Vec<_>>()).unwrap();
        Ok(serde_json::from_str(&json).unwrap())
    }

    async fn published_decisions(&self) -> Result<u64, ReadModelError> {
        Ok(self.stored.lock().unwrap().published)
    }

    async fn note_published(&self, number: u64) -> Result<(), ReadModelError> {
        let mut stored = self.stored.lock().unwrap();
        stored.published = stored.published.max(number);
        Ok(())
    }

    async fn remove_some(&self, _generation: u32, _limit: usize) -> Result<bool, ReadModelError> {
        Ok(false)
    }

    async fn note_report(&self, report: &ProcessReport) -> Result<(), ReadModelError> {
        let mut stored = self.stored.lock().unwrap();
        stored.reports.retain(|known| known.process != report.process);
        stored.reports.push(report.clone());
        Ok(())
    }

    async fn reports(&self, now: i64, max_age_ms: i64) -> Result<Vec<ProcessReport>, ReadModelError> {
        let stored = self.stored.lock().unwrap();
        Ok(stored.reports.iter().filter(|report| now - report.at <= max_age_ms).cloned().collect())
    }
}

// === A replay to try things on ===

/// Mirrors, gives a tenth, then all.
pub(crate) const STAGES: &str = r#"
    parity_max_age = "1h"
    [[stage]]
    name = "mirror"
    share = "none"
    mirror_percent = 100
    min_time = "60s"
    exit = { min_mirrored = 100, max_error_rate = 0.01, max_differing = 0, max_p99_ratio = 2.0 }
    [[stage]]
    name = "tenth"
    share = { percent = 10 }
    [[stage]]
    name = "all"
    share = "all"
    [triggers]
    max_lag_events = 5000
    max_error_rate = 0.05
    max_differing = 0
    max_p99_ms = 200.0
    holds_for = "10s"
    [rollback]
    window = "24h"
"#;

pub(crate) const SECOND: i64 = 1_000;
pub(crate) const HOUR: i64 = 3_600 * SECOND;

pub(crate) fn by(who: &str, at: i64) -> By {
    By::new(who, "the new field", at).unwrap()
}

pub(crate) fn ownership() -> Ownership {
    let text = "[[owner]]\nkind = \"projection\"\nname = [\"stock\", \"search\"]\nowner = \"shop\"\n\
                escalation = \"oncall\"\napprovers = [\"ann\", \"bob\"]\n";
    Ownership::parse("ownership.toml", text).unwrap()
}

pub(crate) fn request(stages: &str) -> StartRequest {
    StartRequest {
        fold_version: 2,
        known_folds: vec![1, 2],
        until: None,
        source: Source::Log,
        plan: Plan::parse("stages.toml", stages).unwrap(),
        automatic: false,
        throttle: None,
    }
}

/// As `eve` started it.
pub(crate) fn record_of(stages: &str) -> ReplayRecord {
    ReplayRecord::new(&request(stages), &by("eve", 0))
}

pub(crate) fn clean(generation: u32, against: u32, at: i64) -> ParityEvidence {
    ParityEvidence {
        generation,
        against,
        at,
        vector: "inventory-0-0.7".to_owned(),
        compared_keys: 100,
        differing_keys: 0,
        excused_keys: 3,
        missing_keys: 0,
        extra_keys: 0,
        parked_keys_differing: 0,
        queries: None,
        report_sha256: format!("report of {at}"),
        rules_sha256: String::new(),
    }
}

/// All generations stand at the log's end.
pub(crate) fn level() -> Observed {
    let level = ObservedGeneration { lag_events: Some(0), is_live: true, ..ObservedGeneration::default() };
    Observed { generations: (1..=4).map(|number| (number, level)).collect(), reports: Vec::new() }
}
