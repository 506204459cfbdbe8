//! Replays of single keys into the generation that is being fed: the owner of their partition folds their events anew from
//! the log, and writes the rows that come of it.
//!
//! The walk over the log is beside the fold of new events, which may take as long as it likes; what came meanwhile is
//! folded at the end, between two batches, so that the rows are true at the checkpoint that they are written at. Only the
//! owner writes, fenced like every batch: an event that comes while one looks is neither lost nor folded twice.

use std::collections::{HashMap, HashSet};
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

/// A walk that is under way, or waits to be taken up.
pub(crate) struct Refolding<P: Projection> {
    request: Uuid,
    /// Dropped, it ends.
    walk: JoinSet<Result<Walk<P>, ProjectorError>>,
}

/// The rows of some keys, folded up to a place.
struct Walk<P: Projection> {
    keys: HashSet<String>,
    fold: u32,
    /// Sequences of events that were taken out for good: they stay out. Not their offsets, which a log that was filled
    /// again has others of.
    discarded: HashSet<u64>,
    next_offset: u64,
    sequence: u64,
    rows: HashMap<P::Key, P::Row>,
    events: u64,
    /// Keys that no event was met of.
    seen: HashSet<String>,
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
    let parked: Vec<&String> = walk.keys.iter().filter(|key| owned.parked_keys.contains(*key)).collect();
    let (outcome, message, rows) = if walk.poison.is_none() && walk.sequence != owned.checkpoint.sequence {
        let message = format!(
            "the log gives events 1 to {} in order, the rows stand at {}: retention took some, or they are lost; \
             rebuild by a whole replay, or see `millrace audit`",
            walk.sequence, owned.checkpoint.sequence
        );
        (DeadLetterOutcome::Failed, message, HashMap::new())
    } else if let Some(key) = parked.first() {
        let message = format!("events of {key} are parked: redrive or discard them, which brings it level");
        (DeadLetterOutcome::Failed, message, HashMap::new())
    } else if let Some(poison) = walk.poison {
        (DeadLetterOutcome::Failed, poison, HashMap::new())
    } else {
        let unseen = walk.keys.iter().filter(|key| !walk.seen.contains(*key)).count();
        let message = match unseen {
            0 => format!("{} rows folded anew from {} events", walk.rows.len(), walk.events),
            _ => format!(
                "{} rows folded anew from {} events; the log has no event of {unseen} keys, whose rows stay",
                walk.rows.len(),
                walk.events
            ),
        };
        (DeadLetterOutcome::Done, message, walk.rows)
    };
    let resolved = rows.len() as u64;
    let mut batch = unmoved(context, owned);
    batch.changes = rows.into_iter().collect();
    batch.dead_letters.answers.push(answered(request, outcome, message, resolved, 0));
    apply(context, &batch).await?;
    claim_again(context, owned).await?;
    tracing::info!(partition = %context.partition, request = %request.id, rows = resolved, "keys folded anew");
    Ok(())
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
            rows: HashMap::new(),
            events: 0,
            seen: HashSet::new(),
            poison: None,
        }
    }

    async fn walk_from_the_beginning(
        mut self,
        log: Arc<dyn EventLog>,
        decoder: Arc<EventDecoder>,
        at: TopicPartition,
        to: u64,
    ) -> Result<Self, ProjectorError> {
        let ends = log.ends(&at.topic).await?;
        self.next_offset = ends.iter().find(|ends| ends.partition == at.partition).map_or(0, |ends| ends.first);
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
        while self.sequence < to && self.poison.is_none() {
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
                self.events += 1;
                match decoder.decode(record).await {
                    Ok(decoded) => {
                        let facts = Facts::of(&envelope);
                        match fold_event::<P>(self.fold, &decoded.event, facts, |key| self.rows.get(key)) {
                            Ok(Some((key, row))) => {
                                self.rows.insert(key, row);
                            }
                            Ok(None) => {}
                            Err(error) => self.poison = Some(poison(&envelope, &error.to_string())),
                        }
                    }
                    // The request waits, and is tried again from the beginning.
                    Err(error) if error.is_transient() => {
                        return Err(ProjectorError::BrokeOff { problem: error.to_string() });
                    }
                    Err(error) => self.poison = Some(poison(&envelope, &error.to_string())),
                }
                self.seen.insert(envelope.partition_key);
            }
        }
        Ok(())
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
