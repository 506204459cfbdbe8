//! One transaction: locks, checks, a transaction id, then positions, then the commit, with time between them.
//!
//! The id comes with the first write and the positions with the inserts, so ids, positions and commits each have an
//! order of their own.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use domain::STATE_VERSION;
use event_store::adapter::{NewestPositions, positioned, published};
use event_store::{
    AppendBatch, Appended, EventStoreError, OffsetAdvance, RestoredRows, StoredEvent, StoredOffset, StoredOutcome,
    StreamId, TimerChange, Topology,
};
use schemas::StorePosition;
use tokio::time::timeout;
use uuid::Uuid;

use super::tables::{Lock, Open, StoredCommand, Tables};
use super::{LOOK, SimulatedEventStore, unavailable};
use crate::guard::Guard;
use crate::world::{Fault, Place, World};

/// Ends the transaction when its caller is dropped: at once, or when the server finds the client gone.
struct Session<'s> {
    store: &'s SimulatedEventStore,
    xid: u64,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let mut tables = self.store.tables();
        if self.store.process.is_dead() {
            if let Some(open) = tables.open.get_mut(&self.xid) {
                open.is_abandoned = true;
            }
        } else {
            tables.open.remove(&self.xid);
        }
        drop(tables);
        self.store.server.changed.notify_waiters();
    }
}

pub(super) async fn append(store: &SimulatedEventStore, batch: &AppendBatch) -> Result<Appended, EventStoreError> {
    let call = store.begin("append").await?;
    let world = store.process.world().clone();
    let (session, topology) = match open(store, batch).await {
        Ok(opened) => opened,
        Err(error) => {
            world.count(|stats| stats.conflicts += u64::from(matches!(error, EventStoreError::Conflict { .. })));
            world.trace(|| format!("{}: {error}", call.place));
            store.process.finish(call).await.map_err(unavailable)?;
            return Err(error);
        }
    };
    world.trace(|| format!("{}: transaction {} opens", call.place, session.xid));
    store.process.spend(world.latency(call.place, 10)).await;
    let mut batch = batch.clone();
    if world.is_off(Guard::OffsetInTransaction) {
        advance_offsets(&mut store.tables(), &batch.offsets);
        batch.offsets.clear();
        store.process.spend(world.latency(call.place, 11)).await;
    }
    // Half of the lost answers are lost commits.
    if call.fault == Some(Fault::AnswerLost) && world.dice(call.place, 12).is_multiple_of(2) {
        world.trace(|| format!("{}: transaction {} is rolled back", call.place, session.xid));
        drop(session);
        store.process.finish(call).await.map_err(unavailable)?;
    } else {
        let (rows, appended, outcomes) = numbered(store, &batch, session.xid, topology)?;
        store.process.spend(world.latency(call.place, 13) + lingering(&world, call.place)).await;
        // A crash takes the transaction with it in half of the cases.
        if call.fault == Some(Fault::CrashAfter) && world.dice(call.place, 14).is_multiple_of(2) {
            store.process.crash("inside a transaction");
            return std::future::pending().await;
        }
        commit(&mut store.tables(), &batch, &rows, &outcomes);
        world.count(|stats| stats.events += rows.len() as u64);
        world.trace(|| format!("{}: transaction {} commits {}", call.place, session.xid, listed(&rows)));
        world.check(|checker| checker.committed(&rows, &outcomes));
        drop(session);
        store.process.finish(call).await.map_err(unavailable)?;
        return Ok(appended);
    }
    Err(unavailable(crate::process::Lost("the connection was lost before the commit")))
}

/// Some transactions stay open for long: others with higher ids and positions commit meanwhile.
fn lingering(world: &World, place: Place) -> Duration {
    let dice = world.dice(place, 15);
    if world.is_faulty() && dice.is_multiple_of(5) { Duration::from_millis(dice % 1_500) } else { Duration::ZERO }
}

fn listed(rows: &[StoredEvent]) -> String {
    let told: Vec<String> =
        rows.iter().map(|row| format!("{} v{} at {}", row.stream, row.version, row.position)).collect();
    told.join(", ")
}

/// Takes the locks, checks, and takes a transaction id.
async fn open<'s>(
    store: &'s SimulatedEventStore,
    batch: &AppendBatch,
) -> Result<(Session<'s>, Topology), EventStoreError> {
    let locks = locks(batch);
    let checks_ids = !store.process.world().is_off(Guard::CommandId);
    loop {
        let changed = store.server.changed.notified();
        {
            let mut tables = store.tables();
            tables.reap();
            let topology = tables.topology.ok_or_else(|| EventStoreError::Permanent {
                problem: "no topology is fixed: start `millrace up` or `millrace write` first".to_owned(),
            })?;
            if !tables.open.values().any(|open| !open.locks.is_disjoint(&locks)) {
                check(&tables, batch, checks_ids)?;
                tables.last_xid += 1;
                let xid = tables.last_xid;
                let process = store.process.clone();
                tables.open.insert(xid, Open { locks, process, is_abandoned: false });
                return Ok((Session { store, xid }, topology));
            }
        }
        let _ = timeout(LOOK, changed).await;
        store.process.awake().await;
    }
}

fn locks(batch: &AppendBatch) -> BTreeSet<Lock> {
    let mut locks = BTreeSet::new();
    for offset in &batch.offsets {
        locks.insert(Lock::Offset(offset.topic.clone(), offset.partition));
    }
    for command in &batch.commands {
        locks.insert(Lock::Command(command.id));
        if !command.events.is_empty() {
            locks.insert(Lock::Stream(command.stream.clone()));
        }
        locks.extend(command.claims.iter().map(|claim| Lock::Warehouse(claim.warehouse.clone())));
    }
    locks
}

fn conflict(what: String) -> EventStoreError {
    EventStoreError::Conflict { what }
}

fn check(tables: &Tables, batch: &AppendBatch, checks_ids: bool) -> Result<(), EventStoreError> {
    for OffsetAdvance { topic, partition, expected, .. } in &batch.offsets {
        if let Some(StoredOffset { next: stored, .. }) = tables.offsets.get(&(topic.clone(), *partition))
            && stored != expected
        {
            return Err(conflict(format!("offset of {topic}/{partition}: {expected} expected, {stored} stored")));
        }
    }
    let mut versions: HashMap<&StreamId, u64> = HashMap::new();
    let mut ids = BTreeSet::new();
    let mut claims = HashMap::new();
    for command in &batch.commands {
        if checks_ids && (!ids.insert(command.id) || tables.commands.contains_key(&command.id)) {
            return Err(conflict(format!("command id {}", command.id)));
        }
        if !command.events.is_empty() {
            let version = versions.entry(&command.stream).or_insert_with(|| tables.newest_version(&command.stream));
            if *version != command.expected_version {
                let expected = command.expected_version;
                return Err(conflict(format!("stream {}, at {version} and not {expected}", command.stream)));
            }
            *version += command.events.len() as u64;
        }
        for claim in &command.claims {
            let region = match tables.warehouses.get(&claim.warehouse) {
                Some(region) => region,
                None => *claims.entry(&claim.warehouse).or_insert(&claim.region),
            };
            if *region != claim.region {
                return Err(conflict(format!("warehouse {}, which is in region {region}", claim.warehouse)));
            }
        }
    }
    Ok(())
}

type Numbered = (Vec<StoredEvent>, Appended, Vec<(Uuid, StoredOutcome)>);

/// Gives every row its position.
fn numbered(
    store: &SimulatedEventStore,
    batch: &AppendBatch,
    xid: u64,
    topology: Topology,
) -> Result<Numbered, EventStoreError> {
    let mut tables = store.tables();
    let mut rows = Vec::new();
    let mut positions = Vec::with_capacity(batch.commands.len());
    let mut outcomes = Vec::with_capacity(batch.commands.len());
    let mut newest = NewestPositions::default();
    let next = |tables: &mut Tables| {
        tables.last_position += 1;
        StorePosition { xid, position: tables.last_position }
    };
    for command in &batch.commands {
        let mut last = None;
        for (version, event) in (command.expected_version + 1..).zip(&command.events) {
            let position = next(&mut tables);
            rows.push(StoredEvent {
                position,
                topic: event.context.events_topic().to_owned(),
                stream: command.stream.clone(),
                version,
                key: event.key.clone(),
                id: event.id,
                schema: event.schema,
                body: event.body.clone(),
                time: event.time,
                correlation_id: event.correlation_id.clone(),
                causation_id: event.causation_id.clone(),
                actor: event.actor.clone(),
                traceparent: event.traceparent.clone(),
            });
            last = Some(position);
        }
        positions.push(last);
        let outcome = positioned(command, topology, last, &mut newest);
        let stream = StreamId::outcome(command.id);
        if let Some(context) = command.publish_outcome_on
            && !tables.streams.contains_key(&stream)
        {
            let encoded = published(command, &outcome)?;
            let sent_with = command.events.first();
            rows.push(StoredEvent {
                position: next(&mut tables),
                topic: context.outcomes_topic().to_owned(),
                stream,
                version: 1,
                key: command.outcome_key.clone(),
                id: command.id,
                schema: encoded.schema,
                body: encoded.body,
                time: command.received_at,
                correlation_id: sent_with.and_then(|event| event.correlation_id.clone()),
                causation_id: Some(outcome.id.to_string()),
                actor: None,
                traceparent: sent_with.and_then(|event| event.traceparent.clone()),
            });
        }
        outcomes.push((command.id, StoredOutcome { digest: Some(command.digest), outcome }));
    }
    Ok((rows, Appended { positions }, outcomes))
}

fn advance_offsets(tables: &mut Tables, offsets: &[OffsetAdvance]) {
    for offset in offsets {
        let stored = StoredOffset { next: offset.next, last: offset.last };
        tables.offsets.insert((offset.topic.clone(), offset.partition), stored);
    }
}

fn commit(tables: &mut Tables, batch: &AppendBatch, rows: &[StoredEvent], outcomes: &[(Uuid, StoredOutcome)]) {
    advance_offsets(tables, &batch.offsets);
    for row in rows {
        tables.streams.entry(row.stream.clone()).or_default().insert(row.version, row.position);
        tables.rows.insert(row.position, row.clone());
    }
    for (command, (_, outcome)) in batch.commands.iter().zip(outcomes) {
        let stored = StoredCommand { outcome: outcome.clone(), received_at: command.received_at };
        tables.commands.insert(command.id, stored);
        for claim in &command.claims {
            tables.warehouses.entry(claim.warehouse.clone()).or_insert_with(|| claim.region.clone());
        }
        for change in &command.timers {
            change_timer(tables, change);
        }
        if let Some(snapshot) = &command.snapshot {
            let is_newer = tables.snapshots.get(&snapshot.stream).is_none_or(|held| snapshot.version > held.0);
            if is_newer {
                let held = (snapshot.version, STATE_VERSION, snapshot.body.clone());
                tables.snapshots.insert(snapshot.stream.clone(), held);
            }
        }
    }
    for change in &batch.timers {
        change_timer(tables, change);
    }
}

fn change_timer(tables: &mut Tables, change: &TimerChange) {
    match change {
        TimerChange::Set(timer) => {
            tables.timers.insert(timer.key.clone(), timer.clone());
        }
        TimerChange::Clear { key } => {
            tables.timers.remove(key);
        }
        TimerChange::ClearGiven { key, command } => {
            if tables.timers.get(key).is_some_and(|timer| timer.command == *command) {
                tables.timers.remove(key);
            }
        }
    }
}

/// Rows that were in the table before come back to their places.
pub(super) fn restore(tables: &mut Tables, rows: &RestoredRows) -> Result<(), EventStoreError> {
    if let Some(behind) = rows.behind {
        let end = tables.rows.values().map(|row| row.position).max().unwrap_or_default();
        if end > behind {
            return Err(EventStoreError::TableWentOn { behind, end });
        }
    }
    let is_taken = |row: &&StoredEvent| {
        let is_there = |places: &std::collections::BTreeMap<u64, StorePosition>| places.contains_key(&row.version);
        tables.rows.contains_key(&row.position) || tables.streams.get(&row.stream).is_some_and(is_there)
    };
    if let Some(row) = rows.events.iter().find(is_taken) {
        let (position, version) = (row.position, row.version);
        return Err(conflict(format!("position {position} or version {version} of stream {}", row.stream)));
    }
    for row in &rows.events {
        tables.last_xid = tables.last_xid.max(row.position.xid);
        tables.last_position = tables.last_position.max(row.position.position);
        tables.streams.entry(row.stream.clone()).or_default().insert(row.version, row.position);
        tables.rows.insert(row.position, row.clone());
    }
    for claim in &rows.claims {
        tables.warehouses.entry(claim.warehouse.clone()).or_insert_with(|| claim.region.clone());
    }
    for change in &rows.timers {
        change_timer(tables, change);
    }
    for restored in &rows.outcomes {
        let outcome = StoredOutcome { digest: None, outcome: restored.outcome.clone() };
        let stored = StoredCommand { outcome, received_at: restored.received_at };
        tables.commands.entry(restored.id).or_insert(stored);
    }
    Ok(())
}
