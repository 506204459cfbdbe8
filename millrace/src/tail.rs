//! `millrace tail`: events as they stand in the log, decoded.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat};
use event_log::{DecodedEvent, EventDecoder, Record, Signal, TopicPartition};
use schemas::Context;
use uuid::Uuid;

use crate::cli::{TailArgs, TailFrom};
use crate::exit::Exit;
use crate::output;
use crate::stores;

/// Where a partition is read to.
struct Partition {
    next: u64,
    /// The log's end when the command began.
    end: u64,
}

pub async fn run(args: TailArgs) -> anyhow::Result<Exit> {
    match print(args).await {
        Err(error) if output::is_closed_pipe(&error) => Ok(Exit::Done),
        result => result,
    }
}

async fn print(args: TailArgs) -> anyhow::Result<Exit> {
    let log = stores::event_log_to_read(&args.data, &args.event_log).await?;
    let decoder = EventDecoder::new(stores::registry(&args.event_log)?);
    let topics: Vec<String> = if args.topic.is_empty() {
        Context::ALL.iter().map(|context| context.events_topic().to_owned()).collect()
    } else {
        args.topic.clone()
    };
    let mut partitions = HashMap::new();
    for topic in &topics {
        for ends in log.ends(topic).await? {
            let next = if args.from == TailFrom::Beginning { ends.first } else { ends.next };
            partitions.insert(TopicPartition::new(topic.clone(), ends.partition), Partition { next, end: ends.next });
        }
    }
    // A group of its own: a tail takes no partition away from anybody.
    let group = format!("millrace-tail-{}", Uuid::new_v4());
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut subscription = log.subscribe(&group, &names).await?;
    let mut printed = 0_u64;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        if args.no_follow && partitions.values().all(|partition| partition.next >= partition.end) {
            return Ok(Exit::Done);
        }
        let signal = tokio::select! {
            signal = subscription.next() => signal?,
            _ = &mut interrupted => return Ok(Exit::Done),
        };
        match signal {
            Signal::Assigned(assigned) => {
                for at in assigned {
                    let offset = partitions.get(&at).map_or(0, |partition| partition.next);
                    subscription.start(&at, offset).await?;
                }
            }
            Signal::Revoked(_) => {}
            Signal::Records(records) => {
                for record in records {
                    let Some(partition) = partitions.get_mut(&record.at) else { continue };
                    partition.next = record.offset + 1;
                    if args.no_follow && record.offset >= partition.end {
                        continue;
                    }
                    if print_record(&args, &decoder, &record).await? {
                        printed += 1;
                    }
                    if args.limit.is_some_and(|limit| printed >= limit) {
                        return Ok(Exit::Done);
                    }
                }
            }
        }
    }
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
