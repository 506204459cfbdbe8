//! Dead letters in a SQLite file: parked and discarded events, requests with their answers, the mirror's mark. One
//! implementation for every read model that lives in such a file.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, Row, ToSql, Transaction, params};
use schemas::{Context, StorePosition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checkpoint::PartitionRef;
use crate::dead_letters::{
    DeadLetterAnswer, DeadLetterRequest, DeadLetters, DiscardedEvent, KEPT_ANSWERS, MAX_REQUESTS, Resolution, Resolved,
};
use crate::error::ReadModelError;
use crate::parked::{FOREIGN_KEY, ParkedEvent, ParkedKey, ParkedPlace};
use crate::read_model::Generation;
use crate::sqlite::ledger::{self, read, stored};
use crate::sqlite::{Abort, SqliteFile};

/// Layout 2 of every file.
pub(crate) const TABLES: &str = include_str!("dead_letters.sql");

/// A read model that lives in a SQLite file.
#[async_trait]
pub(crate) trait InSqlite: Send + Sync + 'static {
    const NAME: &'static str;
    const CONTEXTS: &'static [Context];

    /// The file, to read from; `Rebuilding` while there is none.
    async fn file(&self) -> Result<SqliteFile, ReadModelError>;

    /// The file, to write into.
    async fn file_to_write(&self) -> Result<SqliteFile, ReadModelError>;

    /// The generation that this process writes.
    fn written_generation(&self) -> Option<Arc<Generation>>;

    /// The generation that it tells of while it writes none; `None`: of what serves.
    fn bound_generation(&self) -> Option<u32> {
        None
    }
}

/// `generation`, `context`, `partition`: with what every statement here begins.
macro_rules! place {
    ($generation:expr, $partition:expr $(, $value:expr)*) => {
        params![$generation.number, $partition.context.as_str(), $partition.partition $(, $value)*]
    };
}

const EVENT: &str = "key, sequence, offset, xid, position, headers, value, reason, parked_at";

#[async_trait]
impl<T: InSqlite> DeadLetters for T {
    async fn partitions(&self) -> Result<Vec<PartitionRef>, ReadModelError> {
        let count = reading(self, |_, generation| Ok(generation.partitions)).await?;
        Ok(T::CONTEXTS
            .iter()
            .flat_map(|&context| (0..count).map(move |partition| PartitionRef { context, partition }))
            .collect())
    }

    async fn parked(
        &self,
        partition: PartitionRef,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadModelError> {
        reading(self, move |transaction, generation| {
            let (sequence, offset) = behind(after);
            let place = place!(generation, partition, sequence, offset, rows(limit));
            let statement = format!(
                "SELECT {EVENT} FROM parked_events
                 WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND (sequence, offset) > (?4, ?5)
                 ORDER BY sequence, offset LIMIT ?6"
            );
            all(transaction, &statement, place, parked_of)
        })
        .await
    }

    async fn parked_of(
        &self,
        partition: PartitionRef,
        key: &str,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadModelError> {
        let key = key.to_owned();
        reading(self, move |transaction, generation| {
            let (sequence, offset) = behind(after);
            let place = place!(generation, partition, sequence, offset, rows(limit), key);
            let statement = format!(
                "SELECT {EVENT} FROM parked_events
                 WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND (sequence, offset) > (?4, ?5)
                     AND key = ?7
                 ORDER BY sequence, offset LIMIT ?6"
            );
            all(transaction, &statement, place, parked_of)
        })
        .await
    }

    async fn parked_keys(
        &self,
        partition: PartitionRef,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ParkedKey>, ReadModelError> {
        let after = after.map(str::to_owned);
        reading(self, move |transaction, generation| {
            // By sequence first: in a topic that was made anew a later event may have the lower offset.
            let place = place!(generation, partition, after, rows(limit));
            all(
                transaction,
                "SELECT first.key, waiting.events, first.sequence, first.offset, first.reason, first.parked_at
                 FROM (
                     SELECT key, count(*) AS events FROM parked_events
                     WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND (?4 IS NULL OR key > ?4)
                     GROUP BY key ORDER BY key LIMIT ?5
                 ) AS waiting
                 JOIN parked_events AS first
                     ON first.generation = ?1 AND first.context = ?2 AND first.partition = ?3
                     AND (first.sequence, first.offset) = (
                         SELECT sequence, offset FROM parked_events
                         WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND key = waiting.key
                         ORDER BY sequence, offset LIMIT 1
                     )
                 ORDER BY first.key",
                place,
                |row| {
                    Ok(ParkedKey {
                        key: row.get(0)?,
                        events: read(row.get(1)?),
                        first: ParkedPlace { sequence: read(row.get(2)?), offset: read(row.get(3)?) },
                        reason: row.get(4)?,
                        parked_at: row.get(5)?,
                    })
                },
            )
        })
        .await
    }

    async fn discarded(
        &self,
        partition: PartitionRef,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<DiscardedEvent>, ReadModelError> {
        reading(self, move |transaction, generation| {
            let (sequence, offset) = behind(after);
            let place = place!(generation, partition, sequence, offset, rows(limit));
            let statement = format!(
                "SELECT {EVENT}, note FROM discarded_events
                 WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND (sequence, offset) > (?4, ?5)
                 ORDER BY sequence, offset LIMIT ?6"
            );
            all(transaction, &statement, place, |row| {
                Ok(DiscardedEvent { event: parked_of(row)?, note: from_json(row, 9)? })
            })
        })
        .await
    }

    async fn request_dead_letter(
        &self,
        partition: PartitionRef,
        request: &DeadLetterRequest,
    ) -> Result<(), ReadModelError> {
        let request = request.clone();
        writing(self, move |transaction, generation| {
            generation.check_partition(partition, T::CONTEXTS)?;
            let waiting: i64 = transaction
                .prepare_cached(
                    "SELECT count(*) FROM dead_letter_requests
                     WHERE generation = ?1 AND context = ?2 AND partition = ?3",
                )?
                .query_row(place!(generation, partition), |row| row.get(0))?;
            if waiting >= MAX_REQUESTS as i64 {
                let (name, waiting) = (generation.to_string(), MAX_REQUESTS);
                return Err(ReadModelError::TooManyRequests { name, partition, waiting }.into());
            }
            let id = request.id.to_string();
            transaction
                .prepare_cached(
                    "INSERT INTO dead_letter_requests (generation, context, partition, id, request)
                     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
                )?
                .execute(place!(generation, partition, id, json(generation, &request)?))?;
            Ok(())
        })
        .await
    }

    async fn dead_letter_requests(&self, partition: PartitionRef) -> Result<Vec<DeadLetterRequest>, ReadModelError> {
        reading(self, move |transaction, generation| {
            all(
                transaction,
                "SELECT request FROM dead_letter_requests
                 WHERE generation = ?1 AND context = ?2 AND partition = ?3 ORDER BY number",
                place!(generation, partition),
                |row| from_json(row, 0),
            )
        })
        .await
    }

    async fn dead_letter_answers(
        &self,
        partition: PartitionRef,
        limit: usize,
    ) -> Result<Vec<DeadLetterAnswer>, ReadModelError> {
        reading(self, move |transaction, generation| {
            all(
                transaction,
                "SELECT answer FROM dead_letter_answers
                 WHERE generation = ?1 AND context = ?2 AND partition = ?3 ORDER BY number DESC LIMIT ?4",
                place!(generation, partition, rows(limit)),
                |row| from_json(row, 0),
            )
        })
        .await
    }

    async fn mirrored(&self, partition: PartitionRef) -> Result<Option<ParkedPlace>, ReadModelError> {
        let found = reading(self, move |transaction, generation| {
            all(
                transaction,
                "SELECT sequence, offset FROM mirrored WHERE generation = ?1 AND context = ?2 AND partition = ?3",
                place!(generation, partition),
                |row| Ok(ParkedPlace { sequence: read(row.get(0)?), offset: read(row.get(1)?) }),
            )
        });
        Ok(found.await?.pop())
    }

    async fn set_mirrored(&self, partition: PartitionRef, place: ParkedPlace) -> Result<(), ReadModelError> {
        writing(self, move |transaction, generation| {
            transaction
                .prepare_cached(
                    "INSERT INTO mirrored (generation, context, partition, sequence, offset)
                     VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT DO UPDATE SET sequence = excluded.sequence, offset = excluded.offset
                     WHERE (excluded.sequence, excluded.offset) > (sequence, offset)",
                )?
                .execute(place!(generation, partition, stored(place.sequence), stored(place.offset)))?;
            Ok(())
        })
        .await
    }
}

// === what the owner's batch does ===

/// Appends events to the parked ones. One that is there stays: a partition that is looked through again may meet a
/// foreign record twice.
pub(super) fn park(
    connection: &Connection,
    generation: &Generation,
    partition: PartitionRef,
    events: &[ParkedEvent],
) -> Result<(), Abort> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO parked_events
             (generation, context, partition, sequence, key, offset, xid, position, headers, value, reason, parked_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
         ON CONFLICT DO NOTHING",
    )?;
    for event in events {
        insert.execute(place!(
            generation,
            partition,
            stored(event.sequence),
            event.key,
            stored(event.offset),
            stored(event.position.xid),
            stored(event.position.position),
            json(generation, &event.headers)?,
            event.value,
            event.reason,
            event.parked_at
        ))?;
    }
    Ok(())
}

/// Takes resolved events out, records those that were discarded, and answers requests.
pub(super) fn resolve(
    connection: &Connection,
    generation: &Generation,
    partition: PartitionRef,
    resolution: &Resolution,
) -> Result<(), Abort> {
    let mut record = connection.prepare_cached(
        "INSERT OR REPLACE INTO discarded_events
         SELECT generation, context, partition, sequence, key, offset, xid, position, headers, value, reason, parked_at, ?6
         FROM parked_events
         WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND sequence = ?4 AND offset = ?5",
    )?;
    for (Resolved { place, .. }, note) in &resolution.discarded {
        let note = json(generation, note)?;
        record.execute(place!(generation, partition, stored(place.sequence), stored(place.offset), note))?;
    }
    let mut remove = connection.prepare_cached(
        "DELETE FROM parked_events
         WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND sequence = ?4 AND offset = ?5",
    )?;
    for Resolved { place, .. } in resolution.redriven.iter().chain(resolution.discarded.iter().map(|(event, _)| event))
    {
        remove.execute(place!(generation, partition, stored(place.sequence), stored(place.offset)))?;
    }
    let mut update = connection.prepare_cached(
        "UPDATE parked_events SET reason = ?6
         WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND sequence = ?4 AND offset = ?5",
    )?;
    for event in &resolution.kept {
        update.execute(place!(generation, partition, stored(event.sequence), stored(event.offset), event.reason))?;
    }
    for answer in &resolution.answers {
        let id = answer.request.id.to_string();
        let waited = connection
            .prepare_cached(
                "DELETE FROM dead_letter_requests
                 WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND id = ?4",
            )?
            .execute(place!(generation, partition, id))?;
        if waited == 0 {
            continue;
        }
        connection
            .prepare_cached(
                "INSERT INTO dead_letter_answers (generation, context, partition, answer) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(place!(generation, partition, json(generation, answer)?))?;
        connection
            .prepare_cached(
                "DELETE FROM dead_letter_answers
                 WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND number <= (
                     SELECT number FROM dead_letter_answers
                     WHERE generation = ?1 AND context = ?2 AND partition = ?3
                     ORDER BY number DESC LIMIT 1 OFFSET ?4
                 )",
            )?
            .execute(place!(generation, partition, KEPT_ANSWERS as i64))?;
    }
    Ok(())
}

pub(crate) fn is_parked(
    connection: &Connection,
    generation: &Generation,
    partition: PartitionRef,
    key: &str,
) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM parked_events WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND key = ?4",
        )?
        .exists(place!(generation, partition, key))
}

/// How many records that are nobody's are kept.
pub(super) fn foreign_records(
    connection: &Connection,
    generation: &Generation,
    partition: PartitionRef,
) -> rusqlite::Result<u64> {
    connection
        .prepare_cached(
            "SELECT count(*) FROM parked_events
             WHERE generation = ?1 AND context = ?2 AND partition = ?3 AND key = ?4",
        )?
        .query_row(place!(generation, partition, FOREIGN_KEY), |row| Ok(read(row.get(0)?)))
}

// === statements ===

async fn reading<T: InSqlite, A: Send + 'static>(
    model: &T,
    work: impl FnOnce(&Transaction<'_>, &Generation) -> Result<A, Abort> + Send + 'static,
) -> Result<A, ReadModelError> {
    let (written, bound) = (model.written_generation(), model.bound_generation());
    let file = model.file().await?;
    file.blocking(move |file| {
        file.read(|transaction| {
            let generation = ledger::own_or_serving(transaction, T::NAME, written.as_deref(), bound)?;
            work(transaction, &generation)
        })
    })
    .await
}

async fn writing<T: InSqlite>(
    model: &T,
    work: impl FnOnce(&Transaction<'_>, &Generation) -> Result<(), Abort> + Send + 'static,
) -> Result<(), ReadModelError> {
    let (written, bound) = (model.written_generation(), model.bound_generation());
    let file = model.file_to_write().await?;
    file.blocking(move |file| {
        file.write(|transaction| {
            let generation = ledger::own_or_serving(transaction, T::NAME, written.as_deref(), bound)?;
            work(transaction, &generation)
        })
    })
    .await
}

fn all<A>(
    connection: &Connection,
    statement: &str,
    values: &[&dyn ToSql],
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<A>,
) -> Result<Vec<A>, Abort> {
    Ok(connection.prepare_cached(statement)?.query_map(values, row)?.collect::<rusqlite::Result<_>>()?)
}

/// Before the first place: sequences and offsets are never negative.
fn behind(after: Option<ParkedPlace>) -> (i64, i64) {
    after.map_or((-1, -1), |place| (stored(place.sequence), stored(place.offset)))
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn parked_of(row: &Row<'_>) -> rusqlite::Result<ParkedEvent> {
    Ok(ParkedEvent {
        key: row.get(0)?,
        sequence: read(row.get(1)?),
        offset: read(row.get(2)?),
        position: StorePosition { xid: read(row.get(3)?), position: read(row.get(4)?) },
        headers: from_json(row, 5)?,
        value: row.get(6)?,
        reason: row.get(7)?,
        parked_at: row.get(8)?,
    })
}

fn json(generation: &Generation, value: &impl Serialize) -> Result<String, ReadModelError> {
    serde_json::to_string(value)
        .map_err(|error| ReadModelError::Permanent { name: generation.to_string(), problem: error.to_string() })
}

fn from_json<A: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<A> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}
