//! `millrace tail`: events as they stand in the log, decoded.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use event_log::{DecodedEvent, EventDecoder, EventLog, EventLogError, Record, Signal, TopicPartition};
use resilience::Policy;
use schemas::Context;
use uuid::Uuid;

use crate::cli::{TailArgs, TailFrom};
use crate::exit::{Exit, one_line};
use crate::output;
use crate::stores;

/// A tail under way.
struct Tail {
    args: TailArgs,
    log: Arc<dyn EventLog>,
    decoder: EventDecoder,
    topics: Vec<String>,
    partitions: HashMap<TopicPartition, Partition>,
    printed: u64,
}

/// Where a partition is read to.
struct Partition {
    next: u64,
    /// The log's end when the command began.
    end: u64,
}

pub async fn run(args: TailArgs) -> anyhow::Result<Exit> {
    if args.limit == Some(0) {
        return Ok(Exit::Done);
    }
    let log = stores::event_log_to_read(&args.data, &args.event_log).await?;
    let decoder = EventDecoder::new(stores::registry(&args.event_log.registry)?);
    let mut tail = Tail::begin(args, log, decoder).await?;
    let followed = tokio::select! {
        followed = tail.follow() => followed,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    match followed {
        Err(error) if !output::is_closed_pipe(&error) => Err(error),
        _ => Ok(Exit::Done),
    }
}

// === impl Tail ===

impl Tail {
    /// Finds the partitions. A log that is away now is an error: its address may be wrong.
    async fn begin(args: TailArgs, log: Arc<dyn EventLog>, decoder: EventDecoder) -> anyhow::Result<Self> {
        let is_default = args.topic.is_empty();
        let asked: Vec<String> = if is_default {
            Context::ALL.iter().map(|context| context.events_topic().to_owned()).collect()
        } else {
            args.topic.clone()
        };
        let (mut topics, mut partitions) = (Vec::new(), HashMap::new());
        for topic in asked {
            let all_ends = match log.ends(&topic).await {
                // A log of an earlier release: a relay of this one makes the topic when it starts.
                Err(EventLogError::UnknownTopic { .. }) if is_default && topic == Context::Platform.events_topic() => {
                    continue;
                }
                all_ends => all_ends?,
            };
            for ends in all_ends {
                let next = if args.from == TailFrom::Beginning { ends.first } else { ends.next };
                partitions
                    .insert(TopicPartition::new(topic.clone(), ends.partition), Partition { next, end: ends.next });
            }
            topics.push(topic);
        }
        Ok(Self { args, log, decoder, topics, partitions, printed: 0 })
    }

    /// Prints until the end that was asked for. A log that is away for a while is waited for; what was printed is not
    /// printed again.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let mut delays = Policy::RESTART.backoff();
        loop {
            let printed = self.printed;
            match self.subscribe_and_print().await {
                Ok(()) => return Ok(()),
                Err(error) if is_transient(&error) => {
                    if self.printed > printed {
                        delays = Policy::RESTART.backoff();
                    }
                    tracing::warn!(error = one_line(&error), "tail waits for the event log");
                    delays.wait().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn subscribe_and_print(&mut self) -> anyhow::Result<()> {
        if self.is_at_end() {
            return Ok(());
        }
        let names: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        // A group of its own, and a new one each time: a tail takes no partition away from anybody, not from its own
        // last subscription either, which the broker may take for living a while longer.
        let group = format!("millrace-tail-{}", Uuid::new_v4());
        let mut subscription = self.log.subscribe(&group, &names).await?;
        loop {
            match subscription.next().await? {
                Signal::Assigned(assigned) => {
                    for at in assigned {
                        let offset = self.partitions.get(&at).map_or(0, |partition| partition.next);
                        subscription.start(&at, offset).await?;
                    }
                }
                Signal::Revoked(_) => {}
                Signal::Records(records) => {
                    for record in records {
                        self.take(&record).await?;
                        if self.args.limit.is_some_and(|limit| self.printed >= limit) {
                            return Ok(());
                        }
                    }
                }
            }
            if self.is_at_end() {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, record: &Record) -> anyhow::Result<()> {
        let Some(partition) = self.partitions.get_mut(&record.at) else { return Ok(()) };
        let is_behind_end = self.args.no_follow && record.offset >= partition.end;
        partition.next = record.offset + 1;
        if !is_behind_end && print_record(&self.args, &self.decoder, record).await? {
            self.printed += 1;
        }
        Ok(())
    }

    fn is_at_end(&self) -> bool {
        self.args.no_follow && self.partitions.values().all(|partition| partition.next >= partition.end)
    }
}

fn is_transient(error: &anyhow::Error) -> bool {
    error.downcast_ref::<EventLogError>().is_some_and(EventLogError::is_transient)
}

/// Prints one record; whether it was one that was asked for.
async fn print_record(args: &TailArgs, decoder: &EventDecoder, record: &Record) -> anyhow::Result<bool> {
    if args.sku.as_ref().is_some_and(|sku| record.key != sku.as_str().as_bytes()) {
        return Ok(false);
    }
    match decoder.decode(record).await {
        Ok(decoded) => print_event(args.json, record, &decoded)?,
        // Shown as it is: a tail is for looking at what is there.
        Err(error) if args.json => output::json(&serde_json::json!({
            "topic": record.at.topic,
            "partition": record.at.partition,
            "offset": record.offset,
            "key": String::from_utf8_lossy(&record.key),
            "error": error.to_string(),
        }))?,
        Err(error) => output::line(format!("{} offset {}: {error}", record.at, record.offset))?,
    }
    Ok(true)
}

fn print_event(json: bool, record: &Record, decoded: &DecodedEvent) -> anyhow::Result<()> {
    let envelope = &decoded.envelope;
    let time = DateTime::from_timestamp_millis(envelope.time).unwrap_or_default();
    let time = time.to_rfc3339_opts(SecondsFormat::Millis, true);
    if json {
        return output::json(&serde_json::json!({
            "topic": record.at.topic,
            "partition": record.at.partition,
            "offset": record.offset,
            "sequence": envelope.sequence,
            "id": envelope.id,
            "type": envelope.event_type,
            "time": time,
            "stream": envelope.subject,
            "version": envelope.stream_version,
            "position": envelope.position.to_string(),
            "correlation_id": envelope.correlation_id,
            "causation_id": envelope.causation_id,
            "data": decoded.event.to_json(),
        }));
    }
    let short = envelope.event_type.rsplit('.').next().unwrap_or_default();
    output::line(format!(
        "{time}  {}  #{}  {short}  {} v{}  {}",
        record.at,
        envelope.sequence,
        envelope.subject,
        envelope.stream_version,
        decoded.event.to_json()
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests;
