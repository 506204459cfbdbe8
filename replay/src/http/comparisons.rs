//! Comparisons that were asked for over HTTP: one at a time for each read model, made beside the requests, and told of
//! until another one begins.
//!
//! A comparison reads only, so it may end at any moment: with the routes that own it, or with the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use read_models::generations::Catalogue;
use serde::Serialize;
use serde_json::Value;
use tokio::task::AbortHandle;
use utoipa::ToSchema;

use super::body::Comparing;
use super::problem;
use crate::by::By;
use crate::error::ReplayError;
use crate::evidence::ParityEvidence;
use crate::log_reader::LogReader;
use crate::next_steps::instant;
use crate::outcome::Outcome;
use crate::parity::Progress;
use crate::replayed::Replayed;
use crate::report::ParityReport;

/// The newest comparison of each read model by this process.
#[derive(Default)]
pub(super) struct Comparisons {
    by_read_model: Mutex<BTreeMap<&'static str, Running>>,
}

/// What is known of the newest comparison of a generation.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ParityView {
    /// `stock@2`
    pub(super) generation: String,
    /// As the catalogue has noted it: what gates and approvals look at.
    pub(super) evidence: Option<ParityEvidence>,
    /// The newest one that this process made of it, or is making.
    pub(super) comparison: Option<ComparisonView>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ComparisonView {
    state: ComparisonState,
    begun_at: String,
    /// Rows read of both generations.
    rows: u64,
    partitions_done: u64,
    partitions: u64,
    /// Why it failed.
    problem: Option<String>,
    /// What the catalogue said to it; `null` for a dry one.
    noted: Option<Outcome>,
    /// The report, with the first of the differing keys.
    #[schema(value_type = Option<Object>)]
    report: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ComparisonState {
    Running,
    Done,
    Failed,
}

struct Running {
    comparison: Arc<Comparison>,
    task: AbortHandle,
}

struct Comparison {
    number: u32,
    begun_at: i64,
    progress: Progress,
    ended: OnceLock<Ended>,
}

enum Ended {
    Compared { report: Box<ParityReport>, noted: Option<Outcome> },
    Failed(String),
}

// === impl Comparisons ===

impl Comparisons {
    /// Begins one. `false` while another one of the same read model is made.
    pub(super) fn begin(
        &self,
        replayed: &Replayed,
        catalogue: Catalogue,
        number: u32,
        log: LogReader,
        comparing: Comparing,
        now: fn() -> i64,
    ) -> bool {
        let mut all = self.by_read_model.lock().unwrap_or_else(PoisonError::into_inner);
        let is_running = |running: &Running| running.comparison.ended.get().is_none() && !running.task.is_finished();
        if all.get(replayed.name()).is_some_and(is_running) {
            return false;
        }
        let comparison =
            Arc::new(Comparison { number, begun_at: now(), progress: Progress::default(), ended: OnceLock::new() });
        let (of_task, replayed_of_task) = (Arc::clone(&comparison), replayed.clone());
        let task = tokio::spawn(async move {
            let made = of_task.make(&replayed_of_task, &catalogue, &log, &comparing, now).await;
            let ended = made.unwrap_or_else(|error| {
                let (problem, is_inside) = problem::outside(&error);
                if is_inside {
                    tracing::warn!(read_model = replayed_of_task.name(), %error, "a comparison failed");
                }
                Ended::Failed(problem)
            });
            // Nobody else ends it.
            let _ = of_task.ended.set(ended);
        });
        all.insert(replayed.name(), Running { comparison, task: task.abort_handle() });
        true
    }

    /// The newest one of a generation, with at most `most` differing keys.
    pub(super) fn newest(&self, name: &'static str, number: u32, most: usize) -> Option<ComparisonView> {
        let comparison = {
            let all = self.by_read_model.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(&all.get(name).filter(|running| running.comparison.number == number)?.comparison)
        };
        Some(comparison.view(most))
    }
}

impl Drop for Comparisons {
    fn drop(&mut self) {
        let all = self.by_read_model.get_mut().unwrap_or_else(PoisonError::into_inner);
        all.values().for_each(|running| running.task.abort());
    }
}

// === impl Comparison ===

impl Comparison {
    async fn make(
        &self,
        replayed: &Replayed,
        catalogue: &Catalogue,
        log: &LogReader,
        comparing: &Comparing,
        now: fn() -> i64,
    ) -> Result<Ended, ReplayError> {
        let Comparing { rules, queries, by } = comparing;
        let report = replayed.compare(catalogue, self.number, log, rules, queries, &self.progress, now()).await?;
        let noted = match by {
            None => None,
            Some(by) => {
                // It is decided now, not when it was asked for: a newer one may be known by now.
                let by = By::new(by.who(), by.reason(), now())?;
                Some(replayed.operations().note_parity(&report.evidence(), rules, &by).await?)
            }
        };
        Ok(Ended::Compared { report: Box::new(report), noted })
    }

    fn view(&self, most: usize) -> ComparisonView {
        let (rows, partitions_done, partitions, _) = self.progress.seen();
        let mut view = ComparisonView {
            state: ComparisonState::Running,
            begun_at: instant(self.begun_at),
            rows,
            partitions_done,
            partitions,
            problem: None,
            noted: None,
            report: None,
        };
        match self.ended.get() {
            None => {}
            Some(Ended::Failed(problem)) => {
                view.state = ComparisonState::Failed;
                view.problem = Some(problem.clone());
            }
            Some(Ended::Compared { report, noted }) => {
                view.state = ComparisonState::Done;
                view.noted.clone_from(noted);
                view.report = Some(report.json(most));
            }
        }
        view
    }
}
