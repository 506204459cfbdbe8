//! A log, the rows of some generations, each in a file of its own, and a catalogue that a test may change and lose.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use event_log::frame::frame;
use event_log::{EmbeddedRegistry, EventEnvelope, EventLog, NewRecord, SqliteEventLog, TopicPartition, TopicSpec};
use projectors::{
    FeedSettings, GenerationStores, OpenGeneration, ProjectorSettings, StockProjection, Throttle, run_generations,
};
use read_models::generations::{Action, Decision, GenerationEntry, GenerationState, Until, Verdict};
use read_models::process_report::{Halted, ProcessReport, ThrottleStatus};
use read_models::stock::{SharedStock, StockKey, StockReadModel, StockRow, connect_stock};
use read_models::{Catalogue, Generation, Generations, PartitionRef, ReadModelError, ReadModelStatus};
use schemas::contract::embedded_id;
use schemas::event::{StockChange, StockUpdated};
use schemas::{Context, Event, RegionId, Sku, StorePosition, WarehouseId, encode_event, partition_of};
use serde_json::json;
use telemetry::{ComponentHealth, Health};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const DEADLINE: Duration = Duration::from_secs(40);
const PARTITIONS: u32 = 3;
const SKUS: u64 = 17;

pub struct World {
    pub stores: Arc<Stores>,
    pub health: Health,
    /// All that was published, in order.
    pub events: Vec<Published>,
    log: Arc<dyn EventLog>,
}

pub struct Published {
    /// 1, 2, 3 …; also its position.
    pub number: u64,
    pub partition: u32,
    key: StockKey,
    version: u64,
}

pub struct Running {
    shutdown: CancellationToken,
    supervisor: JoinHandle<()>,
}

/// Rows in a file for each generation; the catalogue in memory, kept by the rules of the port.
pub struct Stores {
    folder: tempfile::TempDir,
    open: Mutex<BTreeMap<u32, SharedStock>>,
    kept: Mutex<(Catalogue, Vec<Decision>)>,
    removed: Mutex<Vec<u32>>,
    /// The generation whose store cannot be opened.
    broken: Mutex<Option<u32>>,
    told: Mutex<BTreeMap<String, ProcessReport>>,
    /// Reports cannot be read.
    pub is_blind: AtomicBool,
}

impl World {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
        let topic = TopicSpec { name: Context::Inventory.events_topic().to_owned(), partitions: PARTITIONS };
        log.ensure_topics(&[topic]).await.unwrap();
        let stores = Stores {
            folder,
            open: Mutex::default(),
            kept: Mutex::new((Catalogue::of_built(None), Vec::new())),
            removed: Mutex::default(),
            broken: Mutex::default(),
            told: Mutex::default(),
            is_blind: AtomicBool::new(false),
        };
        Self { stores: Arc::new(stores), health: Health::default(), events: Vec::new(), log: Arc::new(log) }
    }

    pub fn run(&self) -> Running {
        let shutdown = CancellationToken::new();
        let projector = ProjectorSettings {
            partitions: PARTITIONS,
            batch: 20,
            shadow_batch: 50,
            observe_every: Duration::from_millis(20),
            throttle: Some(Throttle::new(Default::default())),
            ..ProjectorSettings::default()
        };
        let settings = FeedSettings { projector, remove_after: Duration::from_millis(100), ends_with_serving: false };
        let supervisor = run_generations::<StockProjection, Stores>(
            Arc::clone(&self.stores),
            Arc::clone(&self.log),
            Arc::new(EmbeddedRegistry::default()),
            settings,
            self.health.clone(),
            shutdown.clone(),
        );
        Running { shutdown, supervisor: tokio::spawn(async move { supervisor.await.unwrap() }) }
    }

    pub async fn publish(&mut self, count: u64) {
        let mut records = Vec::new();
        for _ in 0..count {
            let number = self.events.len() as u64 + 1;
            let sku = format!("SKU-{}", number * number % SKUS);
            let key = StockKey { sku: Sku::new(&sku).unwrap(), warehouse: WarehouseId::new("w").unwrap() };
            let partition = partition_of(sku.as_bytes(), PARTITIONS);
            let of_partition = self.events.iter().filter(|event| event.partition == partition).count() as u64;
            let version = self.events.iter().filter(|event| event.key == key).count() as u64 + 1;
            records.push(record(number, &key, partition, of_partition + 1, version));
            self.events.push(Published { number, partition, key, version });
        }
        self.log.publish(records).await.unwrap();
    }

    /// Another log, which has the first `count` events alone.
    pub async fn lose_all_after(&mut self, count: usize) {
        let log = SqliteEventLog::open(self.stores.folder.path().join("another-log.db")).unwrap();
        let topic = TopicSpec { name: Context::Inventory.events_topic().to_owned(), partitions: PARTITIONS };
        log.ensure_topics(&[topic]).await.unwrap();
        self.log = Arc::new(log);
        self.publish_again(0, count).await;
    }

    /// The events from `from` up to `to`, as they were.
    pub async fn publish_again(&self, from: usize, to: usize) {
        let mut sequences = [0; PARTITIONS as usize];
        let mut records = Vec::new();
        for event in &self.events[..to] {
            let sequence = &mut sequences[event.partition as usize];
            *sequence += 1;
            records.push(record(event.number, &event.key, event.partition, *sequence, event.version));
        }
        self.log.publish(records.split_off(from)).await.unwrap();
    }

    /// Waits until its lag, and which of its partitions are halted, are told so.
    pub async fn until_halted(&self, generation: u32, is_so: impl Fn(Option<u64>, &Halted) -> bool) {
        let begun = Instant::now();
        let store = self.stores.store(generation).await;
        loop {
            let status = store.status().await.unwrap();
            let halted = status.halted(&self.stores.reports(0, 0).await.unwrap());
            if is_so(status.known_lag(&halted), &halted) {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "{halted:?} {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The next event of a partition, of a SKU that is in another one.
    pub async fn publish_elsewhere(&self) {
        let number = self.events.len() as u64 + 1;
        let mut skus = (0..).map(|number| format!("STRAY-{number}"));
        let sku = skus.find(|sku| partition_of(sku.as_bytes(), PARTITIONS) != 0).unwrap();
        let key = StockKey { sku: Sku::new(&sku).unwrap(), warehouse: WarehouseId::new("w").unwrap() };
        let sequence = self.events.iter().filter(|event| event.partition == 0).count() as u64 + 1;
        self.log.publish(vec![record(number, &key, 0, sequence, 1)]).await.unwrap();
    }

    pub fn time_of(&self, number: u64) -> i64 {
        time(number)
    }

    /// The fold of some events, told in the plainest way.
    pub fn oracle(&self, takes: impl Fn(&Published) -> bool) -> BTreeMap<StockKey, StockRow> {
        let taken = self.events.iter().filter(|event| takes(event));
        taken.map(|event| (event.key.clone(), row(event.number, event.version))).collect()
    }

    pub async fn rows(&self, generation: u32) -> BTreeMap<StockKey, StockRow> {
        let store = self.stores.store(generation).await;
        let mut rows = BTreeMap::new();
        for partition in 0..PARTITIONS {
            let partition = PartitionRef { context: Context::Inventory, partition };
            let page = store.rows(partition, None, 1_000).await.unwrap();
            assert!(page.next.is_none());
            rows.extend(page.rows.into_iter().map(|(key, row)| (key, row.unwrap())));
        }
        rows
    }

    /// Waits until a generation has applied everything.
    pub async fn level(&self, generation: u32) {
        let all = self.events.len() as u64;
        self.wait_for(generation, |status| applied(status) == all && status.is_live()).await;
    }

    pub async fn applied(&self, generation: u32, at_least: u64) {
        self.wait_for(generation, |status| applied(status) >= at_least).await;
    }

    /// Waits until a generation is read from and has no lag.
    pub async fn stands_still(&self, generation: u32) {
        self.wait_for(generation, |status| {
            status.is_live() && status.partitions.iter().all(|partition| partition.lag_events() == Some(0))
        })
        .await;
    }

    async fn wait_for(&self, generation: u32, is_so: impl Fn(&ReadModelStatus) -> bool) {
        let begun = Instant::now();
        let store = self.stores.store(generation).await;
        loop {
            let status = store.status().await;
            if status.as_ref().is_ok_and(&is_so) {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "stock@{generation}: {status:?} {:?}", self.health.report());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until(&self, what: &str, is_so: impl Fn(&Catalogue) -> bool) {
        let begun = Instant::now();
        while !is_so(&self.stores.catalogue_now()) {
            assert!(begun.elapsed() < DEADLINE, "not yet: {what}; {:?}", self.stores.catalogue_now());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until_throttled(&self, is_so: impl Fn(&ThrottleStatus) -> bool) {
        let begun = Instant::now();
        while !self.stores.throttle().is_some_and(|told| is_so(&told)) {
            assert!(begun.elapsed() < DEADLINE, "{:?}", self.stores.throttle());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until_health(&self, component: &str, is_so: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        loop {
            let report = self.health.report();
            if report.components.get(component).is_some_and(|told| is_so(told)) {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "{report:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Changes the catalogue as an operator would.
    pub async fn change(&self, change: impl FnOnce(&mut Catalogue)) {
        let (to, decisions) = changed(&self.stores.catalogue_now(), change);
        self.stores.change(&to, &decisions).await.unwrap();
    }
}

fn changed(found: &Catalogue, change: impl FnOnce(&mut Catalogue)) -> (Catalogue, Vec<Decision>) {
    let mut to = found.clone();
    change(&mut to);
    let generation = Generation { name: "stock".to_owned(), number: to.serving, fold_version: 1, partitions: 1 };
    let verdict = Verdict {
        at: 1,
        who: "ann".to_owned(),
        action: Action::Started,
        generation,
        reason: "a test".to_owned(),
        evidence: json!(null),
    };
    found.decided(to, vec![verdict])
}

/// Puts a generation into a catalogue.
pub fn add(to: &mut Catalogue, number: u32, fold_version: u32, until: Option<Until>) {
    let generation = Generation { name: "stock".to_owned(), number, fold_version, partitions: PARTITIONS };
    to.generations.insert(number, GenerationEntry { until, ..GenerationEntry::fed(&generation) });
}

impl Running {
    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.supervisor).await.unwrap().unwrap();
    }

    /// Ends it where it stands.
    pub async fn kill(self) {
        self.supervisor.abort();
        assert!(self.supervisor.await.unwrap_err().is_cancelled());
    }
}

impl Stores {
    async fn store(&self, generation: u32) -> SharedStock {
        let url = format!("sqlite:{}", self.folder.path().join(format!("stock-{generation}.db")).display());
        if let Some(store) = self.open.lock().unwrap().get(&generation) {
            return Arc::clone(store);
        }
        let store = connect_stock(&url).await.unwrap();
        Arc::clone(self.open.lock().unwrap().entry(generation).or_insert(store))
    }

    pub fn catalogue_now(&self) -> Catalogue {
        self.kept.lock().unwrap().0.clone()
    }

    pub fn decisions(&self) -> Vec<Decision> {
        self.kept.lock().unwrap().1.clone()
    }

    pub fn removed(&self) -> Vec<u32> {
        self.removed.lock().unwrap().clone()
    }

    pub fn break_store(&self, generation: Option<u32>) {
        *self.broken.lock().unwrap() = generation;
    }

    /// What the only process that builds here told last of its throttle.
    pub fn throttle(&self) -> Option<ThrottleStatus> {
        let told = self.told.lock().unwrap();
        let mut throttles = told.values().filter_map(|report| report.throttle.clone());
        let throttle = throttles.next();
        assert_eq!(throttles.next(), None, "a later report replaces the earlier one: {told:?}");
        throttle
    }

    pub fn wipe_catalogue(&self) {
        self.restore((Catalogue::of_built(None), Vec::new()));
    }

    pub fn kept(&self) -> (Catalogue, Vec<Decision>) {
        self.kept.lock().unwrap().clone()
    }

    /// As it was at an earlier [`Self::kept`], and then changed by somebody, at once.
    pub fn put_back(&self, earlier: (Catalogue, Vec<Decision>), change: impl FnOnce(&mut Catalogue)) {
        let (to, decisions) = changed(&earlier.0, change);
        self.restore((to, earlier.1.into_iter().chain(decisions).collect()));
    }

    /// As it was at an earlier [`Self::kept`].
    pub fn restore(&self, earlier: (Catalogue, Vec<Decision>)) {
        *self.kept.lock().unwrap() = earlier;
    }
}

#[async_trait]
impl GenerationStores<StockProjection> for Stores {
    type Model = dyn StockReadModel;

    fn catalogue(&self) -> &dyn Generations {
        self
    }

    async fn open(
        &self,
        generation: u32,
        _health: &ComponentHealth,
        _shutdown: &CancellationToken,
    ) -> Result<Option<OpenGeneration<Self::Model>>, ReadModelError> {
        if *self.broken.lock().unwrap() == Some(generation) {
            return Err(ReadModelError::Permanent { name: "stock".to_owned(), problem: "broken".to_owned() });
        }
        let group = projectors::generations::group_of("stock", generation);
        Ok(Some(OpenGeneration { read_model: self.store(generation).await, group, beside: None }))
    }
}

#[async_trait]
impl Generations for Stores {
    fn name(&self) -> &'static str {
        "stock"
    }

    async fn catalogue(&self) -> Result<Catalogue, ReadModelError> {
        Ok(self.catalogue_now())
    }

    async fn replace(&self, expected: u64, to: &Catalogue, decisions: &[Decision]) -> Result<(), ReadModelError> {
        let mut kept = self.kept.lock().unwrap();
        if kept.0.version != expected {
            let found = kept.0.version;
            return Err(ReadModelError::CatalogueMoved { name: "stock".to_owned(), expected, found });
        }
        kept.0 = to.clone();
        kept.1.extend(decisions.iter().cloned());
        Ok(())
    }

    async fn decisions(&self, after: u64, limit: usize) -> Result<Vec<Decision>, ReadModelError> {
        Ok(self.decisions().into_iter().filter(|decision| decision.number > after).take(limit).collect())
    }

    async fn published_decisions(&self) -> Result<u64, ReadModelError> {
        Ok(0)
    }

    async fn note_published(&self, _number: u64) -> Result<(), ReadModelError> {
        Ok(())
    }

    async fn remove_some(&self, generation: u32, _limit: usize) -> Result<bool, ReadModelError> {
        assert_eq!(self.catalogue_now().generations[&generation].state, GenerationState::Retired);
        self.removed.lock().unwrap().push(generation);
        Ok(false)
    }

    async fn note_report(&self, report: &ProcessReport) -> Result<(), ReadModelError> {
        self.told.lock().unwrap().insert(report.process.clone(), report.clone());
        Ok(())
    }

    async fn reports(&self, _now: i64, _max_age_ms: i64) -> Result<Vec<ProcessReport>, ReadModelError> {
        if self.is_blind.load(Ordering::SeqCst) {
            let (name, address, problem) = ("stock".to_owned(), "memory".to_owned(), "blind".to_owned());
            return Err(ReadModelError::Unavailable { name, address, problem });
        }
        Ok(self.told.lock().unwrap().values().cloned().collect())
    }
}

fn applied(status: &ReadModelStatus) -> u64 {
    status.partitions.iter().map(|partition| partition.checkpoint.sequence).sum()
}

fn time(number: u64) -> i64 {
    1_700_000_000_000 + number as i64
}

fn row(number: u64, version: u64) -> StockRow {
    StockRow { region: RegionId::new("eu").unwrap(), on_hand: number as i64, reserved: 0, version, updated_at: None }
}

fn record(number: u64, key: &StockKey, partition: u32, sequence: u64, version: u64) -> NewRecord {
    let event = Event::StockUpdated(StockUpdated {
        sku: key.sku.clone(),
        warehouse: key.warehouse.clone(),
        region: RegionId::new("eu").unwrap(),
        change: StockChange::Counted,
        quantity: number as i64,
        on_hand: number as i64,
        reserved: 0,
        reservation_id: None,
        expires_at: None,
        reason: None,
    });
    let encoded = encode_event(&event).unwrap();
    let envelope = EventEnvelope {
        id: Uuid::from_u128(number.into()),
        source: "/millrace/inventory".to_owned(),
        event_type: encoded.schema.name.to_owned(),
        time: time(number),
        subject: format!("stock-{}@w", key.sku),
        partition_key: key.sku.as_str().to_owned(),
        sequence,
        stream_version: version,
        position: StorePosition { xid: 0, position: number },
        correlation_id: None,
        causation_id: None,
        traceparent: None,
    };
    NewRecord {
        at: TopicPartition::new(Context::Inventory.events_topic(), partition),
        key: key.sku.as_str().as_bytes().to_vec(),
        headers: envelope.to_headers(),
        value: frame(embedded_id(encoded.schema), &encoded.body),
        timestamp: time(number),
    }
}
