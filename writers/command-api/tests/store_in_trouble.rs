//! A store that is not as the handler left it, or does not give what is asked: other writers, a failover, a damaged row.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use command_api::{CommandHandler, HandlerError, HandlerSettings, RecordCommand, RecordGroup, run_expiry};
use event_store::{
    AppendBatch, Appended, EventStore, EventStoreError, LoadRequest, Loaded, RelayCursor, RelayLease, RestoredRows,
    ServerRun, SqliteEventStore, StoredEvent, StoredOutcome, StreamId, Timer, TimerChange, Topology,
};
use schemas::{CommandEnvelope, Context, OutcomeKind, StorePosition};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const NOW: i64 = 1_700_000_000_000;
const TOPOLOGY: Topology = Topology { partitions: 1 };

/// A store with a trouble of its own.
#[derive(Default)]
struct Trouble {
    /// Another writer is so quick that only a command by itself comes between two of its own.
    meets_another_writer: bool,
    /// A stream whose rows do not read.
    damaged: Option<&'static str>,
}

/// The stores before and after a failover, each a run of the server of its own.
struct Troubled {
    runs: Vec<Arc<dyn EventStore>>,
    run: AtomicUsize,
    trouble: Trouble,
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
        if self.trouble.meets_another_writer && batch.commands.len() > 1 {
            return Err(EventStoreError::Conflict { what: "the stream of the other writer".to_owned() });
        }
        if batch.run.is_some_and(|run| run != self.server_run()) {
            return Err(EventStoreError::Conflict { what: "another run of the server".to_owned() });
        }
        self.store().append(batch).await
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, EventStoreError> {
        if let Some(damaged) = self.trouble.damaged
            && request.streams.iter().any(|stream| stream.as_str() == damaged)
        {
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

    async fn command_offsets(&self, topic: &str) -> Result<HashMap<u32, u64>, EventStoreError> {
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
    _folder: tempfile::TempDir,
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
        let store = Arc::new(Troubled { runs, run: AtomicUsize::new(0), trouble });
        let settings = HandlerSettings { retry_for: Duration::from_secs(20), ..HandlerSettings::default() };
        let shutdown = CancellationToken::new();
        let (handler, running) = CommandHandler::start(store.clone(), TOPOLOGY, settings, shutdown.clone());
        Self { _folder: folder, store, handler, shutdown, running }
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
    let data = json!({
        "sku": sku, "warehouse": "ham-1", "quantity": quantity, "reservation_id": "r", "expires_at": NOW + 60_000,
    });
    command(number, "ReserveStock", data)
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
    let records = |first: u64, number: u128| RecordGroup {
        context: Context::Inventory,
        topic: "inventory.commands".to_owned(),
        partition: 0,
        first,
        next: first + 1,
        commands: vec![RecordCommand::Command {
            envelope: Box::new(receive(number, "TEA", "north", 1)),
            place_id: Uuid::from_u128(number + 1_000),
        }],
    };
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

fn release(sku: &str) -> String {
    let data = json!({ "sku": sku, "warehouse": "ham-1", "reservation_id": "r" });
    json!({ "id": Uuid::from_u128(77), "type": "ReleaseReservation", "data": data }).to_string()
}
