//! Stop 2: what a group of commands is decided on, read in one transaction.

use rusqlite::{OptionalExtension, Transaction, params};
use schemas::{RegionId, StorePosition};

use super::file::Abort;
use super::stored_outcome;
use crate::error::EventStoreError;
use crate::rebuild::{PastEvent, SNAPSHOT_STATE_VERSION, Snapshot, rebuild, stored_schema};
use crate::store::{LoadRequest, Loaded, LoadedStream};
use domain::StreamId;

pub(super) fn load(reader: &Transaction<'_>, request: &LoadRequest) -> Result<Loaded, Abort> {
    let mut loaded = Loaded::default();
    for stream in &request.streams {
        loaded.streams.insert(stream.clone(), load_stream(reader, stream)?);
    }
    for id in &request.command_ids {
        if let Some(outcome) = stored_outcome(reader, *id)? {
            loaded.outcomes.insert(*id, outcome);
        }
    }
    let mut region = reader.prepare_cached("SELECT region FROM warehouses WHERE warehouse = ?1")?;
    for warehouse in &request.warehouses {
        let found: Option<String> = region.query_row([warehouse.as_str()], |row| row.get(0)).optional()?;
        if let Some(text) = found {
            let region: RegionId = text.parse().map_err(|error: schemas::IdError| EventStoreError::Damaged {
                what: format!("region of warehouse {warehouse}"),
                problem: error.to_string(),
            })?;
            loaded.regions.insert(warehouse.clone(), region);
        }
    }
    Ok(loaded)
}

fn load_stream(reader: &Transaction<'_>, stream: &StreamId) -> Result<LoadedStream, Abort> {
    let snapshot = reader
        .prepare_cached("SELECT version, body FROM snapshots WHERE stream = ?1 AND state_version = ?2")?
        .query_row(params![stream.as_str(), SNAPSHOT_STATE_VERSION], |row| {
            Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Vec<u8>>(1)?))
        })
        .optional()?;
    let snapshot = snapshot.and_then(|(version, body)| Snapshot::read(stream.as_str(), version, &body));
    let from = snapshot.as_ref().map_or(1, |snapshot| snapshot.version);
    let mut select = reader.prepare_cached(
        "SELECT version, position, schema, schema_version, body FROM events
         WHERE stream = ?1 AND version >= ?2 ORDER BY version",
    )?;
    let mut rows = select.query(params![stream.as_str(), from as i64])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let schema = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
        events.push(PastEvent {
            version: row.get::<_, i64>(0)? as u64,
            position: StorePosition { xid: 0, position: row.get::<_, i64>(1)? as u64 },
            schema: stored_schema(schema, row.get(3)?)?,
            body: row.get(4)?,
        });
    }
    Ok(rebuild(stream, snapshot, events)?)
}
