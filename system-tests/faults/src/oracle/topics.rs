//! Everything that stands on the topics, read from their beginning to their end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use event_log::{EventLog, Record, Signal, SqliteEventLog};
use schemas::Context;

use crate::system::Deployment;

/// One partition of a topic.
#[derive(Debug, Default)]
pub struct LogPartition {
    /// The oldest offset that is kept.
    pub first: u64,
    pub records: Vec<Record>,
    /// Whether the harness put records there that are no events.
    pub foreign_allowed: bool,
}

/// By topic and partition.
pub type Topics = BTreeMap<(String, u32), LogPartition>;

const PATIENCE: Duration = Duration::from_secs(60);

/// Reads the event and outcome topics.
pub async fn read(deployment: &Deployment) -> anyhow::Result<Topics> {
    let log: Arc<dyn EventLog> = match deployment {
        Deployment::Roles { kafka, .. } => event_log::connect_event_log(&format!("kafka://{kafka}")).await?,
        Deployment::Embedded { data } => Arc::new(SqliteEventLog::open_read_only(data.join("log.db"))?),
    };
    match tokio::time::timeout(PATIENCE, read_all(log.as_ref())).await {
        Ok(topics) => topics,
        Err(_) => bail!("the topics cannot be read to their ends within {PATIENCE:?}"),
    }
}

async fn read_all(log: &dyn EventLog) -> anyhow::Result<Topics> {
    let names = Context::ALL.iter().flat_map(|context| [context.events_topic(), context.outcomes_topic()]);
    let names: Vec<&str> = names.collect();
    let mut topics = Topics::new();
    let mut left: HashMap<(String, u32), u64> = HashMap::new();
    for name in &names {
        for ends in log.ends(name).await? {
            let at = ((*name).to_owned(), ends.partition);
            if ends.next > ends.first {
                left.insert(at.clone(), ends.next);
            }
            topics.insert(at, LogPartition { first: ends.first, ..LogPartition::default() });
        }
    }
    let group = format!("faults-{}", uuid::Uuid::new_v4());
    let mut subscription = log.subscribe(&group, &names).await?;
    while !left.is_empty() {
        match subscription.next().await? {
            Signal::Assigned(partitions) => {
                for at in partitions {
                    let first = topics.get(&(at.topic.clone(), at.partition)).map_or(0, |partition| partition.first);
                    subscription.start(&at, first).await?;
                }
            }
            Signal::Revoked(_) => bail!("the reader of the topics lost a partition"),
            Signal::Records(records) => {
                let Some(last) = records.last() else { continue };
                let at = (last.at.topic.clone(), last.at.partition);
                if left.get(&at).is_some_and(|next| last.offset + 1 >= *next) {
                    left.remove(&at);
                }
                topics.entry(at).or_default().records.extend(records);
            }
        }
    }
    subscription.close().await;
    Ok(topics)
}
