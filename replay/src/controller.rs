//! What a replay does by itself: triggers roll back, automatic stages follow each other.
//!
//! Several processes may run it at once. Each looks at the same catalogue and decides by compare-and-set, so the second
//! to decide finds nothing left to do.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use read_models::generations::Catalogue;
use read_models::{Generations, ReadModelStatus};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::by::By;
use crate::decide::CutoverRequest;
use crate::error::ReplayError;
use crate::gates::{Entering, missing};
use crate::metrics::ROLLBACKS;
use crate::observed::Observed;
use crate::operations::Operations;
use crate::outcome::Outcome;
use crate::ownership::Ownership;
use crate::record::{ReplayRecord, current_replays};
use crate::triggers::{Passed, TriggerWatch, watched};

/// One for a read model and a process.
pub struct Controller {
    operations: Operations,
    watch: TriggerWatch,
}

/// Who rolls back when a trigger does.
pub const TRIGGER: &str = "trigger";
/// Who enters the stages of an automatic replay.
pub const AUTOMATIC: &str = "automatic";

const EVERY: Duration = Duration::from_secs(1);

/// Runs until `shutdown`. `statuses` gives the status of each generation that is fed, `now` the milliseconds since
/// 1970. What cannot be reached now is looked at again in a second.
pub async fn run_controller<S, F>(
    generations: Arc<dyn Generations>,
    ownership: Arc<Ownership>,
    statuses: S,
    now: impl Fn() -> i64 + Send,
    shutdown: CancellationToken,
) where
    S: Fn(Catalogue) -> F + Send,
    F: Future<Output = Result<Vec<ReadModelStatus>, ReplayError>> + Send,
{
    let mut controller = Controller::new(Operations::new(generations, ownership));
    // An alarm on its rise needs to have seen it at 0.
    counter!(ROLLBACKS, "projection" => controller.operations.name()).increment(0);
    let mut ticks = interval_at(Instant::now() + EVERY, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match controller.look(&statuses, now()).await {
            Ok(None) => {}
            Ok(Some(Outcome::Done(done))) => {
                tracing::info!(
                    generation = done.generation,
                    action = done.action,
                    done = done.done,
                    "replay went on by itself"
                );
            }
            Ok(Some(Outcome::Refused(refused))) => tracing::debug!(missing = ?refused.missing, "replay did not go on"),
            Err(error) => tracing::warn!(read_model = controller.operations.name(), %error, "replay is not watched"),
        }
    }
}

// === impl Controller ===

impl Controller {
    pub fn new(operations: Operations) -> Self {
        Self { operations, watch: TriggerWatch::default() }
    }

    async fn look<S, F>(&mut self, statuses: &S, now: i64) -> Result<Option<Outcome>, ReplayError>
    where
        S: Fn(Catalogue) -> F,
        F: Future<Output = Result<Vec<ReadModelStatus>, ReplayError>>,
    {
        let generations = self.operations.generations().clone();
        let catalogue = generations.catalogue().await?;
        // Most of the time there is no replay, and nothing to look at.
        if watched(&catalogue, now)?.is_empty() && automatic(&catalogue)?.is_none() {
            self.watch = TriggerWatch::default();
            return Ok(None);
        }
        let statuses = statuses(catalogue.clone()).await?;
        let observed = Observed::gather(&*generations, &statuses, now).await?;
        self.step(&catalogue, &observed, now).await
    }

    /// Rolls back or goes on where it is time to; `None` where it is not.
    pub async fn step(
        &mut self,
        catalogue: &Catalogue,
        observed: &Observed,
        now: i64,
    ) -> Result<Option<Outcome>, ReplayError> {
        let watched = watched(catalogue, now)?;
        if let Some((watched, fired)) = self.watch.fired(&watched, observed, Instant::now()) {
            let sentences: Vec<&str> = fired.iter().map(|passed| passed.sentence.as_str()).collect();
            let held = humantime::format_duration(watched.bounds.holds_for);
            let by = By::new(TRIGGER, &format!("{}, for {held}", sentences.join("; ")), now)?;
            let outcome = self.operations.rollback_because(Some(watched.generation), figures(&fired), &by).await?;
            if outcome.done().is_some() {
                counter!(ROLLBACKS, "projection" => self.operations.name()).increment(1);
            }
            return Ok(Some(outcome));
        }
        let Some((generation, record)) = automatic(catalogue)? else {
            return Ok(None);
        };
        let stage = record.stage.as_ref().map_or(0, |stage| stage.index + 1);
        let name = self.operations.name();
        let entering = Entering { name, generation, stage, who: AUTOMATIC, forced: false, now };
        let is_due = stage < record.plan.stages.len()
            && missing(catalogue, &record, observed, entering, self.operations.ownership()).is_empty();
        if !is_due {
            return Ok(None);
        }
        let by = By::new(AUTOMATIC, "its gates let it", now)?;
        // Named, so that of two processes one enters it, and the other does not enter the stage behind it.
        let request = CutoverRequest { generation, stage: Some(record.plan.stages[stage].name.clone()), forced: false };
        Ok(Some(self.operations.cutover(&request, observed, &by).await?))
    }
}

/// The newest replay that goes on by itself; while there is a candidate, it alone may.
fn automatic(catalogue: &Catalogue) -> Result<Option<(u32, ReplayRecord)>, ReplayError> {
    for number in current_replays(catalogue) {
        let record = ReplayRecord::in_catalogue(catalogue, number)?;
        if let Some(record) = record.filter(|record| record.automatic) {
            return Ok(Some((number, record)));
        }
    }
    Ok(None)
}

fn figures(fired: &[Passed]) -> Value {
    fired.iter().map(|passed| json!({"bound": passed.bound, "figures": passed.figures})).collect()
}

#[cfg(test)]
mod tests;
