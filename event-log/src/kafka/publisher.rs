//! Publishing to Kafka, so that what is acknowledged is in the log, in order, on all in-sync replicas.
//!
//! The producer is idempotent (acks=all, its own retries make no twins and change no order), and a record that fails
//! stops those behind it: `enable.gapless.guarantee` turns a rejected batch into a fatal error instead of sending the
//! next one past it. Records do not expire one by one (`message.timeout.ms` 0), which would let later ones overtake;
//! the call as a whole has a deadline, after which the producer with all that it holds is thrown away. The same
//! happens after a fatal error, and once a record has failed: what should be sent once more after a fatal error is
//! neither sent nor reported, so whoever waited for it would hear of the failure at the deadline, and as another one.
//! The next call makes a new producer and the caller publishes the same records again.
//!
//! It also happens when a connection in use is lost. librdkafka would send what was under way again as soon as a broker
//! answers, and that one may have lost its disk, or not have had all: the records would stand where others belong
//! (fault 6). Who publishes has to look at the end of the log first, and can only do so when the call has ended.
//! Whoever calls next hears of a loss between two calls, so who must look shares the log with nobody who publishes. Not
//! noticed are connections that were lost while nobody used them: who was quiet looks by itself before it goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client_log::{ClientLog, code_of};
use super::settings::KafkaSettings;
use crate::error::EventLogError;
use crate::headers::Headers;
use crate::log::NewRecord;

/// Longest time for one call.
const PUBLISH_WITHIN: Duration = Duration::from_secs(30);
/// How long a fatal error is waited upon for the failure that it came of, which says what was wrong. librdkafka tells
/// them one right after the other.
const CAUSE_WITHIN: Duration = Duration::from_secs(1);
/// How long to wait when the producer's queue is full. Half a linger: it empties at that pace.
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(2);
/// Records handed over before other tasks get a turn.
const RECORDS_PER_TURN: usize = 256;

type KafkaProducer = ThreadedProducer<DeliveryContext>;

pub(super) struct Publisher {
    settings: KafkaSettings,
    /// `None`: the next call makes one.
    producer: Mutex<Option<Arc<KafkaProducer>>>,
}

/// The records of one call that are under way.
struct Batch {
    /// Records not yet reported on, and one for the call itself while it still hands records over.
    outstanding: AtomicUsize,
    /// The first failure that says what was wrong, or else the first, and the topic that it happened on.
    failure: Mutex<Option<(KafkaError, String)>>,
    /// Cancelled with the first failure that says what was wrong.
    has_failed: CancellationToken,
    is_done: Notify,
}

/// A call that is under way. Dropped before its end, it takes its producer along.
struct Unfinished<'c> {
    publisher: &'c Publisher,
    producer: Option<&'c Arc<KafkaProducer>>,
}

struct DeliveryContext {
    log: ClientLog,
    /// Cancelled once a connection that was in use is gone.
    lost: CancellationToken,
    /// Cancelled with a fatal error: nothing more is sent.
    fatal: CancellationToken,
}

// === impl Publisher ===

impl Publisher {
    pub fn new(settings: KafkaSettings) -> Self {
        Self { settings, producer: Mutex::default() }
    }

    pub async fn publish(&self, records: &[NewRecord]) -> Result<(), EventLogError> {
        let producer = self.producer()?;
        let DeliveryContext { log, lost, .. } = producer.client().context().as_ref();
        let since_the_last_call = match producer.client().fatal_error() {
            Some((code, reason)) => Some(format!("{code}: {reason}")),
            None => lost.is_cancelled().then(|| "the connection was lost since the last call".to_owned()),
        };
        if let Some(problem) = since_the_last_call {
            let error = log.unavailable(problem);
            self.discard(&producer);
            return Err(error);
        }
        self.publish_with(&producer, records).await
    }

    async fn publish_with(&self, producer: &Arc<KafkaProducer>, records: &[NewRecord]) -> Result<(), EventLogError> {
        let DeliveryContext { log, lost, fatal } = producer.client().context().as_ref();
        let deadline = Instant::now() + PUBLISH_WITHIN;
        // Who drops the call does not know what became of it, and looks: nothing of it may go out after that.
        let mut unfinished = Unfinished { publisher: self, producer: Some(producer) };
        let batch = Arc::new(Batch::new());
        let is_whole = self.hand_over(producer, records, &batch, deadline).await;
        batch.one_done();
        let why_not = tokio::select! {
            biased;
            () = batch.done(), if is_whole => None,
            () = batch.has_failed.cancelled(), if is_whole => None,
            () = no_cause_of(fatal), if is_whole => Some("before a fatal error".to_owned()),
            () = lost.cancelled() => Some("before the connection was lost".to_owned()),
            () = tokio::time::sleep_until(deadline) => Some(format!("within {} s", PUBLISH_WITHIN.as_secs())),
        };
        unfinished.producer = None;
        if let Some(why_not) = why_not {
            let error = log.unavailable(format!("not all of {} records were acknowledged {why_not}", records.len()));
            self.discard(producer);
            return Err(error);
        }
        let Some((error, topic)) = batch.failure() else { return Ok(()) };
        let fatal_error = producer.client().fatal_error();
        if fatal_error.is_some() || !batch.is_done() {
            tracing::debug!(?fatal_error, "kafka producer is replaced after a failure");
            self.discard(producer);
        }
        Err(match code_of(&error) {
            _ if follows_from_another(&error) => log.unavailable(error),
            // Topics are made before anything is published. A broker that was just restarted may not know one yet:
            // whether it is there is for `ensure_topics` to say, which the caller asks before it tries again.
            Some(
                RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition,
            ) => log.unavailable(format!("{topic}: {error}")),
            _ => log.classify(&error, &topic),
        })
    }

    /// Hands records over until one is refused: what follows it must not overtake it. False where the connection was
    /// lost before all were.
    async fn hand_over(
        &self,
        producer: &KafkaProducer,
        records: &[NewRecord],
        batch: &Arc<Batch>,
        deadline: Instant,
    ) -> bool {
        let lost = &producer.client().context().lost;
        // A broker refuses a record from its future (the clock went back, say); for retention now is as good.
        let now = chrono::Utc::now().timestamp_millis();
        for (index, record) in records.iter().enumerate() {
            if index % RECORDS_PER_TURN == RECORDS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            if lost.is_cancelled() {
                return false;
            }
            batch.outstanding.fetch_add(1, Ordering::AcqRel);
            let mut message = BaseRecord::with_opaque_to(&record.at.topic, batch.clone())
                .partition(i32::try_from(record.at.partition).unwrap_or(i32::MAX))
                .key(&record.key[..])
                .payload(&record.value[..])
                .timestamp(record.timestamp.min(now))
                .headers(native_headers(&record.headers));
            while let Err((error, given_back)) = producer.send(message) {
                let is_full = code_of(&error) == Some(RDKafkaErrorCode::QueueFull);
                if !is_full || Instant::now() >= deadline || lost.is_cancelled() {
                    batch.fail(error, &record.at.topic);
                    batch.one_done();
                    return !lost.is_cancelled();
                }
                message = given_back;
                tokio::time::sleep(QUEUE_FULL_WAIT).await;
            }
        }
        true
    }

    fn producer(&self) -> Result<Arc<KafkaProducer>, EventLogError> {
        let mut current = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(producer) = current.as_ref() {
            return Ok(producer.clone());
        }
        let producer: KafkaProducer = self
            .settings
            .client_config()
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("enable.gapless.guarantee", "true")
            .set("message.timeout.ms", "0")
            .set("compression.codec", "lz4")
            // A call hands over all its records at once, so lingering only fills the last requests of a call.
            .set("linger.ms", "4")
            .set("batch.size", "1000000")
            .set("batch.num.messages", "10000")
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", "131072")
            // How long a topic may be missing from the metadata of a broker that is catching up, before the call fails
            // and the caller tries again.
            .set("topic.metadata.propagation.max.ms", "5000")
            .create_with_context(DeliveryContext {
                log: ClientLog::new(self.settings.address()),
                lost: CancellationToken::new(),
                fatal: CancellationToken::new(),
            })
            .map_err(|error| EventLogError::Setting { key: "event-log", problem: error.to_string() })?;
        let producer = Arc::new(producer);
        *current = Some(producer.clone());
        Ok(producer)
    }

    fn discard(&self, producer: &Arc<KafkaProducer>) {
        let mut current = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, producer)) {
            current.take();
        }
        // At once, before librdkafka has a connection again; what is left is waited for elsewhere.
        producer.purge(PurgeConfig::default().queue().inflight().non_blocking());
        drop_elsewhere(producer.clone());
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Some(producer) = self.producer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop_elsewhere(producer);
        }
    }
}

/// Only what came first says what was wrong; the others follow from it, and from throwing away.
fn follows_from_another(error: &KafkaError) -> bool {
    matches!(
        code_of(error),
        Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
    )
}

/// Ends where a fatal error came, and no failure that it came of.
async fn no_cause_of(fatal: &CancellationToken) {
    fatal.cancelled().await;
    tokio::time::sleep(CAUSE_WITHIN).await;
}

/// The last owner of a producer waits until librdkafka has let go of it: not a thing for a task of the runtime. What it
/// still holds is thrown away at once, for all who wait for it.
fn drop_elsewhere(producer: Arc<KafkaProducer>) {
    let dropping = thread::Builder::new().name("kafka-producer-end".to_owned()).spawn(move || {
        producer.purge(PurgeConfig::default().queue().inflight());
        drop(producer);
    });
    if let Err(error) = dropping {
        tracing::debug!(%error, "no thread to drop a kafka producer on");
    }
}

// === impl Unfinished ===

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(producer) = self.producer {
            self.publisher.discard(producer);
        }
    }
}

// === impl Batch ===

impl Batch {
    fn new() -> Self {
        Self {
            outstanding: AtomicUsize::new(1),
            failure: Mutex::default(),
            has_failed: CancellationToken::new(),
            is_done: Notify::new(),
        }
    }

    fn one_done(&self) {
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.is_done.notify_one();
        }
    }

    fn fail(&self, error: KafkaError, topic: &str) {
        let says_what_was_wrong = !follows_from_another(&error);
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|(first, _)| says_what_was_wrong && follows_from_another(first)) {
            *failure = Some((error, topic.to_owned()));
        }
        if says_what_was_wrong {
            self.has_failed.cancel();
        }
    }

    fn failure(&self) -> Option<(KafkaError, String)> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_done(&self) -> bool {
        self.outstanding.load(Ordering::Acquire) == 0
    }

    async fn done(&self) {
        while !self.is_done() {
            self.is_done.notified().await;
        }
    }
}

// === impl DeliveryContext ===

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        // librdkafka tells it nowhere else at once; its error callback hears of the next connection that is refused.
        // What it closes itself, and what was idle for a minute, it tells at debug level, if at all.
        if !matches!(level, RDKafkaLogLevel::Debug) && facility == "FAIL" && line.contains("in state UP") {
            self.lost.cancel();
        }
        self.log.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if code_of(&error) == Some(RDKafkaErrorCode::Fatal) {
            self.fatal.cancel();
        }
        self.log.error(error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Arc<Batch>;

    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<Batch>) {
        if let Err((error, message)) = result {
            batch.fail(error.clone(), message.topic());
        }
        batch.one_done();
    }
}

fn native_headers(headers: &Headers) -> OwnedHeaders {
    headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |native, (name, value)| {
        native.insert(Header { key: name, value: Some(value) })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::log::TopicPartition;

    fn record(partition: u32) -> NewRecord {
        NewRecord {
            at: TopicPartition::new("events", partition),
            key: b"k".to_vec(),
            headers: Headers::default(),
            value: b"v".to_vec(),
            timestamp: 0,
        }
    }

    /// With nothing under way there is nothing to wait for, and all the same nothing was published.
    #[tokio::test]
    async fn a_connection_that_is_lost_before_the_first_record_is_an_error() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 1, 1).unwrap();
        let url = format!("kafka://{}", cluster.bootstrap_servers());
        let publisher = Publisher::new(KafkaSettings::parse(&url).unwrap());
        let records = [record(0)];
        publisher.publish(&records).await.unwrap();
        let producer = publisher.producer().unwrap();
        producer.client().context().lost.cancel();
        let error = publisher.publish_with(&producer, &records).await.unwrap_err();
        assert!(
            error.to_string().contains("not all of 1 records were acknowledged before the connection was lost"),
            "{error}"
        );
        publisher.publish(&records).await.unwrap();
    }

    /// Of the other broker nothing is heard in time. So it is also with what librdkafka has to send once more after a
    /// fatal error: it gives up what is queued when that comes, and neither sends nor reports what is put there later.
    #[tokio::test]
    async fn a_record_that_is_refused_is_told_at_once_and_as_what_it_is() {
        let cluster = MockCluster::new(2).unwrap();
        cluster.create_topic("events", 2, 1).unwrap();
        for (partition, broker) in [(0, 1), (1, 2)] {
            cluster.partition_leader("events", partition, Some(broker)).unwrap();
        }
        let url = format!("kafka://{}", cluster.bootstrap_servers());
        let publisher = Publisher::new(KafkaSettings::parse(&url).unwrap());
        let records = [record(0), record(1)];
        publisher.publish(&records).await.unwrap();

        cluster.broker_round_trip_time(2, PUBLISH_WITHIN * 2).unwrap();
        cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 2]);
        let begun = Instant::now();
        let error = publisher.publish(&records).await.unwrap_err();
        assert!(begun.elapsed() < PUBLISH_WITHIN / 2, "{error} after {:?}", begun.elapsed());
        assert!(matches!(error, EventLogError::Permanent { .. }), "{error}");
        // With a producer of its own.
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        cluster.broker_round_trip_time(2, Duration::ZERO).unwrap();
        publisher.publish(&records).await.unwrap();
    }
}
