//! The handler on a real event store in a file.

use std::sync::atomic::{AtomicU64, Ordering};

use event_store::{AppendBatch, SqliteEventStore, StoredOffset, StreamId, TimerChange};
use schemas::StorePosition;
use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_700_000_000_000;

struct Fixture {
    store: Arc<dyn EventStore>,
    handler: CommandHandler,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(HandlerSettings { snapshot_every: 3, ..HandlerSettings::default() }).await
    }

    async fn with(settings: HandlerSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteEventStore::open(folder.path().join("events.db")).unwrap();
        let store: Arc<dyn EventStore> = Arc::new(store);
        let topology = store.fix_topology(Topology { partitions: 4 }).await.unwrap();
        let shutdown = CancellationToken::new();
        let (handler, running) = CommandHandler::start(store.clone(), topology, settings, shutdown.clone());
        Self { store, handler, shutdown, running, _folder: folder }
    }

    async fn events(&self) -> Vec<event_store::StoredEvent> {
        self.store.read_committed(StorePosition::default(), 10_000).await.unwrap()
    }

    async fn version(&self, stream: &str) -> u64 {
        let stream = StreamId::from_stored(stream);
        self.store.read_stream(&stream, 1, 10_000).await.unwrap().last().map_or(0, |event| event.version)
    }
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn command(number: u128, kind: &str, data: Value) -> CommandEnvelope {
    let text = json!({ "id": id(number), "type": kind, "data": data }).to_string();
    CommandEnvelope::from_json(text.as_bytes(), None, NOW).unwrap()
}

fn receive(number: u128, quantity: i64) -> CommandEnvelope {
    command(
        number,
        "ReceiveStock",
        json!({ "sku": "TEA", "warehouse": "ham-1", "region": "north", "quantity": quantity }),
    )
}

fn reserve(number: u128, quantity: i64) -> CommandEnvelope {
    let data = json!({
        "sku": "TEA", "warehouse": "ham-1", "quantity": quantity,
        "reservation_id": format!("r-{number}"), "expires_at": NOW + 60_000,
    });
    command(number, "ReserveStock", data)
}

fn identity(offset: u64) -> RecordIdentity {
    RecordIdentity { offset, digest: [offset as u8; 32] }
}

/// Records from an offset on.
fn standing(first: u64, commands: Vec<RecordCommand>) -> Vec<(RecordIdentity, RecordCommand)> {
    (first..).map(identity).zip(commands).collect()
}

fn code(outcome: &Outcome) -> &str {
    outcome.reason.as_ref().map_or("", |reason| &reason.code)
}

#[tokio::test]
async fn an_accepted_command_is_stored_with_its_position_and_repeats_have_one_effect() {
    let fixture = Fixture::new().await;
    let first = fixture.handler.handle(receive(1, 7)).await;
    assert_eq!((first.outcome, first.version), (OutcomeKind::Accepted, Some(1)));
    assert!(first.position.is_some());
    let again = fixture.handler.handle(receive(1, 7)).await;
    assert_eq!(again, first);
    // In one group, too.
    let together = fixture.handler.handle_all(vec![receive(2, 5), receive(2, 5), receive(3, 1)]).await;
    assert_eq!(together[0], together[1]);
    assert_eq!(fixture.version("stock-TEA@ham-1").await, 3);
    assert_eq!(fixture.handler.outcome(id(1)).await.unwrap(), Some(first));
}

#[tokio::test]
async fn a_command_without_effect_stands_where_the_one_before_it_in_its_group_does() {
    let fixture = Fixture::new().await;
    let price = |number| {
        let data = json!({ "sku": "TEA", "region": "north", "currency": "EUR", "amount_minor": 5 });
        command(number, "SetPrice", data)
    };
    let both = fixture.handler.handle_all(vec![price(1), price(2)]).await;
    assert!(both[0].position.is_some());
    assert_eq!((&both[1].position, both[1].version), (&both[0].position, Some(1)));
    assert_eq!(fixture.handler.outcome(id(2)).await.unwrap().unwrap(), both[1]);
}

#[tokio::test]
async fn another_body_under_a_known_id_is_refused() {
    let fixture = Fixture::new().await;
    fixture.handler.handle(receive(1, 7)).await;
    let other = fixture.handler.handle(receive(1, 8)).await;
    assert_eq!((other.outcome, code(&other)), (OutcomeKind::Invalid, group::ID_REUSED));
    let both = fixture.handler.handle_all(vec![receive(2, 1), receive(2, 2)]).await;
    assert_eq!((both[0].outcome, both[1].outcome), (OutcomeKind::Accepted, OutcomeKind::Invalid));
    assert_eq!(fixture.version("stock-TEA@ham-1").await, 2);
}

#[tokio::test]
async fn the_last_units_are_reserved_once() {
    let fixture = Fixture::new().await;
    fixture.handler.handle(receive(1, 50)).await;
    let asked = (0..200_u128).map(|number| {
        let handler = fixture.handler.clone();
        tokio::spawn(async move { handler.handle(reserve(1_000 + number, 1)).await })
    });
    let mut accepted = 0;
    for outcome in futures::future::join_all(asked).await {
        let outcome = outcome.unwrap();
        match outcome.outcome {
            OutcomeKind::Accepted => accepted += 1,
            _ => assert_eq!(code(&outcome), "insufficient_stock"),
        }
    }
    assert_eq!(accepted, 50);
}

#[tokio::test]
async fn two_handlers_on_one_store_neither_oversell_nor_lose() {
    let fixture = Fixture::new().await;
    let (second, _running) = CommandHandler::start(
        fixture.store.clone(),
        Topology { partitions: 4 },
        HandlerSettings::default(),
        fixture.shutdown.clone(),
    );
    fixture.handler.handle(receive(1, 50)).await;
    // Both hold the stream in their caches, each behind the other most of the time.
    let asked = (0..200_u128).map(|number| {
        let handler = if number % 2 == 0 { fixture.handler.clone() } else { second.clone() };
        tokio::spawn(async move { handler.handle(reserve(1_000 + number, 1)).await })
    });
    let outcomes = futures::future::join_all(asked).await;
    let accepted = outcomes.iter().filter(|outcome| outcome.as_ref().unwrap().outcome == OutcomeKind::Accepted).count();
    assert_eq!(accepted, 50);
    // A refusal is never decided on what a cache still believes.
    second.handle(receive(2, 1)).await;
    assert_eq!(fixture.handler.handle(reserve(3, 1)).await.outcome, OutcomeKind::Accepted);
}

#[tokio::test]
async fn a_warehouse_stays_in_its_region_also_within_a_group() {
    let fixture = Fixture::new().await;
    let elsewhere = |number, sku| {
        let data = json!({ "sku": sku, "warehouse": "ham-1", "region": "south", "quantity": 1 });
        command(number, "ReceiveStock", data)
    };
    let outcomes = fixture.handler.handle_all(vec![receive(1, 1), elsewhere(2, "COFFEE")]).await;
    assert_eq!(outcomes[0].outcome, OutcomeKind::Accepted);
    assert_eq!(code(&outcomes[1]), "warehouse_in_other_region");
    let later = fixture.handler.handle(elsewhere(3, "MILK")).await;
    assert_eq!(code(&later), "warehouse_in_other_region");
}

#[tokio::test]
async fn a_snapshot_and_the_events_after_it_are_the_state() {
    let fixture = Fixture::new().await;
    for number in 1..=7 {
        fixture.handler.handle(receive(number, 1)).await;
    }
    let (fresh, _running) = CommandHandler::start(
        fixture.store.clone(),
        Topology { partitions: 4 },
        HandlerSettings::default(),
        fixture.shutdown.clone(),
    );
    assert_eq!(fresh.handle(reserve(100, 7)).await.outcome, OutcomeKind::Accepted);
    assert_eq!(code(&fresh.handle(reserve(101, 1)).await), "insufficient_stock");
}

#[tokio::test]
async fn records_move_their_offset_with_their_events_and_publish_outcomes() {
    let fixture = Fixture::new().await;
    let group = |first: u64, commands: Vec<RecordCommand>| RecordGroup {
        context: Context::Inventory,
        topic: "inventory.commands".to_owned(),
        partition: 1,
        first,
        next: first + commands.len() as u64,
        commands: standing(first, commands),
    };
    // Where the intake begins on a topic that has lost its first records.
    let topic = "inventory.commands".to_owned();
    let begun = OffsetAdvance { topic, partition: 1, expected: 5, next: 5, last: None };
    fixture.store.append(&AppendBatch { offsets: vec![begun], ..AppendBatch::default() }).await.unwrap();
    let unreadable = RecordCommand::Unreadable {
        place_id: id(900),
        command_id: id(901),
        key: "TEA".to_owned(),
        code: "bad_frame",
        problem: "no frame".to_owned(),
        received_at: NOW,
    };
    let repeat = || RecordCommand::Command { envelope: Box::new(receive(1, 7)), place_id: id(800) };
    let outcomes = fixture.handler.handle_records(group(5, vec![repeat(), repeat(), unreadable])).await.unwrap();
    assert_eq!(
        outcomes.iter().map(|outcome| outcome.outcome).collect::<Vec<_>>(),
        [OutcomeKind::Accepted, OutcomeKind::Accepted, OutcomeKind::Invalid]
    );
    let stored = StoredOffset { next: 8, last: Some(identity(7)) };
    assert_eq!(fixture.store.command_offsets("inventory.commands").await.unwrap(), [(1, stored)].into());
    let topics: Vec<String> = fixture.events().await.into_iter().map(|event| event.topic).collect();
    assert_eq!(topics, ["inventory.events", "inventory.command-outcomes", "inventory.command-outcomes"]);

    // A handler that was behind takes nothing.
    let taken = fixture.handler.handle_records(group(5, vec![repeat()])).await.unwrap_err();
    assert!(matches!(taken, HandlerError::OffsetTaken { stored: 8, .. }), "{taken}");
    assert_eq!(fixture.events().await.len(), 3);
}

#[tokio::test]
async fn a_repeat_after_a_restore_from_the_log_gets_its_first_outcome() {
    let before = Fixture::new().await;
    let quiet = before.handler.handle(receive(1, 50)).await;
    let reserved = before.handler.handle(reserve(2, 4)).await;
    let record = |number, quantity, place: u128| RecordCommand::Command {
        envelope: Box::new(reserve(number, quantity)),
        place_id: id(place),
    };
    // Accepted, refused by a rule, and a command id that stands for another body.
    let commands = vec![record(3, 5, 800), record(4, 500, 801), record(3, 6, 802)];
    let group = RecordGroup {
        context: Context::Inventory,
        topic: "inventory.commands".to_owned(),
        partition: 1,
        first: 0,
        next: 3,
        commands: standing(0, commands),
    };
    let told = before.handler.handle_records(group).await.unwrap();
    assert_eq!((told[0].outcome, code(&told[1]), code(&told[2])), {
        (OutcomeKind::Accepted, "insufficient_stock", group::ID_REUSED)
    });

    let after = Fixture::new().await;
    let rows = crate::restored_rows(Topology { partitions: 4 }, before.events().await).unwrap();
    after.store.restore(&rows).await.unwrap();
    assert_eq!(after.handler.handle(receive(1, 50)).await, quiet);
    assert_eq!(after.handler.handle(reserve(2, 4)).await, reserved);
    assert_eq!(after.handler.handle(reserve(3, 5)).await, told[0]);
    assert_eq!(after.handler.handle(reserve(4, 500)).await, told[1]);
    assert_eq!(after.handler.outcome(id(802)).await.unwrap().unwrap(), told[2]);
    assert_eq!(after.handler.handle(reserve(2, 9)).await, reserved, "the log does not tell the body");
    assert_eq!(after.events().await.len(), before.events().await.len(), "nothing is decided again");
}

#[tokio::test]
async fn a_command_that_has_the_id_of_a_refused_record_holds_nothing_up() {
    let fixture = Fixture::new().await;
    let record = |envelope: CommandEnvelope, place: u128| RecordCommand::Command {
        envelope: Box::new(envelope),
        place_id: id(place),
    };
    let group = |first: u64, commands: Vec<RecordCommand>| RecordGroup {
        context: Context::Inventory,
        topic: "inventory.commands".to_owned(),
        partition: 1,
        first,
        next: first + commands.len() as u64,
        commands: standing(first, commands),
    };
    fixture.handler.handle(receive(1, 7)).await;
    fixture.handler.handle(receive(900, 1)).await;
    // Its place is the id of the next one, whose own is known as well; then the other way round.
    let told = fixture.handler.handle_records(group(0, vec![record(receive(1, 8), 800), record(receive(800, 1), 900)]));
    let told = told.await.unwrap();
    assert_eq!([code(&told[0]), code(&told[1])], [group::ID_REUSED; 2]);
    let told = fixture.handler.handle_records(group(2, vec![record(receive(801, 1), 901), record(receive(1, 8), 801)]));
    let told = told.await.unwrap();
    assert_eq!((told[0].outcome, code(&told[1])), (OutcomeKind::Accepted, group::ID_REUSED));
    assert_eq!(fixture.version("stock-TEA@ham-1").await, 3);
}

#[tokio::test]
async fn an_expired_reservation_gives_its_units_back_once() {
    static CLOCK: AtomicU64 = AtomicU64::new(NOW as u64);
    let fixture = Fixture::new().await;
    fixture.handler.handle(receive(1, 5)).await;
    assert_eq!(fixture.handler.handle(reserve(2, 5)).await.outcome, OutcomeKind::Accepted);
    assert!(fixture.store.due_timers(NOW + 59_999, 10).await.unwrap().is_empty());
    CLOCK.store(NOW as u64 + 60_000, Ordering::SeqCst);
    let expiry = |handler: CommandHandler| {
        crate::run_expiry(
            fixture.store.clone(),
            handler,
            Duration::from_millis(5),
            || CLOCK.load(Ordering::SeqCst) as i64,
            fixture.shutdown.clone(),
        )
    };
    // Two processes may find the same timer.
    let both = tokio::spawn(futures::future::join(expiry(fixture.handler.clone()), expiry(fixture.handler.clone())));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fixture.store.due_timers(i64::MAX, 10).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the timer is never cleared");
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.version("stock-TEA@ham-1").await, 3);
    assert_eq!(fixture.handler.handle(reserve(3, 5)).await.outcome, OutcomeKind::Accepted);
    fixture.shutdown.cancel();
    both.await.unwrap();
}

#[tokio::test]
async fn a_reservation_ends_though_a_sender_used_the_id_of_its_release() {
    let fixture = Fixture::new().await;
    let taken = crate::expiry::derived_release_id("stock-TEA@ham-1/r-2", 2);
    fixture.handler.handle(receive(taken.as_u128(), 5)).await;
    fixture.handler.handle(reserve(2, 5)).await;
    let (store, handler, shutdown) = (fixture.store.clone(), fixture.handler.clone(), fixture.shutdown.clone());
    let expiry = tokio::spawn(crate::run_expiry(store, handler, Duration::from_millis(5), || NOW + 60_000, shutdown));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fixture.store.due_timers(i64::MAX, 10).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the timer is never cleared");
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.handler.handle(reserve(3, 5)).await.outcome, OutcomeKind::Accepted);
    fixture.shutdown.cancel();
    expiry.await.unwrap();
}

fn timer_command(timer: &Timer) -> CommandEnvelope {
    CommandEnvelope::from_json(timer.command.as_bytes(), None, timer.due_at).unwrap()
}

#[tokio::test]
async fn a_stale_timer_releases_no_newer_reservation_of_the_same_id() {
    let fixture = Fixture::new().await;
    let data = |expires_at: i64| json!({ "sku": "TEA", "warehouse": "ham-1", "quantity": 5, "reservation_id": "r", "expires_at": expires_at });
    let release = json!({ "sku": "TEA", "warehouse": "ham-1", "reservation_id": "r" });
    fixture.handler.handle(receive(1, 5)).await;
    fixture.handler.handle(command(2, "ReserveStock", data(NOW + 1_000))).await;
    let stale = fixture.store.due_timers(i64::MAX, 10).await.unwrap().remove(0);
    // Another process has read that timer when its reservation is released, and made again for longer.
    fixture.handler.handle(command(3, "ReleaseReservation", release)).await;
    fixture.handler.handle(command(4, "ReserveStock", data(NOW + 9_000))).await;
    let current = fixture.store.due_timers(i64::MAX, 10).await.unwrap();
    for _ in 0..2 {
        let outcome = fixture.handler.handle_timer(timer_command(&stale), stale.clone()).await.unwrap();
        assert_eq!((outcome.outcome, code(&outcome)), (OutcomeKind::Rejected, "reservation_not_expired"));
        assert_eq!(fixture.version("stock-TEA@ham-1").await, 4);
        assert_eq!(fixture.store.due_timers(i64::MAX, 10).await.unwrap(), current);
    }
    let outcome = fixture.handler.handle_timer(timer_command(&current[0]), current[0].clone()).await.unwrap();
    assert_eq!(outcome.outcome, OutcomeKind::Accepted);
    assert!(fixture.store.due_timers(i64::MAX, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn due_timers_that_lead_to_nothing_are_cleared() {
    let fixture = Fixture::new().await;
    fixture.handler.handle(receive(1, 5)).await;
    fixture.handler.handle(reserve(2, 5)).await;
    let known = fixture.store.due_timers(i64::MAX, 10).await.unwrap().remove(0);
    fixture.handler.handle_timer(timer_command(&known), known.clone()).await.unwrap();
    // A timer whose release was decided before, and as many that are no command as one reading gives.
    let garbage = (0..500).map(|number| Timer { key: number.to_string(), due_at: NOW, command: "{".to_owned() });
    let timers = garbage.chain([known]).map(TimerChange::Set).collect();
    fixture.store.append(&AppendBatch { timers, ..AppendBatch::default() }).await.unwrap();
    let expiry = crate::run_expiry(
        fixture.store.clone(),
        fixture.handler.clone(),
        Duration::from_millis(5),
        || NOW + 60_000,
        fixture.shutdown.clone(),
    );
    let expiry = tokio::spawn(expiry);
    // The limit is on the pace, not on the whole: the disk may be slow.
    let (mut fewest, mut deadline) = (usize::MAX, Instant::now());
    loop {
        let left = fixture.store.due_timers(i64::MAX, 1_000).await.unwrap().len();
        if left == 0 {
            break;
        }
        if left < fewest {
            (fewest, deadline) = (left, Instant::now() + Duration::from_secs(20));
        }
        assert!(Instant::now() < deadline, "{left} timers are never cleared");
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.version("stock-TEA@ham-1").await, 3);
    fixture.shutdown.cancel();
    expiry.await.unwrap();
}

#[tokio::test]
async fn shutting_down_finishes_what_was_taken_and_refuses_the_rest() {
    let mut fixture = Fixture::new().await;
    let taken = fixture.handler.enqueue((1..=500).map(|number| receive(number, 1)).collect()).await;
    fixture.shutdown.cancel();
    let outcomes = taken.outcomes().await;
    assert!(outcomes.iter().all(|outcome| outcome.outcome == OutcomeKind::Accepted));
    (&mut fixture.running).await.unwrap();
    let late = fixture.handler.handle(receive(1_000, 1)).await;
    assert_eq!((late.outcome, code(&late)), (OutcomeKind::Failed, "not_decided"));
    assert_eq!(fixture.events().await.len(), 500);
}

#[tokio::test]
async fn a_queue_that_is_never_empty_comes_to_an_end() {
    let mut fixture = Fixture::with(HandlerSettings { queue: 4, ..HandlerSettings::default() }).await;
    let senders: Vec<JoinHandle<()>> = (0..8)
        .map(|sender: u128| {
            let handler = fixture.handler.clone();
            tokio::spawn(async move {
                for number in 1.. {
                    if handler.queue.is_closed() {
                        return;
                    }
                    drop(handler.enqueue(vec![receive(sender << 64 | number, 1)]).await);
                }
            })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fixture.version("stock-TEA@ham-1").await == 0 {
        assert!(Instant::now() < deadline, "nothing is taken");
    }
    fixture.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(60), &mut fixture.running).await;
    senders.iter().for_each(JoinHandle::abort);
    ended.expect("the loop ends").unwrap();
}

#[tokio::test]
async fn a_full_queue_takes_nothing() {
    let fixture = Fixture::with(HandlerSettings { queue: 1, ..HandlerSettings::default() }).await;
    // Held open, the permit fills the queue.
    let permit = fixture.handler.queue.reserve().await.unwrap();
    assert_eq!(fixture.handler.try_handle(receive(1, 1), Duration::from_millis(1)).await, None);
    drop(permit);
    assert!(fixture.handler.try_handle(receive(1, 1), Duration::from_secs(10)).await.is_some());
}
