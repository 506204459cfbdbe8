//! A member of a Kafka consumer group.
//!
//! One thread polls the consumer and does everything that touches its assignment, so that a record fetched under an
//! old assignment can never be taken for one of the new. Of an assigned partition nothing is fetched at all before
//! `start` says from where: the group protocol is told "assigned", but the partition joins librdkafka's own assignment
//! only then, with that offset. So there is no seek, and no race between a seek and what was fetched before it.
//!
//! The group is cooperative (`cooperative-sticky`): a partition that stays with its member goes on through a rebalance,
//! without its worker stopping and claiming a new epoch. A revoked partition is given up once the reader has seen
//! [`Signal::Revoked`] and come back, or after five seconds; what a reader writes later is refused by its epoch.
//!
//! The thread polls whatever the reader does, so a slow or paused reader stays a member. Memory is bounded: a partition
//! whose store is full is not fetched until the store has drained.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};
use tokio::sync::oneshot;

use super::client_log::{ClientLog, code_of};
use super::inbox::{Inbox, StartRequest};
use super::lookup::Lookup;
use super::record::{list, record_of};
use super::settings::KafkaSettings;
use crate::error::EventLogError;
use crate::log::{Signal, Subscription, TopicPartition};
use crate::metrics;

/// How long a poll waits: the longest that `start` waits for the thread.
const POLL: Duration = Duration::from_millis(10);
/// Records taken from the consumer before they are handed on.
const TAKEN_AT_ONCE: usize = 1_000;
/// How long the thread leaves the consumer alone for a reader that has not drained its stores.
const ROOM_WITHIN: Duration = Duration::from_millis(200);
/// How long a revoked partition is held for a reader that is still at work on it.
const HANDOVER_WITHIN: Duration = Duration::from_secs(5);
/// How often the reader's progress is committed. A commit for every write would queue up before the heartbeats on the
/// coordinator's connection, until the group takes this member for dead.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How long a broker may take to answer when all of them are said to be away.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long `close` waits for the group to be left.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct KafkaSubscription {
    inbox: Arc<Inbox>,
    lookup: Arc<Lookup>,
    /// Comes when the thread has left the group.
    left: Option<oneshot::Receiver<()>>,
}

type GroupConsumer = BaseConsumer<GroupContext>;

/// What librdkafka calls on the polling thread.
struct GroupContext {
    inbox: Arc<Inbox>,
    log: ClientLog,
}

/// The polling thread.
struct Poller {
    /// Dropped here: leaving the group takes time.
    consumer: GroupConsumer,
    inbox: Arc<Inbox>,
    lookup: Arc<Lookup>,
    group: String,
}

// === impl KafkaSubscription ===

impl KafkaSubscription {
    /// Joins a group. Blocks until the consumer is made, not until it is a member.
    pub fn join(
        settings: &KafkaSettings,
        lookup: Arc<Lookup>,
        group: &str,
        topics: &[String],
    ) -> Result<Self, EventLogError> {
        let inbox = Arc::new(Inbox::new());
        let context = GroupContext { inbox: inbox.clone(), log: ClientLog::new(settings.address()) };
        let consumer: GroupConsumer = group_config(settings, group)
            .create_with_context(context)
            .map_err(|error| EventLogError::Setting { key: "event-log", problem: error.to_string() })?;
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| lookup.log().classify(&error, group))?;
        let poller = Poller { consumer, inbox: inbox.clone(), lookup: lookup.clone(), group: group.to_owned() };
        let (leaving, left) = oneshot::channel();
        thread::Builder::new()
            .name("kafka-group".to_owned())
            .spawn(move || {
                poller.run();
                drop(poller);
                let _nobody_waits = leaving.send(());
            })
            .map_err(|error| lookup.log().permanent(error))?;
        Ok(Self { inbox, lookup, left: Some(left) })
    }

    fn pause_or_resume(&self, at: &TopicPartition, is_paused: bool) -> Result<(), EventLogError> {
        if !self.inbox.set_paused(at, is_paused) {
            tracing::debug!(%at, "partition was revoked before it was paused or resumed");
        }
        Ok(())
    }
}

#[async_trait]
impl Subscription for KafkaSubscription {
    async fn next(&mut self) -> Result<Signal, EventLogError> {
        let next = self.inbox.next().await?;
        if let Signal::Records(records) = &next
            && let Some(record) = records.first()
        {
            metrics::consumed(&record.at.topic, records.len());
        }
        Ok(next)
    }

    async fn start(&mut self, at: &TopicPartition, offset: u64) -> Result<(), EventLogError> {
        if !self.inbox.is_assigned(at) {
            // Taken away meanwhile; the signal that says so is on its way.
            return Ok(());
        }
        let lookup = self.lookup.clone();
        let place = [at.clone()];
        let ends = tokio::task::spawn_blocking(move || lookup.ends_of(&place))
            .await
            .map_err(|error| self.lookup.log().permanent(error))??;
        for ends in ends {
            if !(ends.first..=ends.next).contains(&offset) {
                let (first, next) = (ends.first, ends.next);
                return Err(EventLogError::OffsetOutOfRange { at: at.clone(), asked: offset, first, next });
            }
        }
        let (done, answer) = oneshot::channel();
        self.inbox.request_start(StartRequest { at: at.clone(), offset, done });
        answer.await.unwrap_or_else(|_| Err(self.lookup.log().permanent("the subscription has ended")))
    }

    async fn pause(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        self.pause_or_resume(at, true)
    }

    async fn resume(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        self.pause_or_resume(at, false)
    }

    async fn commit(&mut self, at: &TopicPartition, next_offset: u64) -> Result<(), EventLogError> {
        self.inbox.note_progress(at, next_offset);
        Ok(())
    }

    async fn close(&mut self) {
        self.inbox.close();
        if let Some(left) = self.left.take() {
            let _left_or_late = tokio::time::timeout(CLOSE_WITHIN, left).await;
        }
    }
}

impl Drop for KafkaSubscription {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

fn group_config(settings: &KafkaSettings, group: &str) -> rdkafka::ClientConfig {
    let mut config = settings.client_config();
    config
        .set("group.id", group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", settings.session_timeout())
        .set("heartbeat.interval.ms", "2000")
        // Also how long the group waits for a member that does not answer a rebalance.
        .set("max.poll.interval.ms", "60000")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // An offset that is gone is an error, never a jump.
        .set("auto.offset.reset", "error")
        // What is fetched ahead, for all partitions together.
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.max.bytes", "8388608")
        // The default, a second, is a hole in the stream whenever the bounds above are met.
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.error.backoff.ms", "100")
        .set("check.crcs", "true");
    config
}

// === impl Poller ===

impl Poller {
    fn run(&self) {
        let mut committed_at = Instant::now();
        while !self.inbox.is_closed() {
            if committed_at.elapsed() >= COMMIT_EVERY {
                committed_at = Instant::now();
                self.commit_progress();
            }
            if let Some(request) = self.inbox.take_start() {
                let started = self.start(&request.at, request.offset);
                let _reader_gave_up = request.done.send(started);
            }
            for at in self.inbox.drained() {
                self.set_fetching(&at, true);
            }
            match self.consumer.poll(POLL) {
                None => {}
                Some(Ok(message)) => self.take(&message),
                Some(Err(error)) => self.report(&error),
            }
        }
        self.commit_progress();
    }

    /// Only queued here; what becomes of it is told to the context.
    fn commit_progress(&self) {
        let progress = self.inbox.take_progress();
        if progress.is_empty() {
            return;
        }
        if let Err(error) = list(&progress).and_then(|offsets| self.consumer.commit(&offsets, CommitMode::Async)) {
            tracing::debug!(%error, group = self.group, "progress is not committed");
        }
    }

    /// Takes what is there, at once and without waiting for more.
    fn take(&self, first: &BorrowedMessage<'_>) {
        let mut records = vec![record_of(first)];
        let mut problem = None;
        while records.len() < TAKEN_AT_ONCE {
            match self.consumer.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => records.push(record_of(&message)),
                Some(Err(error)) => {
                    problem = Some(error);
                    break;
                }
            }
        }
        self.inbox.keep(records);
        if let Some(error) = problem {
            self.report(&error);
        }
        for at in self.inbox.wait_for_room(ROOM_WITHIN) {
            self.set_fetching(&at, false);
        }
    }

    /// Puts a partition of ours into the consumer's own assignment, at `offset`.
    fn start(&self, at: &TopicPartition, offset: u64) -> Result<(), EventLogError> {
        let error = |error: KafkaError| self.lookup.log().classify(&error, &at.topic);
        let is_fetched = self.inbox.fetched().iter().any(|(fetched, _)| fetched == at);
        if is_fetched {
            self.consumer.incremental_unassign(&list(&[(at.clone(), offset)]).map_err(error)?).map_err(error)?;
            self.inbox.stopped(at);
        }
        if !self.inbox.is_assigned(at) {
            return Ok(());
        }
        self.consumer.incremental_assign(&list(&[(at.clone(), offset)]).map_err(error)?).map_err(error)?;
        self.inbox.started(at, offset);
        // The pause of an earlier start would outlive it.
        self.set_fetching(at, true);
        Ok(())
    }

    fn set_fetching(&self, at: &TopicPartition, is_fetching: bool) {
        let changed = list(&[(at.clone(), 0)]).and_then(|partition| {
            if is_fetching { self.consumer.resume(&partition) } else { self.consumer.pause(&partition) }
        });
        if let Err(error) = changed {
            self.inbox.report(self.lookup.log().classify(&error, &at.topic));
        }
    }

    fn report(&self, error: &KafkaError) {
        let log = &self.consumer.context().log;
        tracing::debug!(%error, group = self.group, "kafka consumer reports");
        match (error, code_of(error)) {
            (KafkaError::MessageConsumptionFatal(_), _) => {
                let reason = log.last_problem().unwrap_or_default();
                self.inbox.end(format!("{}: group {}: {error} ({reason})", log.address(), self.group));
            }
            (
                _,
                Some(
                    RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::LogTruncation
                    | RDKafkaErrorCode::OffsetOutOfRange,
                ),
            ) => self.find_lost_offsets(),
            // One broker of several: librdkafka goes on with the others, and says so when none is left.
            (_, Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve)) => {
                tracing::warn!(group = self.group, problem = log.last_problem(), "a Kafka broker does not answer");
            }
            // Said also when the first address is refused before librdkafka has noted the second, and by each blink.
            (_, Some(RDKafkaErrorCode::AllBrokersDown)) if self.some_broker_answers() => {
                tracing::warn!(group = self.group, problem = log.last_problem(), "a Kafka broker did not answer");
            }
            // Topics were looked up before: a broker that does not know one yet, or no longer, may be catching up.
            (_, Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {
                self.inbox.report(log.unavailable(error));
            }
            _ => self.inbox.report(log.classify(error, &format!("group {}", self.group))),
        }
    }

    /// Nothing is polled meanwhile: without brokers nothing would come.
    fn some_broker_answers(&self) -> bool {
        self.consumer.fetch_metadata(None, ANSWER_WITHIN).is_ok()
    }

    /// Some partition's next offset is not in the log any more, or not yet again. librdkafka has stopped fetching it
    /// and does not say which.
    fn find_lost_offsets(&self) {
        let fetched = self.inbox.fetched();
        let places: Vec<TopicPartition> = fetched.iter().map(|(at, _)| at.clone()).collect();
        let ends = match self.lookup.ends_of(&places) {
            Ok(ends) => ends,
            Err(error) => {
                self.inbox.report(error);
                Vec::new()
            }
        };
        let mut ends = ends.into_iter();
        for (at, next) in fetched {
            match ends.next() {
                Some(ends) if !(ends.first..=ends.next).contains(&next) => {
                    self.inbox.stopped(&at);
                    if let Ok(partition) = list(&[(at.clone(), 0)]) {
                        let _was_stopped_anyway = self.consumer.incremental_unassign(&partition);
                    }
                    let (first, end) = (ends.first, ends.next);
                    self.inbox.report(EventLogError::OffsetOutOfRange { at, asked: next, first, next: end });
                }
                // In range (by now), or nobody could say: fetched again from where it was.
                _ => {
                    if let Err(error) = self.restart(&at, next) {
                        self.inbox.report(error);
                    }
                }
            }
        }
    }

    /// Fetches a partition from `next` again, keeping what is in store.
    fn restart(&self, at: &TopicPartition, next: u64) -> Result<(), EventLogError> {
        let error = |error: KafkaError| self.lookup.log().classify(&error, &at.topic);
        let place = list(&[(at.clone(), next)]).map_err(error)?;
        self.consumer.incremental_unassign(&place).map_err(error)?;
        self.consumer.incremental_assign(&place).map_err(error)
    }
}

// === impl GroupContext ===

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.log.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }
}

impl ConsumerContext for GroupContext {
    /// Answers the group protocol. Called on the polling thread, from within `poll`.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let partitions: Vec<TopicPartition> = partitions
            .elements()
            .iter()
            .map(|element| TopicPartition::new(element.topic(), element.partition() as u32))
            .collect();
        tracing::debug!(?event, ?partitions, "kafka group rebalances");
        let answered = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let answered = consumer.incremental_assign(&TopicPartitionList::new());
            self.inbox.assign(partitions);
            answered
        } else {
            let fetched = self.inbox.revoke(partitions);
            self.inbox.wait_for_handover(HANDOVER_WITHIN);
            let fetched: Vec<_> = fetched.into_iter().map(|at| (at, 0)).collect();
            list(&fetched).and_then(|fetched| {
                // Or the pause would outlive the assignment, and a later one would begin paused.
                let _resumed_or_not = consumer.resume(&fetched);
                consumer.incremental_unassign(&fetched)
            })
        };
        if let Err(error) = answered {
            self.inbox.report(self.log.classify(&error, "rebalance"));
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            // For lag tools only: the next commit makes up for it.
            tracing::debug!(%error, "kafka did not take a committed offset");
        }
    }
}
