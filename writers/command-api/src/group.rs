//! A group: load, decide, append; on a conflict all of it again, on fresh state, in a fresh transaction.
//!
//! The whole group is decided again after a conflict, not only the command that conflicted: a later command of the
//! group may have been decided on the state that the earlier one no longer has. It is decided again in smaller pieces.
//!
//! A store that goes away while a group is decided has time to come back. A group that finds it away, as others did
//! before, is refused at once: its senders know when to come again.

mod decide;
mod work;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use domain::StreamId;
use event_store::{
    AppendBatch, EventStore, EventStoreError, LoadRequest, NewestPositions, OffsetAdvance, ServerRun, StoredOffset,
    Topology, positioned,
};
use metrics::counter;
use resilience::{Guard, Policy, guard};
use schemas::{Outcome, OutcomeKind, RegionId, StorePosition, WarehouseId};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Instrument;

use crate::cache::StreamCache;
use crate::error::HandlerError;
use crate::handler::{HandlerSettings, Submission, count, failed};
use crate::metrics::RETRIES;

#[cfg(test)]
pub(crate) use decide::ID_REUSED;
use decide::{Answer, Decided, NeedsFresh, View, decide_group, warehouse_of};
pub(crate) use decide::{claim_region, is_reused, timer_change};
use work::Item;
pub(crate) use work::Work;

/// What the handler loop keeps between groups.
pub(crate) struct GroupState {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) topology: Topology,
    pub(crate) cache: StreamCache,
    /// Regions of warehouses: fixed once claimed.
    pub(crate) regions: HashMap<WarehouseId, RegionId>,
    /// What the two above were loaded in.
    pub(crate) run: Option<ServerRun>,
    pub(crate) settings: HandlerSettings,
}

/// Decides and commits what was gathered, and answers each submission, in their order.
///
/// A group that met another writer is tried again with half of its submissions, down to one, and that one in pieces,
/// down to one command: a large group is slow to decide anew and likely to meet the next of the other's, and two
/// writers of the same few streams would starve each other. So is one that the store refuses: a damaged row stops those
/// who ask for it, and nobody else.
pub(crate) async fn handle(state: &mut GroupState, mut submissions: Vec<Submission>) {
    let mut size = submissions.len();
    while !submissions.is_empty() {
        let rest = submissions.split_off(size.min(submissions.len()));
        size = submissions.len();
        let deadline = Instant::now() + state.settings.retry_for;
        submissions = decide(state, submissions, deadline).await.unwrap_or_default();
        if submissions.len() == 1
            && let Some(submission) = submissions.pop()
        {
            decide_in_pieces(state, submission).await;
        }
        size = if submissions.is_empty() { size * 2 } else { submissions.len().div_ceil(2) };
        submissions.extend(rest);
    }
}

/// Decides the commands of one submission piece by piece, in their order. The offset of records moves with each piece
/// as far as its records go, and they end with the first piece that is not decided: what comes after it waits for it.
async fn decide_in_pieces(state: &mut GroupState, submission: Submission) {
    // Of each piece until it is decided: who waits for a row that somebody holds must not wait so long for each half.
    let mut deadline = Instant::now() + state.settings.retry_for;
    let Submission { mut work, mut offset, reply } = submission;
    let mut outcomes = Vec::with_capacity(work.len());
    let mut size = work.len().div_ceil(2);
    while !work.is_empty() {
        let rest = work.split_off(size.min(work.len()));
        size = work.len();
        let mut advance = offset.clone();
        if let (Some(advance), Some(record)) = (&mut advance, rest.first().and_then(|next| next.record.as_ref())) {
            advance.next = record.identity.offset;
            advance.last = work.last().and_then(|last| last.record.as_ref()).map(|record| record.identity);
        }
        let next = advance.as_ref().map(|advance| advance.next);
        let (told, answer) = oneshot::channel();
        let error = match decide(state, vec![Submission { work, offset: advance, reply: told }], deadline).await {
            Ok(mut undecided) => match undecided.pop() {
                Some(piece) => {
                    size = size.div_ceil(2);
                    work = piece.work;
                    work.extend(rest);
                    continue;
                }
                None => None,
            },
            Err(error) => Some(error),
        };
        match answer.await {
            Ok(Ok(decided)) => outcomes.extend(decided),
            Ok(Err(error)) => {
                let _ = reply.send(Err(error));
                return;
            }
            // Not so: every submission is answered.
            Err(_) => return,
        }
        if let Some(error) = error.filter(HandlerError::is_transient) {
            // The next ones would meet it too, or overtake these.
            let problem = error.to_string();
            outcomes.extend(rest.iter().map(|work| told_failed(work, &problem)));
            break;
        }
        if let (Some(offset), Some(next)) = (&mut offset, next) {
            offset.expected = next;
        }
        work = rest;
        size *= 2;
        deadline = Instant::now() + state.settings.retry_for;
    }
    let _ = reply.send(Ok(outcomes));
}

/// Decides one group until it has an outcome, or an error that all of it was told. What can be halved comes back when
/// it met another writer, or the store refused it.
async fn decide(
    state: &mut GroupState,
    mut submissions: Vec<Submission>,
    deadline: Instant,
) -> Result<Vec<Submission>, HandlerError> {
    let mut backoff = Policy::CONFLICT.backoff();
    let mut is_first = true;
    loop {
        // A group whose offsets another handler took is out; the rest goes on.
        let outcomes = match attempt(state, &submissions).await {
            Ok(outcomes) => outcomes,
            Err(HandlerError::OffsetTaken { topic, partition, expected, stored }) => {
                submissions = refuse_taken(submissions, &topic, partition, expected, stored);
                if submissions.is_empty() {
                    return Ok(submissions);
                }
                continue;
            }
            Err(error) => {
                state.cache.evict(streams_of(&submissions).iter());
                let was_away = is_first && state.store.refusal().is_some();
                is_first = false;
                let can_be_halved = submissions.len() > 1 || submissions.iter().any(|one| one.work.len() > 1);
                if !error.is_transient() && can_be_halved {
                    // What does not load or does not append is one command's: the others go on.
                    return Ok(submissions);
                }
                if error.is_transient() && !was_away && Instant::now() < deadline {
                    let met = matches!(error, HandlerError::Store(EventStoreError::Conflict { .. }));
                    counter!(RETRIES, "cause" => if met { "conflict" } else { "unavailable" }).increment(1);
                    tracing::debug!(%error, "group is decided again");
                    if met && can_be_halved {
                        return Ok(submissions);
                    }
                    backoff.wait().await;
                    continue;
                }
                tracing::warn!(%error, "group was not decided");
                fail(submissions, &error);
                return Err(error);
            }
        };
        answer(submissions, outcomes);
        return Ok(Vec::new());
    }
}

async fn attempt(state: &mut GroupState, submissions: &[Submission]) -> Result<Vec<Outcome>, HandlerError> {
    let mut offsets: Vec<OffsetAdvance> =
        submissions.iter().filter_map(|submission| submission.offset.clone()).collect();
    if !guard::holds(Guard::OffsetInTransaction) {
        save_offsets_apart(state, std::mem::take(&mut offsets)).await?;
    }
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
    // After the load: with the run of the server that it was of, the offsets hold until the append.
    check_offsets(state, &offsets).await?;
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

fn outcomes(topology: Topology, decided: Decided, positions: &[Option<StorePosition>]) -> Vec<Outcome> {
    let mut newest = NewestPositions::default();
    let commands = decided.batch.commands.iter().zip(positions);
    let appended: Vec<Outcome> =
        commands.map(|(command, last)| positioned(command, topology, *last, &mut newest)).collect();
    decided
        .answers
        .into_iter()
        .map(|answer| match answer {
            Answer::Known(outcome) => outcome,
            Answer::Appended(index) => appended[index].clone(),
        })
        .collect()
}

impl View {
    async fn load(state: &mut GroupState, work: &[&Work], fresh: &HashSet<StreamId>) -> Result<Self, HandlerError> {
        let mut view = View::default();
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
        if state.run.replace(loaded.run).is_some_and(|run| run != loaded.run) {
            // A failover or a restore may have taken back what is in memory, and given its versions to other events.
            state.cache.clear();
            state.regions.clear();
            let what = "the server, which was started anew".to_owned();
            return Err(EventStoreError::Conflict { what }.into());
        }
        view.run = Some(loaded.run);
        view.streams.extend(loaded.streams);
        view.known = loaded.outcomes;
        view.regions.extend(loaded.regions);
        // Where an id that is known, or comes twice, is a record's, there may be a refusal of that very record; and one
        // that is refused now may have the id of another.
        let mut ids = HashSet::new();
        let mut again = work.iter().filter(|work| !ids.insert(work.id()) || view.known.contains_key(&work.id()));
        if again.any(|work| work.record.is_some()) {
            let places = work.iter().filter_map(|work| work.record.as_ref()).map(|record| record.place_id).collect();
            let loaded = state.store.load(&LoadRequest { command_ids: places, ..LoadRequest::default() }).await?;
            view.known.extend(loaded.outcomes);
        }
        Ok(view)
    }
}

async fn check_offsets(state: &GroupState, offsets: &[OffsetAdvance]) -> Result<(), HandlerError> {
    let mut stored_by_topic: HashMap<&str, HashMap<u32, StoredOffset>> = HashMap::new();
    for offset in offsets {
        if !stored_by_topic.contains_key(offset.topic.as_str()) {
            stored_by_topic.insert(&offset.topic, state.store.command_offsets(&offset.topic).await?);
        }
        // Without a row nothing was taken yet, or the row was lost with what had been: then it is taken again.
        let stored = stored_by_topic[offset.topic.as_str()].get(&offset.partition).map_or(0, |stored| stored.next);
        if stored != offset.expected {
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

/// What happens without the guard `offset-in-transaction`: the offsets move first, by themselves, whatever is stored.
async fn save_offsets_apart(state: &GroupState, offsets: Vec<OffsetAdvance>) -> Result<(), HandlerError> {
    for mut offset in offsets {
        if let Some(stored) = state.store.command_offsets(&offset.topic).await?.get(&offset.partition) {
            offset.expected = stored.next;
        }
        let apart = AppendBatch { offsets: vec![offset], ..AppendBatch::default() };
        state.store.append(&apart).await?;
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
            count(command_type(work), outcome.outcome);
        }
        let _ = submission.reply.send(Ok(mine));
    }
}

fn command_type(work: &Work) -> &'static str {
    match &work.item {
        Item::Command { envelope, .. } => envelope.command.command_type(),
        Item::Unreadable { .. } => "unreadable",
    }
}

fn told_failed(work: &Work, problem: &str) -> Outcome {
    count(command_type(work), OutcomeKind::Failed);
    failed(work.id(), problem)
}

fn fail(submissions: Vec<Submission>, error: &HandlerError) {
    for submission in submissions {
        let problem = error.to_string();
        let reply = match &submission.offset {
            // A record is not answered `failed`: its offset stays, and it is taken again.
            Some(offset) => Err(HandlerError::NotDecided { next: offset.expected, problem }),
            None => Ok(submission.work.iter().map(|work| told_failed(work, &problem)).collect()),
        };
        let _ = submission.reply.send(reply);
    }
}
