//! Replays of single keys into the generation that is being fed: the owner of their partition folds their events anew
//! from the log, and writes the rows that come of it.
//!
//! The walk over the log is beside the fold of new events, which may take as long as it likes; what came meanwhile is
//! folded at the end, between two batches, so that the rows are true at the checkpoint that they are written at. Only
//! the owner writes, fenced like every batch: an event that comes while one looks is neither lost nor folded twice.
//!
//! A key that has parked events, or an event that cannot be folded, is left out and named: its rows stay, the others
//! are written. The answer counts it as left.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use event_log::{EventDecoder, EventEnvelope, EventLog, TopicPartition};
use read_models::{DeadLetterOutcome, DeadLetterRequest, FOREIGN_KEY, ReadModel};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::claim::{Owned, claim_again, unmoved};
use crate::dead_letters::answered;
use crate::error::ProjectorError;
use crate::projection::{Facts, Projection, fold_event};
use crate::worker::WorkerContext;
use crate::write::apply;

const PAGE: usize = 2_000;
/// Keys that an answer names of those that were left out.
const NAMED: usize = 20;

/// A walk that is under way, or waits to be taken up.
pub(crate) struct Refolding<P: Projection> {
    request: Uuid,
    /// Dropped, it ends.
    walk: JoinSet<Result<Walk<P>, ProjectorError>>,
}

/// The rows of some keys, folded up to a place.
struct Walk<P: Projection> {
    keys: BTreeSet<String>,
    fold: u32,
    /// Sequences of events that were taken out for good: they stay out. Not their offsets, which a log that was filled
    /// again has others of.
    discarded: HashSet<u64>,
    next_offset: u64,
    sequence: u64,
    /// By partition key; those that no event was met of are not there.
    folded: HashMap<String, FoldedKey<P>>,
}

/// What came of the events of one partition key: no row depends on another key's.
struct FoldedKey<P: Projection> {
    rows: HashMap<P::Key, P::Row>,
    events: u64,
    /// The first event that cannot be folded.
    poison: Option<String>,
}

/// Begins the walk for a request, or takes up what it found. The request waits until its rows are written.
pub(crate) async fn refold<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    request: &DeadLetterRequest,
    keys: &[String],
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    match &mut owned.refolding {
        None => {
            let discarded = discarded_sequences(context).await?;
            let walk = Walk::new(keys, context.settings.fold_version, discarded);
            let (log, decoder) = (Arc::clone(&context.log), Arc::clone(&context.decoder));
            let (at, sequence) = (context.at.clone(), owned.checkpoint.sequence);
            let mut walking = JoinSet::new();
            walking.spawn(async move { walk.walk_from_the_beginning(log, decoder, at, sequence).await });
            owned.refolding = Some(Refolding { request: request.id, walk: walking });
            Ok(())
        }
        // One after the other.
        Some(running) if !running.is_for(request) => Ok(()),
        Some(running) => {
            let Some(walked) = running.walk.try_join_next() else { return Ok(()) };
            owned.refolding = None;
            let walked = walked.unwrap_or_else(|error| Err(ProjectorError::BrokeOff { problem: error.to_string() }));
            let mut walk = walked?;
            walk.go_on(&*context.log, &context.decoder, &context.at, owned.checkpoint.sequence).await?;
            write(context, owned, request, walk).await
        }
    }
}

async fn write<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    request: &DeadLetterRequest,
    walk: Walk<P>,
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let Refolded { outcome, message, rows, left } = match walk.sequence == owned.checkpoint.sequence {
        true => walk.refolded(&owned.parked_keys),
        false => {
            let message = format!(
                "the log gives events 1 to {} in order, the rows stand at {}: retention took some, or they are lost; \
                 rebuild by a whole replay, or see `millrace audit`",
                walk.sequence, owned.checkpoint.sequence
            );
            let left = walk.keys.len() as u64;
            Refolded { outcome: DeadLetterOutcome::Failed, message, rows: Vec::new(), left }
        }
    };
    let resolved = rows.len() as u64;
    let mut batch = unmoved(context, owned);
    batch.changes = rows;
    batch.dead_letters.answers.push(answered(request, outcome, message, resolved, left));
    apply(context, &batch).await?;
    claim_again(context, owned).await?;
    tracing::info!(partition = %context.partition, request = %request.id, rows = resolved, left, "keys folded anew");
    Ok(())
}

/// What is written of a walk, and what is told of it.
struct Refolded<P: Projection> {
    outcome: DeadLetterOutcome,
    message: String,
    rows: Vec<(P::Key, P::Row)>,
    /// Keys whose rows stay as they are, though the log has events of them.
    left: u64,
}

// === impl Refolding ===

impl<P: Projection> Refolding<P> {
    pub(crate) fn is_for(&self, request: &DeadLetterRequest) -> bool {
        self.request == request.id
    }
}

// === impl Walk ===

impl<P: Projection> Walk<P> {
    fn new(keys: &[String], fold: u32, discarded: HashSet<u64>) -> Self {
        Self {
            keys: keys.iter().cloned().collect(),
            fold,
            discarded,
            next_offset: 0,
            sequence: 0,
            folded: HashMap::new(),
        }
    }

    /// Rows of all keys but those that have parked events or one that cannot be folded.
    fn refolded(self, parked_keys: &HashSet<String>) -> Refolded<P> {
        let unseen = self.keys.iter().filter(|key| !self.folded.contains_key(*key)).count();
        let is_parked = |key: &String| parked_keys.contains(key);
        let parked: Vec<&str> = self.keys.iter().filter(|key| is_parked(key)).map(String::as_str).collect();
        let poisoned: BTreeMap<&String, &String> = self
            .folded
            .iter()
            .filter(|(key, _)| !is_parked(key))
            .filter_map(|(key, folded)| folded.poison.as_ref().map(|why| (key, why)))
            .collect();
        let poisoned: Vec<&str> = poisoned.into_values().map(String::as_str).collect();
        let left = parked.len() + poisoned.len();
        let mut told = Vec::new();
        if !parked.is_empty() {
            let named = first_of(&parked, ", ");
            told.push(format!("events of {named} are parked: redrive or discard them, which brings it level"));
        }
        if !poisoned.is_empty() {
            told.push(first_of(&poisoned, "; "));
        }
        if unseen > 0 {
            told.push(format!("the log has no event of {unseen} keys, whose rows stay"));
        }
        let right = self.folded.into_iter().filter(|(key, folded)| !is_parked(key) && folded.poison.is_none());
        let (mut rows, mut events) = (Vec::new(), 0);
        for (_, folded) in right {
            events += folded.events;
            rows.extend(folded.rows);
        }
        told.insert(0, format!("{} rows folded anew from {events} events", rows.len()));
        let outcome = if left == 0 { DeadLetterOutcome::Done } else { DeadLetterOutcome::Failed };
        Refolded { outcome, message: told.join("; "), rows, left: left as u64 }
    }

    async fn walk_from_the_beginning(
        mut self,
        log: Arc<dyn EventLog>,
        decoder: Arc<EventDecoder>,
        at: TopicPartition,
        to: u64,
    ) -> Result<Self, ProjectorError> {
        self.next_offset = log.ends_of(&at).await?.map_or(0, |ends| ends.first);
        self.go_on(&*log, &decoder, &at, to).await?;
        Ok(self)
    }

    /// Folds events up to sequence `to`, itself included.
    async fn go_on(
        &mut self,
        log: &dyn EventLog,
        decoder: &EventDecoder,
        at: &TopicPartition,
        to: u64,
    ) -> Result<(), ProjectorError> {
        while self.sequence < to {
            let records = log.read(at, self.next_offset, PAGE).await?;
            if records.is_empty() {
                return Ok(());
            }
            for record in &records {
                let Ok(envelope) = EventEnvelope::from_headers(&record.headers) else {
                    self.next_offset = record.offset + 1;
                    continue;
                };
                // What comes while one looks is not passed over: it belongs to the next walk.
                if self.sequence == to {
                    return Ok(());
                }
                self.next_offset = record.offset + 1;
                // A twin, or one behind a gap, which the log has once more where it belongs.
                if envelope.sequence != self.sequence + 1 {
                    continue;
                }
                self.sequence = envelope.sequence;
                if !self.keys.contains(&envelope.partition_key) || self.discarded.contains(&envelope.sequence) {
                    continue;
                }
                let folded = self.folded.entry(envelope.partition_key.clone()).or_default();
                if folded.poison.is_some() {
                    continue;
                }
                folded.events += 1;
                match decoder.decode(record).await {
                    Ok(decoded) => {
                        let facts = Facts::of(&envelope);
                        match fold_event::<P>(self.fold, &decoded.event, facts, |key| folded.rows.get(key)) {
                            Ok(Some((key, row))) => {
                                folded.rows.insert(key, row);
                            }
                            Ok(None) => {}
                            Err(error) => folded.poison = Some(poison(&envelope, &error.to_string())),
                        }
                    }
                    // The request waits, and is tried again from the beginning.
                    Err(error) if error.is_transient() => {
                        return Err(ProjectorError::BrokeOff { problem: error.to_string() });
                    }
                    Err(error) => folded.poison = Some(poison(&envelope, &error.to_string())),
                }
            }
        }
        Ok(())
    }
}

// === impl FoldedKey ===

impl<P: Projection> Default for FoldedKey<P> {
    fn default() -> Self {
        Self { rows: HashMap::new(), events: 0, poison: None }
    }
}

fn first_of(all: &[&str], between: &str) -> String {
    let named = all.iter().take(NAMED).copied().collect::<Vec<_>>().join(between);
    match all.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

async fn discarded_sequences<M: ReadModel + ?Sized>(
    context: &WorkerContext<M>,
) -> Result<HashSet<u64>, ProjectorError> {
    let mut sequences = HashSet::new();
    let mut after = None;
    loop {
        let page = context.read_model.discarded(context.partition, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(sequences) };
        after = Some(last.event.place());
        // A foreign record stands under the sequence before it, which is an event's own.
        let events = page.iter().map(|discarded| &discarded.event).filter(|event| event.key != FOREIGN_KEY);
        sequences.extend(events.map(|event| event.sequence));
    }
}

fn poison(envelope: &EventEnvelope, why: &str) -> String {
    format!(
        "event {} of {} (sequence {}) cannot be folded: {why}",
        envelope.id, envelope.partition_key, envelope.sequence
    )
}
