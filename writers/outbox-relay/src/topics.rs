//! The topics that must be there before anything is published.

use std::collections::HashSet;

use event_log::{EventLog, EventLogError, TopicSpec};
use event_store::{EventStore, Topology};
use schemas::Context;

use crate::error::RelayError;

/// Topics whose records the relay stamps: the event and outcome topics.
pub fn stamped_topics() -> impl Iterator<Item = &'static str> {
    Context::ALL.into_iter().flat_map(|context| [context.events_topic(), context.outcomes_topic()])
}

/// Makes the topics that are missing. The partition count is compared of those that the relay stamps: what is wrong
/// with another is for those who use it, and must not stop every event. Such a one is put into `told`, and told once.
pub(crate) async fn ensure_topics(
    log: &dyn EventLog,
    topology: Topology,
    told: &mut HashSet<String>,
) -> Result<(), EventLogError> {
    let is_stamped = |spec: &TopicSpec| stamped_topics().any(|topic| topic == spec.name);
    let (stamped, mut others): (Vec<_>, Vec<_>) = topic_specs(topology).into_iter().partition(is_stamped);
    log.ensure_topics(&stamped).await?;
    loop {
        match log.ensure_topics(&others).await {
            Err(EventLogError::PartitionCount { topic, found, wanted }) => {
                others.retain(|spec| spec.name != topic);
                if !told.contains(&topic) {
                    tracing::warn!(
                        topic,
                        found,
                        wanted,
                        "a topic that the relay does not stamp has another partition count"
                    );
                    told.insert(topic);
                }
            }
            ensured => return ensured,
        }
    }
}

/// Makes the topics of a log that nobody else has, before anybody reads it: all but those that were published to. Where
/// one of these is gone, that is for the relay to find and for `reconcile` to mend.
pub async fn make_topics(log: &dyn EventLog, store: &dyn EventStore, topology: Topology) -> Result<(), RelayError> {
    let cursor = store.relay_cursor().await?;
    let mut specs = topic_specs(topology);
    specs.retain(|spec| cursor.published_to(&spec.name).is_none());
    Ok(log.ensure_topics(&specs).await?)
}

/// Event, command, outcome and dead-letter topics of every context, all with the topology's partition count.
pub fn topic_specs(topology: Topology) -> Vec<TopicSpec> {
    Context::ALL
        .into_iter()
        .flat_map(|context| {
            [context.events_topic(), context.commands_topic(), context.outcomes_topic(), context.dead_letters_topic()]
        })
        .map(|name| TopicSpec { name: name.to_owned(), partitions: topology.partitions })
        .collect()
}
