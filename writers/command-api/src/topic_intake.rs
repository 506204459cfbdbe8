//! Command topics: a service publishes a CloudEvent command, and its outcome goes out on the outcome topic.
//!
//! The consumed offset is kept in the event store and moves in the transaction of the events, never in Kafka: a crash
//! or a rebalance can neither lose a command nor take it twice. Records of one partition are committed one chunk after
//! the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_log::{
    CommandDecoder, DecodeError, EventLog, EventLogError, PartitionEnds, Record, SchemaRegistry, Signal, Subscription,
    TopicPartition, TopicSpec,
};
use event_store::{AppendBatch, EventStore, OffsetAdvance, Topology, bounded_message};
use metrics::counter;
use resilience::Policy;
use schemas::Context;
use telemetry::ComponentHealth;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::HandlerError;
use crate::handler::{CommandHandler, RecordCommand, RecordGroup};
use crate::metrics::SET_BACK;

/// Consumer group of the command handlers.
pub const COMMAND_GROUP: &str = "millrace-commands";

/// Names the ids under which refused records are stored. They follow from a record's place, so that the sender may give
/// a corrected command under the same command id.
const PLACE_NAMESPACE: Uuid = Uuid::from_u128(0x3b0c_54c7_91d2_4d35_8a0e_6f7b_20c9_d1e4);
/// An intake that ran for so long meets a new trouble, not the old one again: it tries again soon.
const SETTLED: Duration = Duration::from_secs(30);
/// How long a topic is without the offset to go on from before that counts: a broker that has just come to lead may not know
/// its end yet.
const MISSED_FOR: Duration = Duration::from_secs(3);
/// Records read at once.
const PAGE: usize = 1_000;
/// Longest record key that is kept for the outcome of an unreadable command.
const MAX_KEY: usize = 200;

struct Intake {
    handler: CommandHandler,
    store: Arc<dyn EventStore>,
    log: Arc<dyn EventLog>,
    decoder: CommandDecoder,
    now: fn() -> i64,
    /// Next offset of each partition that is ours.
    next: HashMap<TopicPartition, u64>,
    settings: TopicIntakeSettings,
}

/// How commands are taken from topics.
#[derive(Debug, Clone, Copy)]
pub struct TopicIntakeSettings {
    pub topology: Topology,
    /// How long a command that was decided is known by its id.
    pub outcome_retention: Duration,
}

/// Takes commands from the command topics until `shutdown`. `now` gives milliseconds since 1970.
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
    let decoder = CommandDecoder::new(registry);
    let mut intake = Intake { handler, store, log, decoder, now, next: HashMap::new(), settings };
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
    loop {
        let begun = Instant::now();
        let error = tokio::select! {
            biased;
            result = intake.take_in(&topics, &health) => match result {
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
        health.not_ready(error.to_string());
        let is_of_the_topic = matches!(
            error,
            HandlerError::OffsetTaken { .. }
                | HandlerError::Log(EventLogError::OffsetOutOfRange { .. } | EventLogError::UnknownTopic { .. })
        );
        if !error.is_transient() && !is_of_the_topic {
            return Err(error);
        }
        tracing::warn!(%error, "command topics are taken up again");
        tokio::select! {
            biased;
            () = delays.wait() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

// === impl Intake ===

impl Intake {
    /// Subscribes and takes commands until an error.
    async fn take_in(&mut self, topics: &[TopicSpec], health: &ComponentHealth) -> Result<(), HandlerError> {
        self.log.ensure_topics(topics).await?;
        self.next.clear();
        let names = Context::ALL.map(Context::commands_topic);
        let mut subscription = self.log.subscribe(COMMAND_GROUP, &names).await?;
        health.ready();
        loop {
            match subscription.next().await? {
                Signal::Assigned(partitions) => self.start(subscription.as_mut(), partitions).await?,
                Signal::Revoked(partitions) => {
                    for at in partitions {
                        self.next.remove(&at);
                    }
                }
                Signal::Records(records) => self.take_records(subscription.as_mut(), records).await?,
            }
        }
    }

    /// Begins where the event store says; at the oldest record where it says nothing yet.
    async fn start(
        &mut self,
        subscription: &mut dyn Subscription,
        partitions: Vec<TopicPartition>,
    ) -> Result<(), HandlerError> {
        let mut missing = Vec::new();
        for at in partitions {
            if !self.start_one(subscription, &at).await? {
                missing.push(at);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(MISSED_FOR).await;
        for at in missing {
            if self.start_one(subscription, &at).await? {
                continue;
            }
            self.set_back(&at).await?;
            if !self.start_one(subscription, &at).await? {
                let problem = "it goes on losing records".to_owned();
                return Err(EventLogError::Unavailable { address: at.to_string(), problem }.into());
            }
        }
        Ok(())
    }

    /// False where the topic does not have the offset.
    async fn start_one(
        &mut self,
        subscription: &mut dyn Subscription,
        at: &TopicPartition,
    ) -> Result<bool, HandlerError> {
        let stored = self.stored(at).await?;
        let offset = match stored {
            Some(stored) => stored,
            None => self.ends(at).await?.first,
        };
        if stored.is_none() && offset > 0 {
            // Where nothing is stored, nothing but the very first record may be taken.
            let begun =
                OffsetAdvance { topic: at.topic.clone(), partition: at.partition, expected: offset, next: offset };
            self.store.append(&AppendBatch { offsets: vec![begun], ..AppendBatch::default() }).await?;
        }
        match subscription.start(at, offset).await {
            Err(EventLogError::OffsetOutOfRange { .. }) => return Ok(false),
            started => started?,
        }
        self.next.insert(at.clone(), offset);
        Ok(true)
    }

    async fn stored(&self, at: &TopicPartition) -> Result<Option<u64>, HandlerError> {
        Ok(self.store.command_offsets(&at.topic).await?.get(&at.partition).copied())
    }

    /// Sets the stored offset to where the rest of the topic begins, which does not have it: retention was faster than the
    /// intake, or the topic lost its records or was made anew. Then records may come that were taken before; they are known
    /// by their ids for as long as outcomes are kept, and what is older is passed over. At once, and in the event store:
    /// once the topic has grown past the stored offset, nothing would tell that it is another one.
    async fn set_back(&self, at: &TopicPartition) -> Result<(), HandlerError> {
        let (Some(stored), ends) = (self.stored(at).await?, self.ends(at).await?) else { return Ok(()) };
        if ends.holds(stored) {
            return Ok(());
        }
        let is_expired = stored < ends.first;
        let to = if is_expired { ends.first } else { self.behind_the_old(at, ends).await? };
        let back = OffsetAdvance { topic: at.topic.clone(), partition: at.partition, expected: stored, next: to };
        self.store.append(&AppendBatch { offsets: vec![back], ..AppendBatch::default() }).await?;
        counter!(SET_BACK, "topic" => at.topic.clone()).increment(1);
        let PartitionEnds { first, next, .. } = ends;
        let why = match is_expired {
            true => "retention removed commands that were not taken yet",
            false => "the command topic lost records or was made anew",
        };
        tracing::error!(%at, stored, first, next, to, "{why}; the rest is taken, from `to` on");
        Ok(())
    }

    /// The first offset whose record came when outcomes that are still kept were decided, and may be known. With a margin:
    /// outcomes go on being forgotten until it is taken.
    async fn behind_the_old(&self, at: &TopicPartition, ends: PartitionEnds) -> Result<u64, HandlerError> {
        let retention = self.settings.outcome_retention;
        let known_since = (self.now)() - (retention - retention / 8).as_millis() as i64;
        let mut next = ends.first;
        while next < ends.next {
            let records = self.log.read(at, next, PAGE).await?;
            let Some(last) = records.last() else { break };
            if let Some(young) = records.iter().find(|record| record.timestamp >= known_since) {
                return Ok(young.offset);
            }
            next = last.offset + 1;
        }
        Ok(next)
    }

    async fn ends(&self, at: &TopicPartition) -> Result<PartitionEnds, HandlerError> {
        let ends = self.log.ends(&at.topic).await?;
        let of_partition = ends.into_iter().find(|ends| ends.partition == at.partition);
        Ok(of_partition.ok_or_else(|| EventLogError::UnknownTopic { topic: at.topic.clone() })?)
    }

    async fn take_records(
        &mut self,
        subscription: &mut dyn Subscription,
        records: Vec<Record>,
    ) -> Result<(), HandlerError> {
        let Some(at) = records.first().map(|record| record.at.clone()) else { return Ok(()) };
        let Some(first) = self.next.get(&at).copied() else { return Ok(()) };
        let Some(context) = Context::ALL.into_iter().find(|context| context.commands_topic() == at.topic) else {
            return Ok(());
        };
        let mut commands = Vec::with_capacity(records.len());
        let mut next = first;
        for record in records.iter().filter(|record| record.offset >= first) {
            commands.push(self.read(context, record).await?);
            next = record.offset + 1;
        }
        if next == first {
            return Ok(());
        }
        let group = RecordGroup { context, topic: at.topic.clone(), partition: at.partition, first, next, commands };
        // Nothing further is read meanwhile: the log keeps what comes.
        self.handler.gate().opened().await;
        match self.handler.handle_records(group).await {
            Ok(_) => {
                self.next.insert(at.clone(), next);
                // Only lag tools read it.
                if let Err(error) = subscription.commit(&at, next).await {
                    tracing::debug!(%at, %error, "offset not published");
                }
                Ok(())
            }
            // Taken by another handler, or by this one in a transaction whose answer was lost; or what was stored was lost: go on
            // from what is stored.
            Err(HandlerError::OffsetTaken { stored, .. }) => {
                tracing::info!(%at, stored, "the stored offset is another one");
                self.start(subscription, vec![at]).await
            }
            Err(error) => Err(error),
        }
    }

    async fn read(&self, context: Context, record: &Record) -> Result<RecordCommand, HandlerError> {
        let received_at = (self.now)();
        let place = format!("{}/{}", record.at, record.offset);
        let place_id = place_id(&place, record);
        let (id, code, problem) = match self.decoder.decode(record, received_at).await {
            Ok(envelope) => {
                let problem = if envelope.command.context() == context {
                    envelope.check().err().map(|error| (error.code(), error.to_string()))
                } else {
                    let right = envelope.command.context().commands_topic();
                    Some(("wrong_topic", format!("{} belongs on {right}", envelope.command.command_type())))
                };
                match problem {
                    None => return Ok(RecordCommand::Command { envelope: Box::new(envelope), place_id }),
                    Some((code, problem)) => (Some(envelope.id), code, problem),
                }
            }
            // A registry that is down says nothing about the command: it waits.
            Err(DecodeError::Registry(error)) if error.is_transient() => return Err(error.into()),
            Err(error) => (readable_id(record), error.code(), error.to_string()),
        };
        let problem = bounded_message(&problem);
        tracing::info!(place, code, %problem, "command refused");
        Ok(RecordCommand::Unreadable {
            place_id,
            command_id: id.unwrap_or(place_id),
            key: readable_key(record),
            code,
            problem: bounded_message(&format!("{} offset {}: {problem}", record.at, record.offset)).into_owned(),
            received_at,
        })
    }
}

/// Of the record at a place, which is another one once the topic is made anew.
fn place_id(place: &str, record: &Record) -> Uuid {
    let id = record.headers.get("ce_id").unwrap_or_default();
    Uuid::new_v5(&PLACE_NAMESPACE, &[place.as_bytes(), b"\0", id.as_bytes(), b"\0", &record.value].concat())
}

fn readable_id(record: &Record) -> Option<Uuid> {
    record.headers.get("ce_id")?.parse().ok()
}

/// A key that is safe to store and to publish: it came from outside.
fn readable_key(record: &Record) -> String {
    String::from_utf8_lossy(&record.key).chars().filter(|character| !character.is_control()).take(MAX_KEY).collect()
}
