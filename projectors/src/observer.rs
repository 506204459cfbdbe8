//! Watches how far the read model is behind the log: for readers, who never touch the log, for alarms, and for
//! readiness.

use std::sync::Arc;
use std::time::Duration;

use event_log::EventLog;
use metrics::{SharedString, gauge};
use read_models::{Head, PartitionRef, ReadModel, ReadModelStatus};
use schemas::Context;
use telemetry::ComponentHealth;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bound::Standing;
use crate::metrics::{LAG_EVENTS, LIVE, PARKED_KEYS};
use crate::settings::ProjectorSettings;
use crate::worker::now;

pub(crate) struct Observer<M: ?Sized> {
    /// For metrics.
    pub(crate) label: SharedString,
    /// Of a generation that stops at a bound: where its partitions end.
    pub(crate) standing: Option<Standing>,
    pub(crate) contexts: &'static [Context],
    pub(crate) read_model: Arc<M>,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) settings: ProjectorSettings,
    pub(crate) lag: ComponentHealth,
}

/// How often the lag is measured: a count over all partitions, of every process of the group.
const MEASURE_EVERY: Duration = Duration::from_secs(2);

/// How long the log's ends may be unknown: nobody can say how far behind the read model is then.
const UNSEEN_FOR: Duration = Duration::from_secs(30);

/// How long the read model may take to answer. Past it the lag is reckoned without its answer.
const PATIENCE: Duration = Duration::from_secs(2);

// === impl Observer ===

impl<M: ReadModel + ?Sized> Observer<M> {
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(self.settings.observe_every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut measured_at: Option<Instant> = None;
        let mut known: Option<ReadModelStatus> = None;
        let mut unseen_since: Option<Instant> = None;
        self.lag.ready();
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let (heads, problem) = self.heads().await;
            self.note(&heads).await;
            unseen_since = problem.as_ref().map(|_| unseen_since.unwrap_or_else(Instant::now));
            if measured_at.is_some_and(|at| at.elapsed() < MEASURE_EVERY) {
                continue;
            }
            measured_at = Some(Instant::now());
            let told = tokio::time::timeout(PATIENCE, self.read_model.status()).await;
            self.reckon(&mut known, told.ok().and_then(Result::ok), &heads);
            if let (Some(problem), Some(since)) = (problem, unseen_since) {
                self.tell_unseen(&problem, since.elapsed());
            }
        }
    }

    /// The lag that was known last says less the older it gets.
    fn tell_unseen(&self, problem: &str, unseen_for: Duration) {
        if unseen_for >= UNSEEN_FOR {
            self.lag.not_ready(format!("the log's ends are not seen for {} s: {problem}", unseen_for.as_secs()));
        }
    }

    /// Holds what the read model tells, or last told when it is slow or away, against the log as it is now: it falls
    /// behind whether or not it can say so.
    fn reckon(
        &self,
        known: &mut Option<ReadModelStatus>,
        told: Option<ReadModelStatus>,
        heads: &[(PartitionRef, Head)],
    ) {
        if told.is_some() {
            *known = told;
        }
        let Some(status) = known else { return };
        for partition in &mut status.partitions {
            if let Some((_, head)) = heads.iter().find(|(of, _)| *of == partition.partition) {
                partition.head = Some(*head);
            }
        }
        self.measure(status);
    }

    /// Where the partitions end, and why of some it is not known.
    async fn heads(&self) -> (Vec<(PartitionRef, Head)>, Option<String>) {
        let mut heads = Vec::new();
        let mut problem = None;
        for context in self.contexts {
            match self.log.ends(context.events_topic()).await {
                Ok(ends) => heads.extend(ends.into_iter().filter_map(|ends| {
                    let partition = PartitionRef { context: *context, partition: ends.partition };
                    let next_offset = match &self.standing {
                        None => ends.next,
                        Some(standing) => standing.end_of(partition, ends.next)?,
                    };
                    Some((partition, Head { next_offset, seen_at: now() }))
                })),
                Err(error) => {
                    tracing::debug!(%error, "log ends not seen");
                    problem = Some(error.to_string());
                }
            }
        }
        (heads, problem)
    }

    async fn note(&self, heads: &[(PartitionRef, Head)]) {
        if heads.is_empty() {
            return;
        }
        match tokio::time::timeout(PATIENCE, self.read_model.observe(heads)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "log ends not noted"),
            Err(_) => tracing::debug!("log ends not noted: the read model is slow"),
        }
    }

    fn measure(&self, status: &ReadModelStatus) {
        let lag = status.lag_events().unwrap_or(0);
        gauge!(LAG_EVENTS, "projection" => self.label.clone()).set(lag as f64);
        let parked_keys: u64 = status.partitions.iter().map(|partition| partition.parked_keys).sum();
        gauge!(PARKED_KEYS, "projection" => self.label.clone()).set(parked_keys as f64);
        gauge!(LIVE, "projection" => self.label.clone()).set(if status.is_live() { 1.0 } else { 0.0 });
        let bound = self.settings.not_ready_behind;
        if lag > bound {
            self.lag.not_ready(format!("{lag} events behind the log, the bound is {bound}"));
        } else {
            self.lag.ready();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use event_log::SqliteEventLog;
    use read_models::stock::connect_stock;
    use read_models::{Checkpoint, PartitionStatus};
    use telemetry::Health;

    use super::*;

    #[tokio::test]
    async fn a_projector_that_is_far_behind_is_not_ready_until_it_has_caught_up() {
        let folder = tempfile::tempdir().unwrap();
        let health = Health::default();
        let observer = Observer {
            label: "stock".into(),
            standing: None,
            contexts: &[Context::Inventory],
            read_model: connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap(),
            log: Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap()),
            settings: ProjectorSettings { not_ready_behind: 10, ..ProjectorSettings::default() },
            lag: health.component("stock projector lag"),
        };
        let behind = |lag: u64| ReadModelStatus {
            name: "stock".to_owned(),
            generation: 1,
            fold_version: 1,
            partitions: vec![PartitionStatus {
                partition: PartitionRef { context: Context::Inventory, partition: 0 },
                checkpoint: Checkpoint::default(),
                live: true,
                head: Some(Head { next_offset: lag, seen_at: 1 }),
                parked_keys: 0,
                parked_events: 0,
            }],
        };
        let heads = |next_offset| {
            [(PartitionRef { context: Context::Inventory, partition: 0 }, Head { next_offset, seen_at: 1 })]
        };
        observer.measure(&behind(11));
        assert_eq!(health.report().components["stock projector lag"], "11 events behind the log, the bound is 10");
        observer.measure(&behind(10));
        assert!(health.report().ready);
        // It does not answer any more, and the log goes on.
        let mut known = None;
        observer.reckon(&mut known, Some(behind(1)), &heads(10));
        assert!(health.report().ready);
        observer.reckon(&mut known, None, &heads(12));
        assert_eq!(health.report().components["stock projector lag"], "12 events behind the log, the bound is 10");
        // Nobody knows where the log ends; for a while that is a restart of a broker.
        observer.measure(&behind(0));
        let (_, problem) = observer.heads().await;
        let problem = problem.unwrap();
        observer.tell_unseen(&problem, UNSEEN_FOR - Duration::from_secs(1));
        assert!(health.report().ready);
        observer.tell_unseen(&problem, UNSEEN_FOR);
        let told = health.report().components["stock projector lag"].clone();
        assert!(
            told.starts_with("the log's ends are not seen for 30 s: ") && told.contains("inventory.events"),
            "{told}"
        );
    }
}
