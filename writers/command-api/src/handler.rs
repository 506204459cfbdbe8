//! The command handler: a queue of work, and one loop that decides and commits it in groups.
//!
//! While one group commits, the next gathers; under load a group grows and the cost of a commit is shared.
//! Stop 2 of an event's path.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_store::{EventStore, OffsetAdvance, RecordIdentity, Timer, Topology};
use metrics::{counter, gauge, histogram};
use resilience::Open;
use schemas::{CommandEnvelope, Context, Outcome, OutcomeKind};
use telemetry::ComponentHealth;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use crate::cache::StreamCache;
use crate::error::HandlerError;
use crate::group::{self, Work};
use crate::intake_gate::IntakeGate;
use crate::metrics::{COMMANDS, GROUP_COMMANDS, GROUP_SECONDS, QUEUED};
use crate::refusal::refused;

/// How the handler groups and retries.
#[derive(Debug, Clone)]
pub struct HandlerSettings {
    /// Most commands in one transaction.
    pub group_commands: usize,
    /// Most submissions that wait; past it, senders wait, and HTTP answers 429.
    pub queue: usize,
    /// A snapshot is taken every so many events of a stream.
    pub snapshot_every: u64,
    /// Streams kept in memory.
    pub cached_streams: NonZeroUsize,
    /// Events that may wait for the relay before intake waits too; `None`: any number.
    pub max_relay_lag: Option<u64>,
    /// How long a bulk body waits while intake is held before its commands are `failed`; less than clients wait for the
    /// next byte.
    pub held_patience: Duration,
    /// How long a group is retried on an unavailable store before its commands are `failed`.
    pub retry_for: Duration,
}

/// Takes commands and gives outcomes. Cheap to clone.
#[derive(Clone)]
pub struct CommandHandler {
    queue: mpsc::Sender<Submission>,
    store: Arc<dyn EventStore>,
    gate: IntakeGate,
}

/// Consecutive records of one partition of a command topic, to be committed with their offsets.
#[derive(Debug, Clone)]
pub struct RecordGroup {
    pub context: Context,
    pub topic: String,
    pub partition: u32,
    /// Offset of the first record.
    pub first: u64,
    /// Offset after the last record.
    pub next: u64,
    /// With the identity of the record of each, in their order.
    pub commands: Vec<(RecordIdentity, RecordCommand)>,
}

/// A record of a command topic: a command, or what was wrong with it.
#[derive(Debug, Clone)]
pub enum RecordCommand {
    Command {
        envelope: Box<CommandEnvelope>,
        /// Derived from the record's place: what a refusal is stored under when the command's id is taken.
        place_id: Uuid,
    },
    Unreadable {
        /// Derived from the record's place: what its outcome is stored under.
        place_id: Uuid,
        /// The sender's id where it could be read, else the same: what its outcome names.
        command_id: Uuid,
        key: String,
        code: &'static str,
        problem: String,
        /// Milliseconds since 1970.
        received_at: i64,
    },
}

/// A submission keeps together what comes together: its commands are in one transaction, unless that meets another
/// writer or something damaged again and again. The offset of records is always in that of the records before it.
pub(crate) struct Submission {
    pub(crate) work: Vec<Work>,
    pub(crate) offset: Option<OffsetAdvance>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Outcome>, HandlerError>>,
}

/// Commands in the queue. Dropping it forgets the outcomes, not the commands.
pub struct Enqueued {
    ids: Vec<Uuid>,
    answer: oneshot::Receiver<Result<Vec<Outcome>, HandlerError>>,
}

// === impl Enqueued ===

impl Enqueued {
    /// Waits for one outcome per command, in order; `failed` ones when the handler could not decide.
    pub async fn outcomes(self) -> Vec<Outcome> {
        let error = match self.answer.await {
            Ok(Ok(outcomes)) => return outcomes,
            Ok(Err(error)) => error,
            Err(_) => HandlerError::ShuttingDown,
        };
        self.ids.into_iter().map(|id| failed(id, &error.to_string())).collect()
    }
}

// === impl HandlerSettings ===

impl Default for HandlerSettings {
    fn default() -> Self {
        Self {
            group_commands: 1_000,
            queue: 4_096,
            snapshot_every: 100,
            cached_streams: NonZeroUsize::new(100_000).unwrap_or(NonZeroUsize::MIN),
            max_relay_lag: None,
            held_patience: Duration::from_secs(15),
            retry_for: Duration::from_secs(10),
        }
    }
}

// === impl CommandHandler ===

impl CommandHandler {
    /// Starts the handler loop. It drains its queue and ends once `shutdown` is cancelled.
    pub fn start(
        store: Arc<dyn EventStore>,
        topology: Topology,
        settings: HandlerSettings,
        shutdown: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let (queue, submissions) = mpsc::channel(settings.queue);
        let gate =
            IntakeGate::watch(Arc::clone(&store), settings.max_relay_lag, settings.held_patience, shutdown.clone());
        let handler = Self { queue, store: Arc::clone(&store), gate };
        let state = group::GroupState {
            store,
            topology,
            cache: StreamCache::new(settings.cached_streams),
            regions: Default::default(),
            run: None,
            settings,
        };
        (handler, tokio::spawn(run(state, submissions, shutdown)))
    }

    /// Decides one command. The outcome is stored before it is returned; a lost answer is found again by its id.
    pub async fn handle(&self, command: CommandEnvelope) -> Outcome {
        let id = command.id;
        let mut outcomes = self.handle_all(vec![command]).await;
        outcomes.pop().unwrap_or_else(|| failed(id, "the handler gave no outcome"))
    }

    /// Decides commands in their order; one outcome each, in the same order.
    pub async fn handle_all(&self, commands: Vec<CommandEnvelope>) -> Vec<Outcome> {
        self.enqueue(commands).await.outcomes().await
    }

    /// Takes a place in the queue for commands, which fixes their order against later ones; the outcomes come later.
    pub async fn enqueue(&self, commands: Vec<CommandEnvelope>) -> Enqueued {
        let ids: Vec<Uuid> = commands.iter().map(|command| command.id).collect();
        let work = commands.into_iter().map(Work::from_http).collect();
        let (reply, answer) = oneshot::channel();
        // When the loop has ended the submission is dropped, and the answer says so.
        let _ = self.queue.send(Submission { work, offset: None, reply }).await;
        Enqueued { ids, answer }
    }

    /// Decides one command unless the queue stays full for `patience`: then `None`, and nothing was taken.
    pub async fn try_handle(&self, command: CommandEnvelope, patience: Duration) -> Option<Outcome> {
        let id = command.id;
        let permit = tokio::time::timeout(patience, self.queue.reserve()).await.ok()?;
        let Ok(permit) = permit else { return Some(failed(id, &HandlerError::ShuttingDown.to_string())) };
        let (reply, answer) = oneshot::channel();
        permit.send(Submission { work: vec![Work::from_http(command)], offset: None, reply });
        Enqueued { ids: vec![id], answer }.outcomes().await.pop()
    }

    /// Commits records of a command topic together with their offsets: all of them, or those before the one that
    /// [`HandlerError::NotDecided`] names.
    pub async fn handle_records(&self, group: RecordGroup) -> Result<Vec<Outcome>, HandlerError> {
        let RecordGroup { context, topic, partition, first, next, commands } = group;
        let last = commands.last().map(|(identity, _)| *identity);
        let offset = OffsetAdvance { topic, partition, expected: first, next, last };
        let commands = commands.into_iter();
        let work = commands.map(|(identity, command)| Work::from_record(context, identity, command)).collect();
        self.submit(work, Some(offset)).await
    }

    /// Releases a reservation whose time is over.
    pub(crate) async fn handle_timer(&self, command: CommandEnvelope, timer: Timer) -> Result<Outcome, HandlerError> {
        let id = command.id;
        let mut outcomes = self.submit(vec![Work::from_timer(command, timer)], None).await?;
        Ok(outcomes.pop().unwrap_or_else(|| failed(id, "the handler gave no outcome")))
    }

    /// Whoever takes commands from outside asks it first.
    pub(crate) fn gate(&self) -> &IntakeGate {
        &self.gate
    }

    /// Tells a component of `/readyz` whether intake is held, until the handler shuts down.
    pub async fn tell_intake(&self, health: ComponentHealth) {
        self.gate.tell(health).await;
    }

    /// Ends when the handler takes nothing more.
    pub(crate) async fn closed(&self) {
        self.queue.closed().await;
    }

    /// Why no command is taken now, and for how long: the event store is away.
    pub(crate) fn refusal(&self) -> Option<Open> {
        self.store.refusal()
    }

    /// The stored outcome of a command.
    pub async fn outcome(&self, id: Uuid) -> Result<Option<Outcome>, HandlerError> {
        Ok(self.store.outcome(id).await?.map(|stored| stored.outcome))
    }

    async fn submit(&self, work: Vec<Work>, offset: Option<OffsetAdvance>) -> Result<Vec<Outcome>, HandlerError> {
        if work.is_empty() && offset.is_none() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        let submission = Submission { work, offset, reply };
        self.queue.send(submission).await.map_err(|_| HandlerError::ShuttingDown)?;
        answer.await.map_err(|_| HandlerError::ShuttingDown)?
    }
}

/// Code of the reason when a command has no outcome: the same again is right.
pub(crate) const NOT_DECIDED: &str = "not_decided";

pub(crate) fn failed(id: Uuid, problem: &str) -> Outcome {
    refused(id, OutcomeKind::Failed, NOT_DECIDED, problem)
}

async fn run(mut state: group::GroupState, mut submissions: mpsc::Receiver<Submission>, shutdown: CancellationToken) {
    let mut is_closed = false;
    loop {
        let first = tokio::select! {
            // First, so that a queue that is never empty comes to an end too.
            biased;
            () = shutdown.cancelled(), if !is_closed => {
                is_closed = true;
                // What was taken is finished; what comes later is told that nobody listens.
                submissions.close();
                submissions.recv().await
            }
            submission = submissions.recv() => submission,
        };
        let Some(first) = first else { return };
        let mut gathered = vec![first];
        let mut commands = gathered[0].work.len();
        while commands < state.settings.group_commands {
            let Ok(next) = submissions.try_recv() else { break };
            commands += next.work.len();
            gathered.push(next);
        }
        gauge!(QUEUED).set(submissions.len() as f64);
        histogram!(GROUP_COMMANDS).record(commands as f64);
        let started = Instant::now();
        group::handle(&mut state, gathered).instrument(tracing::debug_span!("handle", commands)).await;
        histogram!(GROUP_SECONDS).record(started.elapsed().as_secs_f64());
    }
}

pub(crate) fn count(command_type: &'static str, outcome: OutcomeKind) {
    counter!(COMMANDS, "type" => command_type, "outcome" => outcome.as_str()).increment(1);
}

#[cfg(test)]
mod tests;
