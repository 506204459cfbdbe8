//! From rows to the port's words.

use domain::StreamId;
use schemas::{Outcome, StorePosition};
use tokio_postgres::Row;
use uuid::Uuid;

use super::failure::Failure;
use crate::error::EventStoreError;
use crate::outcome_row::stored_digest;
use crate::rebuild::stored_schema;
use crate::store::{RecordIdentity, StoredEvent, StoredOffset, StoredOutcome};

/// A row of `select_events!`.
pub(super) fn stored_event(row: &Row) -> Result<StoredEvent, Failure> {
    let schema: &str = row.try_get(7)?;
    Ok(StoredEvent {
        position: position(row, 0, 1)?,
        topic: row.try_get(2)?,
        stream: StreamId::from_stored(row.try_get::<_, String>(3)?),
        version: unsigned(row, 4)?,
        key: row.try_get(5)?,
        id: row.try_get(6)?,
        schema: stored_schema(schema, row.try_get::<_, i32>(8)? as u32)?,
        body: row.try_get(9)?,
        time: row.try_get(10)?,
        correlation_id: row.try_get(11)?,
        causation_id: row.try_get(12)?,
        actor: row.try_get(13)?,
        traceparent: row.try_get(14)?,
    })
}

/// A row of (id, digest, outcome as text).
pub(super) fn stored_outcome(row: &Row) -> Result<(Uuid, StoredOutcome), Failure> {
    let id: Uuid = row.try_get(0)?;
    let damaged = |problem: String| EventStoreError::Damaged { what: format!("outcome of command {id}"), problem };
    let digest: &[u8] = row.try_get(1)?;
    let digest = stored_digest(digest).map_err(damaged)?;
    let outcome: Outcome =
        serde_json::from_str(row.try_get(2)?).map_err(|error: serde_json::Error| damaged(error.to_string()))?;
    Ok((id, StoredOutcome { digest, outcome }))
}

/// A row of (partition, next offset, offset and digest of the last record).
pub(super) fn stored_offset(row: &Row) -> Result<(u32, StoredOffset), Failure> {
    let partition = row.try_get::<_, i32>(0)? as u32;
    // Only ever compared: one that cannot be is none.
    let digest = row.try_get::<_, Option<&[u8]>>(3)?.and_then(|bytes| bytes.try_into().ok());
    let last = row.try_get::<_, Option<i64>>(2)?.zip(digest);
    let last = last.map(|(offset, digest)| RecordIdentity { offset: offset as u64, digest });
    Ok((partition, StoredOffset { next: unsigned(row, 1)?, last }))
}

/// An xid as text and a position.
pub(super) fn position(row: &Row, xid: usize, position: usize) -> Result<StorePosition, Failure> {
    Ok(StorePosition { xid: transaction_id(row, xid)?, position: unsigned(row, position)? })
}

pub(super) fn transaction_id(row: &Row, column: usize) -> Result<u64, Failure> {
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|_| {
        EventStoreError::Damaged { what: "transaction id".to_owned(), problem: format!("{text:?} is no number") }.into()
    })
}

/// The tables hold no negative numbers in these columns.
pub(super) fn unsigned(row: &Row, column: usize) -> Result<u64, Failure> {
    Ok(row.try_get::<_, i64>(column)? as u64)
}
