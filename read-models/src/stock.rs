//! The stock read model: units of each SKU in each warehouse.

mod redis;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use schemas::{Context, PositionToken, RegionId, Sku, WarehouseId};
use serde::{Deserialize, Serialize};

use crate::error::ReadModelError;
use crate::generations::{Generations, ReadChoice};
use crate::read_model::ReadModel;

pub use redis::RedisStock;
#[doc(hidden)] // for hostile input
pub use redis::codec as redis_codec;
pub use sqlite::SqliteStock;

/// Name of this read model and of its projection.
pub const NAME: &str = "stock";
const CONTEXTS: [Context; 1] = [Context::Inventory];

/// One SKU in one warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StockKey {
    pub sku: Sku,
    pub warehouse: WarehouseId,
}

/// Units of a SKU in a warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockRow {
    pub region: RegionId,
    pub on_hand: i64,
    pub reserved: i64,
    /// Version of the stream `stock-<sku>@<warehouse>` that the row is true at.
    pub version: u64,
    /// When the event of that version was decided, in milliseconds since 1970; `None` in rows of fold 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<i64>,
}

/// All that the read model knows of one SKU, and the position that it is true at.
#[derive(Debug, Clone, PartialEq)]
pub struct StockAnswer {
    pub sku: Sku,
    /// One per warehouse, sorted by warehouse; empty when the SKU has no stock event.
    pub warehouses: Vec<(WarehouseId, StockRow)>,
    /// Position of the SKU's partition of `inventory.events` at which the rows are true.
    pub position: PositionToken,
    /// Whether events of this SKU are parked: the rows are the last good state.
    pub parked: bool,
}

/// What one request was answered: all of it from one generation.
#[derive(Debug, Clone, PartialEq)]
pub struct StockRead {
    pub generation: u32,
    /// In the order asked.
    pub answers: Vec<StockAnswer>,
}

/// What the query API needs of a stock read model. Which generation answers is the catalogue's word and the request's,
/// whatever the handle is bound to or writes.
#[async_trait]
pub trait StockReader: Send + Sync {
    /// The stock of each SKU, in the order asked. Rows and position of a SKU are read as one.
    /// [`ReadModelError::Rebuilding`] while a partition is not live, [`ReadModelError::UnknownGeneration`] where the
    /// one that is asked for is not there.
    async fn stock(&self, skus: &[Sku], choice: &ReadChoice) -> Result<StockRead, ReadModelError>;

    /// Waits until the partitions that `min` names (those of inventory) are at least there, in the generation that
    /// answers `choice`; returns early when they are, [`ReadModelError::Unavailable`] never: `Ok(false)` when `timeout`
    /// passed first.
    async fn wait_for(
        &self,
        min: &PositionToken,
        choice: &ReadChoice,
        timeout: std::time::Duration,
    ) -> Result<bool, ReadModelError>;

    /// Whether all generations lie on one server: where it does not answer, it answers for none of them.
    fn is_one_server(&self) -> bool {
        true
    }
}

/// A stock store: written by projectors, read by the query API. It keeps the catalogue of its generations.
pub trait StockReadModel: ReadModel<Key = StockKey, Row = StockRow> + StockReader + Generations {
    /// A handle on the same connection or file that is bound to one generation: written after `prepare`, and without it
    /// told of by `status`, `rows`, `load` and the dead letters. A handle that is neither bound nor prepared tells of
    /// what serves.
    fn of_generation(&self, number: u32) -> SharedStock;
}

/// A shared stock store.
pub type SharedStock = Arc<dyn StockReadModel>;

/// Connects a stock store: `sqlite:PATH`, `redis://host:port[/db]`, `rediss://…` (TLS), or a Redis Cluster as
/// `redis+cluster://host:port,host:port,…` or `rediss+cluster://…`. A `?prefix=` on the Redis ones sets what keys begin
/// with (default `millrace`), so that several Millraces can share servers.
pub async fn connect_stock(url: &str) -> Result<SharedStock, ReadModelError> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || SqliteStock::open(path)).await;
        let opened =
            opened.map_err(|error| ReadModelError::Permanent { name: NAME.to_owned(), problem: error.to_string() })?;
        return Ok(Arc::new(opened?));
    }
    match url.split_once("://") {
        Some(("redis" | "rediss" | "redis+cluster" | "rediss+cluster", _)) => {
            Ok(Arc::new(RedisStock::connect(url).await?))
        }
        _ => Err(ReadModelError::Setting {
            key: "stock-store",
            problem: "is none of sqlite:PATH, redis://HOST:PORT, rediss://HOST:PORT, redis+cluster://HOST:PORT,…"
                .to_owned(),
        }),
    }
}
