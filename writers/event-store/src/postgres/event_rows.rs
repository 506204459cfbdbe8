//! Rows for the event table, as columns: one insert for a whole group.

use std::borrow::Cow;
use std::collections::HashSet;

use domain::StreamId;
use schemas::codec::EncodedEvent;
use schemas::{Context, Outcome, StorePosition};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::failure::Failure;
use super::rows::unsigned;
use crate::error::EventStoreError;
use crate::store::{DecidedCommand, NewEvent};

/// One row, with its place.
pub(super) struct EventRow {
    place: StorePosition,
    stream: String,
    version: u64,
    topic: &'static str,
    key: String,
    id: Uuid,
    schema: &'static str,
    schema_version: u32,
    body: Vec<u8>,
    time: i64,
    correlation_id: Option<String>,
    causation_id: Option<String>,
    actor: Option<String>,
    traceparent: Option<String>,
    /// A published outcome may be there already: see [`EventRow::of_outcome`].
    may_be_there: bool,
}

/// Rows as columns.
#[derive(Default)]
pub(super) struct EventRows {
    positions: Vec<i64>,
    streams: Vec<String>,
    versions: Vec<i64>,
    topics: Vec<&'static str>,
    keys: Vec<String>,
    ids: Vec<Uuid>,
    schemas: Vec<&'static str>,
    schema_versions: Vec<i32>,
    bodies: Vec<Vec<u8>>,
    times: Vec<i64>,
    correlation_ids: Vec<Option<String>>,
    causation_ids: Vec<Option<String>>,
    actors: Vec<Option<String>>,
    traceparents: Vec<Option<String>>,
    may_be_there: Vec<bool>,
}

// === impl EventRow ===

impl EventRow {
    pub(super) fn of_event(place: StorePosition, command: &DecidedCommand, version: u64, event: &NewEvent) -> Self {
        Self {
            place,
            stream: command.stream.as_str().to_owned(),
            version,
            topic: event.context.events_topic(),
            key: event.key.clone(),
            id: event.id,
            schema: event.schema.name,
            schema_version: event.schema.version,
            body: event.body.clone(),
            time: event.time,
            correlation_id: event.correlation_id.clone(),
            causation_id: event.causation_id.clone(),
            actor: event.actor.clone(),
            traceparent: event.traceparent.clone(),
            may_be_there: false,
        }
    }

    /// The row that publishes an outcome. A command id that is given again long after its outcome was forgotten has its
    /// first row there already, and that one stays.
    pub(super) fn of_outcome(
        place: StorePosition,
        command: &DecidedCommand,
        context: Context,
        outcome: &Outcome,
        encoded: EncodedEvent,
    ) -> Self {
        let sent_with = command.events.first();
        Self {
            place,
            stream: StreamId::outcome(command.id).to_string(),
            version: 1,
            topic: context.outcomes_topic(),
            key: command.outcome_key.clone(),
            id: command.id,
            schema: encoded.schema.name,
            schema_version: encoded.schema.version,
            body: encoded.body,
            time: command.received_at,
            correlation_id: sent_with.and_then(|event| event.correlation_id.clone()),
            causation_id: Some(outcome.id.to_string()),
            actor: None,
            traceparent: sent_with.and_then(|event| event.traceparent.clone()),
            may_be_there: true,
        }
    }
}

// === impl EventRows ===

impl EventRows {
    /// In the order of (stream, version): groups that share streams then take their locks in one order.
    pub(super) fn of(mut rows: Vec<EventRow>) -> Self {
        rows.sort_by(|left, right| (&left.stream, left.version).cmp(&(&right.stream, right.version)));
        let mut columns = Self::default();
        for row in rows {
            columns.positions.push(row.place.position as i64);
            columns.streams.push(row.stream);
            columns.versions.push(row.version as i64);
            columns.topics.push(row.topic);
            columns.keys.push(storable(&row.key).into_owned());
            columns.ids.push(row.id);
            columns.schemas.push(row.schema);
            columns.schema_versions.push(row.schema_version as i32);
            columns.bodies.push(row.body);
            columns.times.push(row.time);
            columns.correlation_ids.push(storable_option(row.correlation_id));
            columns.causation_ids.push(storable_option(row.causation_id));
            columns.actors.push(storable_option(row.actor));
            columns.traceparents.push(storable_option(row.traceparent));
            columns.may_be_there.push(row.may_be_there);
        }
        columns
    }

    pub(super) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// In the order of `insert_events`.
    pub(super) fn parameters(&self) -> [&(dyn ToSql + Sync); 14] {
        [
            &self.positions,
            &self.streams,
            &self.versions,
            &self.topics,
            &self.keys,
            &self.ids,
            &self.schemas,
            &self.schema_versions,
            &self.bodies,
            &self.times,
            &self.correlation_ids,
            &self.causation_ids,
            &self.actors,
            &self.traceparents,
        ]
    }

    /// A version that was taken in the meantime is not among the inserted rows.
    pub(super) fn check_inserted(&self, inserted: &[Row]) -> Result<(), Failure> {
        let mut done = HashSet::with_capacity(inserted.len());
        for row in inserted {
            done.insert(unsigned(row, 0)? as i64);
        }
        let taken = (0..self.positions.len())
            .find(|&index| !self.may_be_there[index] && !done.contains(&self.positions[index]));
        match taken {
            Some(index) => {
                let what = format!("version {} of stream {}", self.versions[index], self.streams[index]);
                Err(EventStoreError::Conflict { what }.into())
            }
            None => Ok(()),
        }
    }
}

/// Postgres keeps no NUL in a text; senders of hostile records may put one there, and it must not stop their topic.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

fn storable_option(text: Option<String>) -> Option<String> {
    text.map(|text| if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text })
}
