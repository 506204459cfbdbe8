//! A group: load, decide, append; on a conflict all of it again, on fresh state, in a fresh transaction.
//!
//! The whole group is decided again after a conflict, not only the command that conflicted: a later command of the
//! group may have been decided on the state that the earlier one no longer has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use backon::{BackoffBuilder, ExponentialBuilder};
use domain::{Rejection, State, StreamId, decide};
use event_store::{
    AppendBatch, Claim, DecidedCommand, EventStore, EventStoreError, LoadRequest, LoadedStream, NewEvent, NewSnapshot,
    OffsetAdvance, StoredOutcome, Timer, TimerChange, Topology,
};
use metrics::counter;
use schemas::event::StockChange;
use schemas::{
    Command, CommandEnvelope, Context, Event, Outcome, OutcomeKind, PositionToken, RegionId, StorePosition,
    WarehouseId, encode_event, partition_of,
};
use tracing::Instrument;
use uuid::Uuid;

use crate::cache::StreamCache;
use crate::error::HandlerError;
use crate::expiry;
use crate::handler::{HandlerSettings, RecordCommand, Submission, count, failed};
use crate::metrics::RETRIES;
use crate::refusal::refused;

/// What the handler loop keeps between groups.
pub(crate) struct GroupState {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) topology: Topology,
    pub(crate) cache: StreamCache,
    /// Regions of warehouses: fixed once claimed, so never stale.
    pub(crate) regions: HashMap<WarehouseId, RegionId>,
    pub(crate) settings: HandlerSettings,
}

/// One thing to decide.
pub(crate) struct Work {
    item: Item,
    /// Context on whose outcome topic the outcome goes out.
    publish_on: Option<Context>,
    /// Derived from the place of the record that it came by.
    place_id: Option<Uuid>,
    /// Timer that gave the command.
    timer: Option<Timer>,
}

enum Item {
    Command { envelope: Box<CommandEnvelope>, digest: [u8; 32] },
    Unreadable { place_id: Uuid, command_id: Uuid, key: String, code: &'static str, problem: String, received_at: i64 },
}

/// A group decided on one loaded view.
struct Decided {
    batch: AppendBatch,
    /// One per work item, in order; the position of an accepted one is filled in after the append.
    answers: Vec<Answer>,
    /// Streams as they are after the group.
    after: HashMap<StreamId, LoadedStream>,
    claimed: HashMap<WarehouseId, RegionId>,
}

enum Answer {
    /// Final as it stands.
    Known(Outcome),
    /// Index into the batch's commands.
    Appended(usize),
}

// === impl Work ===

impl Work {
    pub(crate) fn from_http(envelope: CommandEnvelope) -> Self {
        Self { item: Item::command(envelope), publish_on: None, place_id: None, timer: None }
    }

    pub(crate) fn from_timer(envelope: CommandEnvelope, timer: Timer) -> Self {
        Self { item: Item::command(envelope), publish_on: None, place_id: None, timer: Some(timer) }
    }

    pub(crate) fn from_record(context: Context, command: RecordCommand) -> Self {
        let (item, place_id) = match command {
            RecordCommand::Command { envelope, place_id } => (Item::command(*envelope), place_id),
            RecordCommand::Unreadable { place_id, command_id, key, code, problem, received_at } => {
                (Item::Unreadable { place_id, command_id, key, code, problem, received_at }, place_id)
            }
        };
        Self { item, publish_on: Some(context), place_id: Some(place_id), timer: None }
    }

    /// The refusal of a record whose command id stands for another command: stored under the record's place, so that
    /// its outcome goes out. `None` where nobody reads outcome topics.
    fn reused(&self, outcome: &Outcome) -> Option<DecidedCommand> {
        let (Some(context), Some(place_id), Item::Command { envelope, .. }) =
            (self.publish_on, self.place_id, &self.item)
        else {
            return None;
        };
        let is_reused = outcome.reason.as_ref().is_some_and(|reason| reason.code == ID_REUSED);
        is_reused.then(|| {
            let key = envelope.command.sku().as_str();
            let mut command = unreadable(place_id, key, outcome.clone(), envelope.received_at);
            command.publish_outcome_on = Some(context);
            command.command_type = Some(envelope.command.command_type().to_owned());
            command
        })
    }

    fn id(&self) -> Uuid {
        match &self.item {
            Item::Command { envelope, .. } => envelope.id,
            Item::Unreadable { place_id, .. } => *place_id,
        }
    }
}

impl Item {
    fn command(envelope: CommandEnvelope) -> Self {
        let digest = envelope.command.digest();
        Item::Command { envelope: Box::new(envelope), digest }
    }
}

/// Decides and commits a group, and answers each of its submissions.
pub(crate) async fn handle(state: &mut GroupState, mut submissions: Vec<Submission>) {
    let deadline = Instant::now() + state.settings.retry_for;
    let mut backoff = backoff();
    loop {
        // A group whose offsets another handler took is out; the rest goes on.
        let outcomes = match attempt(state, &submissions).await {
            Ok(outcomes) => outcomes,
            Err(HandlerError::OffsetTaken { topic, partition, expected, stored }) => {
                submissions = refuse_taken(submissions, &topic, partition, expected, stored);
                if submissions.is_empty() {
                    return;
                }
                continue;
            }
            Err(error) => {
                state.cache.evict(streams_of(&submissions).iter());
                if error.is_transient() && Instant::now() < deadline {
                    let cause = if matches!(error, HandlerError::Store(EventStoreError::Conflict { .. })) {
                        "conflict"
                    } else {
                        "unavailable"
                    };
                    counter!(RETRIES, "cause" => cause).increment(1);
                    tracing::debug!(%error, "group is decided again");
                    tokio::time::sleep(backoff.next().unwrap_or_default()).await;
                    continue;
                }
                tracing::warn!(%error, "group was not decided");
                fail(submissions, &error);
                return;
            }
        };
        answer(submissions, outcomes);
        return;
    }
}

/// Full jitter between 1 ms and 500 ms: two writers on one stream must not meet again and again.
fn backoff() -> impl Iterator<Item = std::time::Duration> {
    ExponentialBuilder::default()
        .with_min_delay(std::time::Duration::from_millis(1))
        .with_max_delay(std::time::Duration::from_millis(500))
        .without_max_times()
        .build()
        .map(|delay| delay.mul_f64(rand::random::<f64>()))
}

async fn attempt(state: &mut GroupState, submissions: &[Submission]) -> Result<Vec<Outcome>, HandlerError> {
    let offsets: Vec<OffsetAdvance> = submissions.iter().filter_map(|submission| submission.offset.clone()).collect();
    check_offsets(state, &offsets).await?;
    let work: Vec<&Work> = submissions.iter().flat_map(|submission| &submission.work).collect();

    // Refusals and no-ops decided on cached state are decided again on loaded state: nothing else would notice
    // that the cache was behind another writer.
    let mut fresh = HashSet::new();
    let mut decided = loop {
        let view = View::load(state, &work, &fresh).await?;
        match decide_group(state, &work, view) {
            Ok(decided) => break decided,
            Err(NeedsFresh(streams)) => fresh.extend(streams),
        }
    };
    decided.batch.offsets = offsets;

    if decided.batch.commands.is_empty() && decided.batch.offsets.is_empty() && decided.batch.timers.is_empty() {
        return Ok(outcomes(state.topology, decided, &[]));
    }
    let span = tracing::debug_span!("append", commands = decided.batch.commands.len());
    let appended = state.store.append(&decided.batch).instrument(span).await?;
    state.regions.extend(decided.claimed.drain());
    let mut last_of_stream: HashMap<&StreamId, StorePosition> = HashMap::new();
    for (command, position) in decided.batch.commands.iter().zip(&appended.positions) {
        if let Some(position) = position {
            last_of_stream.insert(&command.stream, *position);
        }
    }
    for (stream, mut loaded) in decided.after.drain() {
        if let Some(position) = last_of_stream.get(&stream) {
            loaded.position = Some(*position);
        }
        state.cache.put(stream, loaded);
    }
    Ok(outcomes(state.topology, decided, &appended.positions))
}

/// What a group is decided on.
struct View {
    streams: HashMap<StreamId, LoadedStream>,
    /// Streams that came from the cache.
    cached: HashSet<StreamId>,
    known: HashMap<Uuid, StoredOutcome>,
    regions: HashMap<WarehouseId, RegionId>,
}

impl View {
    async fn load(state: &mut GroupState, work: &[&Work], fresh: &HashSet<StreamId>) -> Result<Self, HandlerError> {
        let mut view =
            View { streams: HashMap::new(), cached: HashSet::new(), known: HashMap::new(), regions: HashMap::new() };
        let mut request = LoadRequest::default();
        for work in work {
            request.command_ids.push(work.id());
            let Item::Command { envelope, .. } = &work.item else { continue };
            let stream = StreamId::of(&envelope.command);
            if view.streams.contains_key(&stream) || request.streams.contains(&stream) && fresh.contains(&stream) {
                continue;
            }
            match state.cache.get(&stream) {
                Some(cached) if !fresh.contains(&stream) => {
                    view.cached.insert(stream.clone());
                    view.streams.insert(stream, cached.clone());
                }
                _ => request.streams.push(stream),
            }
            if let Some(warehouse) = warehouse_of(&envelope.command) {
                match state.regions.get(warehouse) {
                    Some(region) => {
                        view.regions.insert(warehouse.clone(), region.clone());
                    }
                    None => request.warehouses.push(warehouse.clone()),
                }
            }
        }
        request.streams.sort();
        request.streams.dedup();
        request.warehouses.sort();
        request.warehouses.dedup();
        let loaded = state.store.load(&request).await?;
        view.streams.extend(loaded.streams);
        view.known = loaded.outcomes;
        view.regions.extend(loaded.regions);
        Ok(view)
    }
}

/// Streams whose cached state led to a refusal or to no event.
struct NeedsFresh(Vec<StreamId>);

fn decide_group(state: &GroupState, work: &[&Work], mut view: View) -> Result<Decided, NeedsFresh> {
    let mut decided = Decided {
        batch: AppendBatch::default(),
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
        if let Some(stored) = view.known.get(&id) {
            // Its command was decided before: nothing else will clear it.
            decided.batch.timers.extend(work.timer.as_ref().map(clear_given));
            let outcome = repeat(id, &stored.digest, &digest, || stored.outcome.clone());
            decided.batch.commands.extend(work.reused(&outcome));
            decided.answers.push(Answer::Known(outcome));
            continue;
        }
        if let Some((index, first)) = in_group.get(&id) {
            if *first == digest {
                decided.answers.push(Answer::Appended(*index));
            } else {
                let outcome = id_reused(id);
                decided.batch.commands.extend(work.reused(&outcome));
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
        command.publish_outcome_on = work.publish_on;
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

/// Stop 3: decides one command on the view, and folds its events into the view.
fn decide_one(
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
        outcome_key: command.sku().to_string(),
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
            key: event.sku().to_string(),
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
        decided.outcome.position = loaded.position.map(|position| token(state.topology, command, position));
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
fn decide_release(state: &State, command: &Command, now: i64) -> Result<Vec<Event>, Rejection> {
    if let (State::Stock(stock), Command::ReleaseReservation(data)) = (state, command)
        && let Some(reservation) = stock.open.get(&data.reservation_id)
        && reservation.expires_at > now
    {
        let message = format!("reservation {} is open until {}", data.reservation_id, reservation.expires_at);
        return Err(Rejection::new("reservation_not_expired", message));
    }
    decide(state, command, now)
}

fn clear_given(timer: &Timer) -> TimerChange {
    TimerChange::ClearGiven { key: timer.key.clone(), command: timer.command.clone() }
}

fn claim_region(
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

fn timer_change(stream: &StreamId, version: u64, event: &Event) -> Option<TimerChange> {
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

fn unreadable(id: Uuid, key: &str, outcome: Outcome, received_at: i64) -> DecidedCommand {
    DecidedCommand {
        id,
        digest: [0; 32],
        received_at,
        stream: StreamId::from_stored(format!("outcome-{id}")),
        expected_version: 0,
        outcome,
        events: Vec::new(),
        claims: Vec::new(),
        timers: Vec::new(),
        snapshot: None,
        publish_outcome_on: None,
        outcome_key: key.to_owned(),
        command_type: None,
    }
}

/// An event's id follows from its command's: deciding a command again gives the same ids.
fn event_id(command_id: Uuid, index: usize) -> Uuid {
    Uuid::new_v5(&command_id, &(index as u64).to_be_bytes())
}

fn warehouse_of(command: &Command) -> Option<&WarehouseId> {
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
        | Command::SetPrice(_) => None,
    }
}

fn token(topology: Topology, command: &Command, position: StorePosition) -> PositionToken {
    let partition = partition_of(command.sku().as_str().as_bytes(), topology.partitions);
    PositionToken::of(command.context(), partition, position)
}

/// A repeat gets the first outcome; another body under the same id is refused.
fn repeat(id: Uuid, first: &[u8; 32], digest: &[u8; 32], outcome: impl FnOnce() -> Outcome) -> Outcome {
    if first == digest { outcome() } else { id_reused(id) }
}

pub(crate) const ID_REUSED: &str = "command_id_reused";

fn id_reused(id: Uuid) -> Outcome {
    let message = "this command id was used for another command; give a new command a new id";
    refused(id, OutcomeKind::Invalid, ID_REUSED, message)
}

fn outcomes(topology: Topology, decided: Decided, positions: &[Option<StorePosition>]) -> Vec<Outcome> {
    let mut newest: HashMap<&StreamId, PositionToken> = HashMap::new();
    let mut appended = Vec::with_capacity(decided.batch.commands.len());
    for (index, command) in decided.batch.commands.iter().enumerate() {
        let mut outcome = command.outcome.clone();
        if let (Some(position), Some(event)) = (positions.get(index).copied().flatten(), command.events.last()) {
            let partition = partition_of(event.key.as_bytes(), topology.partitions);
            newest.insert(&command.stream, PositionToken::of(event.context, partition, position));
        }
        // Accepted without effect after an earlier command of the group: so since that one, as the store says too.
        if let (OutcomeKind::Accepted, Some(token)) = (outcome.outcome, newest.get(&command.stream)) {
            outcome.position = Some(token.clone());
        }
        appended.push(outcome);
    }
    decided
        .answers
        .into_iter()
        .map(|answer| match answer {
            Answer::Known(outcome) => outcome,
            Answer::Appended(index) => appended[index].clone(),
        })
        .collect()
}

async fn check_offsets(state: &GroupState, offsets: &[OffsetAdvance]) -> Result<(), HandlerError> {
    let mut stored_by_topic: HashMap<&str, HashMap<u32, u64>> = HashMap::new();
    for offset in offsets {
        if !stored_by_topic.contains_key(offset.topic.as_str()) {
            stored_by_topic.insert(&offset.topic, state.store.command_offsets(&offset.topic).await?);
        }
        let stored = stored_by_topic[offset.topic.as_str()].get(&offset.partition);
        if let Some(&stored) = stored
            && stored != offset.expected
        {
            return Err(HandlerError::OffsetTaken {
                topic: offset.topic.clone(),
                partition: offset.partition,
                expected: offset.expected,
                stored,
            });
        }
    }
    Ok(())
}

fn refuse_taken(
    submissions: Vec<Submission>,
    topic: &str,
    partition: u32,
    expected: u64,
    stored: u64,
) -> Vec<Submission> {
    let mut rest = Vec::with_capacity(submissions.len());
    for submission in submissions {
        let is_taken = submission.offset.as_ref().is_some_and(|offset| {
            offset.topic == topic && offset.partition == partition && offset.expected == expected
        });
        if is_taken {
            let error = HandlerError::OffsetTaken { topic: topic.to_owned(), partition, expected, stored };
            // A sender that went away needs no answer.
            let _ = submission.reply.send(Err(error));
        } else {
            rest.push(submission);
        }
    }
    rest
}

fn streams_of(submissions: &[Submission]) -> HashSet<StreamId> {
    submissions
        .iter()
        .flat_map(|submission| &submission.work)
        .filter_map(|work| match &work.item {
            Item::Command { envelope, .. } => Some(StreamId::of(&envelope.command)),
            Item::Unreadable { .. } => None,
        })
        .collect()
}

fn answer(submissions: Vec<Submission>, outcomes: Vec<Outcome>) {
    let mut outcomes = outcomes.into_iter();
    for submission in submissions {
        let mine: Vec<Outcome> = outcomes.by_ref().take(submission.work.len()).collect();
        for (work, outcome) in submission.work.iter().zip(&mine) {
            let command_type = match &work.item {
                Item::Command { envelope, .. } => envelope.command.command_type(),
                Item::Unreadable { .. } => "unreadable",
            };
            count(command_type, outcome.outcome);
        }
        let _ = submission.reply.send(Ok(mine));
    }
}

fn fail(submissions: Vec<Submission>, error: &HandlerError) {
    for submission in submissions {
        let reply = if submission.offset.is_some() {
            // A record is not answered `failed`: its offset stays, and it is taken again.
            Err(HandlerError::Store(EventStoreError::Unavailable {
                address: "event store".to_owned(),
                problem: error.to_string(),
            }))
        } else {
            Ok(submission.work.iter().map(|work| failed(work.id(), &error.to_string())).collect())
        };
        let _ = submission.reply.send(reply);
    }
}
