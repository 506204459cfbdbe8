//! Stop 5 on SQLite: the rows in their order, and how far the relay is.

use std::collections::HashMap;

use domain::StreamId;
use resilience::{Guard, guard};
use rusqlite::{OptionalExtension, Transaction, params};
use schemas::StorePosition;

use super::file::Abort;
use super::{EVENT_COLUMNS, stored_event};
use crate::error::EventStoreError;
use crate::store::{MOST_COUNTED, RelayCursor, RelayLease, StoredEvent};

/// Takes a higher epoch, and finds the cursor.
pub(super) fn lease(transaction: &Transaction<'_>) -> Result<RelayLease, Abort> {
    transaction.execute("UPDATE relay SET epoch = epoch + 1", [])?;
    let (epoch, position) = epoch_and_position(transaction)?;
    let end = table_end(transaction)?;
    if position > end {
        let [end, cursor] = [end, position].map(|position| StorePosition { xid: 0, position });
        return Err(EventStoreError::TableEndsBefore { end, cursor }.into());
    }
    Ok(RelayLease { epoch, cursor: cursor(transaction)? })
}

/// The cursor as it was last saved.
pub(super) fn cursor(reader: &Transaction<'_>) -> Result<RelayCursor, Abort> {
    let (_, position) = epoch_and_position(reader)?;
    let sequences = reader
        .prepare("SELECT topic, partition, sequence FROM relay_sequences")?
        .query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get::<_, i64>(2)? as u64)))?
        .collect::<rusqlite::Result<HashMap<_, _>>>()?;
    Ok(RelayCursor { position: StorePosition { xid: 0, position }, sequences })
}

pub(super) fn read_committed(
    reader: &Transaction<'_>,
    cursor: StorePosition,
    limit: usize,
) -> Result<Vec<StoredEvent>, Abort> {
    let mut select = reader.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS} FROM events WHERE position > ?1 ORDER BY position LIMIT ?2"
    ))?;
    let mut rows = select.query(params![cursor.position as i64, limit as i64])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(stored_event(row)?);
    }
    Ok(events)
}

pub(super) fn save_cursor(transaction: &Transaction<'_>, epoch: u64, cursor: &RelayCursor) -> Result<(), Abort> {
    let (current, _) = epoch_and_position(transaction)?;
    if current != epoch && guard::holds(Guard::RelayEpoch) {
        return Err(EventStoreError::RelaySuperseded { epoch, current }.into());
    }
    transaction
        .prepare_cached("UPDATE relay SET position = max(position, ?1)")?
        .execute([cursor.position.position as i64])?;
    let mut save = transaction.prepare_cached(
        "INSERT INTO relay_sequences (topic, partition, sequence) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET sequence = max(sequence, excluded.sequence)",
    )?;
    for ((topic, partition), sequence) in &cursor.sequences {
        save.execute(params![topic, partition, *sequence as i64])?;
    }
    Ok(())
}

pub(super) fn reset_cursor(transaction: &Transaction<'_>, epoch: u64, cursor: &RelayCursor) -> Result<(), Abort> {
    let (current, _) = epoch_and_position(transaction)?;
    if current != epoch {
        return Err(EventStoreError::RelaySuperseded { epoch, current }.into());
    }
    transaction.execute(
        "UPDATE relay SET published = max(published, position), position = ?1",
        [cursor.position.position as i64],
    )?;
    transaction.execute("DELETE FROM relay_sequences", [])?;
    save_cursor(transaction, epoch, cursor)
}

pub(super) fn read_stream(
    reader: &Transaction<'_>,
    stream: &StreamId,
    from_version: u64,
    limit: usize,
) -> Result<Vec<StoredEvent>, Abort> {
    let mut select = reader.prepare_cached(&format!(
        "SELECT {EVENT_COLUMNS} FROM events WHERE stream = ?1 AND version >= ?2 ORDER BY version LIMIT ?3"
    ))?;
    let mut rows = select.query(params![stream.as_str(), from_version as i64, limit as i64])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(stored_event(row)?);
    }
    Ok(events)
}

/// Rows after the cursor, [`MOST_COUNTED`] at most, and the age of the oldest in milliseconds.
pub(super) fn lag(reader: &Transaction<'_>, now: i64) -> Result<(u64, Option<i64>), Abort> {
    let (_, position) = epoch_and_position(reader)?;
    let waiting = rows_after(reader, position)?;
    let oldest: Option<i64> = reader
        .prepare_cached("SELECT time FROM events WHERE position > ?1 ORDER BY position LIMIT 1")?
        .query_row([position as i64], |row| row.get(0))
        .optional()?;
    Ok((waiting, oldest.map(|time| (now - time).max(0))))
}

/// Rows after the highest place that was ever published, [`MOST_COUNTED`] at most.
pub(super) fn unpublished(reader: &Transaction<'_>) -> rusqlite::Result<u64> {
    let (_, position) = epoch_and_position(reader)?;
    rows_after(reader, published_again_to(reader)?.unwrap_or(position))
}

/// The highest place that was ever published, while the cursor is behind it.
pub(super) fn published_again_to(reader: &Transaction<'_>) -> rusqlite::Result<Option<u64>> {
    let [position, published]: [u64; 2] = reader
        .prepare_cached("SELECT position, published FROM relay")?
        .query_row([], |row| Ok([row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64]))?;
    // A table that ends before it lost rows: what is appended then may never come to count.
    let is_there = published > position && published <= table_end(reader)?;
    Ok(is_there.then_some(published))
}

fn rows_after(reader: &Transaction<'_>, position: u64) -> rusqlite::Result<u64> {
    reader
        .prepare_cached("SELECT count(*) FROM (SELECT 1 FROM events WHERE position > ?1 LIMIT ?2)")?
        .query_row([position as i64, MOST_COUNTED as i64], |row| Ok(row.get::<_, i64>(0)? as u64))
}

fn epoch_and_position(reader: &Transaction<'_>) -> rusqlite::Result<(u64, u64)> {
    reader
        .prepare_cached("SELECT epoch, position FROM relay")?
        .query_row([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))
}

pub(super) fn table_end(reader: &Transaction<'_>) -> rusqlite::Result<u64> {
    reader.query_row("SELECT coalesce(max(position), 0) FROM events", [], |row| Ok(row.get::<_, i64>(0)? as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::file::EventFile;

    /// As a restored file or a hand may leave it: nothing may hide what is appended then.
    #[test]
    fn a_published_place_beyond_the_table_s_end_hides_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = EventFile::open(&folder.path().join("events.db")).unwrap();
        let insert =
            "INSERT INTO events (position, stream, version, id, topic, key, schema, schema_version, body, time)
                      VALUES (?1, 'a', ?1, x'', 't', 'k', 's', 1, x'', 0)";
        let found = file.write(|transaction| {
            for position in 1..=5 {
                transaction.execute(insert, [position])?;
            }
            transaction.execute("UPDATE relay SET position = 2, published = 6", [])?;
            let beyond = unpublished(transaction)?;
            transaction.execute("UPDATE relay SET published = 5", [])?;
            let at_the_end = unpublished(transaction)?;
            transaction.execute("UPDATE relay SET published = 1", [])?;
            Ok([beyond, at_the_end, unpublished(transaction)?])
        });
        assert_eq!(found.unwrap(), [3, 0, 3]);
    }
}
