//! What the dead-letter routes show: keys, queues with their events decoded where they can be, and the history.

use chrono::{DateTime, SecondsFormat};
use event_log::{EventDecoder, Record, TopicPartition};
use read_models::{
    DeadLetterAction, DeadLetterAnswer, DeadLetterOutcome, DeadLetterRequest, DeadLetters, DiscardedEvent,
    KEPT_ANSWERS, ParkedEvent, ParkedKey, PartitionRef, ReadModelError,
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Meant;

/// Bytes of a value that cannot be decoded that are shown.
const SHOWN_BYTES: usize = 256;
/// Discarded events of a key that are shown.
const SHOWN_DISCARDS: usize = 100;
/// Discarded events of one read of a partition.
const DISCARD_PAGE: usize = 500;

/// Some of the parked keys.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyPage {
    pub(super) keys: Vec<Key>,
    /// For `after` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

/// A key whose events wait in one partition.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Key {
    projection: String,
    key: String,
    /// As in `inventory.events/3`.
    partition: String,
    /// Events that wait.
    events: u64,
    /// Why the first cannot be folded.
    first_reason: String,
    first_sequence: u64,
    parked_at: String,
    #[serde(skip)]
    at: PartitionRef,
}

/// Where the next page begins.
#[derive(Debug, PartialEq)]
pub(super) struct Cursor {
    pub(super) projection: String,
    pub(super) partition: PartitionRef,
    pub(super) key: String,
}

/// The queue of a key, in order, and what was done with it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LetterPage {
    projection: String,
    key: String,
    events: Vec<Letter>,
    /// Whether there are more events than are shown.
    more: bool,
    history: History,
}

/// A parked event.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Letter {
    partition: String,
    sequence: u64,
    offset: u64,
    reason: String,
    parked_at: String,
    headers: Vec<Header>,
    /// What this program reads in it; null where it cannot.
    event: Option<serde_json::Value>,
    /// Why it cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The first bytes of the value in hex, where it cannot be decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
    value_bytes: usize,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Header {
    name: String,
    value: String,
}

/// What was asked for this key, and what became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct History {
    /// Requests that the projector has not taken up yet, and the newest that it answered.
    requests: Vec<Asked>,
    /// Events that were taken out.
    discarded: Vec<Discarded>,
}

/// A request and what became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Asked {
    id: Uuid,
    /// Of the read model; where to look for what becomes of it.
    generation: u32,
    partition: String,
    /// `waiting`, `done` or `failed`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Events that left the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved: Option<u64>,
    /// Events still parked.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_at: Option<String>,
}

/// An event that was taken out.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Discarded {
    request: Uuid,
    reason: String,
    by: Option<String>,
    discarded_at: String,
    letter: Letter,
}

/// What was asked for, one request for each partition that has events of the key.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Requested {
    pub(super) projection: String,
    pub(super) key: String,
    pub(super) requests: Vec<Asked>,
}

/// Everything about one key.
pub(super) async fn letters(
    decoder: &EventDecoder,
    meant: &Meant<'_>,
    key: &str,
    limit: usize,
) -> Result<LetterPage, ReadModelError> {
    let (generation, read_model) = meant.shown().await?;
    let read_model = read_model.as_ref();
    let history = History { requests: Vec::new(), discarded: Vec::new() };
    let mut page =
        LetterPage { projection: meant.label(), key: key.to_owned(), events: Vec::new(), more: false, history };
    for at in read_model.partitions().await? {
        let room = limit - page.events.len();
        let parked = read_model.parked_of(at, key, None, room + 1).await?;
        page.more |= parked.len() > room;
        for event in parked.into_iter().take(room) {
            page.events.push(Letter::new(decoder, at, event).await);
        }
        let waiting = read_model.dead_letter_requests(at).await?.into_iter().filter(|request| request.key == key);
        page.history.requests.extend(waiting.map(|request| Asked::waiting(generation, at, request)));
        let answered = read_model.dead_letter_answers(at, KEPT_ANSWERS).await?.into_iter();
        let answered = answered.filter(|answer| answer.request.key == key);
        page.history.requests.extend(answered.map(|answer| Asked::answered(generation, at, answer)));
        for discarded in discarded(read_model, at, key).await? {
            let DiscardedEvent { event, note } = discarded;
            page.history.discarded.push(Discarded {
                request: note.request,
                reason: note.reason,
                by: note.by,
                discarded_at: time(note.discarded_at),
                letter: Letter::new(decoder, at, event).await,
            });
        }
    }
    Ok(page)
}

async fn discarded(
    read_model: &dyn DeadLetters,
    at: PartitionRef,
    key: &str,
) -> Result<Vec<DiscardedEvent>, ReadModelError> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = read_model.discarded(at, after, DISCARD_PAGE).await?;
        let is_last = page.len() < DISCARD_PAGE;
        after = page.last().map(|discarded| discarded.event.place());
        found.extend(page.into_iter().filter(|discarded| discarded.event.key == key));
        if is_last || found.len() >= SHOWN_DISCARDS {
            found.truncate(SHOWN_DISCARDS);
            return Ok(found);
        }
    }
}

// === impl LetterPage ===

impl LetterPage {
    /// Nothing is known of the key.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.history.requests.is_empty() && self.history.discarded.is_empty()
    }
}

// === impl Key ===

impl Key {
    pub(super) fn new(projection: &str, at: PartitionRef, found: ParkedKey) -> Self {
        Self {
            projection: projection.to_owned(),
            key: found.key,
            partition: at.to_string(),
            events: found.events,
            first_reason: found.reason,
            first_sequence: found.first.sequence,
            parked_at: time(found.parked_at),
            at,
        }
    }
}

// === impl Cursor ===

impl Cursor {
    /// `projection/context/partition/key`; only the key may hold a slash.
    pub(super) fn of(key: &Key) -> String {
        format!("{}/{}/{}/{}", key.projection, key.at.context, key.at.partition, key.key)
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(4, '/');
        let mut next = || parts.next();
        let parsed = (|| {
            let projection = next()?.to_owned();
            let context = next()?.parse().ok()?;
            let partition = next()?.parse().ok()?;
            Some(Self { projection, partition: PartitionRef { context, partition }, key: next()?.to_owned() })
        })();
        parsed.ok_or_else(|| "after is not what an earlier page gave as next".to_owned())
    }
}

// === impl Letter ===

impl Letter {
    async fn new(decoder: &EventDecoder, at: PartitionRef, parked: ParkedEvent) -> Self {
        let record = Record {
            at: TopicPartition::new(at.context.events_topic(), at.partition),
            offset: parked.offset,
            key: parked.key.clone().into_bytes().into(),
            headers: parked.headers.into_iter().collect(),
            value: parked.value.into(),
            timestamp: parked.parked_at,
        };
        let (event, error) = match decoder.decode(&record).await {
            Ok(decoded) => (Some(decoded.event.to_json()), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let value_hex = error.is_some().then(|| hex(&record.value[..record.value.len().min(SHOWN_BYTES)]));
        Self {
            partition: at.to_string(),
            sequence: parked.sequence,
            offset: parked.offset,
            reason: parked.reason,
            parked_at: time(parked.parked_at),
            headers: record.headers.to_pairs().into_iter().map(|(name, value)| Header { name, value }).collect(),
            event,
            error,
            value_hex,
            value_bytes: record.value.len(),
        }
    }
}

// === impl Asked ===

impl Asked {
    /// Of a request that was just left.
    pub(super) fn new(generation: u32, at: PartitionRef, id: Uuid, answer: Option<DeadLetterAnswer>) -> Self {
        match answer {
            Some(answer) => Self::answered(generation, at, answer),
            None => Self::with(generation, at.to_string(), id, "waiting"),
        }
    }

    pub(super) fn is_of(&self, generation: u32) -> bool {
        self.generation == generation
    }

    /// Of what could not be asked; `None` where that is a whole generation.
    pub(super) fn failed(generation: u32, at: Option<PartitionRef>, error: &ReadModelError) -> Self {
        let partition = at.map_or_else(|| "-".to_owned(), |at| at.to_string());
        Self {
            message: Some(format!("not asked: {error}")),
            ..Self::with(generation, partition, Uuid::nil(), "failed")
        }
    }

    fn with(generation: u32, partition: String, id: Uuid, state: &'static str) -> Self {
        Self {
            id,
            generation,
            partition,
            state,
            action: None,
            reason: None,
            by: None,
            message: None,
            resolved: None,
            left: None,
            requested_at: None,
            answered_at: None,
        }
    }

    fn waiting(generation: u32, at: PartitionRef, request: DeadLetterRequest) -> Self {
        let (action, reason) = match request.action {
            DeadLetterAction::Redrive => ("redrive", request.note),
            DeadLetterAction::Discard { reason, first_only: false, .. } => ("discard", Some(reason)),
            DeadLetterAction::Discard { reason, first_only: true, .. } => ("discard first", Some(reason)),
            DeadLetterAction::Refold { .. } => ("refold", request.note),
        };
        Self {
            action: Some(action),
            reason,
            by: request.by,
            requested_at: Some(time(request.requested_at)),
            ..Self::with(generation, at.to_string(), request.id, "waiting")
        }
    }

    fn answered(generation: u32, at: PartitionRef, answer: DeadLetterAnswer) -> Self {
        Self {
            state: match answer.outcome {
                DeadLetterOutcome::Done => "done",
                DeadLetterOutcome::Failed => "failed",
            },
            message: Some(answer.message),
            resolved: Some(answer.resolved),
            left: Some(answer.left),
            answered_at: Some(time(answer.answered_at)),
            ..Self::waiting(generation, at, answer.request)
        }
    }
}

fn time(millis: i64) -> String {
    DateTime::from_timestamp_millis(millis).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use schemas::Context;

    use super::*;

    #[test]
    fn a_cursor_reads_back_whatever_the_key_holds() {
        let at = PartitionRef { context: Context::Pricing, partition: 11 };
        for key in ["A", "!foreign", "a/b//c", "", "é ~"] {
            let first = read_models::ParkedPlace { sequence: 1, offset: 2 };
            let found = ParkedKey { key: key.to_owned(), events: 1, first, reason: String::new(), parked_at: 0 };
            let cursor = Cursor::of(&Key::new("search", at, found));
            let expected = Cursor { projection: "search".to_owned(), partition: at, key: key.to_owned() };
            assert_eq!(Cursor::parse(&cursor), Ok(expected));
        }
        for wrong in ["", "search", "search/pricing/11", "search/none/1/A", "search/pricing/x/A"] {
            assert!(Cursor::parse(wrong).is_err(), "{wrong}");
        }
    }
}
