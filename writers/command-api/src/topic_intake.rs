//! Command topics: a service publishes a CloudEvent command, and its outcome goes out on the outcome topic.
//!
//! The consumed offset is kept in the event store and moves in the transaction of the events, never in Kafka: a crash
//! or a rebalance can neither lose a command nor take it twice. Records of one partition are committed one chunk after
//! the other.
//!
//! A record that cannot be taken now (the registry does not tell its schema, the store does not give its stream) waits
//! with those behind it on its partition, and is tried again; the other partitions go on. What is wrong with all of
//! them (no log, another partition count) is looked at again from the subscription on, for as long as it takes: those
//! who send commands over HTTP need no topics.

mod beginning;
mod reading;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use event_log::{EventLog, EventLogError, Record, SchemaRegistry, Signal, Subscription, TopicPartition, TopicSpec};
use event_store::{EventStore, EventStoreError, Topology};
use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use metrics::{counter, gauge};
use resilience::{Backoff, Policy};
use schemas::Context;
use telemetry::ComponentHealth;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::reading::{Batch, Reader};
use crate::error::HandlerError;
use crate::handler::{CommandHandler, RecordGroup};
use crate::metrics::{SET_BACK, WAITING};

/// Consumer group of the command handlers.
pub const COMMAND_GROUP: &str = "millrace-commands";

/// An intake that ran for so long meets a new trouble, not the old one again: it tries again soon.
const SETTLED: Duration = Duration::from_secs(30);

struct Intake {
    handler: CommandHandler,
    store: Arc<dyn EventStore>,
    log: Arc<dyn EventLog>,
    reader: Arc<Reader>,
    now: fn() -> i64,
    /// Next offset of each partition that is ours.
    next: HashMap<TopicPartition, u64>,
    /// Those of them that are paused.
    waiting: BTreeMap<TopicPartition, Waiting>,
    health: ComponentHealth,
    settings: TopicIntakeSettings,
}

/// A partition whose next record must wait, and all behind it.
struct Waiting {
    /// Of the record.
    offset: u64,
    /// Reads it again, after a while. Not `Sync`: what awaits borrows the intake mutably.
    again: BoxFuture<'static, Batch>,
    /// Those behind it, where it alone is tried again: else each try would decide all of them.
    behind: Vec<Record>,
    delays: Backoff,
    /// `None` while the registry is asked for the first time.
    why: Option<String>,
}

/// How commands are taken from topics.
#[derive(Debug, Clone, Copy)]
pub struct TopicIntakeSettings {
    pub topology: Topology,
    /// How long a command that was decided is known by its id.
    pub outcome_retention: Duration,
}

/// Takes commands from the command topics until `shutdown`, or until an error of settings; what else goes wrong,
/// `health` says. `now` gives milliseconds since 1970.
#[expect(clippy::too_many_arguments, reason = "called once, where everything is wired")]
pub async fn run_topic_intake(
    handler: CommandHandler,
    store: Arc<dyn EventStore>,
    log: Arc<dyn EventLog>,
    registry: Arc<dyn SchemaRegistry>,
    settings: TopicIntakeSettings,
    health: ComponentHealth,
    now: fn() -> i64,
    shutdown: CancellationToken,
) -> Result<(), HandlerError> {
    let mut intake = Intake {
        handler,
        store,
        log,
        reader: Arc::new(Reader::new(registry, now)),
        now,
        next: HashMap::new(),
        waiting: BTreeMap::new(),
        health: health.clone(),
        settings,
    };
    // Only those it reads. The others are the relay's: it makes one only when nothing of what it published before can
    // still be on its way there, and looks whether it is empty before it goes on.
    let topics = Context::ALL
        .map(Context::commands_topic)
        .map(|name| TopicSpec { name: name.to_owned(), partitions: settings.topology.partitions });
    for topic in &topics {
        // There before it counts, so that an alarm sees the first one.
        counter!(SET_BACK, "topic" => topic.name.clone()).increment(0);
    }
    let mut delays = Policy::RESTART.backoff();
    let mut told = None;
    loop {
        let begun = Instant::now();
        let error = tokio::select! {
            biased;
            result = intake.take_in(&topics) => match result {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            () = shutdown.cancelled() => return Ok(()),
        };
        if matches!(error, HandlerError::ShuttingDown) {
            return Ok(());
        }
        if begun.elapsed() > SETTLED {
            delays = Policy::RESTART.backoff();
        }
        let is_of_the_topic = matches!(
            error,
            HandlerError::OffsetTaken { .. }
                | HandlerError::Log(EventLogError::OffsetOutOfRange { .. } | EventLogError::UnknownTopic { .. })
        );
        let text = error.to_string();
        if error.is_transient() || is_of_the_topic {
            tracing::warn!(%error, "command topics are taken up again");
            health.not_ready(text);
        } else if is_of_settings(&error) {
            health.not_ready(text);
            return Err(error);
        } else {
            // It stays until somebody mends it: told once, and no reason to keep callers away.
            health.degraded(text.clone());
            if told.as_ref() != Some(&text) {
                tracing::error!(%error, "command topics are not taken");
                told = Some(text);
            }
        }
        tokio::select! {
            biased;
            () = delays.wait() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Whether only another start with other settings can help.
fn is_of_settings(error: &HandlerError) -> bool {
    matches!(
        error,
        HandlerError::Log(EventLogError::Setting { .. }) | HandlerError::Store(EventStoreError::Setting { .. })
    )
}

// === impl Intake ===

impl Intake {
    /// Subscribes and takes commands until an error.
    async fn take_in(&mut self, topics: &[TopicSpec]) -> Result<(), HandlerError> {
        self.next.clear();
        self.waiting.clear();
        gauge!(WAITING).set(0.0);
        self.log.ensure_topics(topics).await?;
        let names = Context::ALL.map(Context::commands_topic);
        let mut subscription = self.log.subscribe(COMMAND_GROUP, &names).await?;
        self.tell();
        loop {
            let signal = tokio::select! {
                biased;
                batch = read_again(&mut self.waiting) => {
                    self.take(subscription.as_mut(), batch).await?;
                    // What waits is tried again and again: the group must be heard between two tries.
                    match subscription.next().now_or_never() {
                        Some(signal) => signal?,
                        None => continue,
                    }
                }
                signal = subscription.next() => signal?,
            };
            match signal {
                Signal::Assigned(partitions) => self.start(subscription.as_mut(), partitions).await?,
                Signal::Revoked(partitions) => {
                    for at in partitions {
                        self.next.remove(&at);
                        self.waiting.remove(&at);
                    }
                    self.tell();
                }
                Signal::Records(records) => self.take_records(subscription.as_mut(), records).await?,
            }
        }
    }

    /// Tells `/readyz` whether a partition waits. It is ready for what comes on the others.
    fn tell(&self) {
        gauge!(WAITING).set(self.waiting.values().filter(|waiting| waiting.why.is_some()).count() as f64);
        let mut told =
            self.waiting.iter().filter_map(|(at, waiting)| Some((at, waiting.offset, waiting.why.as_ref()?)));
        let Some((at, offset, why)) = told.next() else { return self.health.ready() };
        let others = match told.count() {
            0 => String::new(),
            others => format!(" ({others} more wait)"),
        };
        self.health.degraded(format!("{at} waits at offset {offset}{others}: {why}"));
    }

    async fn take_records(
        &mut self,
        subscription: &mut dyn Subscription,
        mut records: Vec<Record>,
    ) -> Result<(), HandlerError> {
        let Some(at) = records.first().map(|record| record.at.clone()) else { return Ok(()) };
        let Some(first) = self.next.get(&at).copied() else { return Ok(()) };
        records.retain(|record| record.offset >= first);
        let Some(offset) = records.first().map(|record| record.offset) else { return Ok(()) };
        // Of a partition that waits none come: it is paused.
        let mut reading = Arc::clone(&self.reader).read(at.clone(), records).boxed();
        match futures::poll!(&mut reading) {
            Poll::Ready(batch) => self.take(subscription, batch).await,
            // The registry is asked. The other partitions need not wait for its answer.
            Poll::Pending => {
                subscription.pause(&at).await?;
                let delays = Policy::RESTART.backoff();
                self.waiting.insert(at, Waiting { offset, again: reading, behind: Vec::new(), delays, why: None });
                Ok(())
            }
        }
    }

    /// Commits what was read. Where that is not all of it, the partition waits.
    async fn take(&mut self, subscription: &mut dyn Subscription, batch: Batch) -> Result<(), HandlerError> {
        let Batch { at, mut records, commands, problem: mut why } = batch;
        let mut waited = self.waiting.remove(&at);
        let behind = waited.as_mut().map(|waited| std::mem::take(&mut waited.behind)).unwrap_or_default();
        let Some(context) = Context::ALL.into_iter().find(|context| context.commands_topic() == at.topic) else {
            return Ok(());
        };
        let Some(first) = self.next.get(&at).copied() else { return Ok(()) };
        if let Some((last, _)) = commands.last() {
            let mut next = last.offset + 1;
            let (topic, partition) = (at.topic.clone(), at.partition);
            let group = RecordGroup { context, topic, partition, first, next, commands };
            // Nothing further is read meanwhile: the log keeps what comes.
            self.handler.gate().opened().await;
            match self.handler.handle_records(group).await {
                Ok(_) => {}
                Err(HandlerError::NotDecided { next: undecided, problem }) => {
                    next = undecided;
                    why = Some(problem);
                }
                // Taken by another handler, or by this one in a transaction whose answer was lost; or what was stored
                // was lost: go on from what is stored.
                Err(HandlerError::OffsetTaken { stored, .. }) => {
                    tracing::info!(%at, stored, "the stored offset is another one");
                    return self.start(subscription, vec![at]).await;
                }
                Err(error) => return Err(error),
            }
            self.next.insert(at.clone(), next);
            // Only lag tools read it.
            if let Err(error) = subscription.commit(&at, next).await {
                tracing::debug!(%at, %error, "offset not published");
            }
        }
        records.retain(|record| self.next.get(&at).is_some_and(|next| record.offset >= *next));
        records.extend(behind);
        match why {
            Some(why) => self.wait(subscription, at, records, waited, why).await,
            None if let Some(first) = records.first() => {
                // It went through, and those behind it are next. The partition is paused still.
                let (offset, reader, delays) = (first.offset, Arc::clone(&self.reader), Policy::RESTART.backoff());
                let again = reader.read(at.clone(), records).boxed();
                self.waiting.insert(at, Waiting { offset, again, behind: Vec::new(), delays, why: None });
                self.tell();
                Ok(())
            }
            None if waited.is_some() => {
                tracing::info!(%at, "partition of commands goes on");
                self.tell();
                Ok(subscription.resume(&at).await?)
            }
            None => Ok(()),
        }
    }

    /// Holds records until they can be tried again. They are the partition's next.
    async fn wait(
        &mut self,
        subscription: &mut dyn Subscription,
        at: TopicPartition,
        mut records: Vec<Record>,
        waited: Option<Waiting>,
        why: String,
    ) -> Result<(), HandlerError> {
        let Some(offset) = records.first().map(|record| record.offset) else { return Ok(()) };
        let behind = records.split_off(1);
        if waited.is_none() {
            subscription.pause(&at).await?;
        }
        let known = waited.filter(|waited| waited.offset == offset);
        if known.as_ref().is_none_or(|known| known.why.is_none()) {
            tracing::warn!(%at, offset, why, "partition of commands waits");
        }
        let mut delays = known.map_or_else(|| Policy::RESTART.backoff(), |known| known.delays);
        let (delay, reader) = (delays.next_delay(), Arc::clone(&self.reader));
        let again = {
            let at = at.clone();
            async move {
                tokio::time::sleep(delay).await;
                reader.read(at, records).await
            }
        };
        self.waiting.insert(at, Waiting { offset, again: again.boxed(), behind, delays, why: Some(why) });
        self.tell();
        Ok(())
    }
}

/// What comes of the next partition that is tried again.
async fn read_again(waiting: &mut BTreeMap<TopicPartition, Waiting>) -> Batch {
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    select_all(waiting.values_mut().map(|waiting| &mut waiting.again)).await.0
}
