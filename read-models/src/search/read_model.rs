//! The writer's side of a search directory: rows, checkpoints and parked events in one SQLite file, held by one
//! process.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use resilience::{Guard, guard};
use schemas::Context;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::metrics;
use crate::read_model::{Batch, Claimed, Generation, Head, ReadModel, RowPage};
use crate::row_scan;
use crate::search::indexer::{self, IndexerHome};
use crate::search::{NAME, SearchKey, SearchRow, rows, scan};
use crate::sqlite::dead_letters::InSqlite;
use crate::sqlite::{Abort, SqliteFile, ledger};
use crate::status::ReadModelStatus;

pub(super) const ROWS_FILE: &str = "rows.db";
pub(super) const INDEX_DIR: &str = "index";
const LOCK_FILE: &str = "LOCK";

/// A search directory that this process holds and writes.
pub struct SearchReadModel {
    home: IndexerHome,
    /// What this process writes.
    prepared: ArcSwapOption<Generation>,
}

// === impl SearchReadModel ===

impl SearchReadModel {
    /// Takes the directory, and makes it when it is missing. [`ReadModelError::Locked`] while another one holds it.
    pub async fn open(dir: impl AsRef<Path>) -> Result<Self, ReadModelError> {
        let dir = dir.as_ref().to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let lock = Arc::new(hold(&dir)?);
            let file = SqliteFile::open(NAME, &dir.join(ROWS_FILE), &rows::LAYOUT, rows::REMEDY)?;
            let home = IndexerHome { index_dir: dir.join(INDEX_DIR), file, _lock: lock };
            indexer::remove_foreign(&home)?;
            Ok(Self { home, prepared: ArcSwapOption::empty() })
        });
        opened.await.unwrap_or_else(|error| {
            Err(ReadModelError::Permanent { name: NAME.to_owned(), problem: error.to_string() })
        })
    }

    /// Keeps the index up to date with the rows until `shutdown`. What is wrong with the index is mended from the
    /// rows; only rows that cannot be read end it.
    pub async fn run_indexer(&self, shutdown: CancellationToken) -> Result<(), ReadModelError> {
        indexer::run(self.home.clone(), shutdown).await
    }

    fn prepared(&self) -> Result<Arc<Generation>, ReadModelError> {
        self.prepared.load_full().ok_or_else(|| ReadModelError::Permanent {
            name: NAME.to_owned(),
            problem: "no generation was prepared in this process".to_owned(),
        })
    }

    async fn read_generation<T: Send + 'static>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>, &Generation) -> Result<T, Abort> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        let prepared = self.prepared.load_full();
        self.home
            .file
            .blocking(move |file| {
                file.read(|transaction| match prepared {
                    Some(prepared) => work(transaction, &prepared),
                    None => work(transaction, &ledger::serving(transaction, NAME)?),
                })
            })
            .await
    }
}

#[async_trait]
impl ReadModel for SearchReadModel {
    type Key = SearchKey;
    type Row = SearchRow;

    async fn prepare(&self, generation: &Generation) -> Result<(), ReadModelError> {
        let wanted = Arc::new(generation.clone());
        let stored = Arc::clone(&wanted);
        self.home.file.blocking(move |file| file.write(|transaction| ledger::prepare(transaction, &stored))).await?;
        self.prepared.store(Some(wanted));
        Ok(())
    }

    async fn claim(&self, partition: PartitionRef) -> Result<Claimed, ReadModelError> {
        let generation = self.prepared()?;
        generation.check_partition(partition, &Context::ALL)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        self.home
            .file
            .blocking(move |file| file.write(|transaction| ledger::claim(transaction, &generation, partition, now)))
            .await
    }

    async fn load(
        &self,
        _partition: PartitionRef,
        keys: &[SearchKey],
    ) -> Result<Vec<Option<SearchRow>>, ReadModelError> {
        let generation = self.prepared()?;
        let keys = keys.to_vec();
        self.home
            .file
            .blocking(move |file| {
                file.read(|transaction| {
                    keys.iter().map(|key| rows::load(transaction, generation.number, key)).collect()
                })
            })
            .await
    }

    async fn apply(&self, batch: &Batch<SearchKey, SearchRow>) -> Result<(), ReadModelError> {
        let generation = self.prepared()?;
        generation.check_partition(batch.partition, &Context::ALL)?;
        let batch = batch.clone();
        metrics::timed_apply(NAME, async {
            self.home
                .file
                .blocking(move |file| {
                    file.write(|transaction| {
                        ledger::advance(transaction, &generation, &batch)?;
                        rows::write(transaction, generation.number, &batch.changes)
                    })
                })
                .await
        })
        .await
    }

    async fn observe(&self, heads: &[(PartitionRef, Head)]) -> Result<(), ReadModelError> {
        let generation = self.prepared()?;
        let heads = heads.to_vec();
        self.home
            .file
            .blocking(move |file| file.write(|transaction| ledger::observe(transaction, &generation, &heads)))
            .await
    }

    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        self.read_generation(|transaction, generation| ledger::status(transaction, generation, &Context::ALL)).await
    }

    async fn rows(
        &self,
        partition: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<SearchKey, SearchRow>, ReadModelError> {
        let from = row_scan::place(NAME, from)?.unwrap_or_default();
        self.read_generation(move |transaction, generation| scan::page(transaction, generation, partition, from, limit))
            .await
    }

    async fn ping(&self) -> Result<(), ReadModelError> {
        self.home.file.blocking(|file| file.read(|transaction| Ok(rows::store(transaction).map(|_| ())?))).await
    }
}

#[async_trait]
impl InSqlite for SearchReadModel {
    const NAME: &'static str = NAME;
    const CONTEXTS: &'static [Context] = &Context::ALL;

    async fn file(&self) -> Result<SqliteFile, ReadModelError> {
        Ok(self.home.file.clone())
    }

    async fn file_to_write(&self) -> Result<SqliteFile, ReadModelError> {
        Ok(self.home.file.clone())
    }

    fn written_generation(&self) -> Option<Arc<Generation>> {
        self.prepared.load_full()
    }
}

fn hold(dir: &Path) -> Result<File, ReadModelError> {
    let path = dir.join(LOCK_FILE);
    let fails = |error: std::io::Error| ReadModelError::Permanent {
        name: NAME.to_owned(),
        problem: format!("{}: {error}", path.display()),
    };
    std::fs::create_dir_all(dir).map_err(fails)?;
    let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(fails)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) if !guard::holds(Guard::SearchLock) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(ReadModelError::Locked { path: dir.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(fails(error)),
    }
}
