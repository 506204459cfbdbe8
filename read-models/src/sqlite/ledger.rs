//! What every SQLite read model keeps beside its rows: generations, checkpoints with their epochs, heads. The checks
//! that fence a write (invariants P2 and P3) are here, once; parked events are in [`dead_letters`].

use std::collections::HashSet;

use resilience::{Guard, guard};
use rusqlite::{Connection, OptionalExtension, Row, params};
use schemas::{Context, PositionToken, StorePosition};

use crate::checkpoint::{Checkpoint, PartitionRef};
use crate::error::ReadModelError;
use crate::read_model::{Batch, Claimed, Generation, Head};
use crate::sqlite::{Abort, dead_letters};
use crate::status::{PartitionStatus, ReadModelStatus};

pub(crate) const TABLES: &str = include_str!("ledger.sql");

// === generations ===

/// Creates the generation where it is missing; refuses one that was built otherwise. The first one is served.
pub(crate) fn prepare(connection: &Connection, wanted: &Generation) -> Result<(), Abort> {
    match generation(connection, &wanted.name, wanted.number)? {
        Some(found) => Ok(found.check(wanted)?),
        None => {
            connection.execute(
                "INSERT INTO generations (number, fold_version, partitions, serving)
                 VALUES (?1, ?2, ?3, NOT EXISTS (SELECT 1 FROM generations WHERE serving))",
                params![wanted.number, wanted.fold_version, wanted.partitions],
            )?;
            Ok(())
        }
    }
}

/// The generation that reads are answered from.
pub(crate) fn serving(connection: &Connection, name: &str) -> Result<Generation, Abort> {
    let number = connection
        .prepare_cached("SELECT number FROM generations WHERE serving")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let found = match number {
        Some(number) => generation(connection, name, number)?,
        None => None,
    };
    Ok(found.ok_or_else(|| ReadModelError::Rebuilding { name: name.to_owned() })?)
}

/// What a store tells of: the generation that it writes, or the one that it is bound to, or else what serves.
pub(crate) fn own_or_serving(
    connection: &Connection,
    name: &str,
    written: Option<&Generation>,
    bound: Option<u32>,
) -> Result<Generation, Abort> {
    match (written, bound) {
        (Some(written), _) => Ok(written.clone()),
        (None, Some(number)) => Ok(generation(connection, name, number)?.ok_or_else(|| {
            let there = "no such rows".to_owned();
            ReadModelError::UnknownGeneration { name: name.to_owned(), wanted: number, there }
        })?),
        (None, None) => serving(connection, name),
    }
}

pub(crate) fn generation(connection: &Connection, name: &str, number: u32) -> rusqlite::Result<Option<Generation>> {
    connection
        .prepare_cached("SELECT fold_version, partitions FROM generations WHERE number = ?1")?
        .query_row([number], |row| {
            Ok(Generation { name: name.to_owned(), number, fold_version: row.get(0)?, partitions: row.get(1)? })
        })
        .optional()
}

// === checkpoints ===

/// Takes a partition over. `now` in microseconds since 1970 keeps the epoch above those of owners that a lost disk or
/// a deleted file has forgotten; the order of owners never rests on it.
pub(crate) fn claim(
    connection: &Connection,
    generation: &Generation,
    partition: PartitionRef,
    now: i64,
) -> Result<Claimed, Abort> {
    let place = params![generation.number, partition.context.as_str(), partition.partition, now];
    connection
        .prepare_cached(
            "INSERT INTO checkpoints
                 (generation, context, partition, epoch, sequence, next_offset, xid, position, event_time, live)
             VALUES (?1, ?2, ?3, max(?4, 1), 0, 0, 0, 0, 0, 0)
             ON CONFLICT DO UPDATE SET epoch = max(epoch + 1, excluded.epoch)",
        )?
        .execute(place)?;
    let held = held(connection, generation.number, partition)?
        .ok_or_else(|| ReadModelError::Rebuilding { name: generation.name.clone() })?;
    let parked_keys = connection
        .prepare_cached(
            "SELECT DISTINCT key FROM parked_events WHERE generation = ?1 AND context = ?2 AND partition = ?3",
        )?
        .query_map(params![generation.number, partition.context.as_str(), partition.partition], |row| row.get(0))?
        .collect::<rusqlite::Result<HashSet<String>>>()?;
    let foreign_records = dead_letters::foreign_records(connection, generation, partition)?;
    Ok(Claimed { epoch: held.epoch, checkpoint: held.checkpoint, parked_keys, foreign_records, live: held.live })
}

/// Checks the batch's epoch and start, moves the checkpoint, resolves dead letters and appends new ones. The rows are
/// the caller's, in the same transaction.
pub(crate) fn advance<K, R>(
    connection: &Connection,
    generation: &Generation,
    batch: &Batch<K, R>,
) -> Result<(), Abort> {
    let partition = batch.partition;
    let name = generation.to_string();
    // A partition that is not there was never claimed, or its file was deleted: the owner must claim first.
    let held = held(connection, generation.number, partition)?;
    if let Some(held) = &held
        && held.epoch > batch.epoch
        && guard::holds(Guard::SqliteEpoch)
    {
        let (epoch, current) = (batch.epoch, held.epoch);
        return Err(ReadModelError::Superseded { name, partition, epoch, current }.into());
    }
    // Without the claim nothing is known of what came behind it.
    let found = held.as_ref().filter(|held| held.epoch >= batch.epoch).map(|held| held.checkpoint);
    if found != Some(batch.from) {
        let found = found.unwrap_or_default();
        return Err(ReadModelError::CheckpointMoved { name, partition, expected: batch.from, found }.into());
    }
    let (number, context) = (generation.number, partition.context.as_str());
    connection
        .prepare_cached(
            "UPDATE checkpoints SET epoch = ?4, sequence = ?5, next_offset = ?6, xid = ?7, position = ?8,
                 event_time = ?9, live = live OR ?10
             WHERE generation = ?1 AND context = ?2 AND partition = ?3",
        )?
        .execute(params![
            number,
            context,
            partition.partition,
            stored(batch.epoch),
            stored(batch.to.sequence),
            stored(batch.to.next_offset),
            stored(batch.to.position.xid),
            stored(batch.to.position.position),
            batch.to.event_time,
            batch.live,
        ])?;
    dead_letters::resolve(connection, generation, partition, &batch.dead_letters)?;
    dead_letters::park(connection, generation, partition, &batch.parked)
}

/// A partition's checkpoint, and how it is held.
pub(crate) struct Held {
    pub(crate) epoch: u64,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) live: bool,
}

pub(crate) fn held(
    connection: &Connection,
    generation: u32,
    partition: PartitionRef,
) -> rusqlite::Result<Option<Held>> {
    connection
        .prepare_cached(
            "SELECT sequence, next_offset, xid, position, event_time, epoch, live FROM checkpoints
             WHERE generation = ?1 AND context = ?2 AND partition = ?3",
        )?
        .query_row(params![generation, partition.context.as_str(), partition.partition], |row| {
            Ok(Held { checkpoint: checkpoint_of(row)?, epoch: read(row.get(5)?), live: row.get(6)? })
        })
        .optional()
}

/// The default where the partition was never claimed.
pub(crate) fn checkpoint(
    connection: &Connection,
    generation: u32,
    partition: PartitionRef,
) -> rusqlite::Result<Checkpoint> {
    Ok(held(connection, generation, partition)?.map(|held| held.checkpoint).unwrap_or_default())
}

/// The position of a partition that reads may be answered from; `Rebuilding` while it is not live.
pub(crate) fn live_position(
    connection: &Connection,
    generation: &Generation,
    partition: PartitionRef,
) -> Result<StorePosition, Abort> {
    match held(connection, generation.number, partition)? {
        Some(held) if held.live => Ok(held.checkpoint.position),
        _ => Err(ReadModelError::Rebuilding { name: generation.name.clone() }.into()),
    }
}

/// Whether the partitions that `min` names, of those contexts that are read here, have come that far.
pub(crate) fn is_reached(
    connection: &Connection,
    generation: &Generation,
    contexts: &[Context],
    min: &PositionToken,
) -> Result<bool, Abort> {
    for wanted in min.iter().filter(|wanted| contexts.contains(&wanted.context)) {
        let partition = PartitionRef { context: wanted.context, partition: wanted.partition };
        let held = held(connection, generation.number, partition)?;
        if held.is_none_or(|held| held.checkpoint.position < wanted.position) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Positions of all partitions of some contexts, and whether all of them are live.
pub(crate) fn positions(
    connection: &Connection,
    generation: &Generation,
    contexts: &[Context],
) -> Result<(PositionToken, bool), Abort> {
    let mut token = PositionToken::default();
    let mut are_live = true;
    for &context in contexts {
        for partition in 0..generation.partitions {
            let held = held(connection, generation.number, PartitionRef { context, partition })?;
            are_live &= held.as_ref().is_some_and(|held| held.live);
            token.advance(context, partition, held.map(|held| held.checkpoint.position).unwrap_or_default());
        }
    }
    Ok((token, are_live))
}

// === heads and status ===

pub(crate) fn observe(
    connection: &Connection,
    generation: &Generation,
    heads: &[(PartitionRef, Head)],
) -> Result<(), Abort> {
    let mut upsert = connection.prepare_cached(
        "INSERT INTO heads (generation, context, partition, next_offset, seen_at) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset, seen_at = excluded.seen_at",
    )?;
    for (partition, head) in heads {
        let context = partition.context.as_str();
        upsert.execute(params![
            generation.number,
            context,
            partition.partition,
            stored(head.next_offset),
            head.seen_at
        ])?;
    }
    Ok(())
}

/// Every partition of some contexts, claimed or not.
pub(crate) fn status(
    connection: &Connection,
    generation: &Generation,
    contexts: &[Context],
) -> Result<ReadModelStatus, Abort> {
    let mut heads = connection.prepare_cached(
        "SELECT next_offset, seen_at FROM heads WHERE generation = ?1 AND context = ?2 AND partition = ?3",
    )?;
    let mut parked = connection.prepare_cached(
        "SELECT count(DISTINCT key), count(*) FROM parked_events
         WHERE generation = ?1 AND context = ?2 AND partition = ?3",
    )?;
    let mut partitions = Vec::new();
    for &context in contexts {
        for number in 0..generation.partitions {
            let partition = PartitionRef { context, partition: number };
            let place = params![generation.number, context.as_str(), number];
            let held = held(connection, generation.number, partition)?;
            let head = heads
                .query_row(place, |row| Ok(Head { next_offset: read(row.get(0)?), seen_at: row.get(1)? }))
                .optional()?;
            let (parked_keys, parked_events) =
                parked.query_row(place, |row| Ok((read(row.get(0)?), read(row.get(1)?))))?;
            partitions.push(PartitionStatus {
                partition,
                checkpoint: held.as_ref().map(|held| held.checkpoint).unwrap_or_default(),
                live: held.is_some_and(|held| held.live),
                head,
                parked_keys,
                parked_events,
            });
        }
    }
    Ok(ReadModelStatus {
        name: generation.name.clone(),
        generation: generation.number,
        fold_version: generation.fold_version,
        partitions,
    })
}

// === rows ===

fn checkpoint_of(row: &Row<'_>) -> rusqlite::Result<Checkpoint> {
    Ok(Checkpoint {
        sequence: read(row.get(0)?),
        next_offset: read(row.get(1)?),
        position: StorePosition { xid: read(row.get(2)?), position: read(row.get(3)?) },
        event_time: row.get(4)?,
    })
}

/// SQLite's integers are signed: the bits are kept, and no statement here compares values that high.
pub(super) fn stored(value: u64) -> i64 {
    value as i64
}

pub(super) fn read(value: i64) -> u64 {
    value as u64
}
