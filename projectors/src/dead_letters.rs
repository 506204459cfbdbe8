//! What the owner of a partition does with dead letters that somebody asked it to redrive or to discard (invariant P4).
//!
//! The same worker folds new events and redrives parked ones, one after the other: so a key's order holds though events
//! come meanwhile. Each page of a queue is decoded again, so that this build's upcasters apply, and is one fenced write
//! of rows, removals and, at the end, the answer; the checkpoint stays. After a crash the request is still there, and
//! what is still parked is gone on with. Nothing here ever stops the fold but the loss of the partition.

pub mod http;
mod mirror;

use event_log::{EventEnvelope, Record};
use metrics::counter;
use read_models::{
    Batch, DeadLetterAction, DeadLetterAnswer, DeadLetterOutcome, DeadLetterRequest, DiscardNote, FOREIGN_KEY,
    ParkedEvent, ParkedPlace, ReadModel, ReadModelError, Resolution, Resolved,
};

use crate::claim::{Owned, claim_again, unmoved};
use crate::error::ProjectorError;
use crate::fold::{Fold, Read};
use crate::metrics::{DISCARDED, REDRIVEN};
use crate::projection::{Facts, Projection};
use crate::refold::refold;
use crate::worker::{WorkerContext, now};
use crate::write::{apply, load_rows};

pub use mirror::DeadLetterMirror;

/// Events of one write: a queue of any length is worked off in bounded memory.
const PAGE: usize = 500;

/// Acts on every request that waits. An error is the loss of the partition; any other trouble with dead letters is
/// logged, and looked at again the next time.
pub(crate) async fn attend<P, M>(context: &WorkerContext<M>, owned: &mut Owned<P>) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let requests = match context.read_model.dead_letter_requests(context.partition).await {
        Ok(requests) => requests,
        Err(error) => {
            tracing::warn!(partition = %context.partition, %error, "dead-letter requests wait");
            return Ok(());
        }
    };
    // A request that its store lost is not gone on with.
    owned.refolding = owned.refolding.take().filter(|running| requests.iter().any(|request| running.is_for(request)));
    for request in requests {
        let done = match &request.action {
            DeadLetterAction::Redrive => redrive(context, owned, &request).await,
            DeadLetterAction::Discard { reason, first_only, to } => {
                discard(context, owned, &request, reason, *first_only, *to).await
            }
            DeadLetterAction::Refold { keys } => refold(context, owned, &request, keys).await,
        };
        match done {
            Ok(()) => {}
            Err(ProjectorError::ReadModel(
                error @ (ReadModelError::Superseded { .. } | ReadModelError::CheckpointMoved { .. }),
            )) => return Err(error.into()),
            Err(error) if owned.is_unsure => return Err(error),
            Err(error) => {
                tracing::warn!(partition = %context.partition, request = %request.id, %error, "dead-letter request waits");
            }
        }
    }
    Ok(())
}

/// Folds the key's parked events in order, as far as it goes.
async fn redrive<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    request: &DeadLetterRequest,
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    if request.key == FOREIGN_KEY {
        let message = "records that are no events of ours have no place in the order: they can only be discarded";
        let left = owned.foreign_records;
        return finish(context, owned, answered(request, DeadLetterOutcome::Failed, message.to_owned(), 0, left)).await;
    }
    let mut resolved = 0;
    loop {
        let page = context.read_model.parked_of(context.partition, &request.key, None, PAGE).await?;
        let is_last = page.len() < PAGE;
        let records: Vec<Record> = page.iter().map(|event| record(context, event)).collect();
        let mut reads = Vec::with_capacity(page.len());
        for record in &records {
            reads.push((record, decode(context, record).await));
        }
        load_rows(context, owned, &reads).await?;
        let mut fold = Fold::<P>::new(context.settings.fold_version, owned.checkpoint);
        let stopped = reads.into_iter().enumerate().find_map(|(index, (_, read))| {
            let folded = match read {
                Read::Event { envelope, event } => {
                    event.and_then(|event| fold.fold(&event, Facts::of(&envelope), |key| owned.rows.get(key)))
                }
                Read::Foreign { why } => Err(why),
            };
            folded.err().map(|why| (index, why))
        });
        let folded = stopped.as_ref().map_or(page.len(), |(index, _)| *index);
        resolved += folded as u64;
        let mut resolution = Resolution { redriven: page[..folded].iter().map(leaves).collect(), ..Default::default() };
        let mut left = 0;
        if let Some((index, why)) = stopped {
            let stays = &page[index];
            left = (page.len() - folded) as u64 + if is_last { 0 } else { behind(context, &page).await? };
            let message = format!("{} cannot be folded: {why}", stays.place());
            resolution.kept.push(ParkedEvent { reason: why, ..stays.clone() });
            resolution.answers.push(answered(request, DeadLetterOutcome::Failed, message, resolved, left));
        } else if is_last {
            let message = match resolved {
                0 => format!("nothing is parked under {}", request.key),
                _ => "level".to_owned(),
            };
            resolution.answers.push(answered(request, DeadLetterOutcome::Done, message, resolved, 0));
        }
        let is_answered = !resolution.answers.is_empty();
        let changes = fold.changes.into_iter().collect();
        let batch = Batch { changes, dead_letters: resolution, ..unmoved(context, owned) };
        apply(context, &batch).await?;
        claim_again(context, owned).await?;
        counter!(REDRIVEN, "projection" => P::NAME).increment(folded as u64);
        if is_answered {
            tracing::info!(partition = %context.partition, key = %request.key, resolved, left, "parked events redriven");
            return Ok(());
        }
    }
}

/// Takes the key's parked events out, or the first of them, and records why. None but those that stood there when it
/// was asked for, up to `to`.
async fn discard<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    request: &DeadLetterRequest,
    reason: &str,
    first_only: bool,
    to: Option<ParkedPlace>,
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let note =
        DiscardNote { request: request.id, reason: reason.to_owned(), by: request.by.clone(), discarded_at: now() };
    let mut resolved = 0;
    loop {
        let page = context.read_model.parked_of(context.partition, &request.key, None, PAGE).await?;
        let is_last = page.len() < PAGE;
        let is_meant = |event: &&ParkedEvent| match to {
            Some(to) if first_only => event.place() == to,
            Some(to) => event.place() <= to,
            None => true,
        };
        let asked_for = if first_only { page.len().min(1) } else { page.len() };
        let leaving = page[..asked_for].iter().take_while(is_meant).count();
        let is_end = first_only || is_last || leaving < page.len();
        resolved += leaving as u64;
        let discarded = page[..leaving].iter().map(|event| (leaves(event), note.clone())).collect();
        let mut resolution = Resolution { discarded, ..Resolution::default() };
        let mut left = 0;
        if is_end {
            left = (page.len() - leaving) as u64 + if is_last { 0 } else { behind(context, &page).await? };
            let message = match resolved {
                0 if page.is_empty() => format!("nothing is parked under {}", request.key),
                0 => "what was to be discarded is gone already".to_owned(),
                _ => "discarded".to_owned(),
            };
            resolution.answers.push(answered(request, DeadLetterOutcome::Done, message, resolved, left));
        }
        let is_answered = !resolution.answers.is_empty();
        apply(context, &Batch { dead_letters: resolution, ..unmoved(context, owned) }).await?;
        claim_again(context, owned).await?;
        // A walk that is under way folds what is taken out here; its request is still there, and is taken up anew.
        owned.refolding = None;
        counter!(DISCARDED, "projection" => P::NAME).increment(leaving as u64);
        if is_answered {
            tracing::info!(partition = %context.partition, key = %request.key, resolved, left, "parked events discarded");
            return Ok(());
        }
    }
}

async fn finish<P, M>(
    context: &WorkerContext<M>,
    owned: &Owned<P>,
    answer: DeadLetterAnswer,
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let dead_letters = Resolution { answers: vec![answer], ..Resolution::default() };
    apply(context, &Batch { dead_letters, ..unmoved(context, owned) }).await
}

/// A registry that is away is an answer here, not a wait: the partition's new events must not stand behind it.
async fn decode<M: ?Sized>(context: &WorkerContext<M>, record: &Record) -> Read {
    match EventEnvelope::from_headers(&record.headers) {
        Err(error) => Read::Foreign { why: error.to_string() },
        Ok(envelope) => {
            let event = context.decoder.decode(record).await;
            let event = event.map(|decoded| decoded.event).map_err(|error| error.to_string());
            Read::Event { envelope, event }
        }
    }
}

/// The record that was parked, as it came.
fn record<M: ?Sized>(context: &WorkerContext<M>, event: &ParkedEvent) -> Record {
    Record {
        at: context.at.clone(),
        offset: event.offset,
        key: event.key.clone().into_bytes().into(),
        headers: event.headers.iter().cloned().collect(),
        value: event.value.clone().into(),
        timestamp: event.parked_at,
    }
}

/// How many events of the key stand behind a page.
async fn behind<M: ReadModel + ?Sized>(
    context: &WorkerContext<M>,
    page: &[ParkedEvent],
) -> Result<u64, ReadModelError> {
    let Some(last) = page.last() else { return Ok(0) };
    let mut after: ParkedPlace = last.place();
    let mut count = 0;
    loop {
        let page = context.read_model.parked_of(context.partition, &last.key, Some(after), PAGE).await?;
        count += page.len() as u64;
        match page.last() {
            Some(event) if page.len() == PAGE => after = event.place(),
            _ => return Ok(count),
        }
    }
}

fn leaves(event: &ParkedEvent) -> Resolved {
    Resolved { key: event.key.clone(), place: event.place() }
}

pub(crate) fn answered(
    request: &DeadLetterRequest,
    outcome: DeadLetterOutcome,
    message: String,
    resolved: u64,
    left: u64,
) -> DeadLetterAnswer {
    DeadLetterAnswer { request: request.clone(), outcome, message, resolved, left, answered_at: now() }
}
