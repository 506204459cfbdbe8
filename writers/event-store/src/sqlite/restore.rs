//! Rows that come back from the log, at the places that they had.

use rusqlite::{Transaction, params};
use schemas::StorePosition;

use super::append::{change_timer, conflict};
use super::file::Abort;
use super::relay::table_end;
use crate::error::EventStoreError;
use crate::outcome_row::outcome_text;
use crate::store::RestoredRows;

pub(super) fn restore(transaction: &Transaction<'_>, rows: &RestoredRows) -> Result<(), Abort> {
    if let Some(behind) = rows.behind {
        let end = StorePosition { xid: 0, position: table_end(transaction)? };
        if end > behind {
            return Err(Abort::Refused(EventStoreError::TableWentOn { behind, end }));
        }
    }
    // A place or a version that is taken inserts no row.
    let mut insert = transaction.prepare_cached(
        "INSERT OR IGNORE INTO events (position, stream, version, id, topic, key, schema, schema_version, body, time,
                                       correlation_id, causation_id, actor, traceparent)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?;
    for event in &rows.events {
        let inserted = insert.execute(params![
            event.position.position as i64,
            event.stream.as_str(),
            event.version as i64,
            event.id.as_bytes(),
            event.topic,
            event.key,
            event.schema.name,
            event.schema.version,
            event.body,
            event.time,
            event.correlation_id,
            event.causation_id,
            event.actor,
            event.traceparent,
        ])?;
        if inserted == 0 {
            let (position, version) = (event.position, event.version);
            return Err(conflict(format!("position {position} or version {version} of stream {}", event.stream)));
        }
    }
    for claim in &rows.claims {
        // A warehouse that is known stays in its region.
        transaction.execute(
            "INSERT OR IGNORE INTO warehouses (warehouse, region) VALUES (?1, ?2)",
            [claim.warehouse.as_str(), claim.region.as_str()],
        )?;
    }
    for change in &rows.timers {
        change_timer(transaction, change)?;
    }
    for restored in &rows.outcomes {
        // The log does not tell the body: a digest of no bytes.
        transaction.execute(
            "INSERT OR IGNORE INTO commands (id, digest, outcome, received_at) VALUES (?1, x'', ?2, ?3)",
            params![restored.id.as_bytes(), outcome_text(restored.id, &restored.outcome)?, restored.received_at],
        )?;
    }
    Ok(())
}
