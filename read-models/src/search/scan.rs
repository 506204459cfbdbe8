//! Pages of the rows of one partition, for checks. A context has one table.

use rusqlite::{Row, Transaction, params};
use schemas::{Context, RegionId, Sku, WarehouseId, partition_of};

use crate::checkpoint::PartitionRef;
use crate::read_model::{Generation, RowPage};
use crate::row_scan;
use crate::search::rows::{product_row, region_of};
use crate::search::{CONTEXTS, SearchKey, SearchRow};
use crate::sqlite::Abort;

/// The rows of all partitions lie in one order of keys: those of others are passed over.
pub(super) fn page(
    transaction: &Transaction<'_>,
    generation: &Generation,
    partition: PartitionRef,
    from: row_scan::Place,
    limit: usize,
) -> Result<RowPage<SearchKey, SearchRow>, Abort> {
    generation.check_partition(partition, &CONTEXTS)?;
    let mut page = RowPage { rows: Vec::new(), foreign: Vec::new(), next: None };
    let select = match partition.context {
        Context::Catalogue => {
            "SELECT sku, '', product, version, revised_at FROM products
             WHERE generation = ?1 AND (sku, '') > (?2, ?3) ORDER BY sku LIMIT ?4"
        }
        Context::Pricing => {
            "SELECT sku, region, currency, amount_minor, version FROM prices
             WHERE generation = ?1 AND (sku, region) > (?2, ?3) ORDER BY sku, region LIMIT ?4"
        }
        Context::Inventory => {
            "SELECT sku, warehouse, region, available, version FROM stock
             WHERE generation = ?1 AND (sku, warehouse) > (?2, ?3) ORDER BY sku, warehouse LIMIT ?4"
        }
        // Refused above: no row is of it.
        Context::Platform => return Ok(page),
    };
    let text = |index: usize| from.get(index).map_or("", String::as_str);
    let mut select = transaction.prepare_cached(select)?;
    let mut found = select.query(params![generation.number, text(0), text(1), limit.max(1) as i64])?;
    let (mut looked_at, mut last) = (0, None);
    while let Some(row) = found.next()? {
        looked_at += 1;
        let (sku, part): (String, String) = (row.get(0)?, row.get(1)?);
        if partition_of(sku.as_bytes(), generation.partitions) == partition.partition {
            match key(partition.context, &sku, &part) {
                Some(key) => {
                    let read = row_of(&key, row).map_err(|error| error.to_string());
                    page.rows.push((key, read));
                }
                None => page.foreign.push(format!("{sku}/{part}")),
            }
        }
        last = Some((sku, part));
    }
    if looked_at == limit.max(1) {
        page.next = last.and_then(|(sku, part)| row_scan::next(&[&sku, &part]));
    }
    Ok(page)
}

fn key(context: Context, sku: &str, part: &str) -> Option<SearchKey> {
    let sku = Sku::new(sku).ok()?;
    Some(match context {
        Context::Catalogue => SearchKey::Product(sku),
        Context::Pricing => SearchKey::Price(sku, RegionId::new(part).ok()?),
        Context::Inventory => SearchKey::Stock(sku, WarehouseId::new(part).ok()?),
        Context::Platform => return None,
    })
}

fn row_of(key: &SearchKey, row: &Row<'_>) -> rusqlite::Result<SearchRow> {
    let version = |column: usize| row.get::<_, i64>(column).map(|version| version as u64);
    Ok(match key {
        SearchKey::Product(_) => product_row(row, 2)?,
        SearchKey::Price(..) => {
            SearchRow::Price { currency: row.get(2)?, amount_minor: row.get(3)?, version: version(4)? }
        }
        SearchKey::Stock(..) => {
            SearchRow::Stock { region: region_of(row.get(2)?)?, available: row.get(3)?, version: version(4)? }
        }
    })
}
