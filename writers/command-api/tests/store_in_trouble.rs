//! A store that is not as the handler left it, or does not give what is asked: other writers, failovers, a damaged row.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use command_api::{
    CommandHandler, HandlerError, HandlerSettings, RecordCommand, RecordGroup, TopicIntakeSettings, run_expiry,
    run_topic_intake,
};
use event_log::{EmbeddedRegistry, EventLog, NewRecord, SqliteEventLog, TopicPartition, TopicSpec};
use event_store::{
    AppendBatch, Appended, EventStore, EventStoreError, LoadRequest, Loaded, RecordIdentity, RelayCursor, RelayLease,
    RestoredRows, ServerRun, SqliteEventStore, StoredEvent, StoredOffset, StoredOutcome, StreamId, Timer, TimerChange,
    Topology,
};
use schemas::{CommandEnvelope, Context, OutcomeKind, StorePosition};
use serde_json::{Value, json};
use telemetry::Health;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const NOW: i64 = 1_700_000_000_000;
const TOPOLOGY: Topology = Topology { partitions: 1 };
const COMMANDS: &str = "inventory.commands";

/// A store with a trouble of its own.
#[derive(Default)]
struct Trouble {
    /// Another writer is so quick that only a command by itself comes between two of its own.
    meets_another_writer: bool,
    /// A stream whose rows do not read.
    damaged: Option<&'static str>,
    is_mended: AtomicBool,
}

/// The stores before and after a failover, each a run of the server of its own.
struct Troubled {
    runs: Vec<Arc<dyn EventStore>>,
    run: AtomicUsize,
    trouble: Trouble,
    /// As they were committed: from and to.
    offsets: Mutex<Vec<(u64, u64)>>,
    appends: AtomicUsize,
    /// Loads that met the damaged stream.
    refused_loads: AtomicUsize,
}

impl Troubled {
    fn store(&self) -> &Arc<dyn EventStore> {
        &self.runs[self.run.load(Ordering::SeqCst)]
    }

    fn server_run(&self) -> ServerRun {
        ServerRun(self.run.load(Ordering::SeqCst) as i64)
    }
}

#[async_trait]
impl EventStore for Troubled {
    async fn append(&self, batch: &AppendBatch) -> Result<Appended, EventStoreError> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        if self.trouble.meets_another_writer && batch.commands.len() > 1 {
            return Err(EventStoreError::Conflict { what: "the stream of the other writer".to_owned() });
        }
        if batch.run.is_some_and(|run| run != self.server_run()) {
            return Err(EventStoreError::Conflict { what: "another run of the server".to_owned() });
        }
        let appended = self.store().append(batch).await?;
        self.offsets.lock().unwrap().extend(batch.offsets.iter().map(|offset| (offset.expected, offset.next)));
        Ok(appended)
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, EventStoreError> {
        if let Some(damaged) = self.trouble.damaged
            && !self.trouble.is_mended.load(Ordering::SeqCst)
            && request.streams.iter().any(|stream| stream.as_str() == damaged)
        {
            self.refused_loads.fetch_add(1, Ordering::SeqCst);
            return Err(EventStoreError::Damaged { what: damaged.to_owned(), problem: "it does not read".to_owned() });
        }
        let run = self.server_run();
        Ok(Loaded { run, ..self.store().load(request).await? })
    }

    async fn lease_relay(&self) -> Result<RelayLease, EventStoreError> {
        self.store().lease_relay().await
    }

    async fn release_relay(&self) -> Result<(), EventStoreError> {
        self.store().release_relay().await
    }

    async fn reset_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        self.store().reset_cursor(epoch, cursor).await
    }

    async fn restore(&self, rows: &RestoredRows) -> Result<(), EventStoreError> {
        self.store().restore(rows).await
    }

    async fn read_committed(&self, after: StorePosition, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        self.store().read_committed(after, limit).await
    }

    async fn relay_cursor(&self) -> Result<RelayCursor, EventStoreError> {
        self.store().relay_cursor().await
    }

    async fn save_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        self.store().save_cursor(epoch, cursor).await
    }

    async fn wait_for_appends(&self, timeout: Duration) {
        self.store().wait_for_appends(timeout).await;
    }

    async fn topology(&self) -> Result<Option<Topology>, EventStoreError> {
        self.store().topology().await
    }

    async fn fix_topology(&self, asked: Topology) -> Result<Topology, EventStoreError> {
        self.store().fix_topology(asked).await
    }

    async fn relay_lag(&self, now: i64) -> Result<(u64, Option<i64>), EventStoreError> {
        self.store().relay_lag(now).await
    }

    async fn command_offsets(&self, topic: &str) -> Result<HashMap<u32, StoredOffset>, EventStoreError> {
        self.store().command_offsets(topic).await
    }

    async fn due_timers(&self, now: i64, limit: usize) -> Result<Vec<Timer>, EventStoreError> {
        self.store().due_timers(now, limit).await
    }

    async fn outcome(&self, id: Uuid) -> Result<Option<StoredOutcome>, EventStoreError> {
        self.store().outcome(id).await
    }

    async fn forget_outcomes(&self, before: i64, limit: usize) -> Result<u64, EventStoreError> {
        self.store().forget_outcomes(before, limit).await
    }

    async fn read_stream(&self, of: &StreamId, from: u64, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        self.store().read_stream(of, from, limit).await
    }

    async fn ping(&self) -> Result<(), EventStoreError> {
        self.store().ping().await
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    store: Arc<Troubled>,
    handler: CommandHandler,
    shutdown: CancellationToken,
    running: JoinHandle<()>,
}

impl Fixture {
    async fn new(trouble: Trouble) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut runs: Vec<Arc<dyn EventStore>> = Vec::new();
        for name in ["before.db", "after.db"] {
            let store = SqliteEventStore::open(folder.path().join(name)).unwrap();
            store.fix_topology(TOPOLOGY).await.unwrap();
            runs.push(Arc::new(store));
        }
        let store = Arc::new(Troubled {
            runs,
            run: AtomicUsize::new(0),
            trouble,
            offsets: Mutex::default(),
            appends: AtomicUsize::new(0),
            refused_loads: AtomicUsize::new(0),
        });
        let settings = HandlerSettings { retry_for: Duration::from_secs(20), ..HandlerSettings::default() };
        let shutdown = CancellationToken::new();
        let (handler, running) = CommandHandler::start(store.clone(), TOPOLOGY, settings, shutdown.clone());
        Self { folder, store, handler, shutdown, running }
    }

    /// The store as another process reaches it, which has committed this since.
    async fn fails_over(&self, meanwhile: Vec<CommandEnvelope>) {
        let after = self.store.runs[1].clone();
        let shutdown = CancellationToken::new();
        let (other, running) = CommandHandler::start(after, TOPOLOGY, HandlerSettings::default(), shutdown.clone());
        for outcome in other.handle_all(meanwhile).await {
            assert_eq!(outcome.outcome, OutcomeKind::Accepted, "{outcome:?}");
        }
        shutdown.cancel();
        running.await.unwrap();
        self.store.run.store(1, Ordering::SeqCst);
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap();
    }
}

fn command(number: u128, kind: &str, data: Value) -> CommandEnvelope {
    let text = json!({ "id": Uuid::from_u128(number), "type": kind, "data": data }).to_string();
    CommandEnvelope::from_json(text.as_bytes(), None, NOW).unwrap()
}

fn receive(number: u128, sku: &str, region: &str, quantity: i64) -> CommandEnvelope {
    let data = json!({ "sku": sku, "warehouse": "ham-1", "region": region, "quantity": quantity });
    command(number, "ReceiveStock", data)
}

fn reserve(number: u128, sku: &str, quantity: i64) -> CommandEnvelope {
    reserve_as("r", number, sku, quantity)
}

fn reserve_as(reservation: &str, number: u128, sku: &str, quantity: i64) -> CommandEnvelope {
    let data = json!({
        "sku": sku, "warehouse": "ham-1", "quantity": quantity, "reservation_id": reservation,
        "expires_at": NOW + 60_000,
    });
    command(number, "ReserveStock", data)
}

fn identity(offset: u64) -> RecordIdentity {
    RecordIdentity { offset, digest: [offset as u8; 32] }
}

/// Records as they stand on a topic, maybe with offsets left out.
fn group(first: u64, commands: impl IntoIterator<Item = (u64, CommandEnvelope)>) -> RecordGroup {
    let record = |(offset, envelope): (u64, CommandEnvelope)| {
        let place_id = Uuid::from_u128(envelope.id.as_u128() + 1_000);
        (identity(offset), RecordCommand::Command { envelope: Box::new(envelope), place_id })
    };
    let commands: Vec<_> = commands.into_iter().map(record).collect();
    let next = commands.last().map_or(first, |(last, _)| last.offset + 1);
    RecordGroup { context: Context::Inventory, topic: COMMANDS.to_owned(), partition: 0, first, next, commands }
}

#[tokio::test]
async fn a_group_that_always_meets_another_writer_is_decided_in_pieces_and_in_order() {
    let fixture = Fixture::new(Trouble { meets_another_writer: true, ..Trouble::default() }).await;
    let mut waiting = Vec::new();
    for number in 1..=21_u64 {
        waiting.push(fixture.handler.enqueue(vec![receive(number.into(), "TEA", "north", number as i64)]).await);
    }
    for (number, one) in (1..).zip(waiting) {
        let outcomes = one.outcomes().await;
        assert_eq!((outcomes[0].outcome, outcomes[0].version), (OutcomeKind::Accepted, Some(number)), "{outcomes:?}");
    }
    fixture.stop().await;
}

/// What one submission keeps together: records with their offsets, or a piece of a bulk body.
#[tokio::test]
async fn a_submission_that_always_meets_another_writer_is_decided_in_pieces_and_in_order() {
    let fixture = Fixture::new(Trouble { meets_another_writer: true, ..Trouble::default() }).await;
    let receive = |number: u128| receive(number, "TEA", "north", number as i64);
    let told = fixture.handler.handle_records(group(0, [(0, receive(1)), (1, receive(2))])).await.unwrap();
    let told = [told, fixture.handler.handle_all((3..=21).map(receive).collect()).await].concat();
    // A log leaves out offsets, of which the store must not say that they are taken before they are.
    let offsets = [40, 41, 45, 46, 90];
    let records = group(2, offsets.into_iter().zip((22..).map(receive)));
    let told = [told, fixture.handler.handle_records(records).await.unwrap()].concat();
    let versions: Vec<Option<u64>> = told.iter().map(|outcome| outcome.version).collect();
    assert_eq!(versions, (1..=26).map(Some).collect::<Vec<_>>(), "{told:?}");
    assert!((1..=26).zip(&told).all(|(number, outcome)| outcome.id == Uuid::from_u128(number)));
    assert_eq!(
        *fixture.store.offsets.lock().unwrap(),
        [(0, 1), (1, 2), (2, 41), (41, 45), (45, 46), (46, 90), (90, 91)]
    );
    let stored = StoredOffset { next: 91, last: Some(identity(90)) };
    assert_eq!(fixture.store.command_offsets(COMMANDS).await.unwrap(), [(0, stored)].into());
    fixture.stop().await;
}

/// Records wait for the one before them; lines of a bulk body do not.
#[tokio::test]
async fn a_damaged_stream_stops_a_submission_where_it_comes() {
    let fixture = Fixture::new(Trouble { damaged: Some("stock-TEA@ham-1"), ..Trouble::default() }).await;
    let skus = ["MILK", "OATS", "TEA", "SALT"];
    let commands = |first: u128| (first..).zip(skus).map(|(number, sku)| receive(number, sku, "north", 5));
    let told: Vec<_> =
        fixture.handler.handle_all(commands(1).collect()).await.iter().map(|told| told.outcome).collect();
    let accepted = OutcomeKind::Accepted;
    assert_eq!(told, [accepted, accepted, OutcomeKind::Failed, accepted]);

    let stopped = fixture.handler.handle_records(group(0, (0..).zip(commands(11)))).await.unwrap_err();
    assert_eq!(stopped.to_string(), "stored row is damaged: stock-TEA@ham-1: it does not read");
    assert!(matches!(stopped, HandlerError::NotDecided { next: 2, .. }), "{stopped:?}");
    let stored = StoredOffset { next: 2, last: Some(identity(1)) };
    assert_eq!(fixture.store.command_offsets(COMMANDS).await.unwrap(), [(0, stored)].into());
    assert_eq!(fixture.store.outcome(Uuid::from_u128(14)).await.unwrap(), None);
    fixture.stop().await;
}

#[tokio::test]
async fn a_damaged_stream_holds_up_its_partition_of_a_command_topic_and_no_other() {
    let fixture = Fixture::new(Trouble { damaged: Some("stock-TEA@ham-1"), ..Trouble::default() }).await;
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(fixture.folder.path().join("log.db")).unwrap());
    let specs = Context::ALL.map(|context| TopicSpec { name: context.commands_topic().to_owned(), partitions: 1 });
    log.ensure_topics(&specs).await.unwrap();
    let publish = async |topic: &str, number: u128, command_type: &str, data: Value| {
        let headers = [
            ("ce_specversion", "1.0"),
            ("ce_id", &Uuid::from_u128(number).to_string()),
            ("ce_type", command_type),
            ("ce_source", "/test"),
            ("content-type", "application/json"),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        let (at, value) = (TopicPartition::new(topic, 0), data.to_string().into_bytes());
        log.publish(vec![NewRecord { at, key: Vec::new(), headers, value, timestamp: NOW }]).await.unwrap();
    };
    for (number, sku) in (1..).zip(["MILK", "TEA", "SALT"]) {
        let data = json!({ "sku": sku, "warehouse": "ham-1", "region": "north", "quantity": 5 });
        publish(COMMANDS, number, "ReceiveStock", data).await;
    }
    let health = Health::default();
    let intake = run_topic_intake(
        fixture.handler.clone(),
        fixture.store.clone(),
        log.clone(),
        Arc::new(EmbeddedRegistry::default()),
        TopicIntakeSettings { topology: TOPOLOGY, outcome_retention: Duration::from_secs(3600) },
        health.component("command topics"),
        || NOW,
        fixture.shutdown.clone(),
    );
    let intake = tokio::spawn(intake);
    let until = async |topic: &str, offset: u64, said: &str| {
        let begun = Instant::now();
        while fixture.store.command_offsets(topic).await.unwrap().get(&0).map(|stored| stored.next) != Some(offset)
            || health.report().components["command topics"] != said
        {
            let (offsets, told) = (fixture.store.command_offsets(topic).await.unwrap(), health.report());
            assert!(begun.elapsed() < Duration::from_secs(20), "not {offset}, {said}: {offsets:?}, {told:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let why = "inventory.commands/0 waits at offset 1: stored row is damaged: stock-TEA@ham-1: it does not read";
    until(COMMANDS, 1, why).await;
    let data = json!({ "sku": "TEA", "region": "north", "currency": "EUR", "amount_minor": 5 });
    publish("pricing.commands", 10, "SetPrice", data).await;
    until("pricing.commands", 1, why).await;
    assert_eq!(fixture.store.command_offsets(COMMANDS).await.unwrap()[&0].next, 1);
    fixture.store.trouble.is_mended.store(true, Ordering::SeqCst);
    until(COMMANDS, 3, "ready").await;
    fixture.stop().await;
    intake.await.unwrap().unwrap();
}

/// A failover that lost a stream's newest event, whose version another process gave to another one.
#[tokio::test]
async fn nothing_is_decided_on_what_a_failover_took_back() {
    let fixture = Fixture::new(Trouble::default()).await;
    fixture.handler.handle(receive(1, "TEA", "north", 100)).await;
    fixture.fails_over(vec![receive(2, "TEA", "south", 1)]).await;
    let oversold = fixture.handler.handle(reserve(3, "TEA", 60)).await;
    assert_eq!(oversold.outcome, OutcomeKind::Rejected, "one unit is there: {oversold:?}");
    assert_eq!(fixture.handler.handle(reserve(4, "TEA", 1)).await.outcome, OutcomeKind::Accepted);
    // The region that was claimed is gone too.
    let north = fixture.handler.handle(receive(5, "MILK", "north", 1)).await;
    assert_eq!(north.outcome, OutcomeKind::Rejected, "the warehouse is in the south: {north:?}");
    fixture.stop().await;
}

#[tokio::test]
async fn an_offset_that_was_lost_with_its_records_is_missed() {
    let fixture = Fixture::new(Trouble::default()).await;
    let records = |first: u64, number: u128| group(first, [(first, receive(number, "TEA", "north", 1))]);
    fixture.handler.handle_records(records(0, 1)).await.unwrap();
    fixture.fails_over(Vec::new()).await;
    let taken = fixture.handler.handle_records(records(1, 2)).await;
    assert!(matches!(taken, Err(HandlerError::OffsetTaken { expected: 1, stored: 0, .. })), "{taken:?}");
    fixture.handler.handle_records(records(0, 1)).await.unwrap();
    fixture.handler.handle_records(records(1, 2)).await.unwrap();
    fixture.stop().await;
}

#[tokio::test]
async fn a_damaged_stream_stops_no_other() {
    let fixture = Fixture::new(Trouble { damaged: Some("stock-TEA@ham-1"), ..Trouble::default() }).await;
    let mut waiting = Vec::new();
    for (number, sku) in (1..).zip(["MILK", "TEA", "SALT", "OATS"]) {
        waiting.push((sku, fixture.handler.enqueue(vec![receive(number, sku, "north", 5)]).await));
    }
    for (sku, one) in waiting {
        let wanted = if sku == "TEA" { OutcomeKind::Failed } else { OutcomeKind::Accepted };
        let outcomes = one.outcomes().await;
        assert_eq!(outcomes[0].outcome, wanted, "{sku}: {outcomes:?}");
    }
    // Nor the end of their reservations, though its own is due first.
    let stuck = Timer { key: "stock-TEA@ham-1/r".to_owned(), due_at: NOW, command: release("TEA") };
    let timers = vec![TimerChange::Set(stuck.clone())];
    fixture.store.append(&AppendBatch { timers, ..AppendBatch::default() }).await.unwrap();
    assert_eq!(fixture.handler.handle(reserve(9, "MILK", 5)).await.outcome, OutcomeKind::Accepted);
    let now = || NOW + 60_000;
    let every = Duration::from_millis(5);
    let shutdown = fixture.shutdown.clone();
    let expiry = tokio::spawn(run_expiry(fixture.store.clone(), fixture.handler.clone(), every, now, shutdown));
    let begun = Instant::now();
    while fixture.store.due_timers(i64::MAX, 10).await.unwrap() != [stuck.clone()] {
        assert!(begun.elapsed() < Duration::from_secs(60), "the other timer is never cleared");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fixture.stop().await;
    expiry.await.unwrap();
}

/// Longer than the test: one look at what is due must do.
const ONE_LOOK: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn releases_share_commits() {
    let fixture = Fixture::new(Trouble::default()).await;
    let skus = ["TEA", "MILK", "SALT"];
    let received = (1..).zip(skus).map(|(number, sku)| receive(number, sku, "north", 1_000));
    let reserved =
        (0..600_usize).map(|number| reserve_as(&format!("r{number}"), 100 + number as u128, skus[number % 3], 1));
    for outcome in fixture.handler.handle_all(received.chain(reserved).collect()).await {
        assert_eq!(outcome.outcome, OutcomeKind::Accepted, "{outcome:?}");
    }
    let before = fixture.store.appends.load(Ordering::SeqCst);
    let (store, handler, shutdown) = (fixture.store.clone(), fixture.handler.clone(), fixture.shutdown.clone());
    let expiry = tokio::spawn(run_expiry(store, handler, ONE_LOOK, || NOW + 60_000, shutdown));
    let begun = Instant::now();
    while !fixture.store.due_timers(i64::MAX, 1).await.unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not all are released");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let commits = fixture.store.appends.load(Ordering::SeqCst) - before;
    assert!(commits <= 60, "{commits} commits for 600 releases");
    fixture.stop().await;
    expiry.await.unwrap();
}

#[tokio::test]
async fn of_a_stuck_stream_one_release_is_tried() {
    let fixture = Fixture::new(Trouble { damaged: Some("stock-TEA@ham-1"), ..Trouble::default() }).await;
    // More than one reading gives, and all of them due first.
    let stuck = (0..600).map(|number| {
        let key = format!("stock-TEA@ham-1/r{number}");
        TimerChange::Set(Timer { key, due_at: NOW, command: release("TEA") })
    });
    fixture.store.append(&AppendBatch { timers: stuck.collect(), ..AppendBatch::default() }).await.unwrap();
    fixture.handler.handle(receive(1, "MILK", "north", 5)).await;
    assert_eq!(fixture.handler.handle(reserve(2, "MILK", 5)).await.outcome, OutcomeKind::Accepted);
    let (store, handler, shutdown) = (fixture.store.clone(), fixture.handler.clone(), fixture.shutdown.clone());
    let expiry = tokio::spawn(run_expiry(store, handler, ONE_LOOK, || NOW + 60_000, shutdown));
    let begun = Instant::now();
    while fixture.store.due_timers(i64::MAX, 1_000).await.unwrap().len() != 600 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the other stream's is not released");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = fixture.store.refused_loads.load(Ordering::SeqCst);
    assert!((1..=5).contains(&refused), "{refused} tries");
    fixture.stop().await;
    expiry.await.unwrap();
}

fn release(sku: &str) -> String {
    let data = json!({ "sku": sku, "warehouse": "ham-1", "reservation_id": "r" });
    json!({ "id": Uuid::from_u128(77), "type": "ReleaseReservation", "data": data }).to_string()
}
