//! A generation from the event table, where retention has removed the beginning of the topics: the same rows and the same
//! checkpoints as one that was folded from the whole topics. Real event store, relay, log, projectors and rows, in files.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_log::{
    EmbeddedRegistry, EventLog, EventLogError, EventTable, NewRecord, SqliteEventLog, TablePlace, TableWalk,
    TopicPartition,
};
use event_store::{AppendBatch, DecidedCommand, EventStore, NewEvent, SqliteEventStore, StreamId, Topology};
use outbox_relay::{PublishedRows, Relay, RelaySettings};
use projectors::{ProjectorError, ProjectorSettings, Role, StockProjection, run_projector};
use read_models::generations::{Source, Until};
use read_models::stock::{SharedStock, StockKey, StockReadModel, StockRow, connect_stock};
use read_models::{Checkpoint, PartitionRef, ReadModelStatus};
use schemas::event::{PriceSet, StockChange, StockUpdated};
use schemas::{Context, Event, Outcome, OutcomeKind, RegionId, Sku, WarehouseId, encode_event};
use telemetry::Health;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(60);
const PARTITIONS: u32 = 3;
const SKUS: u64 = 23;
const BATCH: usize = 20;
/// Of each partition, after retention.
const KEPT: u64 = 7;

struct World {
    folder: tempfile::TempDir,
    store: Arc<dyn EventStore>,
    log: Arc<dyn EventLog>,
    stock: SharedStock,
    role: Role,
    appended: u64,
    relay: (CancellationToken, JoinHandle<()>),
}

struct Running {
    stock: SharedStock,
    health: Health,
    shutdown: CancellationToken,
    projector: JoinHandle<Result<(), ProjectorError>>,
}

/// What a generation shows: rows, checkpoints, and what it parked.
type Shown = (BTreeMap<StockKey, StockRow>, Vec<(PartitionRef, Checkpoint, u64, u64)>);

/// A table that gives only some reads, and then keeps whoever reads waiting.
#[derive(Debug)]
struct Stuck {
    table: Arc<dyn EventTable>,
    reads: Arc<AtomicUsize>,
}

/// A table whose topics are filled again until that is said to be over, and to which more is published all the time then.
#[derive(Debug)]
struct Filling {
    table: Arc<dyn EventTable>,
    is_over: Arc<AtomicBool>,
    told: Mutex<HashSet<u32>>,
}

struct StuckWalk {
    walk: Box<dyn TableWalk>,
    reads: Arc<AtomicUsize>,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(&folder.path().join("events.db")).await;
        let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
        let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
        let relay = start_relay(&store, &log);
        Self { folder, store, log, stock, role: Role::Serving, appended: 0, relay }
    }

    /// Appends events of two topics, and waits until they are published.
    async fn append(&mut self, count: u64) {
        append(&*self.store, self.appended, count, 0).await;
        self.appended += count;
        let begun = Instant::now();
        while self.store.relay_lag(0).await.unwrap().0 > 0 {
            assert!(begun.elapsed() < DEADLINE, "nothing is relayed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sequence of the last event of each partition.
    async fn published(&self) -> u64 {
        let sequences = self.store.relay_cursor().await.unwrap().sequences;
        let of_stock = sequences.iter().filter(|((topic, _), _)| topic == Context::Inventory.events_topic());
        of_stock.map(|(_, sequence)| sequence).sum()
    }

    fn table(&self) -> Arc<dyn EventTable> {
        table_of(&self.store)
    }

    fn project(&self, generation: u32, source: Source, event_table: Option<Arc<dyn EventTable>>) -> Running {
        self.project_until(generation, source, event_table, None)
    }

    fn project_until(
        &self,
        generation: u32,
        source: Source,
        event_table: Option<Arc<dyn EventTable>>,
        until: Option<Until>,
    ) -> Running {
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let stock = self.stock.of_generation(generation);
        let settings = ProjectorSettings {
            group: format!("stock@{generation}"),
            generation,
            partitions: PARTITIONS,
            batch: BATCH,
            gap_patience: Duration::from_millis(200),
            observe_every: Duration::from_millis(20),
            source,
            event_table,
            until,
            role: watch::channel(self.role).1,
            ..ProjectorSettings::default()
        };
        let projector = tokio::spawn(run_projector::<StockProjection, dyn StockReadModel>(
            stock.clone(),
            self.log.clone(),
            Arc::new(EmbeddedRegistry::default()),
            settings,
            health.component("stock"),
            shutdown.clone(),
        ));
        Running { stock, health, shutdown, projector }
    }

    /// A generation that is folded from the whole topics, and then stopped.
    async fn of_whole_log(&self, generation: u32) -> Shown {
        let running = self.project(generation, Source::Log, None);
        running.level(self.published().await).await;
        let shown = running.shown().await;
        running.stop().await;
        shown
    }

    /// Removes all but the last records of each partition, as retention would.
    fn pass_retention(&self) {
        self.pass_retention_of(0..PARTITIONS);
    }

    fn pass_retention_of(&self, partitions: std::ops::Range<u32>) {
        let file = rusqlite::Connection::open(self.folder.path().join("log.db")).unwrap();
        let all = "FROM records AS newer WHERE newer.topic = records.topic AND newer.partition = records.partition";
        let old = format!("offset <= (SELECT max(offset) - {KEPT} {all})");
        let removed = format!("DELETE FROM records WHERE partition >= ?1 AND partition < ?2 AND {old}");
        assert!(file.execute(&removed, [partitions.start, partitions.end]).unwrap() > 20);
    }

    async fn end(self) {
        self.relay.0.cancel();
        self.relay.1.await.unwrap();
    }
}

impl Running {
    async fn level(&self, events: u64) {
        self.until(|status| applied(status) == events && status.is_live() && status.lag_events() == Some(0)).await;
    }

    async fn until(&self, is_so: impl Fn(&ReadModelStatus) -> bool) -> ReadModelStatus {
        let begun = Instant::now();
        loop {
            let status = self.stock.status().await;
            if let Ok(status) = &status
                && is_so(status)
            {
                return status.clone();
            }
            assert!(begun.elapsed() < DEADLINE, "{status:?} {:?}", self.health.report());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn says(&self, words: &[&str]) {
        let begun = Instant::now();
        let told = || self.health.report().components["stock"].clone();
        while !words.iter().all(|words| told().contains(words)) {
            assert!(begun.elapsed() < DEADLINE, "{words:?} is not said: {}", told());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn shown(&self) -> Shown {
        let mut rows = BTreeMap::new();
        for partition in 0..PARTITIONS {
            let partition = PartitionRef { context: Context::Inventory, partition };
            let page = self.stock.rows(partition, None, 1_000).await.unwrap();
            rows.extend(page.rows.into_iter().map(|(key, row)| (key, row.unwrap())));
        }
        let told = |partition: read_models::PartitionStatus| {
            (partition.partition, partition.checkpoint, partition.parked_keys, partition.parked_events)
        };
        (rows, self.stock.status().await.unwrap().partitions.into_iter().map(told).collect())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.projector.await.unwrap().unwrap();
    }
}

#[async_trait::async_trait]
impl EventTable for Stuck {
    fn walk(&self, at: TopicPartition, after: TablePlace) -> Box<dyn TableWalk> {
        Box::new(StuckWalk { walk: self.table.walk(at, after), reads: Arc::clone(&self.reads) })
    }

    async fn published(&self, at: &TopicPartition) -> Result<Option<u64>, EventLogError> {
        self.table.published(at).await
    }
}

#[async_trait::async_trait]
impl EventTable for Filling {
    fn walk(&self, at: TopicPartition, after: TablePlace) -> Box<dyn TableWalk> {
        self.table.walk(at, after)
    }

    async fn published(&self, at: &TopicPartition) -> Result<Option<u64>, EventLogError> {
        if !self.is_over.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let published = self.table.published(at).await?;
        let is_first = self.told.lock().unwrap().insert(at.partition);
        Ok(published.map(|published| if is_first { published } else { published + 1_000 }))
    }
}

#[async_trait::async_trait]
impl TableWalk for StuckWalk {
    async fn next(&mut self, limit: usize) -> Result<Vec<NewRecord>, EventLogError> {
        let left = |reads: usize| reads.checked_sub(1);
        if self.reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_err() {
            std::future::pending::<()>().await;
        }
        self.walk.next(limit).await
    }
}

async fn open_store(path: &Path) -> Arc<dyn EventStore> {
    let store = SqliteEventStore::open(path).unwrap();
    store.fix_topology(Topology { partitions: PARTITIONS }).await.unwrap();
    Arc::new(store)
}

fn table_of(store: &Arc<dyn EventStore>) -> Arc<dyn EventTable> {
    let store = Arc::clone(store);
    let connect = Box::new(move || -> futures::future::BoxFuture<'static, _> {
        Box::pin(std::future::ready(Ok(Arc::clone(&store))))
    });
    Arc::new(PublishedRows::new(connect, Arc::new(EmbeddedRegistry::default())))
}

fn start_relay(store: &Arc<dyn EventStore>, log: &Arc<dyn EventLog>) -> (CancellationToken, JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let relay = Relay::new(
        store.clone(),
        log.clone(),
        Arc::new(EmbeddedRegistry::default()),
        Topology { partitions: PARTITIONS },
        RelaySettings { batch: 33, ..RelaySettings::default() },
        Health::default().component("relay"),
    );
    let stopped = shutdown.clone();
    (shutdown, tokio::spawn(async move { relay.run(stopped).await.unwrap() }))
}

/// Counts and prices of some SKUs in turn; one count is impossible, so that it is parked with all that follow of its SKU.
async fn append(store: &dyn EventStore, from: u64, count: u64, time: i64) {
    let mut commands = Vec::new();
    for number in from..from + count {
        let (of_sku, version) = (number % SKUS, number / SKUS + 1);
        let sku = Sku::new(format!("SKU-{of_sku}")).unwrap();
        let region = RegionId::new("north").unwrap();
        let is_price = of_sku.is_multiple_of(5);
        let (stream, context, event) = if is_price {
            let (currency, amount_minor) = ("EUR".to_owned(), number as i64);
            let event = Event::PriceSet(PriceSet { sku: sku.clone(), region, currency, amount_minor });
            (format!("price-{sku}@north"), Context::Pricing, event)
        } else {
            let is_impossible = of_sku == 3 && version == 2;
            let event = Event::StockUpdated(StockUpdated {
                sku: sku.clone(),
                warehouse: WarehouseId::new("w").unwrap(),
                region,
                change: StockChange::Counted,
                quantity: number as i64,
                on_hand: if is_impossible { -1 } else { number as i64 },
                reserved: 0,
                reservation_id: None,
                expires_at: None,
                reason: None,
            });
            (format!("stock-{sku}@w"), Context::Inventory, event)
        };
        let encoded = encode_event(&event).unwrap();
        let id = Uuid::from_u128(u128::from(number) + 1);
        commands.push(DecidedCommand {
            id,
            digest: [0; 32],
            received_at: 0,
            stream: StreamId::from_stored(stream),
            expected_version: version - 1,
            outcome: Outcome {
                id,
                outcome: OutcomeKind::Accepted,
                position: None,
                stream: None,
                version: None,
                reason: None,
            },
            events: vec![NewEvent {
                id,
                context,
                key: sku.to_string(),
                schema: encoded.schema,
                body: encoded.body,
                time: time + number as i64,
                correlation_id: None,
                causation_id: None,
                actor: None,
                traceparent: None,
            }],
            claims: Vec::new(),
            timers: Vec::new(),
            snapshot: None,
            publish_outcome_on: None,
            outcome_key: sku.to_string(),
            command_type: None,
        });
        if commands.len() == 50 || number == from + count - 1 {
            let commands = std::mem::take(&mut commands);
            store.append(&AppendBatch { commands, ..AppendBatch::default() }).await.unwrap();
        }
    }
}

fn applied(status: &ReadModelStatus) -> u64 {
    status.partitions.iter().map(|partition| partition.checkpoint.sequence).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_removed_comes_from_the_event_table_also_after_a_stop_in_the_middle() {
    let mut world = World::new().await;
    world.append(700).await;
    let whole = world.of_whole_log(1).await;
    assert_eq!(whole.1.iter().map(|(_, _, parked_keys, _)| parked_keys).sum::<u64>(), 1, "one is parked");
    world.pass_retention();

    let published = world.published().await;
    let stuck = Stuck { table: world.table(), reads: Arc::new(AtomicUsize::new(9)) };
    let running = world.project(2, Source::EventTable, Some(Arc::new(stuck)));
    let is_behind = |status: &ReadModelStatus| status.lag_events() > Some(100);
    let stopped = running.until(|status| applied(status) == 9 * BATCH as u64 && is_behind(status)).await;
    assert!(!stopped.is_live(), "{stopped:?}");
    running.stop().await;

    let running = world.project(2, Source::EventTable, Some(world.table()));
    running.level(published).await;
    assert_eq!(running.shown().await, whole);
    // And on, from the topics alone.
    world.append(100).await;
    running.level(world.published().await).await;
    running.stop().await;
    let running = world.project(1, Source::Log, None);
    running.level(world.published().await).await;
    let gone_on = running.shown().await;
    running.stop().await;
    let running = world.project(2, Source::EventTable, None);
    running.level(world.published().await).await;
    assert_eq!(running.shown().await, gone_on, "who has all that was removed needs no event store");
    running.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_live_while_the_topics_are_filled_again_and_all_is_soon_after() {
    let mut world = World::new().await;
    world.append(400).await;
    let published = world.published().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let filling = Filling { table: world.table(), is_over: Arc::clone(&is_over), told: Mutex::default() };
    let running = world.project(1, Source::Log, Some(Arc::new(filling)));
    running.until(|status| applied(status) == published).await;
    let begun = Instant::now();
    // It is looked at once a second.
    while begun.elapsed() < Duration::from_secs(3) {
        let status = running.stock.status().await.unwrap();
        assert!(status.partitions.iter().all(|partition| !partition.live), "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_over.store(true, Ordering::SeqCst);
    running.level(published).await;
    running.stop().await;
    // What is published after that was told is waited for by nobody: under load it would never be reached.
    let growing = Filling { table: world.table(), is_over, told: Mutex::default() };
    let running = world.project(2, Source::Log, Some(Arc::new(growing)));
    running.level(published).await;
    running.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_from_the_log_says_what_would_do_and_one_without_a_table_is_refused() {
    let mut world = World::new().await;
    world.append(400).await;
    world.pass_retention();

    let running = world.project(1, Source::Log, None);
    running.says(&["retention removed it", "millrace replay start --from event-table"]).await;
    assert_eq!(applied(&running.stock.status().await.unwrap()), 0);
    running.stop().await;

    world.role = Role::Shadow;
    let refused = world.project(2, Source::EventTable, None).projector.await.unwrap();
    let error = refused.unwrap_err();
    assert!(matches!(error, ProjectorError::NoEventTable { generation: 2, wanted: 1, .. }), "{error}");
    assert!(error.to_string().contains("`--event-store`"), "{error}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_serves_is_fed_without_a_table_but_for_the_partition_that_lacks_something() {
    let mut world = World::new().await;
    world.append(400).await;
    world.pass_retention();
    let running = world.project(2, Source::EventTable, Some(world.table()));
    running.level(world.published().await).await;
    running.stop().await;
    world.append(400).await;
    world.pass_retention_of(0..1);

    let running = world.project(2, Source::EventTable, None);
    running.says(&["halted", "`--event-store`"]).await;
    let others = |status: &ReadModelStatus| status.partitions[1..].iter().all(|held| held.lag_events() == Some(0));
    running.until(|status| others(status) && status.partitions[0].lag_events() > Some(0)).await;
    running.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_another_history_is_found_out() {
    let mut world = World::new().await;
    world.append(400).await;
    world.pass_retention();
    let folder = tempfile::tempdir().unwrap();
    let other = open_store(&folder.path().join("events.db")).await;
    append(&*other, 0, 400, 1_000_000).await;
    let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    let (shutdown, relay) = start_relay(&other, &log);
    let begun = Instant::now();
    while other.relay_lag(0).await.unwrap().0 > 0 {
        assert!(begun.elapsed() < DEADLINE, "nothing is relayed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shutdown.cancel();
    relay.await.unwrap();

    let running = world.project(2, Source::EventTable, Some(table_of(&other)));
    running.says(&["another one than the read model has applied there"]).await;
    assert!(!running.stock.status().await.unwrap().is_live());
    running.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_of_the_past_may_stand_still_in_what_retention_removed() {
    let mut world = World::new().await;
    world.append(500).await;
    let until = Some(Until::Time(200));
    let running = world.project_until(1, Source::Log, None, until.clone());
    let stands = |status: &ReadModelStatus| status.is_live() && status.lag_events() == Some(0);
    running.until(stands).await;
    let (rows, _) = running.shown().await;
    running.stop().await;
    world.pass_retention();
    let running = world.project_until(2, Source::EventTable, Some(world.table()), until);
    running.until(stands).await;
    assert_eq!(running.shown().await.0, rows);
    assert!(rows.values().all(|row| row.on_hand <= 200) && rows.len() > 10);
    running.stop().await;
    world.end().await;
}
