//! Stop 4: a group of decided commands becomes rows, all of them or none.
//!
//! Three round trips: draw positions, write everything, commit. Rows are written in the order of their unique keys, and
//! the tables in one order, so that two groups wait for each other and rarely deadlock; then one of them has a
//! conflict and is tried again. The positions, drawn before, keep the order of the commands.

use std::collections::{BTreeMap, HashMap, HashSet};

use resilience::{Guard, guard};
use schemas::StorePosition;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::event_rows::{EventRow, EventRows, storable};
use super::failure::Failure;
use super::load::{query_unless, regions_by_name};
use super::pool::Session;
use super::rows::{transaction_id, unsigned};
use crate::error::EventStoreError;
use crate::outcome_row::{NewestPositions, outcome_text, positioned, published};
use crate::rebuild::SNAPSHOT_STATE_VERSION;
use crate::store::{
    AppendBatch, Appended, DecidedCommand, NewSnapshot, OffsetAdvance, RecordIdentity, Timer, TimerChange, Topology,
};

/// Columns of the commands' rows, in the order of their ids.
#[derive(Default)]
pub(super) struct CommandRows {
    pub(super) ids: Vec<Uuid>,
    pub(super) digests: Vec<Vec<u8>>,
    pub(super) outcomes: Vec<String>,
    pub(super) received_at: Vec<i64>,
}

/// Columns of the offsets to advance: one step per partition.
#[derive(Default)]
struct OffsetRows {
    topics: Vec<String>,
    partitions: Vec<i32>,
    expected: Vec<i64>,
    next: Vec<i64>,
    last_offsets: Vec<Option<i64>>,
    last_digests: Vec<Option<Vec<u8>>>,
}

/// What the advances of one partition come to.
struct OffsetStep {
    expected: u64,
    next: u64,
    last: Option<RecordIdentity>,
}

/// What the timers come to after the batch.
#[derive(Default)]
pub(super) struct TimerRows {
    pub(super) keys: Vec<String>,
    pub(super) due_at: Vec<i64>,
    pub(super) commands: Vec<String>,
    pub(super) cleared: Vec<String>,
    /// Keys and commands of those that are cleared only while they hold that command.
    pub(super) given: (Vec<String>, Vec<String>),
}

/// What the changes of one key come to.
enum LastChange<'a> {
    Set(&'a Timer),
    Clear,
    ClearGiven(Vec<&'a str>),
}

#[derive(Default)]
struct SnapshotRows {
    streams: Vec<String>,
    versions: Vec<i64>,
    bodies: Vec<Vec<u8>>,
}

/// Appends in a transaction of its own. After an error none of it is there, except where the answer to the commit was
/// lost: then it may be.
pub(super) async fn append(session: &Session, batch: &AppendBatch, topology: Topology) -> Result<Appended, Failure> {
    match append_in_transaction(session, batch, topology).await {
        Ok(appended) => {
            session.client().batch_execute("COMMIT").await?;
            Ok(appended)
        }
        Err(Failure::Refused(refused)) => {
            session.client().batch_execute("ROLLBACK").await?;
            Err(Failure::Refused(refused))
        }
        // The session is closed with its transaction.
        Err(failure) => Err(failure),
    }
}

async fn append_in_transaction(
    session: &Session,
    batch: &AppendBatch,
    topology: Topology,
) -> Result<Appended, Failure> {
    if batch.run.is_some_and(|run| run != session.run) {
        // A version alone does not tell that it is another event's: the one that was decided on may have been lost.
        return Err(conflict("the server, which was started anew since".to_owned()));
    }
    let expected_heads = expected_heads(batch)?;
    let offsets = OffsetRows::of(&batch.offsets)?;
    let claims = claims(batch)?;
    let timers = TimerRows::of(batch);
    let snapshots = SnapshotRows::of(batch);

    let places = draw_places(session, batch, &expected_heads).await?;
    let (events, commands, positions) = lay_out(batch, topology, &places)?;
    let Session { statements, .. } = session;
    let client = session.client();
    let state_version = SNAPSHOT_STATE_VERSION as i32;
    let (warehouses, regions): (Vec<&str>, Vec<&str>) = claims.iter().map(|(name, region)| (*name, *region)).unzip();
    let advance = offsets.parameters();
    let decided: [&(dyn ToSql + Sync); 4] =
        [&commands.ids, &commands.digests, &commands.outcomes, &commands.received_at];
    let taken: [&(dyn ToSql + Sync); 4] = [&snapshots.streams, &snapshots.versions, &snapshots.bodies, &state_version];

    // Polled in this order, so sent in this order, without waiting in between.
    let (
        inserted_events,
        inserted_commands,
        claimed,
        stored_claims,
        advanced,
        begun,
        set,
        cleared,
        cleared_given,
        saved,
    ) = futures::join!(
        query_unless(events.is_empty(), client, &statements.insert_events, events.parameters()),
        query_unless(commands.ids.is_empty(), client, &statements.insert_commands, decided),
        query_unless(warehouses.is_empty(), client, &statements.insert_claims, [&warehouses, &regions]),
        query_unless(warehouses.is_empty(), client, &statements.regions, [&warehouses]),
        query_unless(offsets.topics.is_empty(), client, &statements.advance_offsets, advance),
        query_unless(offsets.topics.is_empty(), client, &statements.begin_offsets, advance),
        query_unless(
            timers.keys.is_empty(),
            client,
            &statements.set_timers,
            [&timers.keys, &timers.due_at, &timers.commands]
        ),
        query_unless(timers.cleared.is_empty(), client, &statements.clear_timers, [&timers.cleared]),
        query_unless(
            timers.given.0.is_empty(),
            client,
            &statements.clear_given_timers,
            [&timers.given.0, &timers.given.1]
        ),
        query_unless(snapshots.streams.is_empty(), client, &statements.save_snapshots, taken),
    );
    events.check_inserted(&inserted_events?)?;
    let inserted_commands = inserted_commands?;
    if guard::holds(Guard::CommandId) {
        check_commands(&commands.ids, &inserted_commands)?;
    }
    claimed?;
    check_claims(&claims, &stored_claims?)?;
    let advanced: Vec<Row> = advanced?.into_iter().chain(begun?).collect();
    check_offsets(&offsets, &advanced)?;
    set?;
    cleared?;
    cleared_given?;
    saved?;
    Ok(Appended { positions })
}

/// Begins the transaction, looks at the newest versions once more, then writes for the first time: the xid and one
/// place for each row of the event table, in order.
async fn draw_places(
    session: &Session,
    batch: &AppendBatch,
    expected_heads: &BTreeMap<&str, u64>,
) -> Result<Vec<StorePosition>, Failure> {
    let Session { statements, .. } = session;
    let client = session.client();
    let streams: Vec<&str> = expected_heads.keys().copied().collect();
    let rows = batch.commands.iter().map(rows_of).sum::<usize>() as i64;
    let (begun, heads, drawn) = futures::join!(
        client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED"),
        query_unless(streams.is_empty(), client, &statements.heads, [&streams]),
        query_unless(rows == 0, client, &statements.draw_positions, [&rows]),
    );
    begun?;
    let (heads, drawn) = (heads?, drawn?);
    // An insert alone would notice a version that is taken, but not one that leaves a gap.
    for row in &heads {
        let (stream, stored): (&str, u64) = (row.try_get(0)?, unsigned(row, 1)?);
        let expected = expected_heads.get(stream).copied().unwrap_or_default();
        if stored != expected {
            return Err(conflict(format!("stream {stream}: version {expected} expected, {stored} stored")));
        }
    }
    let mut places = Vec::with_capacity(drawn.len());
    for row in &drawn {
        places.push(StorePosition { xid: transaction_id(row, 0)?, position: unsigned(row, 1)? });
    }
    places.sort_unstable();
    Ok(places)
}

/// Gives every row its place. Also returns the place of each command's last event.
fn lay_out(
    batch: &AppendBatch,
    topology: Topology,
    places: &[StorePosition],
) -> Result<(EventRows, CommandRows, Vec<Option<StorePosition>>), Failure> {
    let mut places = places.iter().copied();
    let mut next_place =
        || places.next().ok_or_else(|| EventStoreError::Permanent { problem: "fewer positions than rows".to_owned() });
    let mut events: Vec<EventRow> = Vec::new();
    let mut outcomes = Vec::with_capacity(batch.commands.len());
    let mut positions = Vec::with_capacity(batch.commands.len());
    let mut newest = NewestPositions::default();
    for command in &batch.commands {
        let mut last = None;
        for (version, event) in (command.expected_version + 1..).zip(&command.events) {
            let place = next_place()?;
            last = Some(place);
            events.push(EventRow::of_event(place, command, version, event));
        }
        let outcome = positioned(command, topology, last, &mut newest);
        if let Some(context) = command.publish_outcome_on {
            let encoded = published(command, &outcome)?;
            events.push(EventRow::of_outcome(next_place()?, command, context, &outcome, encoded));
        }
        let text = outcome_text(command.id, &outcome)?;
        outcomes.push((command, text));
        positions.push(last);
    }
    outcomes.sort_by_key(|(command, _)| command.id);
    let mut commands = CommandRows::default();
    for (command, text) in outcomes {
        commands.ids.push(command.id);
        commands.digests.push(command.digest.to_vec());
        commands.outcomes.push(text);
        commands.received_at.push(command.received_at);
    }
    Ok((EventRows::of(events), commands, positions))
}

fn rows_of(command: &DecidedCommand) -> usize {
    command.events.len() + usize::from(command.publish_outcome_on.is_some())
}

/// The version that each stream must have before the batch. Within the batch each command begins where the one before
/// it ended.
fn expected_heads(batch: &AppendBatch) -> Result<BTreeMap<&str, u64>, Failure> {
    let mut before = BTreeMap::new();
    let mut after: HashMap<&str, u64> = HashMap::new();
    for command in batch.commands.iter().filter(|command| !command.events.is_empty()) {
        let stream = command.stream.as_str();
        let expected = command.expected_version;
        match after.get(stream) {
            Some(version) if *version != expected => {
                let problem = format!("stream {stream}: version {expected} expected after version {version}");
                return Err(conflict(problem));
            }
            Some(_) => {}
            None => {
                before.insert(stream, expected);
            }
        }
        after.insert(stream, expected + command.events.len() as u64);
    }
    Ok(before)
}

/// Claimed regions by warehouse, each warehouse once.
fn claims(batch: &AppendBatch) -> Result<BTreeMap<&str, &str>, Failure> {
    let mut claims = BTreeMap::new();
    for claim in batch.commands.iter().flat_map(|command| &command.claims) {
        let (warehouse, region) = (claim.warehouse.as_str(), claim.region.as_str());
        let first = *claims.entry(warehouse).or_insert(region);
        if first != region {
            return Err(conflict(format!("warehouse {warehouse}, which is in region {first}")));
        }
    }
    Ok(claims)
}

fn check_commands(asked: &[Uuid], inserted: &[Row]) -> Result<(), Failure> {
    let mut new = HashSet::with_capacity(inserted.len());
    for row in inserted {
        // An id that stands twice in the batch is inserted once.
        new.insert(row.try_get::<_, Uuid>(0)?);
    }
    let mut seen = HashSet::with_capacity(asked.len());
    match asked.iter().find(|id| !new.contains(*id) || !seen.insert(**id)) {
        Some(known) => Err(conflict(format!("command id {known}"))),
        None => Ok(()),
    }
}

fn check_claims(asked: &BTreeMap<&str, &str>, stored: &[Row]) -> Result<(), Failure> {
    let stored = regions_by_name(stored)?;
    for (warehouse, region) in asked {
        match stored.get(warehouse) {
            Some(holds) if holds.as_str() == *region => {}
            Some(holds) => return Err(conflict(format!("warehouse {warehouse}, which is in region {holds}"))),
            None => return Err(conflict(format!("warehouse {warehouse}"))),
        }
    }
    Ok(())
}

fn check_offsets(asked: &OffsetRows, advanced: &[Row]) -> Result<(), Failure> {
    let mut done: HashSet<(&str, i32)> = HashSet::with_capacity(advanced.len());
    for row in advanced {
        done.insert((row.try_get(0)?, row.try_get(1)?));
    }
    for ((topic, partition), expected) in asked.topics.iter().zip(&asked.partitions).zip(&asked.expected) {
        if !done.contains(&(topic.as_str(), *partition)) {
            return Err(conflict(format!("offset of {topic}/{partition}: {expected} expected, another is stored")));
        }
    }
    Ok(())
}

fn conflict(what: String) -> Failure {
    Failure::Refused(EventStoreError::Conflict { what })
}

// === impl OffsetRows ===

impl OffsetRows {
    /// Advances that follow one another become one.
    fn of(advances: &[OffsetAdvance]) -> Result<Self, Failure> {
        let mut steps: BTreeMap<(&str, u32), OffsetStep> = BTreeMap::new();
        for OffsetAdvance { topic, partition, expected, next, last } in advances {
            let first = OffsetStep { expected: *expected, next: *expected, last: None };
            let step = steps.entry((topic, *partition)).or_insert(first);
            if step.next != *expected {
                let problem = format!("offset of {topic}/{partition}: {expected} expected after {}", step.next);
                return Err(conflict(problem));
            }
            (step.next, step.last) = (*next, *last);
        }
        let mut rows = Self::default();
        for ((topic, partition), OffsetStep { expected, next, last }) in steps {
            rows.topics.push(topic.to_owned());
            rows.partitions.push(partition as i32);
            rows.expected.push(expected as i64);
            rows.next.push(next as i64);
            rows.last_offsets.push(last.map(|last| last.offset as i64));
            rows.last_digests.push(last.map(|last| last.digest.to_vec()));
        }
        Ok(rows)
    }

    fn parameters(&self) -> [&(dyn ToSql + Sync); 6] {
        [&self.topics, &self.partitions, &self.expected, &self.next, &self.last_offsets, &self.last_digests]
    }
}

// === impl TimerRows ===

impl TimerRows {
    /// The last change of a key holds.
    pub(super) fn of(batch: &AppendBatch) -> Self {
        let mut last: BTreeMap<&str, LastChange<'_>> = BTreeMap::new();
        for change in batch.commands.iter().flat_map(|command| &command.timers).chain(&batch.timers) {
            match change {
                TimerChange::Set(timer) => {
                    last.insert(&timer.key, LastChange::Set(timer));
                }
                TimerChange::Clear { key } => {
                    last.insert(key, LastChange::Clear);
                }
                TimerChange::ClearGiven { key, command } => {
                    match last.entry(key).or_insert_with(|| LastChange::ClearGiven(Vec::new())) {
                        LastChange::ClearGiven(commands) => commands.push(command),
                        change @ LastChange::Set(_) => {
                            if matches!(change, LastChange::Set(timer) if timer.command == *command) {
                                *change = LastChange::Clear;
                            }
                        }
                        LastChange::Clear => {}
                    }
                }
            }
        }
        let mut rows = Self::default();
        for (key, change) in last {
            match change {
                LastChange::Set(timer) => {
                    rows.keys.push(key.to_owned());
                    rows.due_at.push(timer.due_at);
                    rows.commands.push(storable(&timer.command).into_owned());
                }
                LastChange::Clear => rows.cleared.push(key.to_owned()),
                LastChange::ClearGiven(commands) => {
                    for command in commands {
                        rows.given.0.push(key.to_owned());
                        rows.given.1.push(storable(command).into_owned());
                    }
                }
            }
        }
        rows
    }
}

// === impl SnapshotRows ===

impl SnapshotRows {
    /// The newest of each stream.
    fn of(batch: &AppendBatch) -> Self {
        let mut newest: BTreeMap<&str, &NewSnapshot> = BTreeMap::new();
        for snapshot in batch.commands.iter().filter_map(|command| command.snapshot.as_ref()) {
            let kept = newest.entry(snapshot.stream.as_str()).or_insert(snapshot);
            if snapshot.version > kept.version {
                *kept = snapshot;
            }
        }
        let mut rows = Self::default();
        for (stream, snapshot) in newest {
            rows.streams.push(stream.to_owned());
            rows.versions.push(snapshot.version as i64);
            rows.bodies.push(snapshot.body.clone());
        }
        rows
    }
}
