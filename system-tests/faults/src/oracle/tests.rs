//! The checker is shown a right history, which it must pass, and then that history with one thing wrong at a time.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use event_log::{EventEnvelope, Record, TopicPartition, frame::frame};
use event_store::{StoredEvent, StreamId};
use schemas::command::ReceiveStock;
use schemas::event::{StockChange, StockUpdated};
use schemas::{
    Command, Context, Event, Outcome, OutcomeKind, PositionToken, StorePosition, encode_event, partition_of,
};
use uuid::Uuid;

use super::Violation;
use super::answers::{Answer, Answered, check};
use super::checks;
use super::fold::{Expected, Stock};
use super::table::Table;
use super::topics::{LogPartition, Topics};
use super::views::StockView;
use crate::commands::parsed;
use crate::journal::{Entry, Seen};

const PARTITIONS: u32 = 3;

struct History {
    table: Table,
    journal: HashMap<Uuid, Entry>,
    topics: Topics,
    view: StockView,
}

/// Forty deliveries of 5 to eight SKUs in one warehouse, one of them refused, all right.
fn history() -> History {
    let mut table = Table { partitions: PARTITIONS, ..Table::default() };
    let mut journal = HashMap::new();
    for number in 0..40_u64 {
        let (sku, version) = (format!("S{}", number % 8), number / 8 + 1);
        let command = Command::ReceiveStock(ReceiveStock {
            sku: parsed(&sku),
            warehouse: parsed("w"),
            region: Some(parsed("north")),
            quantity: 5,
        });
        let event = stored(number + 1, &sku, version, 5 * version as i64, 0);
        let id = Uuid::from_u128(u128::from(number) + 1);
        let outcome = Outcome {
            id,
            outcome: OutcomeKind::Accepted,
            position: None,
            stream: Some(event.stream.to_string()),
            version: Some(version),
            reason: None,
        };
        table.outcomes.insert(id, outcome.clone());
        journal.insert(id, entry(command, outcome));
        table.events.push(event);
    }
    let refused = Uuid::from_u128(999);
    let command = journal[&Uuid::from_u128(1)].command.clone();
    let outcome = Outcome::refused(refused, OutcomeKind::Rejected, "no", "no");
    table.outcomes.insert(refused, outcome.clone());
    journal.insert(refused, entry(command, outcome));
    let expected = Expected::of(&table);
    let topics = published(&table, &expected);
    let rows = expected.stock.clone();
    let checkpoints = expected.partitions.iter().map(|((_, partition), due)| (*partition, due.len() as u64));
    let view = StockView { rows, checkpoints: checkpoints.collect() };
    History { table, journal, topics, view }
}

fn entry(command: Command, outcome: Outcome) -> Entry {
    Entry { command, outcome: Some(outcome), acknowledged: 1, contradictions: Vec::new(), by_topic: false }
}

fn stored(position: u64, sku: &str, version: u64, on_hand: i64, reserved: i64) -> StoredEvent {
    let event = Event::StockUpdated(StockUpdated {
        sku: parsed(sku),
        warehouse: parsed("w"),
        region: parsed("north"),
        change: StockChange::Received,
        quantity: 5,
        on_hand,
        reserved,
        reservation_id: None,
        expires_at: None,
        reason: None,
    });
    let encoded = encode_event(&event).unwrap();
    StoredEvent {
        position: StorePosition { xid: 7, position },
        topic: "inventory.events".to_owned(),
        stream: StreamId::from_stored(format!("stock-{sku}@w")),
        version,
        key: sku.to_owned(),
        id: Uuid::from_u128(u128::from(position) << 64),
        schema: encoded.schema,
        body: encoded.body,
        time: 1_000,
        correlation_id: None,
        causation_id: Some(Uuid::from_u128(u128::from(position)).to_string()),
        actor: None,
        traceparent: None,
    }
}

/// What a right relay publishes, with every third record of a partition twice.
fn published(table: &Table, expected: &Expected) -> Topics {
    let mut topics = Topics::new();
    for (at, due) in &expected.partitions {
        let mut log = LogPartition::default();
        for (index, event) in due.iter().enumerate() {
            let sequence = index as u64 + 1;
            push(&mut log, record(&table.events[*event], sequence));
            if sequence.is_multiple_of(3) {
                push(&mut log, record(&table.events[*event], sequence));
            }
        }
        topics.insert(at.clone(), log);
    }
    topics
}

fn push(log: &mut LogPartition, mut record: Record) {
    record.offset = log.records.len() as u64;
    log.records.push(record);
}

fn record(event: &StoredEvent, sequence: u64) -> Record {
    let envelope = EventEnvelope {
        id: event.id,
        source: "/millrace/inventory".to_owned(),
        event_type: event.schema.name.to_owned(),
        time: event.time,
        subject: event.stream.to_string(),
        partition_key: event.key.clone(),
        sequence,
        stream_version: event.version,
        position: event.position,
        correlation_id: None,
        causation_id: None,
        traceparent: None,
    };
    Record {
        at: TopicPartition::new(event.topic.clone(), partition_of(event.key.as_bytes(), PARTITIONS)),
        offset: 0,
        key: event.key.clone().into_bytes().into(),
        headers: envelope.to_headers(),
        value: frame(3, &event.body).into(),
        timestamp: 0,
    }
}

impl History {
    fn violations(&self) -> Vec<Violation> {
        let expected = Expected::of(&self.table);
        let mut found = checks::streams(&self.table, &HashSet::new());
        found.extend(checks::commands(&self.table, &self.journal, &HashSet::new(), false));
        found.extend(checks::topics(&self.table, &expected, &self.topics).0);
        found.extend(checks::stock(&expected, &self.view));
        found
    }

    /// The invariants that are told to be broken.
    fn broken(&self) -> Vec<&'static str> {
        let mut broken: Vec<&str> = self.violations().iter().map(|violation| violation.invariant).collect();
        broken.sort_unstable();
        broken.dedup();
        broken
    }

    fn log(&mut self) -> &mut LogPartition {
        self.topics.values_mut().next().unwrap()
    }
}

#[test]
fn a_right_history_passes_and_its_twins_are_counted() {
    let history = history();
    assert_eq!(history.violations(), []);
    let expected = Expected::of(&history.table);
    let (_, duplicates) = checks::topics(&history.table, &expected, &history.topics);
    assert_eq!(duplicates, expected.partitions.values().map(|due| due.len() as u64 / 3).sum::<u64>());
}

#[test]
fn an_event_that_is_not_on_the_topic_is_found() {
    let mut first = history();
    first.log().records.remove(0);
    assert_eq!(first.broken(), ["P1"]);
    let mut last = history();
    last.log().records.pop();
    let length = last.log().records.len();
    // Its twin, where it has one, would do.
    last.log().records.truncate(length - 1);
    assert_eq!(last.broken(), ["W4"]);
    let mut all = history();
    all.topics.clear();
    assert_eq!(all.broken(), ["W4"]);
}

#[test]
fn an_event_on_the_topic_that_was_never_committed_is_found() {
    let mut history = history();
    let sequence = 1_000;
    let uncommitted = record(&stored(500, "S0", 6, 30, 0), sequence);
    push(history.log(), uncommitted);
    assert_eq!(history.broken(), ["W4"]);
}

#[test]
fn a_twin_that_is_not_the_same_is_found() {
    let mut history = history();
    let other = stored(500, "S0", 6, 30, 0);
    push(history.log(), record(&other, 1));
    assert_eq!(history.broken(), ["W4"]);
}

#[test]
fn two_events_in_the_wrong_order_are_found() {
    let mut history = history();
    history.log().records.swap(0, 1);
    assert!(history.broken().contains(&"P1"), "{:?}", history.violations());
}

#[test]
fn an_event_that_was_appended_twice_is_found() {
    let mut history = history();
    let (mut twin, position) = (history.table.events[39].clone(), 41);
    twin.position.position = position;
    twin.version += 1;
    twin.id = Uuid::from_u128(4_711);
    history.table.events.push(twin);
    assert!(history.broken().contains(&"W2"), "{:?}", history.violations());
}

#[test]
fn a_gap_in_a_stream_is_found() {
    let mut history = history();
    history.table.events.remove(20);
    assert!(history.broken().contains(&"W1"), "{:?}", history.violations());
}

#[test]
fn an_acknowledged_command_without_event_and_a_refused_one_with_are_found() {
    let mut missing = history();
    missing.table.events.pop();
    assert!(missing.broken().contains(&"W2"), "{:?}", missing.violations());
    let mut refused = history();
    refused.table.events[39].causation_id = Some(Uuid::from_u128(999).to_string());
    assert!(refused.broken().contains(&"W2"), "{:?}", refused.violations());
    let mut forgotten = history();
    forgotten.table.outcomes.remove(&Uuid::from_u128(5));
    assert_eq!(forgotten.broken(), ["W2"]);
    let mut unanswered = history();
    unanswered.journal.get_mut(&Uuid::from_u128(5)).unwrap().contradictions.push("other".to_owned());
    assert_eq!(unanswered.broken(), ["W2"]);
}

#[test]
fn an_event_nobody_asked_for_and_one_that_is_not_what_was_asked_are_found() {
    let mut unasked = history();
    unasked.table.events[39].causation_id = None;
    assert!(unasked.broken().contains(&"W2"));
    let mut other = history();
    other.table.events[39] = stored(40, "S7", 5, 26, 0);
    assert!(other.broken().contains(&"W2"), "{:?}", other.violations());
    let mut oversold = history();
    oversold.table.events[39] = stored(40, "S7", 5, 25, 26);
    assert!(oversold.broken().contains(&"W3"), "{:?}", oversold.violations());
}

#[test]
fn a_row_that_is_altered_lost_doubled_or_behind_is_found() {
    let key = ("S3".to_owned(), "w".to_owned());
    let mut altered = history();
    altered.view.rows.get_mut(&key).unwrap().on_hand += 5;
    assert_eq!(altered.broken(), ["P2"]);
    let mut lost = history();
    lost.view.rows.remove(&key);
    assert_eq!(lost.broken(), ["P2"]);
    let mut surplus = history();
    let ghost = Stock { region: "north".to_owned(), on_hand: 0, reserved: 0, version: 1 };
    surplus.view.rows.insert(("GHOST".to_owned(), "w".to_owned()), ghost);
    assert_eq!(surplus.broken(), ["P2"]);
    let mut behind = history();
    *behind.view.checkpoints.values_mut().next().unwrap() -= 1;
    assert_eq!(behind.broken(), ["P2"]);
}

#[test]
fn what_lies_behind_an_unreadable_event_waits_and_others_go_on() {
    let mut history = history();
    history.table.events[8].body = vec![0xff; 3];
    let expected = Expected::of(&history.table);
    assert_eq!(expected.parked.iter().collect::<Vec<_>>(), ["S0"]);
    assert_eq!(expected.stock[&("S0".to_owned(), "w".to_owned())].version, 1);
    assert_eq!(expected.stock[&("S1".to_owned(), "w".to_owned())].version, 5);
}

// === Answers ===

fn answer(version: u64, on_hand: i64) -> Answer {
    let stock = Answered { sku: "S1".to_owned(), warehouse: "w".to_owned(), version, on_hand, reserved: 0 };
    let position = PositionToken::of(Context::Inventory, 0, StorePosition { xid: 7, position: 100 });
    Answer {
        status: 200,
        stock: vec![stock],
        position: Some(position),
        at: Duration::from_secs(1),
        ..Answer::default()
    }
}

fn wrong(answer: Answer) -> Vec<&'static str> {
    let expected = Expected::of(&history().table);
    check(&expected, &[answer], 8).0.iter().map(|violation| violation.invariant).collect()
}

#[test]
fn an_answer_that_was_never_true_is_found() {
    assert_eq!(wrong(answer(3, 15)), [""; 0]);
    assert_eq!(wrong(answer(3, 16)), ["Q1"]);
    assert_eq!(wrong(answer(9, 45)), ["Q1"]);
    assert_eq!(wrong(answer(0, 0)), ["Q1"]);
    assert_eq!(wrong(Answer { status: 404, ..Answer::default() }), ["Q1"]);
    assert_eq!(wrong(Answer { status: 500, ..Answer::default() }), ["Q1"]);
    assert_eq!(wrong(Answer { status: 503, ..Answer::default() }), [""; 0]);
    assert_eq!(wrong(Answer { status: 200, missing: vec!["S1".to_owned()], ..Answer::default() }), ["Q1"]);
    assert_eq!(wrong(Answer { status: 200, total: Some(7), ..Answer::default() }), ["Q1"]);
    let name = ("S1".to_owned(), "Soap".to_owned());
    assert_eq!(wrong(Answer { status: 200, names: vec![name], ..Answer::default() }), ["Q1"]);
}

#[test]
fn a_step_back_behind_one_s_own_write_is_found() {
    let seen = |version, position| {
        let position = PositionToken::of(Context::Inventory, 0, StorePosition { xid: 7, position });
        Some(Seen { position, stream: "stock-S1@w".to_owned(), version })
    };
    assert_eq!(wrong(Answer { seen: seen(3, 100), ..answer(3, 15) }), [""; 0]);
    assert_eq!(wrong(Answer { seen: seen(4, 100), ..answer(3, 15) }), ["Q2"]);
    assert_eq!(wrong(Answer { seen: seen(3, 101), ..answer(3, 15) }), ["Q2"]);
}
