//! Stop 4: a group of decided commands becomes rows, all of them or none.

use std::collections::HashSet;

use domain::StreamId;
use resilience::{Guard, guard};
use rusqlite::{CachedStatement, OptionalExtension, Transaction, params};
use schemas::StorePosition;

use super::file::Abort;
use super::fixed_topology;
use crate::error::EventStoreError;
use crate::outcome_row::{NewestPositions, outcome_text, positioned, published};
use crate::rebuild::SNAPSHOT_STATE_VERSION;
use crate::store::{AppendBatch, Appended, Claim, DecidedCommand, NewSnapshot, OffsetAdvance, TimerChange, Topology};

pub(super) fn append(transaction: &Transaction<'_>, batch: &AppendBatch) -> Result<Appended, Abort> {
    let topology = fixed_topology(transaction)?.ok_or_else(|| EventStoreError::Permanent {
        problem: "no topology is fixed: start `millrace up` or `millrace write` first".to_owned(),
    })?;
    for offset in &batch.offsets {
        advance_offset(transaction, offset)?;
    }
    // A version that is taken inserts no row.
    let mut insert = transaction.prepare_cached(
        "INSERT OR IGNORE INTO events (stream, version, id, topic, key, schema, schema_version, body, time,
                                       correlation_id, causation_id, actor, traceparent)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    let mut positions = Vec::with_capacity(batch.commands.len());
    let mut written = HashSet::new();
    let mut newest = NewestPositions::default();
    for command in &batch.commands {
        if !command.events.is_empty() && written.insert(&command.stream) {
            check_not_ahead(transaction, command)?;
        }
        for claim in &command.claims {
            take_claim(transaction, claim)?;
        }
        let last = insert_events(transaction, &mut insert, command)?;
        insert_outcome(transaction, &mut insert, command, topology, last, &mut newest)?;
        for change in &command.timers {
            change_timer(transaction, change)?;
        }
        if let Some(snapshot) = &command.snapshot {
            save_snapshot(transaction, snapshot)?;
        }
        positions.push(last);
    }
    for change in &batch.timers {
        change_timer(transaction, change)?;
    }
    Ok(Appended { positions })
}

/// A cache that outlived its store must leave no gap (W1). That the stream is not further on is the insert's to say.
fn check_not_ahead(transaction: &Transaction<'_>, command: &DecidedCommand) -> Result<(), Abort> {
    if command.expected_version == 0 {
        return Ok(());
    }
    let is_there = transaction
        .prepare_cached("SELECT 1 FROM events WHERE stream = ?1 AND version = ?2")?
        .exists(params![command.stream.as_str(), command.expected_version as i64])?;
    if is_there {
        return Ok(());
    }
    Err(conflict(format!("version {} of stream {}, which is not there", command.expected_version, command.stream)))
}

/// Place of the last event; `None` without one.
fn insert_events(
    transaction: &Transaction<'_>,
    insert: &mut CachedStatement<'_>,
    command: &DecidedCommand,
) -> Result<Option<StorePosition>, Abort> {
    let mut last = None;
    for (version, event) in (command.expected_version + 1..).zip(&command.events) {
        let inserted = insert.execute(params![
            command.stream.as_str(),
            version as i64,
            event.id.as_bytes(),
            event.context.events_topic(),
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
            return Err(conflict(format!("version {version} of stream {}", command.stream)));
        }
        last = Some(StorePosition { xid: 0, position: transaction.last_insert_rowid() as u64 });
    }
    Ok(last)
}

fn insert_outcome<'batch>(
    transaction: &Transaction<'_>,
    insert: &mut CachedStatement<'_>,
    command: &'batch DecidedCommand,
    topology: Topology,
    last: Option<StorePosition>,
    newest: &mut NewestPositions<'batch>,
) -> Result<(), Abort> {
    let outcome = positioned(command, topology, last, newest);
    let text = outcome_text(command.id, &outcome)?;
    let stored = transaction
        .prepare_cached("INSERT OR IGNORE INTO commands (id, digest, outcome, received_at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![command.id.as_bytes(), command.digest, text, command.received_at])?;
    if stored == 0 && guard::holds(Guard::CommandId) {
        return Err(conflict(format!("command id {}", command.id)));
    }
    let Some(context) = command.publish_outcome_on else { return Ok(()) };
    let encoded = published(command, &outcome)?;
    // A command id that was given again long after its outcome was forgotten has its first row there already.
    let sent_with = command.events.first();
    insert.execute(params![
        StreamId::outcome(command.id).as_str(),
        1,
        command.id.as_bytes(),
        context.outcomes_topic(),
        command.outcome_key,
        encoded.schema.name,
        encoded.schema.version,
        encoded.body,
        command.received_at,
        sent_with.and_then(|event| event.correlation_id.as_deref()),
        outcome.id.to_string(),
        None::<String>,
        sent_with.and_then(|event| event.traceparent.as_deref()),
    ])?;
    Ok(())
}

fn take_claim(transaction: &Transaction<'_>, claim: &Claim) -> Result<(), Abort> {
    transaction
        .prepare_cached("INSERT OR IGNORE INTO warehouses (warehouse, region) VALUES (?1, ?2)")?
        .execute([claim.warehouse.as_str(), claim.region.as_str()])?;
    let region: String = transaction
        .prepare_cached("SELECT region FROM warehouses WHERE warehouse = ?1")?
        .query_row([claim.warehouse.as_str()], |row| row.get(0))?;
    if region != claim.region.as_str() {
        return Err(conflict(format!("warehouse {}, which is in region {region}", claim.warehouse)));
    }
    Ok(())
}

fn advance_offset(transaction: &Transaction<'_>, advance: &OffsetAdvance) -> Result<(), Abort> {
    let stored: Option<i64> = transaction
        .prepare_cached("SELECT next_offset FROM command_offsets WHERE topic = ?1 AND partition = ?2")?
        .query_row(params![advance.topic, advance.partition], |row| row.get(0))
        .optional()?;
    if let Some(stored) = stored
        && stored as u64 != advance.expected
    {
        let OffsetAdvance { topic, partition, expected, .. } = advance;
        return Err(conflict(format!("offset of {topic}/{partition}: {expected} expected, {stored} stored")));
    }
    transaction
        .prepare_cached(
            "INSERT INTO command_offsets (topic, partition, next_offset, last_offset, last_digest)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE
             SET next_offset = excluded.next_offset, last_offset = excluded.last_offset,
                 last_digest = excluded.last_digest",
        )?
        .execute(params![
            advance.topic,
            advance.partition,
            advance.next as i64,
            advance.last.map(|last| last.offset as i64),
            advance.last.map(|last| last.digest),
        ])?;
    Ok(())
}

pub(super) fn change_timer(transaction: &Transaction<'_>, change: &TimerChange) -> Result<(), Abort> {
    match change {
        TimerChange::Set(timer) => transaction
            .prepare_cached(
                "INSERT INTO timers (key, due_at, command) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET due_at = excluded.due_at, command = excluded.command",
            )?
            .execute(params![timer.key, timer.due_at, timer.command])?,
        TimerChange::Clear { key } => {
            transaction.prepare_cached("DELETE FROM timers WHERE key = ?1")?.execute([key])?
        }
        TimerChange::ClearGiven { key, command } => {
            transaction.prepare_cached("DELETE FROM timers WHERE key = ?1 AND command = ?2")?.execute([key, command])?
        }
    };
    Ok(())
}

fn save_snapshot(transaction: &Transaction<'_>, snapshot: &NewSnapshot) -> Result<(), Abort> {
    transaction
        .prepare_cached(
            "INSERT INTO snapshots (stream, version, state_version, body) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE
             SET version = excluded.version, state_version = excluded.state_version, body = excluded.body
             WHERE excluded.version > version OR excluded.state_version > state_version",
        )?
        .execute(params![snapshot.stream.as_str(), snapshot.version as i64, SNAPSHOT_STATE_VERSION, snapshot.body])?;
    Ok(())
}

pub(super) fn conflict(what: String) -> Abort {
    Abort::Refused(EventStoreError::Conflict { what })
}
