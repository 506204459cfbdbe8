//! The two generations that are compared, whatever keeps their rows.

use std::collections::HashSet;

use async_trait::async_trait;
use projectors::{Projection, SearchProjection, StockProjection};
use read_models::search::{SearchKey, SearchReader, SearchRow};
use read_models::stock::{SharedStock, StockKey, StockRow};
use read_models::{DeadLetters, FOREIGN_KEY, Loaded, PartitionRef, ReadModelError, ReadModelStatus, RowPage};
use schemas::{RegionId, Sku};
use serde::Serialize;

/// A projection whose rows can be compared.
pub trait Compared: Projection<Row: Serialize> {
    /// For people.
    fn shown(key: &Self::Key) -> String;
    fn sku(key: &Self::Key) -> &Sku;
    /// The region that a row belongs to, where it belongs to one.
    fn region<'a>(key: &'a Self::Key, row: &'a Self::Row) -> Option<&'a RegionId>;
}

/// One generation's rows.
#[async_trait]
pub trait GenerationRows<P: Projection>: Send + Sync {
    async fn status(&self) -> Result<ReadModelStatus, ReadModelError>;

    /// A page of rows as they stand, of no one moment.
    async fn rows(
        &self,
        at: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<P::Key, P::Row>, ReadModelError>;

    /// Some rows and the checkpoint that all of them are true at.
    async fn load(&self, at: PartitionRef, keys: &[P::Key]) -> Result<Loaded<P::Row>, ReadModelError>;

    /// Partition keys whose events are parked; without those of records that are nobody's.
    async fn parked_keys(&self, at: PartitionRef) -> Result<HashSet<String>, ReadModelError>;
}

impl Compared for StockProjection {
    fn shown(key: &StockKey) -> String {
        format!("{} in {}", key.sku, key.warehouse)
    }

    fn sku(key: &StockKey) -> &Sku {
        &key.sku
    }

    fn region<'a>(_: &'a StockKey, row: &'a StockRow) -> Option<&'a RegionId> {
        Some(&row.region)
    }
}

impl Compared for SearchProjection {
    fn shown(key: &SearchKey) -> String {
        match key {
            SearchKey::Product(sku) => format!("product of {sku}"),
            SearchKey::Price(sku, region) => format!("price of {sku} in {region}"),
            SearchKey::Stock(sku, warehouse) => format!("stock of {sku} in {warehouse}"),
        }
    }

    fn sku(key: &SearchKey) -> &Sku {
        match key {
            SearchKey::Product(sku) | SearchKey::Price(sku, _) | SearchKey::Stock(sku, _) => sku,
        }
    }

    fn region<'a>(key: &'a SearchKey, row: &'a SearchRow) -> Option<&'a RegionId> {
        match (key, row) {
            (SearchKey::Price(_, region), _) => Some(region),
            (_, SearchRow::Stock { region, .. }) => Some(region),
            _ => None,
        }
    }
}

#[async_trait]
impl<P: Projection<Key = StockKey, Row = StockRow>> GenerationRows<P> for SharedStock {
    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        self.as_ref().status().await
    }

    async fn rows(
        &self,
        at: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<StockKey, StockRow>, ReadModelError> {
        self.as_ref().rows(at, from, limit).await
    }

    async fn load(&self, at: PartitionRef, keys: &[StockKey]) -> Result<Loaded<StockRow>, ReadModelError> {
        self.as_ref().load(at, keys).await
    }

    async fn parked_keys(&self, at: PartitionRef) -> Result<HashSet<String>, ReadModelError> {
        all_parked_keys(self.as_ref(), at).await
    }
}

#[async_trait]
impl<P: Projection<Key = SearchKey, Row = SearchRow>> GenerationRows<P> for SearchReader {
    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        SearchReader::status(self).await
    }

    async fn rows(
        &self,
        at: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<SearchKey, SearchRow>, ReadModelError> {
        SearchReader::rows(self, at, from, limit).await
    }

    async fn load(&self, at: PartitionRef, keys: &[SearchKey]) -> Result<Loaded<SearchRow>, ReadModelError> {
        SearchReader::load(self, at, keys).await
    }

    async fn parked_keys(&self, at: PartitionRef) -> Result<HashSet<String>, ReadModelError> {
        all_parked_keys(self, at).await
    }
}

const PAGE: usize = 1_000;

async fn all_parked_keys(
    dead_letters: &(impl DeadLetters + ?Sized),
    at: PartitionRef,
) -> Result<HashSet<String>, ReadModelError> {
    let mut keys = HashSet::new();
    let mut after: Option<String> = None;
    loop {
        let page = dead_letters.parked_keys(at, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(keys) };
        after = Some(last.key.clone());
        keys.extend(page.into_iter().map(|parked| parked.key).filter(|key| key != FOREIGN_KEY));
    }
}
