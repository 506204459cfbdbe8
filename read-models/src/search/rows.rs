//! The rows of the search read model in their SQLite file, and which documents they changed.
//!
//! Each write that changes what a document shows has a row version, one higher than the last; a document keeps that of
//! its last change. An index that names the row version it has is so brought up to date from wherever it is: after a
//! crash, a lost directory or a restored copy. Stock counts change no document, only a region that goes in or out of
//! stock does. What is parked is a part of it: see [`parked`].

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use schemas::event::Product;
use schemas::{Context, IdError, PositionToken, RegionId, Sku, WarehouseId};

use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::read_model::{Batch, Generation};
use crate::search::sums::{self, Sum};
use crate::search::{CONTEXTS, NAME, RegionPrice, SearchKey, SearchRow, parked};
use crate::sqlite::{Abort, Layout, dead_letters, ledger};

pub(super) const LAYOUT: Layout =
    Layout { tables: &[ledger::TABLES, include_str!("rows.sql")], additions: &[dead_letters::TABLES, FOLD_2] };
/// What rows of fold 2 say beside those of fold 1.
const FOLD_2: &str = "ALTER TABLE products ADD COLUMN revised_at INTEGER";
pub(super) const REMEDY: &str = "it is rebuilt from the event log when the search projector starts again";

/// What the rows are at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RowsState {
    /// The file's own id.
    pub(super) store: String,
    /// The generation that is served.
    pub(super) generation: u32,
    /// Highest row version; 0 while nothing is there to show.
    pub(super) row_version: u64,
    /// Whether every partition may be read.
    pub(super) live: bool,
    /// Of every partition.
    pub(super) position: PositionToken,
}

/// The parts of one SKU, shown or not.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parts {
    /// `None` before it is registered and after it is discontinued.
    pub(super) product: Option<Product>,
    /// Milliseconds since 1970; `None` in rows of fold 1.
    pub(super) revised_at: Option<i64>,
    pub(super) prices: Vec<RegionPrice>,
    pub(super) in_stock: Vec<RegionId>,
    /// Whether events of the SKU wait, of whichever context.
    pub(super) parked: bool,
}

pub(super) fn state(connection: &Connection) -> Result<RowsState, Abort> {
    let generation = ledger::serving(connection, NAME)?;
    let row_version = connection
        .prepare_cached("SELECT row_version FROM row_versions WHERE generation = ?1")?
        .query_row([generation.number], |row| row.get::<_, i64>(0))
        .optional()?;
    let (position, live) = ledger::positions(connection, &generation, &CONTEXTS)?;
    Ok(RowsState {
        store: store(connection)?,
        generation: generation.number,
        row_version: row_version.unwrap_or(0) as u64,
        live,
        position,
    })
}

pub(super) fn store(connection: &Connection) -> rusqlite::Result<String> {
    connection.prepare_cached("SELECT id FROM store")?.query_row([], |row| row.get(0))
}

/// Applies a batch: checkpoint, dead letters and rows.
pub(super) fn apply(
    transaction: &Transaction<'_>,
    generation: &Generation,
    batch: &Batch<SearchKey, SearchRow>,
) -> Result<(), Abort> {
    let touched = parked::touched(transaction, generation, batch)?;
    ledger::advance(transaction, generation, batch)?;
    let marked = parked::changed(transaction, generation, &touched)?;
    write(transaction, generation.number, &batch.changes, marked)
}

/// Writes rows, gives the documents that they change and the `marked` ones a new row version, and seals the
/// transaction.
fn write<'a>(
    transaction: &Transaction<'_>,
    generation: u32,
    changes: &'a [(SearchKey, SearchRow)],
    marked: BTreeSet<&'a Sku>,
) -> Result<(), Abort> {
    let mut stocked = BTreeMap::new();
    for (key, _) in changes {
        if let SearchKey::Stock(sku, _) = key
            && !stocked.contains_key(sku)
        {
            stocked.insert(sku, in_stock(transaction, generation, sku)?);
        }
    }
    let mut changed = marked;
    let mut change = Sum::default();
    for (key, row) in changes {
        if let Some(before) = load(transaction, generation, key)? {
            change.take_row(key, &before)?;
        }
        write_row(transaction, generation, key, row)?;
        change.add_row(key, row)?;
        if !matches!(key, SearchKey::Stock(..)) {
            changed.insert(key.sku());
        }
    }
    for (sku, before) in stocked {
        if in_stock(transaction, generation, sku)? != before {
            changed.insert(sku);
        }
    }
    if changed.is_empty() {
        return sums::seal(transaction, generation, change);
    }
    let row_version: i64 = transaction
        .prepare_cached(
            "INSERT INTO row_versions (generation, row_version) VALUES (?1, 1)
             ON CONFLICT DO UPDATE SET row_version = row_version + 1 RETURNING row_version",
        )?
        .query_row([generation], |row| row.get(0))?;
    let mut select =
        transaction.prepare_cached("SELECT row_version FROM documents WHERE generation = ?1 AND sku = ?2")?;
    let mut upsert = transaction.prepare_cached(
        "INSERT INTO documents (generation, sku, row_version) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET row_version = excluded.row_version",
    )?;
    for sku in changed {
        let before = select.query_row(params![generation, sku.as_str()], |row| row.get(0)).optional()?;
        if let Some(before) = before {
            change.take_document(sku, before);
        }
        upsert.execute(params![generation, sku.as_str(), row_version])?;
        change.add_document(sku, row_version);
    }
    sums::seal(transaction, generation, change)
}

fn write_row(transaction: &Transaction<'_>, generation: u32, key: &SearchKey, row: &SearchRow) -> Result<(), Abort> {
    match (key, row) {
        (SearchKey::Product(sku), SearchRow::Product { product, version, revised_at }) => {
            let product = product.as_ref().map(serde_json::to_string).transpose().map_err(|error| {
                ReadModelError::Permanent { name: NAME.to_owned(), problem: format!("product {sku}: {error}") }
            })?;
            transaction
                .prepare_cached(
                    "INSERT INTO products (generation, sku, product, version, revised_at) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT DO UPDATE SET product = excluded.product, version = excluded.version,
                         revised_at = excluded.revised_at",
                )?
                .execute(params![generation, sku.as_str(), product, *version as i64, revised_at])?;
        }
        (SearchKey::Price(sku, region), SearchRow::Price { currency, amount_minor, version }) => {
            transaction
                .prepare_cached(
                    "INSERT INTO prices (generation, sku, region, currency, amount_minor, version)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                     ON CONFLICT DO UPDATE SET currency = excluded.currency, amount_minor = excluded.amount_minor,
                         version = excluded.version",
                )?
                .execute(params![generation, sku.as_str(), region.as_str(), currency, amount_minor, *version as i64])?;
        }
        (SearchKey::Stock(sku, warehouse), SearchRow::Stock { region, available, version }) => {
            transaction
                .prepare_cached(
                    "INSERT INTO stock (generation, sku, warehouse, region, available, version)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                     ON CONFLICT DO UPDATE SET region = excluded.region, available = excluded.available,
                         version = excluded.version",
                )?
                .execute(params![
                    generation,
                    sku.as_str(),
                    warehouse.as_str(),
                    region.as_str(),
                    available,
                    *version as i64
                ])?;
        }
        (key, row) => {
            let problem = format!("{key:?} names no row such as {row:?}");
            return Err(ReadModelError::Permanent { name: NAME.to_owned(), problem }.into());
        }
    }
    Ok(())
}

pub(super) fn load(connection: &Connection, generation: u32, key: &SearchKey) -> Result<Option<SearchRow>, Abort> {
    let row = match key {
        SearchKey::Product(sku) => connection
            .prepare_cached("SELECT product, version, revised_at FROM products WHERE generation = ?1 AND sku = ?2")?
            .query_row(params![generation, sku.as_str()], |row| product_row(row, 0)),
        SearchKey::Price(sku, region) => connection
            .prepare_cached(
                "SELECT currency, amount_minor, version FROM prices
                 WHERE generation = ?1 AND sku = ?2 AND region = ?3",
            )?
            .query_row(params![generation, sku.as_str(), region.as_str()], |row| {
                Ok(SearchRow::Price {
                    currency: row.get(0)?,
                    amount_minor: row.get(1)?,
                    version: row.get::<_, i64>(2)? as u64,
                })
            }),
        SearchKey::Stock(sku, warehouse) => connection
            .prepare_cached(
                "SELECT region, available, version FROM stock
                 WHERE generation = ?1 AND sku = ?2 AND warehouse = ?3",
            )?
            .query_row(params![generation, sku.as_str(), warehouse.as_str()], |row| {
                Ok(SearchRow::Stock {
                    region: region_of(row.get(0)?)?,
                    available: row.get(1)?,
                    version: row.get::<_, i64>(2)? as u64,
                })
            }),
    };
    Ok(row.optional()?)
}

/// Everything that the rows say of a SKU.
pub(super) fn parts(connection: &Connection, generation: &Generation, sku: &Sku) -> Result<Parts, Abort> {
    let number = generation.number;
    let (product, revised_at) = connection
        .prepare_cached("SELECT product, revised_at FROM products WHERE generation = ?1 AND sku = ?2")?
        .query_row(params![number, sku.as_str()], |row| Ok((product_of(row.get(0)?)?, row.get(1)?)))
        .optional()?
        .unwrap_or_default();
    let prices = connection
        .prepare_cached(
            "SELECT region, currency, amount_minor FROM prices WHERE generation = ?1 AND sku = ?2 ORDER BY region",
        )?
        .query_map(params![number, sku.as_str()], |row| {
            Ok(RegionPrice { region: region_of(row.get(0)?)?, currency: row.get(1)?, amount_minor: row.get(2)? })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let in_stock = in_stock(connection, number, sku)?;
    Ok(Parts { product, revised_at, prices, in_stock, parked: parked::is_parked(connection, generation, sku)? })
}

/// Hands each product that is shown to `each`, with the row version of its document's last change.
pub(super) fn for_each_shown(
    connection: &Connection,
    generation: u32,
    mut each: impl FnMut(&str, u64) -> Result<(), Abort>,
) -> Result<(), Abort> {
    let mut select = connection.prepare_cached(
        "SELECT products.sku, documents.row_version FROM products
         LEFT JOIN documents ON documents.generation = products.generation AND documents.sku = products.sku
         WHERE products.generation = ?1 AND products.product IS NOT NULL",
    )?;
    let mut found = select.query([generation])?;
    while let Some(row) = found.next()? {
        let version: Option<i64> = row.get(1)?;
        each(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?, version.unwrap_or(0) as u64)?;
    }
    Ok(())
}

/// The row version of a document's last change.
pub(super) fn document_version(connection: &Connection, generation: u32, sku: &str) -> rusqlite::Result<u64> {
    let found: Option<i64> = connection
        .prepare_cached("SELECT row_version FROM documents WHERE generation = ?1 AND sku = ?2")?
        .query_row(params![generation, sku], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(0) as u64)
}

/// How many documents there are to show.
pub(super) fn shown(connection: &Connection, generation: u32) -> Result<u64, Abort> {
    let shown: i64 = connection
        .prepare_cached("SELECT count(*) FROM products WHERE generation = ?1 AND product IS NOT NULL")?
        .query_row([generation], |row| row.get(0))?;
    Ok(shown as u64)
}

/// Hands the SKU of every document that changed after `row_version` to `each`.
pub(super) fn for_each_newer<E>(
    connection: &Connection,
    generation: u32,
    row_version: u64,
    mut each: impl FnMut(Sku) -> Result<Result<(), E>, Abort>,
) -> Result<Result<(), E>, Abort> {
    let mut select =
        connection.prepare_cached("SELECT sku FROM documents WHERE generation = ?1 AND row_version > ?2")?;
    let mut found = select.query(params![generation, row_version as i64])?;
    while let Some(row) = found.next()? {
        let sku = Sku::new(row.get::<_, String>(0)?).map_err(not_an_id)?;
        if let Err(error) = each(sku)? {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// Every row of a generation.
pub(super) fn for_each_row(
    connection: &Connection,
    generation: u32,
    mut each: impl FnMut(SearchKey, SearchRow) -> Result<(), Abort>,
) -> Result<(), Abort> {
    let sku_of = |row: &Row<'_>| Sku::new(row.get::<_, String>(0)?).map_err(not_an_id);
    let mut products =
        connection.prepare("SELECT sku, product, version, revised_at FROM products WHERE generation = ?1")?;
    let mut found = products.query([generation])?;
    while let Some(row) = found.next()? {
        each(SearchKey::Product(sku_of(row)?), product_row(row, 1)?)?;
    }
    let mut prices =
        connection.prepare("SELECT sku, region, currency, amount_minor, version FROM prices WHERE generation = ?1")?;
    let mut found = prices.query([generation])?;
    while let Some(row) = found.next()? {
        let key = SearchKey::Price(sku_of(row)?, region_of(row.get(1)?)?);
        let (currency, amount_minor) = (row.get(2)?, row.get(3)?);
        each(key, SearchRow::Price { currency, amount_minor, version: row.get::<_, i64>(4)? as u64 })?;
    }
    let mut stock =
        connection.prepare("SELECT sku, warehouse, region, available, version FROM stock WHERE generation = ?1")?;
    let mut found = stock.query([generation])?;
    while let Some(row) = found.next()? {
        let key = SearchKey::Stock(sku_of(row)?, WarehouseId::new(row.get::<_, String>(1)?).map_err(not_an_id)?);
        let (region, available) = (region_of(row.get(2)?)?, row.get(3)?);
        each(key, SearchRow::Stock { region, available, version: row.get::<_, i64>(4)? as u64 })?;
    }
    Ok(())
}

/// The row version of every document of a generation.
pub(super) fn for_each_document(
    connection: &Connection,
    generation: u32,
    mut each: impl FnMut(Sku, i64) -> Result<(), Abort>,
) -> Result<(), Abort> {
    let mut select = connection.prepare("SELECT sku, row_version FROM documents WHERE generation = ?1")?;
    let mut found = select.query([generation])?;
    while let Some(row) = found.next()? {
        each(Sku::new(row.get::<_, String>(0)?).map_err(not_an_id)?, row.get(1)?)?;
    }
    Ok(())
}

/// Position of a SKU's part of one context; `Rebuilding` while its partition is not live.
pub(super) fn live_position(
    connection: &Connection,
    generation: &Generation,
    context: Context,
    sku: &Sku,
) -> Result<PositionToken, Abort> {
    let number = schemas::partition_of(sku.as_str().as_bytes(), generation.partitions);
    let partition = PartitionRef { context, partition: number };
    Ok(partition.token(ledger::live_position(connection, generation, partition)?))
}

fn in_stock(connection: &Connection, generation: u32, sku: &Sku) -> rusqlite::Result<Vec<RegionId>> {
    connection
        .prepare_cached(
            "SELECT DISTINCT region FROM stock
             WHERE generation = ?1 AND sku = ?2 AND available > 0 ORDER BY region",
        )?
        .query_map(params![generation, sku.as_str()], |row| region_of(row.get(0)?))?
        .collect()
}

/// From the columns `product, version, revised_at`, of which the first is number `first`.
pub(super) fn product_row(row: &Row<'_>, first: usize) -> rusqlite::Result<SearchRow> {
    Ok(SearchRow::Product {
        product: product_of(row.get(first)?)?,
        version: row.get::<_, i64>(first + 1)? as u64,
        revised_at: row.get(first + 2)?,
    })
}

fn product_of(text: Option<String>) -> rusqlite::Result<Option<Product>> {
    let Some(text) = text else { return Ok(None) };
    let product = serde_json::from_str(&text);
    product
        .map(Some)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error)))
}

pub(super) fn region_of(text: String) -> rusqlite::Result<RegionId> {
    RegionId::new(text).map_err(not_an_id)
}

fn not_an_id(error: IdError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
}

#[cfg(test)]
mod tests;
