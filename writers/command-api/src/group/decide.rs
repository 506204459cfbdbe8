//! Decides a group on one loaded view: no I/O. Stop 3 of an event's path is called from here.

use std::collections::{HashMap, HashSet};

use domain::{Rejection, State, StreamId, decide};
use event_store::{
    AppendBatch, Claim, DecidedCommand, LoadedStream, NewEvent, NewSnapshot, ServerRun, StoredOutcome, Timer,
    TimerChange,
};
use resilience::{Guard, guard};
use schemas::event::StockChange;
use schemas::{Command, CommandEnvelope, Event, Outcome, OutcomeKind, RegionId, WarehouseId, encode_event};
use uuid::Uuid;

use super::GroupState;
use super::work::{Item, Work, unreadable};
use crate::expiry;
use crate::refusal::refused;

/// A group decided on one loaded view.
pub(super) struct Decided {
    pub(super) batch: AppendBatch,
    /// One per work item, in order; the position of an accepted one is filled in after the append.
    pub(super) answers: Vec<Answer>,
    /// Streams as they are after the group.
    pub(super) after: HashMap<StreamId, LoadedStream>,
    pub(super) claimed: HashMap<WarehouseId, RegionId>,
}

pub(super) enum Answer {
    /// Final as it stands.
    Known(Outcome),
    /// Index into the batch's commands.
    Appended(usize),
}

/// What a group is decided on.
#[derive(Default)]
pub(super) struct View {
    pub(super) run: Option<ServerRun>,
    pub(super) streams: HashMap<StreamId, LoadedStream>,
    /// Streams that came from the cache.
    pub(super) cached: HashSet<StreamId>,
    pub(super) known: HashMap<Uuid, StoredOutcome>,
    pub(super) regions: HashMap<WarehouseId, RegionId>,
}

/// Streams whose cached state led to a refusal or to no event.
pub(super) struct NeedsFresh(pub(super) Vec<StreamId>);

pub(super) fn decide_group(state: &GroupState, work: &[&Work], mut view: View) -> Result<Decided, NeedsFresh> {
    let mut decided = Decided {
        batch: AppendBatch { run: view.run, ..AppendBatch::default() },
        answers: Vec::with_capacity(work.len()),
        after: HashMap::new(),
        claimed: HashMap::new(),
    };
    let mut needs_fresh = Vec::new();
    // Ids decided earlier in this very group.
    let mut in_group: HashMap<Uuid, (usize, [u8; 32])> = HashMap::new();

    for work in work {
        let id = work.id();
        let digest = match &work.item {
            Item::Command { digest, .. } => *digest,
            Item::Unreadable { .. } => [0; 32],
        };
        if let Some(stored) = view.known.get(&id).filter(|_| guard::holds(Guard::CommandId)) {
            let outcome = repeat(id, stored.digest.as_ref(), &digest, || stored.outcome.clone());
            if !is_reused(&outcome) {
                // Its command was decided before: nothing else will clear it.
                decided.batch.timers.extend(work.timer.as_ref().map(clear_given));
            }
            refuse_reused(work, &outcome, &view.known, &mut in_group, &mut decided.batch);
            decided.answers.push(Answer::Known(outcome));
            continue;
        }
        if let Some((index, first)) = in_group.get(&id).filter(|_| guard::holds(Guard::CommandId)) {
            if *first == digest {
                decided.answers.push(Answer::Appended(*index));
            } else {
                let outcome = id_reused(id);
                refuse_reused(work, &outcome, &view.known, &mut in_group, &mut decided.batch);
                decided.answers.push(Answer::Known(outcome));
            }
            continue;
        }
        let command = match &work.item {
            Item::Unreadable { place_id, command_id, key, code, problem, received_at } => {
                let outcome = refused(*command_id, OutcomeKind::Invalid, code, problem);
                unreadable(*place_id, key, outcome, *received_at)
            }
            Item::Command { envelope, digest } => {
                let stream = StreamId::of(&envelope.command);
                let from_cache = view.cached.contains(&stream);
                let command = decide_one(state, &mut view, &mut decided.claimed, work, envelope, *digest);
                if from_cache && command.events.is_empty() {
                    needs_fresh.push(stream);
                }
                command
            }
        };
        let mut command = command;
        command.publish_outcome_on = work.record.as_ref().map(|record| record.context);
        if command.timers.is_empty() {
            // Whatever the release came to, the timer has done its work.
            command.timers.extend(work.timer.as_ref().map(clear_given));
        }
        let index = decided.batch.commands.len();
        in_group.insert(id, (index, digest));
        decided.batch.commands.push(command);
        decided.answers.push(Answer::Appended(index));
    }
    if !needs_fresh.is_empty() {
        return Err(NeedsFresh(needs_fresh));
    }
    decided.after = view.streams;
    Ok(decided)
}

/// Keeps the refusal of a record whose id is another command's, under the id of its place: once, and not where a sender
/// gave a command that very id.
fn refuse_reused(
    work: &Work,
    outcome: &Outcome,
    known: &HashMap<Uuid, StoredOutcome>,
    in_group: &mut HashMap<Uuid, (usize, [u8; 32])>,
    batch: &mut AppendBatch,
) {
    let Some(refusal) = work.reused(outcome) else { return };
    if known.contains_key(&refusal.id) || in_group.contains_key(&refusal.id) {
        return;
    }
    in_group.insert(refusal.id, (batch.commands.len(), refusal.digest));
    batch.commands.push(refusal);
}

/// Stop 3: decides one command on the view, and folds its events into the view.
pub(super) fn decide_one(
    state: &GroupState,
    view: &mut View,
    claimed: &mut HashMap<WarehouseId, RegionId>,
    work: &Work,
    envelope: &CommandEnvelope,
    digest: [u8; 32],
) -> DecidedCommand {
    let command = &envelope.command;
    let stream = &StreamId::of(command);
    let context = command.context();
    let loaded = view.streams.entry(stream.clone()).or_insert_with(|| LoadedStream {
        state: State::initial(context),
        version: 0,
        position: None,
        snapshot_version: 0,
    });
    let warehouse_region = warehouse_of(command)
        .and_then(|warehouse| view.regions.get(warehouse).or_else(|| claimed.get(warehouse)).cloned());
    if let (State::Stock(stock), Some(region)) = (&mut loaded.state, &warehouse_region) {
        stock.region.get_or_insert_with(|| region.clone());
    }
    let mut decided = DecidedCommand {
        id: envelope.id,
        digest,
        received_at: envelope.received_at,
        stream: stream.clone(),
        expected_version: loaded.version,
        outcome: Outcome {
            id: envelope.id,
            outcome: OutcomeKind::Accepted,
            position: None,
            stream: Some(stream.to_string()),
            version: Some(loaded.version),
            reason: None,
        },
        events: Vec::new(),
        claims: Vec::new(),
        timers: Vec::new(),
        snapshot: None,
        publish_outcome_on: None,
        outcome_key: command.key().to_owned(),
        command_type: Some(command.command_type().to_owned()),
    };
    let events = tracing::trace_span!("decide").in_scope(|| match &work.timer {
        Some(_) => decide_release(&loaded.state, command, envelope.received_at),
        None => decide(&loaded.state, command, envelope.received_at),
    });
    let events = match events {
        Ok(events) => events,
        Err(rejection) => {
            decided.outcome.outcome = OutcomeKind::Rejected;
            decided.outcome.reason = Some(rejection.into());
            return decided;
        }
    };
    let encoded: Result<Vec<_>, _> = events.iter().map(encode_event).collect();
    let encoded = match encoded {
        Ok(encoded) => encoded,
        Err(error) => {
            // The same again would not be either.
            decided.outcome.outcome = OutcomeKind::Invalid;
            decided.outcome.reason =
                Some(schemas::Reason { code: "not_encodable".to_owned(), message: error.to_string() });
            return decided;
        }
    };
    for (index, (event, encoded)) in events.iter().zip(encoded).enumerate() {
        domain::apply(&mut loaded.state, event);
        loaded.version += 1;
        decided.events.push(NewEvent {
            id: event_id(envelope.id, index),
            context,
            key: event.key().to_owned(),
            schema: encoded.schema,
            body: encoded.body,
            time: envelope.received_at,
            correlation_id: Some(envelope.correlation_id.clone().unwrap_or_else(|| envelope.id.to_string())),
            causation_id: Some(envelope.id.to_string()),
            actor: envelope.actor.clone(),
            traceparent: envelope.traceparent.clone(),
        });
        decided.timers.extend(timer_change(stream, loaded.version, event));
        claim_region(event, warehouse_region.as_ref(), claimed, &mut decided.claims);
    }
    if decided.events.is_empty() {
        // Accepted without effect: the position at which what was asked for is already so.
        decided.outcome.position =
            loaded.position.map(|position| state.topology.token(context, command.key(), position));
    }
    decided.outcome.version = Some(loaded.version);
    if loaded.version - loaded.snapshot_version >= state.settings.snapshot_every
        && let Ok(body) = serde_json::to_vec(&loaded.state)
    {
        decided.snapshot = Some(NewSnapshot { stream: stream.clone(), version: loaded.version, body });
        loaded.snapshot_version = loaded.version;
    }
    decided
}

/// Decides the release that a timer gave. The timer may be older than the reservation: one of the same id that was
/// made after the timer was read keeps its units for its own time.
pub(super) fn decide_release(state: &State, command: &Command, now: i64) -> Result<Vec<Event>, Rejection> {
    if let (State::Stock(stock), Command::ReleaseReservation(data)) = (state, command)
        && let Some(reservation) = stock.open.get(&data.reservation_id)
        && reservation.expires_at > now
    {
        let message = format!("reservation {} is open until {}", data.reservation_id, reservation.expires_at);
        return Err(Rejection::new("reservation_not_expired", message));
    }
    decide(state, command, now)
}

pub(super) fn clear_given(timer: &Timer) -> TimerChange {
    TimerChange::ClearGiven { key: timer.key.clone(), command: timer.command.clone() }
}

pub(crate) fn claim_region(
    event: &Event,
    known: Option<&RegionId>,
    claimed: &mut HashMap<WarehouseId, RegionId>,
    claims: &mut Vec<Claim>,
) {
    let Event::StockUpdated(event) = event else { return };
    if known.is_none() && !claimed.contains_key(&event.warehouse) {
        claimed.insert(event.warehouse.clone(), event.region.clone());
        claims.push(Claim { warehouse: event.warehouse.clone(), region: event.region.clone() });
    }
}

pub(crate) fn timer_change(stream: &StreamId, version: u64, event: &Event) -> Option<TimerChange> {
    let Event::StockUpdated(event) = event else { return None };
    let reservation_id = event.reservation_id.as_ref()?;
    let key = format!("{stream}/{reservation_id}");
    match event.change {
        StockChange::Reserved => {
            let due_at = event.expires_at?;
            let command = expiry::release_command(event, reservation_id, &key, version);
            Some(TimerChange::Set(Timer { key, due_at, command }))
        }
        StockChange::Released | StockChange::Shipped => Some(TimerChange::Clear { key }),
        StockChange::Received | StockChange::Adjusted | StockChange::Counted => None,
    }
}

/// An event's id follows from its command's: deciding a command again gives the same ids.
pub(super) fn event_id(command_id: Uuid, index: usize) -> Uuid {
    Uuid::new_v5(&command_id, &(index as u64).to_be_bytes())
}

pub(super) fn warehouse_of(command: &Command) -> Option<&WarehouseId> {
    match command {
        Command::ReceiveStock(data) => Some(&data.warehouse),
        Command::AdjustStock(data) => Some(&data.warehouse),
        Command::CountStock(data) => Some(&data.warehouse),
        Command::ReserveStock(data) => Some(&data.warehouse),
        Command::ReleaseReservation(data) => Some(&data.warehouse),
        Command::ShipReservation(data) => Some(&data.warehouse),
        Command::RegisterProduct(_)
        | Command::ReviseProduct(_)
        | Command::DiscontinueProduct(_)
        | Command::SetPrice(_)
        | Command::RecordDecision(_) => None,
    }
}

/// A repeat gets the first outcome; another body under the same id is refused. Where the first body is not known, it
/// is taken for a repeat: that one is sent again is common, that an id is used twice is a mistake.
pub(super) fn repeat(
    id: Uuid,
    first: Option<&[u8; 32]>,
    digest: &[u8; 32],
    outcome: impl FnOnce() -> Outcome,
) -> Outcome {
    if first.is_none_or(|first| first == digest) { outcome() } else { id_reused(id) }
}

pub(crate) const ID_REUSED: &str = "command_id_reused";

pub(crate) fn is_reused(outcome: &Outcome) -> bool {
    outcome.reason.as_ref().is_some_and(|reason| reason.code == ID_REUSED)
}

pub(super) fn id_reused(id: Uuid) -> Outcome {
    let message = "this command id was used for another command; give a new command a new id";
    refused(id, OutcomeKind::Invalid, ID_REUSED, message)
}
