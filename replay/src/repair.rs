//! A replay of some keys into the generation that is fed: which keys a selection means, and asking the owners of their
//! partitions to fold them anew.
//!
//! A selection by region or time names keys by their events. Each such key is folded from all of its events, not only
//! from those that were selected: so what comes of it is right now, whatever came before or comes meanwhile.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use event_log::{EventEnvelope, TopicPartition};
use projectors::Projection;
use read_models::{
    DeadLetterAction, DeadLetterAnswer, DeadLetterOutcome, DeadLetterRequest, DeadLetters, PartitionRef,
};
use schemas::{Event, RegionId, Sku, partition_of};
use uuid::Uuid;

use crate::error::ReplayError;
use crate::gates::Missing;
use crate::log_reader::LogReader;
use crate::parity::Progress;
use crate::replayed::Selected;

const PAGE: usize = 2_000;
/// Keys of one request: each request is one walk over its partition.
const KEYS_AT_ONCE: usize = 5_000;

/// Which keys to fold anew: those that all of it holds for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Empty: any.
    pub skus: Vec<Sku>,
    /// Keys with an event of one of these regions; empty: any.
    pub regions: Vec<RegionId>,
    /// Keys with an event of this time or later, milliseconds since 1970.
    pub since: Option<i64>,
    /// Keys with an event before this time.
    pub until: Option<i64>,
}

/// A request that an owner was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub partition: PartitionRef,
    pub request: Uuid,
    pub keys: usize,
}

// === impl Selection ===

impl Selection {
    /// Checked before anything is looked at.
    pub fn check(&self) -> Result<(), ReplayError> {
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since >= until
        {
            let problem = "it is not before --until: no event is of such a time".to_owned();
            return Err(ReplayError::Setting { key: "since", problem });
        }
        Ok(())
    }

    /// Whether keys are chosen by what their events say, not by their names alone.
    pub fn is_by_events(&self) -> bool {
        !self.regions.is_empty() || self.since.is_some() || self.until.is_some()
    }

    /// The SKUs that were named, and that none of the selected keys is of.
    pub fn not_in(&self, selected: &Selected) -> Vec<Sku> {
        let is_there = |sku: &Sku| selected.values().any(|keys| keys.contains(sku.as_str()));
        self.skus.iter().filter(|sku| !is_there(sku)).cloned().collect()
    }

    /// What keeps it from being folded: no key at all, or a SKU that was named and that the log has no event of, which
    /// is a slip most of the time. Where keys are chosen by region or time too, a SKU may well have none of these.
    pub fn missing(&self, selected: &Selected) -> Option<Missing> {
        let not_there = self.not_in(selected);
        if !not_there.is_empty() && !self.is_by_events() {
            let named: Vec<&str> = not_there.iter().map(Sku::as_str).collect();
            let sentence = format!("the log has no event of {}; nothing was asked for", named.join(", "));
            return Some(Missing::new("unknown_sku", sentence));
        }
        let nothing = "the log has no event that these keys, regions and times mean; nothing was asked for";
        selected.is_empty().then(|| Missing::new("nothing_selected", nothing))
    }

    fn takes(&self, event: &Event, time: i64) -> bool {
        let is_there = self.regions.is_empty() || region_of(event).is_some_and(|region| self.regions.contains(region));
        is_there && self.takes_time(time)
    }

    fn takes_time(&self, time: i64) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time < until)
    }
}

fn region_of(event: &Event) -> Option<&RegionId> {
    match event {
        Event::StockUpdated(event) => Some(&event.region),
        Event::PriceSet(event) => Some(&event.region),
        _ => None,
    }
}

/// The keys that a selection means, by partition: only those that the log has an event of. See [`Selection::not_in`].
pub async fn select<P: Projection>(
    log: &LogReader,
    partitions: u32,
    selection: &Selection,
    progress: &Progress,
) -> Result<BTreeMap<PartitionRef, BTreeSet<String>>, ReplayError> {
    let mut keys: BTreeMap<PartitionRef, BTreeSet<String>> = BTreeMap::new();
    let named: BTreeSet<&str> = selection.skus.iter().map(|sku| sku.as_str()).collect();
    let all = P::CONTEXTS
        .iter()
        .flat_map(|&context| (0..partitions).map(move |partition| PartitionRef { context, partition }));
    let all: Vec<PartitionRef> = all.collect();
    progress.expect(all.len());
    for partition in all {
        let here: BTreeSet<&str> = named
            .iter()
            .copied()
            .filter(|sku| partition_of(sku.as_bytes(), partitions) == partition.partition)
            .collect();
        let found = if named.is_empty() || !here.is_empty() {
            walk::<P>(log, partition, selection, &here, progress).await?
        } else {
            BTreeSet::new()
        };
        if !found.is_empty() {
            keys.insert(partition, found);
        }
        progress.partition_done();
    }
    Ok(keys)
}

async fn walk<P: Projection>(
    log: &LogReader,
    partition: PartitionRef,
    selection: &Selection,
    named: &BTreeSet<&str>,
    progress: &Progress,
) -> Result<BTreeSet<String>, ReplayError> {
    let at = TopicPartition::new(partition.context.events_topic(), partition.partition);
    // Without patience: a log that is away before a partition is begun is an error at once.
    let Some(ends) = log.log.ends_of(&at).await? else { return Ok(BTreeSet::new()) };
    let (mut next, mut found) = (ends.first, BTreeSet::new());
    let is_all = |found: &BTreeSet<String>| !named.is_empty() && found.len() == named.len();
    while next < ends.next && !is_all(&found) {
        let records = log.read(&at, next, PAGE).await?;
        let Some(last) = records.last() else { break };
        let behind = last.offset + 1;
        for record in &records {
            let Ok(envelope) = EventEnvelope::from_headers(&record.headers) else { continue };
            let key = &envelope.partition_key;
            if found.contains(key) || (!named.is_empty() && !named.contains(key.as_str())) {
                continue;
            }
            // Its name is enough, also of one that does not decode: its owner says what is to be done with that.
            if !selection.is_by_events() {
                found.insert(envelope.partition_key);
                continue;
            }
            let is_taken = match log.decode(record).await {
                Ok(decoded) => P::key(&decoded.event).is_some() && selection.takes(&decoded.event, envelope.time),
                // A registry that is away says nothing about the event: a part of the keys must not pass for all.
                Err(error) if error.is_transient() => return Err(error.into()),
                // Nobody can tell its region. Its owner parked it, and names its key with those that are left out.
                Err(_) => selection.takes_time(envelope.time),
            };
            if is_taken {
                found.insert(envelope.partition_key);
            }
        }
        next = behind;
        progress.rows(records.len());
    }
    Ok(found)
}

/// Asks the owners. `now` in milliseconds since 1970.
pub async fn ask(
    dead_letters: &dyn DeadLetters,
    keys: &BTreeMap<PartitionRef, BTreeSet<String>>,
    by: &str,
    reason: &str,
    now: i64,
) -> Result<Vec<Asked>, ReplayError> {
    let mut asked = Vec::new();
    for (partition, keys) in keys {
        let keys: Vec<String> = keys.iter().cloned().collect();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let Some(first) = keys.first() else { continue };
            let request = DeadLetterRequest {
                id: Uuid::new_v4(),
                key: first.clone(),
                action: DeadLetterAction::Refold { keys: keys.to_vec() },
                by: Some(by.to_owned()),
                note: Some(reason.to_owned()),
                requested_at: now,
            };
            dead_letters.request_dead_letter(*partition, &request).await?;
            asked.push(Asked { partition: *partition, request: request.id, keys: keys.len() });
        }
    }
    Ok(asked)
}

/// How many keys of a request were folded anew. What an owner leaves out it counts as left; one of before that could
/// not, and then folded none.
pub fn folded(asked: &Asked, answer: &DeadLetterAnswer) -> usize {
    match (answer.outcome, usize::try_from(answer.left).unwrap_or(usize::MAX)) {
        (DeadLetterOutcome::Failed, 0) => 0,
        (_, left) => asked.keys.saturating_sub(left),
    }
}

/// What the owners have answered so far, in the order asked; `None` where a request still waits.
pub async fn answers(
    dead_letters: &dyn DeadLetters,
    asked: &[Asked],
) -> Result<Vec<Option<DeadLetterAnswer>>, ReplayError> {
    let mut by_partition: BTreeMap<PartitionRef, Vec<DeadLetterAnswer>> = BTreeMap::new();
    for one in asked {
        if let Entry::Vacant(unseen) = by_partition.entry(one.partition) {
            unseen.insert(dead_letters.dead_letter_answers(one.partition, read_models::KEPT_ANSWERS).await?);
        }
    }
    let found = asked.iter().map(|one| {
        let answers = by_partition.get(&one.partition)?;
        answers.iter().find(|answer| answer.request.id == one.request).cloned()
    });
    Ok(found.collect())
}
