//! The engine: a subscription, and a worker for each partition that it is assigned.
//!
//! The engine alone talks to the subscription; workers ask it to. A worker that falls behind has its partition
//! paused, so buffers stay bounded while the group membership is kept (fault 16).

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use event_log::{EventDecoder, EventLog, EventLogError, SchemaRegistry, Signal, Subscription, TopicPartition};
use metrics::{SharedString, gauge};
use read_models::process_report::Halted;
use read_models::{Generation, PartitionRef, ReadModel, ReadModelError};
use resilience::Policy;
use schemas::Context;
use telemetry::ComponentHealth;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bound::Standing;
use crate::error::ProjectorError;
use crate::event_table::check_reach;
use crate::history::ends_of;
use crate::metrics::HALTED;
use crate::observer::Observer;
use crate::projection::Projection;
use crate::settings::ProjectorSettings;
use crate::worker::{Request, WorkerContext, partition_worker};

/// A partition that this process holds.
struct Assignment {
    run: u64,
    records: mpsc::UnboundedSender<Vec<event_log::Record>>,
    cancelled: CancellationToken,
    waiting: usize,
    paused: bool,
    /// Whether the subscription delivers from where this worker asked. What comes before was meant for an earlier one.
    started: bool,
    /// Another process took it over, and goes on with it.
    is_elsewhere: bool,
}

/// How long a superseded worker leaves its partition to the new owner. One that lost it gets to know within a session
/// timeout; one that is still assigned then was overtaken by an earlier claim of its own. One that panicked rests as
/// long.
const RECLAIM_AFTER: Duration = Duration::from_secs(15);
/// How often a partition that halted looks whether the log holds what it needs.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Looks at the ends of the log after which it is read again, though they are the same.
const LOOKS_UNCHANGED: u32 = 20;

/// What the engine loop keeps.
struct Engine<M: ?Sized> {
    read_model: Arc<M>,
    log: Arc<dyn EventLog>,
    decoder: Arc<EventDecoder>,
    settings: ProjectorSettings,
    health: ComponentHealth,
    requests: mpsc::UnboundedSender<Request>,
    assignments: HashMap<TopicPartition, Assignment>,
    halted: HashMap<TopicPartition, String>,
    workers: JoinSet<()>,
    runs: u64,
    label: SharedString,
    standing: Option<Standing>,
}

/// Runs a projection until `shutdown`, or until an error that trying again cannot mend.
pub async fn run_projector<P, M>(
    read_model: Arc<M>,
    log: Arc<dyn EventLog>,
    registry: Arc<dyn SchemaRegistry>,
    settings: ProjectorSettings,
    health: ComponentHealth,
    shutdown: CancellationToken,
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    if !P::FOLDS.contains(&settings.fold_version) {
        let error = ProjectorError::UnknownFold {
            generation: format!("{}@{}", P::NAME, settings.generation),
            fold_version: settings.fold_version,
            folds: P::FOLDS,
        };
        health.not_ready(error.to_string());
        return Err(error);
    }
    let decoder = Arc::new(EventDecoder::new(registry));
    let mut delays = Policy::STORE.backoff();
    loop {
        let begun = Instant::now();
        let lived = subscribe_and_run::<P, M>(&read_model, &log, &decoder, &settings, &health, &shutdown).await;
        let error = match lived {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if begun.elapsed() > RECLAIM_AFTER {
            delays = Policy::STORE.backoff();
        }
        health.not_ready(error.to_string());
        // A topic that the relay has not made yet comes by itself.
        let is_waiting = matches!(error, ProjectorError::Log(EventLogError::UnknownTopic { .. }));
        if !error.is_transient() && !is_waiting {
            return Err(error);
        }
        tracing::warn!(projection = P::NAME, %error, "projector tries again");
        tokio::select! {
            biased;
            () = delays.wait() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

async fn subscribe_and_run<P, M>(
    read_model: &Arc<M>,
    log: &Arc<dyn EventLog>,
    decoder: &Arc<EventDecoder>,
    settings: &ProjectorSettings,
    health: &ComponentHealth,
    shutdown: &CancellationToken,
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let generation = Generation {
        name: P::NAME.to_owned(),
        number: settings.generation,
        fold_version: settings.fold_version,
        partitions: settings.partitions,
    };
    let topics: Vec<&str> = P::CONTEXTS.iter().map(|context| context.events_topic()).collect();
    let mut subscription = tokio::select! {
        biased;
        subscription = async {
            read_model.prepare(&generation).await?;
            // A shadow's, before it takes partitions from those who can build them.
            check_reach::<P, M>(read_model, &**log, settings).await?;
            Ok::<_, ProjectorError>(log.subscribe(&settings.group, &topics).await?)
        } => subscription?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let (requests, mut asked) = mpsc::unbounded_channel();
    let mut engine = Engine {
        read_model: Arc::clone(read_model),
        log: Arc::clone(log),
        decoder: Arc::clone(decoder),
        settings: settings.clone(),
        health: health.clone(),
        requests,
        assignments: HashMap::new(),
        halted: HashMap::new(),
        workers: JoinSet::new(),
        runs: 0,
        label: settings.label::<P>(),
        standing: settings.until.is_some().then(Standing::default),
    };
    let observer = Observer {
        label: engine.label.clone(),
        standing: engine.standing.clone(),
        contexts: P::CONTEXTS,
        read_model: Arc::clone(read_model),
        log: Arc::clone(log),
        settings: settings.clone(),
        lag: health.part("lag"),
    };
    // It ends with the engine, also with one that is dropped.
    let mut observing = JoinSet::new();
    observing.spawn(observer.run(shutdown.clone()));
    // What halted before the subscription was lost is found again.
    engine.report_halted();
    let result = loop {
        let step = tokio::select! {
            biased;
            () = shutdown.cancelled() => break Ok(()),
            request = asked.recv() => match request {
                Some(request) => engine.answer::<P>(request, subscription.as_mut()).await,
                None => break Ok(()),
            },
            signal = subscription.next() => match signal {
                Ok(signal) => engine.follow::<P>(signal, subscription.as_mut()).await,
                // The log shrank below a partition, or retention passed it: the others go on.
                Err(EventLogError::OffsetOutOfRange { at, asked, first, next }) => {
                    let error = EventLogError::OffsetOutOfRange { at: at.clone(), asked, first, next };
                    engine.halt::<P>(at, Some(next), error.into());
                    Ok(())
                }
                Err(error) => Err(error.into()),
            },
        };
        if let Err(error) = step {
            break Err(error);
        }
    };
    engine.stop().await;
    // Others may have them now; what halted here is found again.
    engine.settings.halted.send_replace(Halted::new());
    observing.abort_all();
    // So that others need not wait until this member counts as dead.
    subscription.close().await;
    result
}

// === impl Engine ===

impl<M: ?Sized> Engine<M> {
    async fn follow<P>(&mut self, signal: Signal, subscription: &mut dyn Subscription) -> Result<(), ProjectorError>
    where
        P: Projection,
        M: ReadModel<Key = P::Key, Row = P::Row>,
    {
        match signal {
            Signal::Assigned(partitions) => {
                for at in partitions {
                    self.assign::<P>(at)?;
                }
            }
            Signal::Revoked(partitions) => {
                for at in partitions {
                    // Its epoch protects the store from a write that is still under way.
                    if let Some(assignment) = self.assignments.remove(&at) {
                        assignment.cancelled.cancel();
                    }
                    self.halted.remove(&at);
                }
                self.report_halted();
            }
            Signal::Records(records) => {
                let Some(at) = records.first().map(|record| record.at.clone()) else { return Ok(()) };
                let Some(assignment) = self.assignments.get_mut(&at).filter(|assignment| assignment.started) else {
                    return Ok(());
                };
                assignment.waiting += records.len();
                // A worker that just ended says so by a request of its own.
                let _ = assignment.records.send(records);
                if assignment.waiting > self.settings.buffered() && !assignment.paused {
                    assignment.paused = true;
                    subscription.pause(&at).await?;
                }
            }
        }
        Ok(())
    }

    async fn answer<P>(&mut self, request: Request, subscription: &mut dyn Subscription) -> Result<(), ProjectorError>
    where
        P: Projection,
        M: ReadModel<Key = P::Key, Row = P::Row>,
    {
        match request {
            Request::Start { at, offset, run } => {
                if !self.holds(&at, run) {
                    return Ok(());
                }
                match subscription.start(&at, offset).await {
                    Err(error @ EventLogError::OffsetOutOfRange { next, .. }) => {
                        self.halt::<P>(at, Some(next), error.into())
                    }
                    other => {
                        other?;
                        if let Some(assignment) = self.assignments.get_mut(&at) {
                            assignment.started = true;
                        }
                        self.goes_on::<P>(&at);
                    }
                }
            }
            Request::GoesOn { at, run } => {
                if self.holds(&at, run) {
                    self.goes_on::<P>(&at);
                }
            }
            Request::Done { at, records, next_offset, run } => {
                if !self.holds(&at, run) {
                    return Ok(());
                }
                if let Some(assignment) = self.assignments.get_mut(&at) {
                    assignment.waiting = assignment.waiting.saturating_sub(records);
                    if assignment.paused && assignment.waiting <= self.settings.buffered() / 2 {
                        assignment.paused = false;
                        subscription.resume(&at).await?;
                    }
                }
                // Only lag tools read it; a failure is theirs, not ours.
                if let Err(error) = subscription.commit(&at, next_offset).await {
                    tracing::debug!(%at, %error, "offset not published");
                }
            }
            Request::Ended { at, run, head, result } => {
                if !self.holds(&at, run) {
                    return Ok(());
                }
                match result {
                    Ok(()) => {
                        self.assignments.remove(&at);
                    }
                    // The store is not where this owner thought: it lost its last second, or was wiped. Resume from
                    // what it has.
                    Err(ProjectorError::ReadModel(error @ ReadModelError::CheckpointMoved { .. })) => {
                        tracing::warn!(%at, %error, "partition is claimed again");
                        self.assign::<P>(at)?;
                    }
                    Err(ProjectorError::ReadModel(error @ ReadModelError::Superseded { .. })) => {
                        tracing::warn!(%at, %error, "partition was taken over");
                        if let Some(assignment) = self.assignments.get_mut(&at) {
                            assignment.is_elsewhere = true;
                        }
                        self.halt_for_a_while(at, run, &error);
                    }
                    // What a store or the event table refuses may be mended there, and nobody would tell this process.
                    Err(
                        error @ (ProjectorError::BrokeOff { .. }
                        | ProjectorError::Log(EventLogError::EventTable { .. })
                        | ProjectorError::ReadModel(
                            ReadModelError::Permanent { .. } | ReadModelError::Damaged { .. },
                        )),
                    ) => {
                        if self.halted.get(&at) != Some(&error.to_string()) {
                            tracing::error!(projection = P::NAME, %at, %error, "partition halts for a while");
                        }
                        self.halt_for_a_while(at, run, &error);
                    }
                    Err(error) => self.halt::<P>(at, head, error),
                }
            }
            Request::Reclaim { at, run } => {
                if self.holds(&at, run) {
                    self.assign::<P>(at)?;
                }
            }
        }
        Ok(())
    }

    fn goes_on<P: Projection>(&mut self, at: &TopicPartition) {
        if self.halted.remove(at).is_some() {
            tracing::info!(projection = P::NAME, %at, "partition goes on");
            self.report_halted();
        }
    }

    fn holds(&self, at: &TopicPartition, run: u64) -> bool {
        self.assignments.get(at).is_some_and(|assignment| assignment.run == run)
    }

    /// Starts a worker, which claims the partition and then asks for its records.
    fn assign<P>(&mut self, at: TopicPartition) -> Result<(), ProjectorError>
    where
        P: Projection,
        M: ReadModel<Key = P::Key, Row = P::Row>,
    {
        let context = Context::ALL
            .into_iter()
            .find(|context| context.events_topic() == at.topic)
            .ok_or_else(|| ProjectorError::ForeignTopic { at: at.clone() })?;
        let partitions = self.settings.partitions;
        if at.partition >= partitions {
            self.halt::<P>(at.clone(), None, ProjectorError::AddedPartition { at, partitions });
            return Ok(());
        }
        self.runs += 1;
        let (records, received) = mpsc::unbounded_channel();
        let cancelled = CancellationToken::new();
        self.workers.spawn(partition_worker::<P, M>(WorkerContext {
            partition: PartitionRef { context, partition: at.partition },
            at: at.clone(),
            run: self.runs,
            after_halt: self.halted.contains_key(&at),
            read_model: Arc::clone(&self.read_model),
            log: Arc::clone(&self.log),
            decoder: Arc::clone(&self.decoder),
            settings: self.settings.clone(),
            label: self.label.clone(),
            standing: self.standing.clone(),
            head: None,
            records: received,
            requests: self.requests.clone(),
            cancelled: cancelled.clone(),
        }));
        let assignment = Assignment {
            run: self.runs,
            records,
            cancelled,
            waiting: 0,
            paused: false,
            started: false,
            is_elsewhere: false,
        };
        if let Some(earlier) = self.assignments.insert(at, assignment) {
            earlier.cancelled.cancel();
        }
        // Workers that ended leave their entry behind until it is taken.
        while self.workers.try_join_next().is_some() {}
        Ok(())
    }

    /// Leaves a partition as it is until an operator looks; the others go on. Where the log may come to hold what is
    /// missing, the partition looks for it from time to time, and goes on by itself. `head`: the log's end before it
    /// was found wanting.
    fn halt<P: Projection>(&mut self, at: TopicPartition, head: Option<u64>, error: ProjectorError) {
        let text = error.to_string();
        if self.halted.get(&at) != Some(&text) {
            tracing::error!(projection = P::NAME, %at, %error, "partition halts");
        }
        self.halted.insert(at.clone(), text);
        self.report_halted();
        match self.assignments.get_mut(&at) {
            Some(assignment) if error.may_come_back() => {
                // Its worker may still wait for records that do not come.
                assignment.cancelled.cancel();
                self.runs += 1;
                assignment.run = self.runs;
                assignment.started = false;
                self.reclaim_when_the_log_changes(at, head, self.runs);
            }
            _ => {
                self.assignments.remove(&at);
            }
        }
    }

    /// A look may read the whole partition: only when something has come since the last one, and once in a while in
    /// case the log was exchanged for one that ends at the same offset.
    fn reclaim_when_the_log_changes(&mut self, at: TopicPartition, head: Option<u64>, run: u64) {
        let (requests, log) = (self.requests.clone(), Arc::clone(&self.log));
        self.workers.spawn(async move {
            for _ in 0..LOOKS_UNCHANGED {
                tokio::time::sleep(LOOK_AGAIN).await;
                let now = ends_of(&*log, &at).await.ok();
                if now.is_some_and(|ends| head != Some(ends.next)) {
                    break;
                }
            }
            // The engine may be gone by then.
            let _ = requests.send(Request::Reclaim { at, run });
        });
    }

    /// Leaves a partition to another owner for a while, or what broke to mend itself, and claims it again then.
    fn halt_for_a_while(&mut self, at: TopicPartition, run: u64, why: &impl Display) {
        self.halted.insert(at.clone(), why.to_string());
        self.report_halted();
        let requests = self.requests.clone();
        self.workers.spawn(async move {
            tokio::time::sleep(RECLAIM_AFTER).await;
            // The engine may be gone by then.
            let _ = requests.send(Request::Reclaim { at, run });
        });
    }

    fn report_halted(&self) {
        gauge!(HALTED, "projection" => self.label.clone()).set(self.halted.len() as f64);
        let is_here = |at: &TopicPartition| self.assignments.get(at).is_none_or(|held| !held.is_elsewhere);
        let told = self.halted.iter().filter(|(at, _)| is_here(at)).map(|(at, why)| (at.to_string(), why.clone()));
        self.settings.halted.send_replace(told.collect());
        match self.halted.iter().next() {
            Some((at, why)) => self.health.not_ready(format!("{at} halted: {why}")),
            None => self.health.ready(),
        }
    }

    /// Ends every worker. A write that is under way is finished by its store, or was never begun: effect and checkpoint
    /// are one.
    async fn stop(&mut self) {
        for assignment in self.assignments.values() {
            assignment.cancelled.cancel();
        }
        self.workers.shutdown().await;
    }
}
