//! The contract of a stock store: what every one does, whatever keeps it.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod dead_letters;
pub mod fencing;
pub mod generations;
pub mod own_server;
pub mod parking;
pub mod reading;
pub mod scanning;

use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use read_models::stock::{SharedStock, StockAnswer, StockKey, StockRow, connect_stock};
use read_models::{Batch, Checkpoint, Claimed, Generation, ParkedEvent, PartitionRef, ReadChoice, ReadModelError};
use schemas::{Context, RegionId, Sku, StorePosition, WarehouseId, partition_of};

/// Longest time that anything in these tests may take.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub const PARTITIONS: u32 = 4;

/// A stock store to test, and the address at which another process would find it.
pub struct Fixture {
    pub stock: SharedStock,
    pub url: String,
    _folder: Option<tempfile::TempDir>,
    /// How a store that has no address is opened again.
    open: Option<Box<dyn Fn() -> SharedStock + Send + Sync>>,
}

// === impl Fixture ===

impl Fixture {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("stock.db").display());
        Self { stock: connect_stock(&url).await.unwrap(), url, _folder: Some(folder), open: None }
    }

    pub async fn redis() -> Self {
        Self::at(&std::env::var("MILLRACE_TEST_REDIS").expect("MILLRACE_TEST_REDIS is set by make test")).await
    }

    pub async fn redis_cluster() -> Self {
        let servers = std::env::var("MILLRACE_TEST_REDIS_CLUSTER");
        Self::at(&servers.expect("MILLRACE_TEST_REDIS_CLUSTER is set by make test")).await
    }

    /// Key prefixes keep the tests apart.
    pub async fn at(servers: &str) -> Self {
        let url = format!("{servers}?prefix=t-{}", uuid::Uuid::new_v4().simple());
        Self { stock: connect_stock(&url).await.unwrap(), url, _folder: None, open: None }
    }

    /// A store that is opened in a way of its own.
    pub fn opening(open: impl Fn() -> SharedStock + Send + Sync + 'static) -> Self {
        Self { stock: open(), url: String::new(), _folder: None, open: Some(Box::new(open)) }
    }

    /// The same store, as another process sees it.
    pub async fn another(&self) -> SharedStock {
        match &self.open {
            Some(open) => open(),
            None => connect_stock(&self.url).await.unwrap(),
        }
    }

    /// The store with its first generation, and one partition of it claimed.
    pub async fn claimed(&self, number: u32) -> Claimed {
        self.stock.prepare(&generation()).await.unwrap();
        self.stock.claim(at(number)).await.unwrap()
    }

    /// The store with every partition live and empty.
    pub async fn live(&self) {
        self.stock.prepare(&generation()).await.unwrap();
        for number in 0..PARTITIONS {
            let claimed = self.stock.claim(at(number)).await.unwrap();
            let to = claimed.checkpoint;
            self.stock.apply(&Batch { live: true, ..batch(number, &claimed, to) }).await.unwrap();
        }
    }
}

/// Reads that do not care which generation answers.
#[async_trait]
pub trait Answers {
    async fn answers(&self, skus: &[Sku]) -> Result<Vec<StockAnswer>, ReadModelError>;
}

#[async_trait]
impl Answers for SharedStock {
    async fn answers(&self, skus: &[Sku]) -> Result<Vec<StockAnswer>, ReadModelError> {
        Ok(self.stock(skus, any()).await?.answers)
    }
}

/// What serves.
pub fn any() -> &'static ReadChoice {
    static ANY: LazyLock<ReadChoice> = LazyLock::new(ReadChoice::default);
    &ANY
}

pub fn generation() -> Generation {
    Generation { name: "stock".to_owned(), number: 1, fold_version: 1, partitions: PARTITIONS }
}

pub fn at(partition: u32) -> PartitionRef {
    PartitionRef { context: Context::Inventory, partition }
}

/// A checkpoint whose fields all differ, high enough that a floating-point number could not hold them.
pub fn checkpoint(sequence: u64) -> Checkpoint {
    const ABOVE_DOUBLES: u64 = 1 << 60;
    Checkpoint {
        sequence,
        next_offset: ABOVE_DOUBLES + sequence + 10,
        position: StorePosition { xid: ABOVE_DOUBLES + 7, position: ABOVE_DOUBLES + sequence },
        event_time: 1_700_000_000_000 + sequence as i64,
    }
}

/// A batch without rows, from where the owner stands.
pub fn batch(partition: u32, claimed: &Claimed, to: Checkpoint) -> Batch<StockKey, StockRow> {
    Batch { to, ..Batch::unmoved(at(partition), claimed.epoch, claimed.checkpoint, false) }
}

pub fn sku(name: &str) -> Sku {
    Sku::new(name).unwrap()
}

/// The SKU of a number, and its partition.
pub fn home(sku: &Sku) -> u32 {
    partition_of(sku.as_str().as_bytes(), PARTITIONS)
}

/// Some SKUs of one partition.
pub fn skus_of(partition: u32, count: usize) -> Vec<Sku> {
    (0..).map(|number| sku(&format!("SKU-{number}"))).filter(|sku| home(sku) == partition).take(count).collect()
}

pub fn key(sku: &Sku, warehouse: &str) -> StockKey {
    StockKey { sku: sku.clone(), warehouse: WarehouseId::new(warehouse).unwrap() }
}

pub fn row(on_hand: i64, version: u64) -> StockRow {
    StockRow { region: RegionId::new("eu-west").unwrap(), on_hand, reserved: on_hand / 2, version, updated_at: None }
}

/// As fold 2 makes it.
pub fn dated_row(on_hand: i64, version: u64, updated_at: i64) -> StockRow {
    StockRow { updated_at: Some(updated_at), ..row(on_hand, version) }
}

pub fn parked_event(key: &str, sequence: u64, offset: u64) -> ParkedEvent {
    ParkedEvent {
        key: key.to_owned(),
        sequence,
        offset,
        position: checkpoint(sequence).position,
        headers: vec![("ce_id".to_owned(), format!("{sequence}\n{offset}")), ("ce_id".to_owned(), "é".to_owned())],
        value: vec![0, 1, b'\n', 255, offset as u8],
        reason: "cannot be read: \"x\"".to_owned(),
        parked_at: 1_700_000_000_123,
    }
}
