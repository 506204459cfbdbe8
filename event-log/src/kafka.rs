//! The event log on Kafka, through librdkafka.
//!
//! Guarantees: what `publish` has acknowledged is on all in-sync replicas, in order ([`publisher`]); a subscription
//! delivers exactly what follows the offset that it was started at ([`subscription`]).
//!
//! Connecting does not wait for a broker: each call does, for ten seconds at most (thirty for `publish`), and then
//! says which address did not answer.

mod client_log;
mod inbox;
mod lookup;
mod publisher;
mod reader;
mod record;
mod settings;
mod subscription;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use self::client_log::ClientLog;
use self::lookup::{ANSWER_WITHIN, FoundTopic, Lookup};
use self::publisher::Publisher;
use self::reader::PartitionReaders;
pub use self::settings::KafkaSettings;
use self::subscription::KafkaSubscription;
use crate::error::EventLogError;
use crate::log::{EventLog, NewRecord, PartitionEnds, Record, Subscription, TopicPartition, TopicSpec};
use crate::metrics;

/// Replicas of a topic where none are asked for and as many brokers are up.
const USUAL_REPLICAS: usize = 3;

/// Topics said to have too few replicas, with the address: `up` has two connections, and one process says it once.
static TOLD_TOO_FEW: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());

/// An event log on a Kafka cluster.
pub struct KafkaEventLog {
    settings: KafkaSettings,
    /// `None`: as many as brokers are up, [`USUAL_REPLICAS`] at most.
    replicas: Option<u32>,
    publisher: Publisher,
    lookup: Arc<Lookup>,
    readers: Arc<PartitionReaders>,
}

// === impl KafkaEventLog ===

impl KafkaEventLog {
    /// Makes the clients. Contacts nobody yet; an error is one of settings, such as a certificate that is not there.
    pub fn connect(settings: KafkaSettings) -> Result<Self, EventLogError> {
        let lookup = Arc::new(Lookup::new(&settings)?);
        let readers = Arc::new(PartitionReaders::new(settings.clone()));
        Ok(Self { publisher: Publisher::new(settings.clone()), settings, replicas: None, lookup, readers })
    }

    /// How many replicas a topic is made with: it then waits until so many brokers are up. A cluster that starts cold
    /// would otherwise get topics with one for good.
    pub fn with_replicas(mut self, replicas: Option<u32>) -> Self {
        self.replicas = replicas;
        self
    }

    /// Runs a blocking question to the cluster off the runtime.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Lookup) -> Result<T, EventLogError> + Send + 'static,
    ) -> Result<T, EventLogError> {
        let lookup = self.lookup.clone();
        match tokio::task::spawn_blocking(move || question(&lookup)).await {
            Ok(answer) => answer,
            Err(error) => Err(self.lookup.log().permanent(error)),
        }
    }

    async fn find(&self, topic: &TopicSpec) -> Result<FoundTopic, EventLogError> {
        let name = topic.name.clone();
        self.ask(move |lookup| lookup.topic(&name)).await
    }

    fn tell_of_replicas(&self, topic: &TopicSpec, found: &FoundTopic) {
        let wanted = self.replicas.map_or(found.brokers.clamp(1, USUAL_REPLICAS), |replicas| replicas as usize);
        if found.replicas >= wanted {
            return;
        }
        let place = (self.settings.address(), topic.name.clone());
        if TOLD_TOO_FEW.lock().unwrap_or_else(PoisonError::into_inner).insert(place) {
            tracing::warn!(
                topic = topic.name,
                replicas = found.replicas,
                wanted,
                "topic has fewer replicas than it should: what it acknowledges may be in one place only; add some with kafka-reassign-partitions"
            );
        }
    }

    /// Creates topics that are missing. One that another process has made meanwhile is no error.
    async fn create(&self, missing: &[TopicSpec], brokers: usize) -> Result<(), EventLogError> {
        let admin: AdminClient<ClientLog> = self
            .settings
            .client_config()
            .create_with_context(ClientLog::new(self.settings.address()))
            .map_err(|error| EventLogError::Setting { key: "event-log", problem: error.to_string() })?;
        let (replicas, min_insync) = replication(self.replicas, brokers).map_err(|problem| {
            let names: Vec<&str> = missing.iter().map(|spec| spec.name.as_str()).collect();
            self.lookup.log().unavailable(format!("{problem}; not made yet: {}", names.join(", ")))
        })?;
        let min_insync = min_insync.map(|replicas| replicas.to_string());
        let topics: Vec<NewTopic<'_>> = missing
            .iter()
            .map(|spec| {
                let partitions = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
                let mut topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(replicas))
                    // The event's own time is in its envelope. By the broker's time, retention counts from when a
                    // record was published, also when old events are published again, and no clock of ours that
                    // runs ahead can get a record refused.
                    .set("message.timestamp.type", "LogAppendTime")
                    // Each record is one of many of its key: a cluster that compacts by default would keep the last.
                    .set("cleanup.policy", "delete");
                if let Some(min_insync) = &min_insync {
                    topic = topic.set("min.insync.replicas", min_insync);
                }
                if spec.name.ends_with(".events") {
                    // Read models are rebuilt from it: an operator may shorten this, Kafka's default week may not.
                    topic = topic.set("retention.ms", "-1").set("retention.bytes", "-1");
                }
                topic
            })
            .collect();
        let options = AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN));
        let created = admin.create_topics(&topics, &options).await;
        let created = created.map_err(|error| self.lookup.log().classify(&error, "create topics"))?;
        for result in created {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(self.lookup.log().classify(&KafkaError::AdminOp(code), &topic)),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl EventLog for KafkaEventLog {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), EventLogError> {
        let mut missing = Vec::new();
        let mut brokers = 0;
        for topic in topics {
            let found = self.find(topic).await?;
            brokers = found.brokers;
            match found.partitions {
                Some(partitions) => {
                    self.tell_of_replicas(topic, &found);
                    compare(topic, partitions)?;
                }
                None => missing.push(topic.clone()),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.create(&missing, brokers).await?;
        for topic in &missing {
            let name = topic.name.clone();
            let found = self.ask(move |lookup| lookup.wait_for(&name)).await?;
            compare(topic, found.partitions.unwrap_or_default())?;
        }
        Ok(())
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), EventLogError> {
        if records.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        self.publisher.publish(&records).await?;
        metrics::published(records.len(), begun.elapsed());
        Ok(())
    }

    async fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        let topic = topic.to_owned();
        self.ask(move |lookup| lookup.ends(&topic)).await
    }

    async fn read(&self, at: &TopicPartition, from: u64, limit: usize) -> Result<Vec<Record>, EventLogError> {
        let readers = self.readers.clone();
        let at = at.clone();
        self.ask(move |lookup| readers.read(lookup, &at, from, limit)).await
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, EventLogError> {
        let settings = self.settings.clone();
        let lookup = self.lookup.clone();
        let group = group.to_owned();
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let subscription = self.ask(move |_| {
            for topic in &topics {
                if lookup.topic(topic)?.partitions.is_none() {
                    // Not there, or not known yet to a broker that was just restarted: `ensure_topics` knows.
                    let missing = EventLogError::UnknownTopic { topic: topic.clone() };
                    return Err(lookup.log().unavailable(missing));
                }
            }
            KafkaSubscription::join(&settings, lookup, &group, &topics)
        });
        Ok(Box::new(subscription.await?))
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.ask(Lookup::ping).await
    }
}

/// The replicas that a topic is made with, and how many must have a record before it is acknowledged, where that is not
/// the brokers' to say.
fn replication(wanted: Option<u32>, brokers: usize) -> Result<(i32, Option<i32>), String> {
    match wanted {
        Some(wanted) if brokers < wanted as usize => {
            Err(format!("{wanted} replicas are asked for (--kafka-replicas) and {brokers} brokers are up"))
        }
        Some(wanted) => Ok((wanted as i32, Some((wanted as i32 - 1).max(1)))),
        None => {
            let replicas = brokers.clamp(1, USUAL_REPLICAS);
            Ok((replicas as i32, (replicas == USUAL_REPLICAS).then_some(2)))
        }
    }
}

fn compare(wanted: &TopicSpec, found: u32) -> Result<(), EventLogError> {
    if found == wanted.partitions {
        return Ok(());
    }
    Err(EventLogError::PartitionCount { topic: wanted.name.clone(), found, wanted: wanted.partitions })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use std::time::Duration;

    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::log::Signal;

    fn one(name: &str) -> [TopicSpec; 1] {
        [TopicSpec { name: name.to_owned(), partitions: 1 }]
    }

    fn connect(brokers: &str) -> KafkaEventLog {
        KafkaEventLog::connect(KafkaSettings::parse(&format!("kafka://{brokers}")).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_topic_waits_for_as_many_brokers_as_it_has_replicas() {
        let cluster = MockCluster::new(2).unwrap();
        let log = connect(&cluster.bootstrap_servers()).with_replicas(Some(3));
        let error = log.ensure_topics(&one("events")).await.unwrap_err();
        let told = error.to_string();
        assert!(error.is_transient() && told.contains("2 brokers are up; not made yet: events"), "{told}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dead_broker_of_several_does_not_end_a_subscription() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 1, 1).unwrap();
        // Nobody listens there, and whoever is asked first is left to chance.
        let log = Arc::new(connect(&format!("127.0.0.1:1,{}", cluster.bootstrap_servers())));
        let mut joined = tokio::task::JoinSet::new();
        for number in 0..8 {
            let log = Arc::clone(&log);
            joined.spawn(async move {
                let mut subscription = log.subscribe(&format!("group-{number}"), &["events"]).await.unwrap();
                tokio::time::timeout(Duration::from_secs(60), subscription.next()).await.unwrap().unwrap()
            });
        }
        for signal in joined.join_all().await {
            assert!(matches!(signal, Signal::Assigned(_)), "{signal:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_subscription_goes_on_after_a_moment_without_any_broker() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("events", 1, 1).unwrap();
        let log = connect(&cluster.bootstrap_servers());
        let mut subscription = log.subscribe("group", &["events"]).await.unwrap();
        let assigned = subscription.next().await.unwrap();
        let Signal::Assigned(partitions) = assigned else { panic!("{assigned:?}") };
        subscription.start(&partitions[0], 0).await.unwrap();
        cluster.broker_down(1).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.broker_up(1).unwrap();
        let record = NewRecord {
            at: partitions[0].clone(),
            key: Vec::new(),
            headers: crate::Headers::default(),
            value: b"here".to_vec(),
            timestamp: 1,
        };
        log.publish(vec![record]).await.unwrap();
        let read = async { while !matches!(subscription.next().await.unwrap(), Signal::Records(_)) {} };
        tokio::time::timeout(Duration::from_secs(60), read).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_subscription_hears_that_no_broker_is_left() {
        let cluster = MockCluster::new(2).unwrap();
        cluster.create_topic("events", 1, 1).unwrap();
        let log = connect(&cluster.bootstrap_servers());
        let mut subscription = log.subscribe("group", &["events"]).await.unwrap();
        assert!(matches!(subscription.next().await.unwrap(), Signal::Assigned(_)));
        for broker in [1, 2] {
            cluster.broker_down(broker).unwrap();
        }
        let told = tokio::time::timeout(Duration::from_secs(60), subscription.next()).await.unwrap();
        assert!(told.as_ref().is_err_and(EventLogError::is_transient), "{told:?}");
    }

    #[tokio::test]
    async fn a_topic_with_too_few_replicas_is_told_once() {
        let cluster = MockCluster::new(3).unwrap();
        cluster.create_topic("few", 1, 2).unwrap();
        cluster.create_topic("enough", 1, 3).unwrap();
        let log = connect(&cluster.bootstrap_servers());
        for topic in ["few", "enough"] {
            log.ensure_topics(&one(topic)).await.unwrap();
        }
        let told = |topic: &str| TOLD_TOO_FEW.lock().unwrap().contains(&(log.settings.address(), topic.to_owned()));
        assert!(told("few") && !told("enough"));
        let wants_more = connect(&cluster.bootstrap_servers()).with_replicas(Some(5));
        wants_more.ensure_topics(&one("enough")).await.unwrap();
        assert!(told("enough"));
    }

    #[test]
    fn a_record_is_acknowledged_by_all_replicas_but_one() {
        let up = |brokers| replication(None, brokers).unwrap();
        assert_eq!([up(0), up(1), up(2), up(3), up(9)], [(1, None), (1, None), (2, None), (3, Some(2)), (3, Some(2))]);
        let asked = |wanted| replication(Some(wanted), 9).unwrap();
        assert_eq!([asked(1), asked(2), asked(3), asked(5)], [(1, Some(1)), (2, Some(1)), (3, Some(2)), (5, Some(4))]);
        assert!(replication(Some(3), 2).unwrap_err().contains("2 brokers are up"));
    }
}
