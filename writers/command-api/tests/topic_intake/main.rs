//! Commands from topics: one effect per id, offsets with the events, and an outcome for what cannot be read.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod waiting;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use command_api::{CommandHandler, HandlerSettings, TopicIntakeSettings, run_topic_intake};
use event_log::frame::frame;
use event_log::{
    EmbeddedRegistry, EventLog, EventLogError, Headers, NewRecord, PartitionEnds, Record, SchemaRegistry, Signal,
    SqliteEventLog, Subscription, TopicPartition, TopicSpec,
};
use event_store::{AppendBatch, EventStore, OffsetAdvance, SqliteEventStore, StoredEvent, Topology};
use schemas::codec::decode_outcome;
use schemas::{Context, Contract, OutcomeKind, SchemaRef, StorePosition, WriterSchema};
use telemetry::Health;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const TOPOLOGY: Topology = Topology { partitions: 1 };
const COMMANDS: &str = "inventory.commands";
const NOW: i64 = 1_700_000_000_000;
const OUTCOME_RETENTION: Duration = Duration::from_secs(3600);

struct Fixture {
    store: Arc<dyn EventStore>,
    log: Arc<dyn EventLog>,
    registry: Arc<dyn SchemaRegistry>,
    _folder: tempfile::TempDir,
}

/// A handler and an intake, until stopped.
struct Running {
    shutdown: CancellationToken,
    intake: tokio::task::JoinHandle<()>,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn EventStore> = Arc::new(SqliteEventStore::open(folder.path().join("events.db")).unwrap());
        store.fix_topology(TOPOLOGY).await.unwrap();
        let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
        log.ensure_topics(&topics()).await.unwrap();
        Self { store, log, registry: Arc::new(EmbeddedRegistry::default()), _folder: folder }
    }

    fn run(&self) -> Running {
        self.run_with(HandlerSettings::default(), &Health::default())
    }

    fn run_with(&self, settings: HandlerSettings, health: &Health) -> Running {
        let shutdown = CancellationToken::new();
        let (handler, _) = CommandHandler::start(self.store.clone(), TOPOLOGY, settings, shutdown.clone());
        let (told, intake) = (handler.clone(), health.component("command intake"));
        tokio::spawn(async move { told.tell_intake(intake).await });
        let intake = run_topic_intake(
            handler,
            self.store.clone(),
            self.log.clone(),
            self.registry.clone(),
            TopicIntakeSettings { topology: TOPOLOGY, outcome_retention: OUTCOME_RETENTION },
            health.component("command topics"),
            || NOW,
            shutdown.clone(),
        );
        Running { shutdown, intake: tokio::spawn(async move { intake.await.unwrap() }) }
    }

    /// The same event store beside a log that nothing was published to.
    async fn with_another_log(self) -> (Self, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
        log.ensure_topics(&topics()).await.unwrap();
        (Fixture { log, ..self }, folder)
    }

    async fn effects(&self) -> usize {
        self.stored().await.iter().filter(|row| row.topic == "inventory.events").count()
    }

    async fn publish(&self, records: Vec<(Headers, Vec<u8>)>) {
        self.publish_at(NOW, records).await;
    }

    async fn publish_at(&self, timestamp: i64, records: Vec<(Headers, Vec<u8>)>) {
        self.publish_on(COMMANDS, timestamp, records).await;
    }

    async fn publish_on(&self, topic: &str, timestamp: i64, records: Vec<(Headers, Vec<u8>)>) {
        let records = records.into_iter().map(|(headers, value)| NewRecord {
            at: TopicPartition::new(topic, 0),
            key: b"TEA".to_vec(),
            headers,
            value,
            timestamp,
        });
        self.log.publish(records.collect()).await.unwrap();
    }

    async fn taken(&self, offset: u64) {
        self.taken_of(COMMANDS, offset).await;
    }

    async fn taken_of(&self, topic: &str, offset: u64) {
        let begun = Instant::now();
        while self.next_of(topic).await != Some(offset) {
            assert!(begun.elapsed() < Duration::from_secs(20), "offset {offset} of {topic} is never reached");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn next_of(&self, topic: &str) -> Option<u64> {
        Some(self.store.command_offsets(topic).await.unwrap().get(&0)?.next)
    }

    async fn stored(&self) -> Vec<StoredEvent> {
        self.store.read_committed(StorePosition::default(), 10_000).await.unwrap()
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.intake).await.expect("the intake ends").unwrap();
    }
}

fn topics() -> Vec<TopicSpec> {
    Context::ALL.map(|context| TopicSpec { name: context.commands_topic().to_owned(), partitions: 1 }).to_vec()
}

fn headers(id: u128, command_type: &str, content_type: &str) -> Headers {
    let pairs = [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", Uuid::from_u128(id).to_string()),
        ("ce_type", command_type.to_owned()),
        ("ce_source", "/test".to_owned()),
        ("content-type", content_type.to_owned()),
    ];
    pairs.into_iter().collect()
}

fn receive(id: u128, quantity: i64) -> (Headers, Vec<u8>) {
    let data = format!(r#"{{"sku":"TEA","warehouse":"ham-1","region":"north","quantity":{quantity}}}"#);
    (headers(id, "ReceiveStock", "application/json"), data.into_bytes())
}

/// Command id, outcome and reason code of each published outcome.
fn outcomes(stored: &[StoredEvent]) -> Vec<(Uuid, OutcomeKind, Option<String>)> {
    stored
        .iter()
        .filter(|row| row.topic == "inventory.command-outcomes")
        .map(|row| {
            let outcome = decode_outcome(WriterSchema::of(row.schema).unwrap(), &row.body).unwrap();
            (outcome.command_id.parse().unwrap(), outcome.outcome, outcome.reason_code)
        })
        .collect()
}

#[tokio::test]
async fn a_command_that_was_published_three_times_has_one_effect() {
    let fixture = Fixture::new().await;
    let running = fixture.run();
    fixture.publish(vec![receive(1, 7), receive(1, 7)]).await;
    fixture.taken(2).await;
    fixture.publish(vec![receive(1, 7)]).await;
    fixture.taken(3).await;
    let stored = fixture.stored().await;
    assert_eq!(stored.iter().filter(|row| row.topic == "inventory.events").count(), 1);
    assert_eq!(outcomes(&stored), [(Uuid::from_u128(1), OutcomeKind::Accepted, None)]);
    running.stop().await;
}

/// The relay finds out from an event topic that is gone that the log lost its past (fault 6): it must not come back,
/// empty, while that relay still publishes.
#[tokio::test]
async fn the_intake_makes_no_topic_but_those_it_reads() {
    let fixture = Fixture::new().await;
    let folder = tempfile::tempdir().unwrap();
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    let fixture = Fixture { log, ..fixture };
    let running = fixture.run();
    let begun = Instant::now();
    for context in Context::ALL {
        while fixture.log.ends(context.commands_topic()).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "its topics are not made");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(fixture.log.ends(context.events_topic()).await.is_err(), "{context} events");
    }
    running.stop().await;
}

/// Faults 6 and 21, for commands: what the topic holds now is taken, and what was taken before has no second effect.
#[tokio::test]
async fn a_command_topic_that_was_made_anew_is_taken_from_its_beginning() {
    let fixture = Fixture::new().await;
    fixture.publish((1..=5).map(|id| receive(id, 7)).collect()).await;
    let running = fixture.run();
    fixture.taken(5).await;
    running.stop().await;

    let (fixture, _folder) = fixture.with_another_log().await;
    // Nobody could tell whether it was taken before.
    fixture.publish_at(NOW - 2 * OUTCOME_RETENTION.as_millis() as i64, vec![receive(99, 7)]).await;
    fixture.publish(vec![receive(5, 7), receive(6, 7)]).await;
    let running = fixture.run();
    fixture.taken(3).await;
    assert_eq!(fixture.effects().await, 6);
    // Past where the other one ended.
    fixture.publish((7..=20).map(|id| receive(id, 7)).collect()).await;
    fixture.taken(17).await;
    running.stop().await;
    assert_eq!(fixture.effects().await, 20);
}

/// Fault 21, for commands: only what is stored of the last record tells the next intake that it is another topic.
#[tokio::test]
async fn a_command_topic_that_was_made_anew_and_has_grown_while_nobody_looked_is_taken_from_its_beginning() {
    let fixture = Fixture::new().await;
    fixture.publish((1..=5).map(|id| receive(id, 7)).collect()).await;
    let running = fixture.run();
    fixture.taken(5).await;
    running.stop().await;

    let (fixture, _folder) = fixture.with_another_log().await;
    fixture.publish((101..=110).map(|id| receive(id, 7)).collect()).await;
    let running = fixture.run();
    fixture.taken(10).await;
    running.stop().await;
    assert_eq!(fixture.effects().await, 15);
    let mut told: Vec<u128> = outcomes(&fixture.stored().await).iter().map(|outcome| outcome.0.as_u128()).collect();
    told.sort_unstable();
    assert!(told.into_iter().eq((1..=5_u128).chain(101..=110)));
}

/// Known ids would hide that a topic is taken anew which is still the same.
#[tokio::test]
async fn a_restart_on_the_same_topic_takes_nothing_again() {
    let fixture = Fixture::new().await;
    fixture.publish((1..=5).map(|id| receive(id, 7)).collect()).await;
    let running = fixture.run();
    fixture.taken(5).await;
    running.stop().await;

    assert_eq!(fixture.store.forget_outcomes(NOW + 1, 100).await.unwrap(), 5);
    fixture.publish(vec![receive(6, 7)]).await;
    let running = fixture.run();
    fixture.taken(6).await;
    running.stop().await;
    assert_eq!(fixture.effects().await, 6);
}

/// The refusals of records are stored under their places, and are known there.
#[tokio::test]
async fn a_command_topic_that_lost_its_tail_is_taken_once_more() {
    let fixture = Fixture::new().await;
    let unreadable = || (headers(2, "BurnStock", "application/json"), b"{}".to_vec());
    let kept = || vec![receive(1, 7), unreadable(), receive(1, 8)];
    fixture.publish(kept()).await;
    fixture.publish(vec![receive(3, 7)]).await;
    let running = fixture.run();
    fixture.taken(4).await;
    running.stop().await;
    let told = outcomes(&fixture.stored().await);
    assert_eq!(told.len(), 4);

    let (fixture, _folder) = fixture.with_another_log().await;
    fixture.publish(kept()).await;
    let running = fixture.run();
    fixture.taken(3).await;
    // Other records, where those stood that were lost.
    fixture.publish(vec![unreadable(), receive(3, 9), receive(4, 7)]).await;
    fixture.taken(6).await;
    running.stop().await;
    assert_eq!(fixture.effects().await, 3);
    let later = outcomes(&fixture.stored().await);
    assert_eq!(later[..4], told);
    let kinds: Vec<OutcomeKind> = later[4..].iter().map(|outcome| outcome.1).collect();
    assert_eq!(kinds, [OutcomeKind::Invalid, OutcomeKind::Invalid, OutcomeKind::Accepted]);
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_by_outcome_and_the_topic_goes_on() {
    let fixture = Fixture::new().await;
    fixture
        .publish(vec![
            (headers(1, "ReceiveStock", "application/avro"), b"\x00\x00\x00\x00\x0f\xff\xff".to_vec()),
            (headers(2, "ReceiveStock", "application/avro"), b"not framed".to_vec()),
            (headers(3, "BurnStock", "application/json"), b"{}".to_vec()),
            (headers(4, "ReceiveStock", "application/json"), b"{\"sku\":\"TEA\",\"colour\":1}".to_vec()),
            (headers(5, "SetPrice", "application/json"), set_price()),
            (Headers::default(), b"\xff\xfe".to_vec()),
            receive(6, 7),
        ])
        .await;
    let running = fixture.run();
    fixture.taken(7).await;
    let stored = fixture.stored().await;
    let outcomes = outcomes(&stored);
    assert_eq!(outcomes.len(), 7);
    for (number, outcome) in outcomes.iter().take(5).enumerate() {
        assert_eq!((outcome.0, outcome.1), (Uuid::from_u128(number as u128 + 1), OutcomeKind::Invalid));
    }
    assert_eq!(outcomes[4].2.as_deref(), Some("wrong_topic"));
    assert_eq!(outcomes[6].1, OutcomeKind::Accepted);

    // A corrected command under the id of the unreadable one is taken.
    fixture.publish(vec![receive(1, 5)]).await;
    fixture.taken(8).await;
    let on_stock = fixture.stored().await.iter().filter(|row| row.topic == "inventory.events").count();
    assert_eq!(on_stock, 2);
    running.stop().await;
}

#[tokio::test]
async fn a_refusal_repeats_no_more_of_a_record_than_a_broker_takes() {
    let fixture = Fixture::new().await;
    let field = "\u{1}x".repeat(100_000).replace('\u{1}', "\\u0001");
    let data = format!("{{\"sku\":\"TEA\",\"{field}\":1}}");
    fixture.publish(vec![(headers(1, "ReceiveStock", "application/json"), data.into_bytes())]).await;
    let running = fixture.run();
    fixture.taken(1).await;
    let stored = fixture.stored().await;
    assert_eq!(outcomes(&stored)[0].1, OutcomeKind::Invalid);
    assert!(stored[0].body.len() < 10_000, "{} bytes", stored[0].body.len());
    let told = decode_outcome(WriterSchema::of(stored[0].schema).unwrap(), &stored[0].body).unwrap();
    assert!(told.reason_message.unwrap().chars().count() < 1_100);
    running.stop().await;
}

/// Until a component's line begins so.
async fn until_said(health: &Health, component: &str, wanted: &str) {
    let begun = Instant::now();
    while !health.report().components.get(component).is_some_and(|said| said.starts_with(wanted)) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{wanted} is never said: {:?}", health.report());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn set_price() -> Vec<u8> {
    br#"{"sku":"TEA","region":"north","currency":"EUR","amount_minor":5}"#.to_vec()
}

#[tokio::test]
async fn another_command_under_a_known_id_is_refused_by_outcome() {
    let fixture = Fixture::new().await;
    let running = fixture.run();
    fixture.publish(vec![receive(1, 7), receive(1, 8)]).await;
    fixture.taken(2).await;
    fixture.publish(vec![receive(1, 9)]).await;
    fixture.taken(3).await;
    let stored = fixture.stored().await;
    assert_eq!(stored.iter().filter(|row| row.topic == "inventory.events").count(), 1);
    let (id, reused) = (Uuid::from_u128(1), || Some("command_id_reused".to_owned()));
    assert_eq!(
        outcomes(&stored),
        [(id, OutcomeKind::Accepted, None), (id, OutcomeKind::Invalid, reused()), (id, OutcomeKind::Invalid, reused()),]
    );
    running.stop().await;
}

#[tokio::test]
async fn a_restart_goes_on_where_the_store_says() {
    let fixture = Fixture::new().await;
    for round in 0..3_u64 {
        let first = u128::from(round) * 100;
        fixture.publish((first..first + 100).map(|id| receive(id, 1)).collect()).await;
        let running = fixture.run();
        fixture.taken((round + 1) * 100).await;
        running.stop().await;
    }
    let stored = fixture.stored().await;
    let versions: Vec<u64> =
        stored.iter().filter(|row| row.topic == "inventory.events").map(|row| row.version).collect();
    assert!(versions.iter().copied().eq(1..=300), "{} events", versions.len());
}

#[tokio::test]
async fn two_intakes_on_one_topic_take_every_command_once() {
    let fixture = Fixture::new().await;
    let both = [fixture.run(), fixture.run()];
    for first in (0..1_000).step_by(50) {
        fixture.publish((first..first + 50).map(|id| receive(id, 1)).collect()).await;
    }
    fixture.taken(1_000).await;
    let stored = fixture.stored().await;
    let versions: Vec<u64> =
        stored.iter().filter(|row| row.topic == "inventory.events").map(|row| row.version).collect();
    assert!(versions.iter().copied().eq(1..=1_000), "{} events", versions.len());
    assert_eq!(outcomes(&stored).len(), 1_000);
    for running in both {
        running.stop().await;
    }
}

#[tokio::test]
async fn records_wait_while_the_relay_is_too_far_behind_and_readiness_says_so() {
    let fixture = Fixture::new().await;
    let health = Health::default();
    let settings = HandlerSettings { max_relay_lag: Some(10), ..HandlerSettings::default() };
    let running = fixture.run_with(settings, &health);
    let until_said = |wanted| until_said(&health, "command intake", wanted);
    // Nobody relays. What is taken before the first look is taken.
    fixture.publish((1..=30).map(|id| receive(id, 1)).collect()).await;
    fixture.taken(30).await;
    until_said("held").await;
    assert!(health.report().ready, "it does all else");
    fixture.publish((31..=35).map(|id| receive(id, 1)).collect()).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(fixture.next_of(COMMANDS).await, Some(30));
    }
    let lease = fixture.store.lease_relay().await.unwrap();
    let mut cursor = lease.cursor;
    cursor.position = fixture.stored().await.last().unwrap().position;
    fixture.store.save_cursor(lease.epoch, &cursor).await.unwrap();
    fixture.taken(35).await;
    until_said("ready").await;
    running.stop().await;
}
