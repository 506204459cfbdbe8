//! Questions to the cluster: which topics there are, and how far their partitions reach. Everything here blocks, for
//! ten seconds at most, and belongs on the blocking pool.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::{Offset, TopicPartitionList};

use super::client_log::{ClientLog, code_of};
use super::settings::KafkaSettings;
use crate::error::EventLogError;
use crate::log::{PartitionEnds, TopicPartition};

/// A broker takes a moment to lead the partitions of a topic that was just made.
const NEW_LEADERS_WITHIN: Duration = Duration::from_secs(3);
/// Longest wait for an answer.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The same in pieces. librdkafka keeps a question for the broker that it gave it to, also when that one has died;
/// asked anew, it takes one that is up, or that leads by now. The last piece is for brokers that are only slow.
const ANSWER_IN_PIECES: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(2), Duration::from_secs(6)];

/// A client that belongs to no group and reads nothing.
pub(super) struct Lookup {
    client: Arc<BaseConsumer<ClientLog>>,
}

/// What the cluster says of a topic.
pub(super) struct FoundTopic {
    /// `None` when there is no such topic.
    pub partitions: Option<u32>,
    /// Whether every partition has a leader, and so can be used.
    pub has_leaders: bool,
    /// Replicas of the partition that has the fewest, up or not.
    pub replicas: usize,
    /// Brokers that are up.
    pub brokers: usize,
}

// === impl Lookup ===

impl Lookup {
    pub fn new(settings: &KafkaSettings) -> Result<Self, EventLogError> {
        let client: BaseConsumer<ClientLog> = settings
            .client_config()
            .create_with_context(ClientLog::new(settings.address()))
            .map_err(|error| EventLogError::Setting { key: "event-log", problem: error.to_string() })?;
        let client = Arc::new(client);
        // Its log lines and errors pile up unless someone takes them.
        let listener = Arc::downgrade(&client);
        thread::Builder::new()
            .name("kafka-lookup".to_owned())
            .spawn(move || listen(&listener))
            .map_err(|error| client.context().permanent(error))?;
        Ok(Self { client })
    }

    pub fn log(&self) -> &ClientLog {
        self.client.context()
    }

    pub fn topic(&self, name: &str) -> Result<FoundTopic, EventLogError> {
        let metadata = self.metadata(name).map_err(|error| self.log().classify(&error, name))?;
        let found = metadata.topics().iter().find(|topic| topic.name() == name);
        let brokers = metadata.brokers().len();
        let missing = FoundTopic { partitions: None, has_leaders: false, replicas: 0, brokers };
        match found {
            Some(topic) => match topic.error() {
                None => Ok(FoundTopic {
                    partitions: Some(topic.partitions().len() as u32),
                    has_leaders: topic.partitions().iter().all(|partition| partition.leader() >= 0),
                    replicas: topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
                    brokers,
                }),
                Some(error) => match self.log().classify(&KafkaError::MetadataFetch(error.into()), name) {
                    EventLogError::UnknownTopic { .. } => Ok(missing),
                    other => Err(other),
                },
            },
            None => Ok(missing),
        }
    }

    /// Waits until a topic just created is known everywhere and can be used.
    pub fn wait_for(&self, topic: &str) -> Result<FoundTopic, EventLogError> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let found = self.topic(topic)?;
            if found.partitions.is_some() && found.has_leaders {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(self.log().unavailable(format!("topic {topic} has partitions without a leader")));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The ends of all partitions of a topic, in two requests to each broker that leads some.
    pub fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        let partitions =
            self.topic(topic)?.partitions.ok_or_else(|| EventLogError::UnknownTopic { topic: topic.to_owned() })?;
        let places: Vec<_> = (0..partitions).map(|partition| TopicPartition::new(topic, partition)).collect();
        let deadline = Instant::now() + NEW_LEADERS_WITHIN;
        loop {
            match self.ends_of(&places) {
                Err(error) if error.is_transient() && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(50));
                }
                answer => return answer,
            }
        }
    }

    /// The ends of some partitions, in their order.
    pub fn ends_of(&self, places: &[TopicPartition]) -> Result<Vec<PartitionEnds>, EventLogError> {
        let firsts = self.offsets(places, Offset::Beginning)?;
        let nexts = self.offsets(places, Offset::End)?;
        Ok(places
            .iter()
            .zip(firsts.into_iter().zip(nexts))
            .map(|(at, (first, next))| PartitionEnds { partition: at.partition, first, next })
            .collect())
    }

    /// A list of offsets is asked for by "time": the two ends have times of their own, -1 and -2.
    fn offsets(&self, places: &[TopicPartition], end: Offset) -> Result<Vec<u64>, EventLogError> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let about = &places[0].topic;
        let mut asked = TopicPartitionList::with_capacity(places.len());
        for at in places {
            asked
                .add_partition_offset(&at.topic, at.partition as i32, end)
                .map_err(|error| self.log().classify(&error, about))?;
        }
        let answer = asked_in_pieces(|within| self.client.offsets_for_times(asked.clone(), within))
            .map_err(|error| self.log().classify(&error, about))?;
        places
            .iter()
            .map(|at| {
                let found = answer.find_partition(&at.topic, at.partition as i32);
                let found = found.ok_or_else(|| self.log().unavailable(format!("no offset came for {at}")))?;
                found.error().map_err(|error| self.log().classify(&error, &at.topic))?;
                match found.offset() {
                    Offset::Offset(offset) => Ok(offset as u64),
                    other => Err(self.log().unavailable(format!("no offset came for {at}, but {other:?}"))),
                }
            })
            .collect()
    }

    pub fn ping(&self) -> Result<(), EventLogError> {
        // Any topic will do, one that does not exist is answered fastest; nothing creates it.
        match self.metadata("millrace.ping") {
            Ok(_) => Ok(()),
            Err(error) => Err(self.log().classify(&error, "metadata")),
        }
    }

    fn metadata(&self, topic: &str) -> Result<Metadata, KafkaError> {
        asked_in_pieces(|within| self.client.fetch_metadata(Some(topic), within))
    }
}

fn asked_in_pieces<T>(ask: impl Fn(Duration) -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let [first @ .., last] = ANSWER_IN_PIECES;
    for within in first {
        match ask(within) {
            Err(error) if may_be_its_broker(&error) => tracing::debug!(%error, "kafka is asked again"),
            answer => return answer,
        }
    }
    ask(last)
}

/// Whether another broker may answer where this one does not.
fn may_be_its_broker(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code_of(error),
        Some(
            Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::BrokerTransportFailure
                | Code::BrokerDestroy
                | Code::DestroyBroker
        )
    )
}

fn listen(client: &Weak<BaseConsumer<ClientLog>>) {
    while let Some(client) = client.upgrade() {
        // Nothing is assigned, so nothing but events comes here.
        let _event = client.poll(Duration::from_millis(500));
    }
}
