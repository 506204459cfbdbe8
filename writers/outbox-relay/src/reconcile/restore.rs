//! Events that only the topics have, as the rows that they were.

use std::collections::HashMap;

use event_log::{EventEnvelope, EventLogError, Record, SchemaRegistry, frame::unframe};
use event_store::{EventStore, RestoredRows, StoredEvent, StreamId};
use schemas::{OutcomeKind, StorePosition};

use super::log_walk::LogWalk;
use super::table_walk::TableFingerprints;
use crate::error::RelayError;

/// In the order of their places. Refused unless they continue the table: with no gap in any partition, and with nothing
/// appended since that would come between them.
pub(super) async fn rows(
    registry: &dyn SchemaRegistry,
    table: &TableFingerprints,
    log: &LogWalk,
) -> Result<Vec<StoredEvent>, RelayError> {
    let mut rows = Vec::new();
    for (partition, held) in &log.partitions {
        for (expected, (sequence, record)) in (table.stored(partition) + 1..).zip(&held.extra) {
            let refused =
                |problem: String| RelayError::NotRestorable { at: record.at.clone(), sequence: *sequence, problem };
            if *sequence != expected {
                return Err(refused(format!("sequence {expected} before it is in neither the table nor the topic")));
            }
            let row = row(registry, record).await?.map_err(refused)?;
            if row.position <= table.end {
                let problem = format!(
                    "its place {} is before the end of the table at {}: commands were taken since the table was restored",
                    row.position, table.end
                );
                return Err(refused(problem));
            }
            rows.push(row);
        }
    }
    rows.sort_by_key(|row| row.position);
    Ok(rows)
}

/// Without the outcomes of accepted commands whose event is nowhere: an outcome goes out on another topic than its
/// event, and of the two only it may have come there. Such a command is decided again when it is given again.
pub(super) async fn with_events(store: &dyn EventStore, mut rows: RestoredRows) -> Result<RestoredRows, RelayError> {
    let restored: HashMap<(&str, u64), StorePosition> =
        rows.events.iter().map(|row| ((row.stream.as_str(), row.version), row.position)).collect();
    let mut kept = Vec::with_capacity(rows.outcomes.len());
    for row in std::mem::take(&mut rows.outcomes) {
        let outcome = &row.outcome;
        let place = outcome.stream.as_deref().zip(outcome.version.filter(|version| *version > 0));
        let has_event = match place {
            Some((stream, version)) if outcome.outcome == OutcomeKind::Accepted => {
                let at = match restored.get(&(stream, version)) {
                    Some(position) => Some(*position),
                    None => {
                        let stream = StreamId::from_stored(stream.to_owned());
                        let event = store.read_stream(&stream, version, 1).await?.pop();
                        event.filter(|event| event.version == version).map(|event| event.position)
                    }
                };
                // Another event may have come to stand there: the position tells.
                let told = outcome.position.as_ref().and_then(|token| token.iter().next());
                at.is_some_and(|at| told.is_none_or(|told| told.position == at))
            }
            _ => true,
        };
        if has_event {
            kept.push(row);
        } else {
            tracing::warn!(command = %row.id, "the outcome is on the log, its event is not: not restored");
        }
    }
    rows.outcomes = kept;
    Ok(rows)
}

/// `Err` says why the record is no row of this build.
async fn row(registry: &dyn SchemaRegistry, record: &Record) -> Result<Result<StoredEvent, String>, EventLogError> {
    let envelope = match EventEnvelope::from_headers(&record.headers) {
        Ok(envelope) => envelope,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let (schema_id, body) = match unframe(&record.value) {
        Ok(framed) => framed,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let writer = registry.schema(schema_id).await?;
    let Some(schema) = writer.known() else {
        return Ok(Err(format!("this build does not know schema {schema_id} ({})", writer.name())));
    };
    Ok(Ok(StoredEvent {
        position: envelope.position,
        topic: record.at.topic.clone(),
        stream: StreamId::from_stored(envelope.subject),
        version: envelope.stream_version,
        key: envelope.partition_key,
        id: envelope.id,
        schema,
        body: body.to_vec(),
        time: envelope.time,
        correlation_id: envelope.correlation_id,
        causation_id: envelope.causation_id,
        // Who asked is not on the wire.
        actor: None,
        traceparent: envelope.traceparent,
    }))
}
