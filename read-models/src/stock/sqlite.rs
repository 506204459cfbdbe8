//! The stock read model in one SQLite file: the embedded default, nothing to install.
//!
//! One process writes; its own readers are woken by the write. A poll finds what another process wrote, so that
//! `serve` can read beside `project stock`.

mod generations;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use rusqlite::{OptionalExtension, Row, Transaction, params};
use schemas::{Context, PositionToken, RegionId, Sku, WarehouseId, partition_of};

use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::generations::ReadChoice;
use crate::metrics;
use crate::read_model::{Batch, Claimed, Generation, Head, Loaded, ReadModel, RowPage};
use crate::row_scan;
use crate::sqlite::dead_letters::{self, InSqlite};
use crate::sqlite::{Abort, Layout, SqliteFile, catalogue, ledger};
use crate::status::ReadModelStatus;
use crate::stock::{CONTEXTS, NAME, StockAnswer, StockKey, StockRead, StockReader, StockRow};
use generations::{Seen, check_fed};

const LAYOUT: Layout = Layout {
    tables: &[ledger::TABLES, include_str!("sqlite.sql")],
    additions: &[dead_letters::TABLES, FOLD_2, catalogue::TABLES, generations::TABLES],
};
/// What rows of fold 2 say beside those of fold 1.
const FOLD_2: &str = "ALTER TABLE stock ADD COLUMN updated_at INTEGER";
const REMEDY: &str = "stop Millrace and delete the file: it is rebuilt from the event log";
/// How often a waiting read looks for what another process wrote.
const POLL: Duration = Duration::from_millis(20);

/// A stock store in a SQLite file.
#[derive(Clone)]
pub struct SqliteStock {
    file: SqliteFile,
    /// What this handle writes; `None` in one that only reads.
    prepared: Arc<ArcSwapOption<Generation>>,
    /// The only generation that this handle writes or tells of.
    bound: Option<u32>,
    /// The catalogue as last read.
    seen: Arc<ArcSwapOption<Seen>>,
}

// === impl SqliteStock ===

impl SqliteStock {
    /// Opens the file, and makes it when it is missing. Blocks for as long as that takes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ReadModelError> {
        let file = SqliteFile::open(NAME, path.as_ref(), &LAYOUT, REMEDY)?;
        Ok(Self::of_file(file))
    }

    /// Opens a file that another process writes. [`ReadModelError::Rebuilding`] while there is none.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, ReadModelError> {
        let file = SqliteFile::open_read_only(NAME, path.as_ref(), &LAYOUT, REMEDY)?
            .ok_or_else(|| ReadModelError::Rebuilding { name: NAME.to_owned() })?;
        Ok(Self::of_file(file))
    }

    fn of_file(file: SqliteFile) -> Self {
        Self { file, prepared: Arc::default(), bound: None, seen: Arc::default() }
    }

    fn prepared(&self) -> Result<Arc<Generation>, ReadModelError> {
        self.prepared.load_full().ok_or_else(|| ReadModelError::Permanent {
            name: NAME.to_owned(),
            problem: "no generation was prepared in this process".to_owned(),
        })
    }

    /// Reads of what this handle writes or is bound to, or else of what serves.
    async fn read_generation<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>, &Generation) -> Result<T, Abort> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        let (prepared, bound) = (self.prepared.load_full(), self.bound);
        let read = move |file: &SqliteFile| {
            file.read(|transaction| {
                let generation = ledger::own_or_serving(transaction, NAME, prepared.as_deref(), bound)?;
                work(transaction, &generation)
            })
        };
        self.file.blocking(read).await
    }
}

#[async_trait]
impl ReadModel for SqliteStock {
    type Key = StockKey;
    type Row = StockRow;

    async fn prepare(&self, generation: &Generation) -> Result<(), ReadModelError> {
        generation.check_bound(self.bound)?;
        let wanted = Arc::new(generation.clone());
        let stored = Arc::clone(&wanted);
        let prepare = move |file: &SqliteFile| {
            file.write(|transaction| {
                check_fed(transaction, &stored)?;
                ledger::prepare(transaction, &stored)
            })
        };
        self.file.blocking(prepare).await?;
        self.prepared.store(Some(wanted));
        Ok(())
    }

    async fn claim(&self, partition: PartitionRef) -> Result<Claimed, ReadModelError> {
        let generation = self.prepared()?;
        generation.check_partition(partition, &CONTEXTS)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        self.file
            .blocking(move |file| {
                file.write(|transaction| {
                    check_fed(transaction, &generation)?;
                    ledger::claim(transaction, &generation, partition, now)
                })
            })
            .await
    }

    async fn load(&self, partition: PartitionRef, keys: &[StockKey]) -> Result<Loaded<StockRow>, ReadModelError> {
        let keys = keys.to_vec();
        self.read_generation(move |transaction, generation| {
            let mut select = transaction.prepare_cached(
                "SELECT region, on_hand, reserved, version, updated_at FROM stock
                 WHERE generation = ?1 AND sku = ?2 AND warehouse = ?3",
            )?;
            let mut row = |key: &StockKey| {
                let place = params![generation.number, key.sku.as_str(), key.warehouse.as_str()];
                select.query_row(place, |row| row_of(row, 0)).optional()
            };
            let rows = keys.iter().map(&mut row).collect::<rusqlite::Result<_>>()?;
            Ok(Loaded { checkpoint: ledger::checkpoint(transaction, generation.number, partition)?, rows })
        })
        .await
    }

    async fn apply(&self, batch: &Batch<StockKey, StockRow>) -> Result<(), ReadModelError> {
        let generation = self.prepared()?;
        generation.check_partition(batch.partition, &CONTEXTS)?;
        let batch = batch.clone();
        metrics::timed_apply(NAME, async {
            self.file
                .blocking(move |file| {
                    file.write(|transaction| {
                        check_fed(transaction, &generation)?;
                        ledger::advance(transaction, &generation, &batch)?;
                        write_rows(transaction, generation.number, &batch.changes)
                    })
                })
                .await
        })
        .await
    }

    async fn observe(&self, heads: &[(PartitionRef, Head)]) -> Result<(), ReadModelError> {
        let generation = self.prepared()?;
        let heads = heads.to_vec();
        self.file
            .blocking(move |file| {
                file.write(|transaction| {
                    check_fed(transaction, &generation)?;
                    ledger::observe(transaction, &generation, &heads)
                })
            })
            .await
    }

    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        self.read_generation(|transaction, generation| ledger::status(transaction, generation, &CONTEXTS)).await
    }

    async fn rows(
        &self,
        partition: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<StockKey, StockRow>, ReadModelError> {
        let from = row_scan::place(NAME, from)?.unwrap_or_default();
        self.read_generation(move |transaction, generation| {
            generation.check_partition(partition, &CONTEXTS)?;
            scan(transaction, generation, partition, from, limit)
        })
        .await
    }

    async fn ping(&self) -> Result<(), ReadModelError> {
        self.file
            .blocking(|file| {
                file.read(|transaction| {
                    Ok(transaction.query_row("SELECT count(*) FROM generations", [], |_| Ok(()))?)
                })
            })
            .await
    }
}

#[async_trait]
impl InSqlite for SqliteStock {
    const NAME: &'static str = NAME;
    const CONTEXTS: &'static [Context] = &CONTEXTS;

    async fn file(&self) -> Result<SqliteFile, ReadModelError> {
        Ok(self.file.clone())
    }

    async fn file_to_write(&self) -> Result<SqliteFile, ReadModelError> {
        Ok(self.file.clone())
    }

    fn written_generation(&self) -> Option<Arc<Generation>> {
        self.prepared.load_full()
    }

    fn bound_generation(&self) -> Option<u32> {
        self.bound
    }
}

#[async_trait]
impl StockReader for SqliteStock {
    async fn stock(&self, skus: &[Sku], choice: &ReadChoice) -> Result<StockRead, ReadModelError> {
        let (skus, choice, stock) = (skus.to_vec(), choice.clone(), self.clone());
        self.file
            .blocking(move |file| {
                file.read(|transaction| {
                    let generation = stock.chosen(transaction, &choice)?;
                    let answers = skus.into_iter().map(|sku| answer(transaction, &generation, sku));
                    Ok(StockRead { generation: generation.number, answers: answers.collect::<Result<_, _>>()? })
                })
            })
            .await
    }

    async fn wait_for(
        &self,
        min: &PositionToken,
        choice: &ReadChoice,
        timeout: Duration,
    ) -> Result<bool, ReadModelError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut written = self.file.written();
        loop {
            written.mark_unchanged();
            let (min, choice, stock) = (min.clone(), choice.clone(), self.clone());
            let is_reached = self
                .file
                .blocking(move |file| {
                    file.read(|transaction| {
                        let generation = stock.chosen(transaction, &choice)?;
                        ledger::is_reached(transaction, &generation, &CONTEXTS, &min)
                    })
                })
                .await;
            match is_reached {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error),
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(false);
            }
            // A write, a poll or the deadline: each is a reason to look again.
            let poll = deadline.min(tokio::time::Instant::now() + POLL);
            let _ = tokio::time::timeout_at(poll, written.changed()).await;
        }
    }
}

fn answer(transaction: &Transaction<'_>, generation: &Generation, sku: Sku) -> Result<StockAnswer, Abort> {
    let number = partition_of(sku.as_str().as_bytes(), generation.partitions);
    let partition = PartitionRef { context: Context::Inventory, partition: number };
    let position = ledger::live_position(transaction, generation, partition)?;
    let warehouses = transaction
        .prepare_cached(
            "SELECT warehouse, region, on_hand, reserved, version, updated_at FROM stock
             WHERE generation = ?1 AND sku = ?2 ORDER BY warehouse",
        )?
        .query_map(params![generation.number, sku.as_str()], |row| {
            Ok((WarehouseId::new(row.get::<_, String>(0)?).map_err(|error| not_an_id(0, error))?, row_of(row, 1)?))
        })?
        .collect::<rusqlite::Result<_>>()?;
    let parked = dead_letters::is_parked(transaction, generation, partition, sku.as_str())?;
    Ok(StockAnswer { sku, warehouses, position: partition.token(position), parked })
}

/// The rows of all partitions lie in one order of keys: those of others are passed over.
fn scan(
    transaction: &Transaction<'_>,
    generation: &Generation,
    partition: PartitionRef,
    from: row_scan::Place,
    limit: usize,
) -> Result<RowPage<StockKey, StockRow>, Abort> {
    let text = |index: usize| from.get(index).map_or("", String::as_str);
    let mut page = RowPage { rows: Vec::new(), foreign: Vec::new(), next: None };
    let mut select = transaction.prepare_cached(
        "SELECT sku, warehouse, region, on_hand, reserved, version, updated_at FROM stock
         WHERE generation = ?1 AND (sku, warehouse) > (?2, ?3) ORDER BY sku, warehouse LIMIT ?4",
    )?;
    let mut found = select.query(params![generation.number, text(0), text(1), limit.max(1) as i64])?;
    let (mut looked_at, mut last) = (0, None);
    while let Some(row) = found.next()? {
        looked_at += 1;
        let (sku, warehouse): (String, String) = (row.get(0)?, row.get(1)?);
        if partition_of(sku.as_bytes(), generation.partitions) == partition.partition {
            match (Sku::new(sku.as_str()), WarehouseId::new(warehouse.as_str())) {
                (Ok(sku), Ok(warehouse)) => {
                    page.rows.push((StockKey { sku, warehouse }, row_of(row, 2).map_err(|error| error.to_string())));
                }
                _ => page.foreign.push(format!("{sku}/{warehouse}")),
            }
        }
        last = Some((sku, warehouse));
    }
    if looked_at == limit.max(1) {
        page.next = last.and_then(|(sku, warehouse)| row_scan::next(&[&sku, &warehouse]));
    }
    Ok(page)
}

fn write_rows(transaction: &Transaction<'_>, generation: u32, changes: &[(StockKey, StockRow)]) -> Result<(), Abort> {
    let mut upsert = transaction.prepare_cached(
        "INSERT INTO stock (generation, sku, warehouse, region, on_hand, reserved, version, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT DO UPDATE SET region = excluded.region, on_hand = excluded.on_hand,
             reserved = excluded.reserved, version = excluded.version, updated_at = excluded.updated_at",
    )?;
    for (key, row) in changes {
        upsert.execute(params![
            generation,
            key.sku.as_str(),
            key.warehouse.as_str(),
            row.region.as_str(),
            row.on_hand,
            row.reserved,
            row.version as i64,
            row.updated_at,
        ])?;
    }
    Ok(())
}

fn row_of(row: &Row<'_>, first: usize) -> rusqlite::Result<StockRow> {
    Ok(StockRow {
        region: RegionId::new(row.get::<_, String>(first)?).map_err(|error| not_an_id(first, error))?,
        on_hand: row.get(first + 1)?,
        reserved: row.get(first + 2)?,
        version: row.get::<_, i64>(first + 3)? as u64,
        updated_at: row.get(first + 4)?,
    })
}

fn not_an_id(column: usize, error: schemas::IdError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

#[cfg(test)]
mod tests;
