//! The topics that must be there before anything is published.

use event_log::TopicSpec;
use event_store::Topology;
use schemas::Context;

/// Topics whose records the relay stamps: the event and outcome topics.
pub(crate) fn stamped_topics() -> impl Iterator<Item = &'static str> {
    Context::ALL.into_iter().flat_map(|context| [context.events_topic(), context.outcomes_topic()])
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
