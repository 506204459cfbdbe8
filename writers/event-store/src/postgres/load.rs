//! Stop 2: what a group of commands is decided on. One repeatable-read transaction, sent in one go.

use std::collections::HashMap;

use domain::StreamId;
use schemas::RegionId;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::failure::Failure;
use super::pool::Session;
use super::rows::{position, stored_outcome, unsigned};
use crate::error::EventStoreError;
use crate::rebuild::{PastEvent, SNAPSHOT_STATE_VERSION, Snapshot, rebuild, stored_schema};
use crate::store::{LoadRequest, Loaded};

/// Rows of one stream.
#[derive(Default)]
struct StreamRows {
    snapshot: Option<Snapshot>,
    events: Vec<PastEvent>,
    /// Has a snapshot that does not read: the events before it are missing here.
    is_unreadable: bool,
}

/// A state version that no snapshot has.
const NO_SNAPSHOT: i32 = -1;

pub(super) async fn load(session: &Session, request: &LoadRequest) -> Result<Loaded, Failure> {
    load_between(session, request, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "COMMIT").await
}

/// As [`load`], in the transaction that is open.
pub(super) async fn load_within(session: &Session, request: &LoadRequest) -> Result<Loaded, Failure> {
    load_between(session, request, "", "").await
}

async fn load_between(session: &Session, request: &LoadRequest, begin: &str, end: &str) -> Result<Loaded, Failure> {
    let Session { statements, .. } = session;
    let client = session.client();
    let streams: Vec<&str> = request.streams.iter().map(StreamId::as_str).collect();
    let warehouses: Vec<&str> = request.warehouses.iter().map(|warehouse| warehouse.as_str()).collect();
    let state_version = SNAPSHOT_STATE_VERSION as i32;

    // Polled in this order, so sent in this order, without waiting in between. The events come with the snapshots'
    // versions in the same view, so the two fit together.
    let (begun, snapshots, events, outcomes, regions, ended) = futures::join!(
        client.batch_execute(begin),
        query_unless(streams.is_empty(), client, &statements.load_snapshots, [&streams, &state_version]),
        query_unless(streams.is_empty(), client, &statements.load_events, [&streams, &state_version]),
        query_unless(request.command_ids.is_empty(), client, &statements.outcomes, [&request.command_ids]),
        query_unless(warehouses.is_empty(), client, &statements.regions, [&warehouses]),
        client.batch_execute(end),
    );
    begun?;
    let (snapshots, events, outcomes, regions) = (snapshots?, events?, outcomes?, regions?);
    ended?;

    let mut loaded = Loaded { run: session.run, ..Loaded::default() };
    let mut rows = stream_rows(&snapshots, &events)?;
    let unreadable: Vec<&str> = rows.iter().filter(|(_, rows)| rows.is_unreadable).map(|(stream, _)| *stream).collect();
    // No snapshot is of this state version, so whole streams. That they are read a little later than the rest does no
    // harm: the append notices whoever was faster.
    let whole = query_unless(unreadable.is_empty(), client, &statements.load_events, [&unreadable, &NO_SNAPSHOT]);
    let whole = whole.await?;
    for stream in unreadable {
        rows.remove(stream);
    }
    rows.extend(stream_rows(&[], &whole)?);
    for stream in &request.streams {
        let StreamRows { snapshot, events, .. } = rows.remove(stream.as_str()).unwrap_or_default();
        loaded.streams.insert(stream.clone(), rebuild(stream, snapshot, events)?);
    }
    for row in &outcomes {
        let (id, outcome) = stored_outcome(row)?;
        loaded.outcomes.insert(id, outcome);
    }
    let regions = regions_by_name(&regions)?;
    for warehouse in &request.warehouses {
        if let Some(region) = regions.get(warehouse.as_str()) {
            loaded.regions.insert(warehouse.clone(), region.clone());
        }
    }
    Ok(loaded)
}

/// The rows of a query, or none of a query that would have nothing to ask.
pub(super) async fn query_unless<const N: usize>(
    nothing_asked: bool,
    client: &Client,
    statement: &Statement,
    parameters: [&(dyn ToSql + Sync); N],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    if nothing_asked { Ok(Vec::new()) } else { client.query(statement, &parameters).await }
}

fn stream_rows<'row>(snapshots: &'row [Row], events: &'row [Row]) -> Result<HashMap<&'row str, StreamRows>, Failure> {
    let mut streams: HashMap<&str, StreamRows> = HashMap::new();
    for row in snapshots {
        let stream: &str = row.try_get(0)?;
        let snapshot = Snapshot::read(stream, unsigned(row, 1)?, row.try_get(2)?);
        streams.insert(stream, StreamRows { is_unreadable: snapshot.is_none(), snapshot, events: Vec::new() });
    }
    for row in events {
        let schema: &str = row.try_get(4)?;
        let event = PastEvent {
            version: unsigned(row, 1)?,
            position: position(row, 2, 3)?,
            schema: stored_schema(schema, row.try_get::<_, i32>(5)? as u32)?,
            body: row.try_get(6)?,
        };
        streams.entry(row.try_get(0)?).or_default().events.push(event);
    }
    Ok(streams)
}

/// Regions by the name of the warehouse.
pub(super) fn regions_by_name(rows: &[Row]) -> Result<HashMap<&str, RegionId>, Failure> {
    let mut regions = HashMap::with_capacity(rows.len());
    for row in rows {
        let (warehouse, region): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        let region = region.parse().map_err(|error: schemas::IdError| EventStoreError::Damaged {
            what: format!("region of warehouse {warehouse}"),
            problem: error.to_string(),
        })?;
        regions.insert(warehouse, region);
    }
    Ok(regions)
}
