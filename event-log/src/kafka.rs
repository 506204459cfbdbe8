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

use std::sync::Arc;
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

/// An event log on a Kafka cluster.
pub struct KafkaEventLog {
    settings: KafkaSettings,
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
        Ok(Self { publisher: Publisher::new(settings.clone()), settings, lookup, readers })
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

    /// Creates topics that are missing. One that another process has made meanwhile is no error.
    async fn create(&self, missing: &[TopicSpec], brokers: usize) -> Result<(), EventLogError> {
        let admin: AdminClient<ClientLog> = self
            .settings
            .client_config()
            .create_with_context(ClientLog::new(self.settings.address()))
            .map_err(|error| EventLogError::Setting { key: "event-log", problem: error.to_string() })?;
        let replicas = brokers.clamp(1, 3) as i32;
        let topics: Vec<NewTopic<'_>> = missing
            .iter()
            .map(|spec| {
                let partitions = i32::try_from(spec.partitions).unwrap_or(i32::MAX);
                let mut topic = NewTopic::new(&spec.name, partitions, TopicReplication::Fixed(replicas))
                    // The event's own time is in its envelope. By the broker's time, retention counts from when a
                    // record was published, also when old events are published again, and no clock of ours that
                    // runs ahead can get a record refused.
                    .set("message.timestamp.type", "LogAppendTime");
                if replicas >= 3 {
                    topic = topic.set("min.insync.replicas", "2");
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
                Some(partitions) => compare(topic, partitions)?,
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

fn compare(wanted: &TopicSpec, found: u32) -> Result<(), EventLogError> {
    if found == wanted.partitions {
        return Ok(());
    }
    Err(EventLogError::PartitionCount { topic: wanted.name.clone(), found, wanted: wanted.partitions })
}
