//! The writer's side of a search directory: rows, checkpoints and parked events in one SQLite file, held by one
//! process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use schemas::Context;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::metrics;
use crate::read_model::{Batch, Claimed, Generation, Head, Loaded, ReadModel, RowPage};
use crate::row_scan;
use crate::search::builds::{Builds, HeldBuild, Watch};
use crate::search::catalogue::SearchCatalogue;
use crate::search::indexer::{self, IndexerHome};
use crate::search::sums::{self, Sum};
use crate::search::{CONTEXTS, NAME, SearchKey, SearchRow, rows, scan};
use crate::sqlite::dead_letters::InSqlite;
use crate::sqlite::{Abort, SqliteFile, ledger};
use crate::status::ReadModelStatus;

pub(super) const ROWS_FILE: &str = "rows.db";
pub(super) const INDEX_DIR: &str = "index";
/// A check reads everything: about a second for each million products and as much for the index.
const CHECK_EVERY: Duration = Duration::from_secs(300);
/// How long the indexer of a build that was deleted waits before it ends, and its process with it. Whoever removes a
/// directory removes the catalogue too, sooner or later than the build: those who feed bring it back, and look four
/// times a second. Without them the lowest generation would serve, of whatever fold.
const CATALOGUE_COMES_BACK: Duration = Duration::from_secs(2);
/// How often a process that waits for a directory looks whether it is free.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// One generation in a search directory, which this process holds and writes.
pub struct SearchReadModel {
    id: String,
    home: IndexerHome,
    catalogue: SearchCatalogue,
    check_every: Duration,
    /// Why the index is not brought up to date.
    index_problem: watch::Sender<Option<String>>,
    /// What this process writes.
    prepared: ArcSwapOption<Generation>,
}

// === impl SearchReadModel ===

impl SearchReadModel {
    /// Takes generation 1 of a search directory, as [`open_generation`](Self::open_generation) does.
    pub async fn open(dir: impl AsRef<Path>) -> Result<Self, ReadModelError> {
        Self::open_generation(dir, 1).await
    }

    /// Takes a generation of a search directory, and makes it when it is missing. [`ReadModelError::Locked`] while
    /// another process holds it, [`ReadModelError::Retired`] once nobody is to write it any more.
    pub async fn open_generation(dir: impl AsRef<Path>, number: u32) -> Result<Self, ReadModelError> {
        let (builds, catalogue) = home(dir.as_ref(), number)?;
        blocking(move || {
            catalogue.check_not_retired(number)?;
            Self::of_build(builds.hold()?, catalogue)
        })
        .await
    }

    /// Takes generation 1 as [`open_generation_when_free`](Self::open_generation_when_free) does.
    pub async fn open_when_free(
        dir: impl AsRef<Path>,
        frozen_after: Duration,
        shutdown: CancellationToken,
    ) -> Result<Option<Self>, ReadModelError> {
        Self::open_generation_when_free(dir, 1, frozen_after, shutdown).await
    }

    /// Takes a generation as soon as nobody else holds it. A holder that gave no sign of life through `frozen_after`,
    /// whole seconds, is left behind: a new build is begun beside its own. `None` when `shutdown` came first.
    pub async fn open_generation_when_free(
        dir: impl AsRef<Path>,
        number: u32,
        frozen_after: Duration,
        shutdown: CancellationToken,
    ) -> Result<Option<Self>, ReadModelError> {
        let (builds, catalogue) = home(dir.as_ref(), number)?;
        let frozen_looks = u32::try_from(frozen_after.as_secs()).unwrap_or(u32::MAX).max(2);
        let mut watch = Watch::default();
        loop {
            let held = blocking({
                let (builds, catalogue) = (builds.clone(), catalogue.clone());
                move || {
                    catalogue.check_not_retired(number)?;
                    builds.hold()
                }
            });
            match held.await {
                Err(ReadModelError::Locked { .. }) => {}
                held => {
                    let held = held?;
                    return blocking(move || Self::of_build(held, catalogue)).await.map(Some);
                }
            }
            let (newest, still) = watch.look(&builds)?;
            if watch.is_new() {
                tracing::warn!(build = newest, "the search directory is in use by another process: waiting for it");
            }
            if still >= frozen_looks {
                tracing::warn!(build = newest, "its holder gives no sign of life: a new build is begun beside it");
                let builds = builds.clone();
                match blocking(move || builds.begin_after(newest)).await {
                    // Another one that waited was faster.
                    Err(ReadModelError::Locked { .. }) => {}
                    held => {
                        let held = held?;
                        return blocking(move || Self::of_build(held, catalogue)).await.map(Some);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(WATCH_EVERY) => {}
                () = shutdown.cancelled() => return Ok(None),
            }
        }
    }

    /// Names this build's rows. Each full copy of the read model, and each generation of it, reads the whole log, so
    /// each needs a consumer group of its own.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Opens a build that is whole. What is wrong with one is not mended: a new one is begun, and folded from the log.
    fn of_build(build: Arc<HeldBuild>, catalogue: SearchCatalogue) -> Result<Self, ReadModelError> {
        match Self::of_whole_build(Arc::clone(&build), catalogue.clone()) {
            Err(error) if !error.is_transient() => {
                tracing::error!(%error, build = build.number, "search rows are built anew from the log");
                Self::of_whole_build(build.begin_anew()?, catalogue)
            }
            opened => opened,
        }
    }

    fn of_whole_build(build: Arc<HeldBuild>, catalogue: SearchCatalogue) -> Result<Self, ReadModelError> {
        let file = SqliteFile::open(NAME, &build.path().join(ROWS_FILE), &rows::LAYOUT, rows::REMEDY)?;
        build.hold_rows()?;
        let id = file.read(|transaction| {
            sums::check(transaction)?;
            Ok(rows::store(transaction)?)
        })?;
        let home = IndexerHome { index_dir: build.path().join(INDEX_DIR), file, build };
        indexer::remove_foreign(&home)?;
        home.build.read_if_none_is()?;
        let (index_problem, _) = watch::channel(None);
        Ok(Self { id, home, catalogue, check_every: CHECK_EVERY, index_problem, prepared: ArcSwapOption::empty() })
    }

    /// How often a running indexer looks for bytes that went bad.
    pub fn with_check_every(mut self, check_every: Duration) -> Self {
        self.check_every = check_every;
        self
    }

    /// Keeps the index up to date with the rows until `shutdown`. What is wrong with the index is mended from the
    /// rows; rows that are damaged or deleted end it, and nobody is answered from them any more.
    pub async fn run_indexer(&self, shutdown: CancellationToken) -> Result<(), ReadModelError> {
        let ended = indexer::run(self.home.clone(), self.check_every, &self.index_problem, shutdown.clone()).await;
        metrics::index_age(self.home.build.generation(), Duration::ZERO);
        if ended.is_err() && self.home.build.is_deleted() {
            let _ = tokio::time::timeout(CATALOGUE_COMES_BACK, shutdown.cancelled()).await;
        }
        ended
    }

    /// Why hits have been growing older for some seconds; `None` while they do not. Rows and positions are right all
    /// the same.
    pub fn index_problem(&self) -> watch::Receiver<Option<String>> {
        self.index_problem.subscribe()
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
        self.home.build.check()?;
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
        let number = self.home.build.builds().generation;
        if generation.number != number {
            let problem = format!("{generation} is prepared in the directory of {NAME}@{number}");
            return Err(ReadModelError::Permanent { name: NAME.to_owned(), problem });
        }
        let catalogue = self.catalogue.clone();
        blocking(move || catalogue.check_not_retired(number)).await?;
        self.home.build.check()?;
        let wanted = Arc::new(generation.clone());
        let stored = Arc::clone(&wanted);
        self.home
            .file
            .blocking(move |file| {
                file.write(|transaction| {
                    ledger::prepare(transaction, &stored)?;
                    sums::seal(transaction, stored.number, Sum::default())
                })
            })
            .await?;
        self.prepared.store(Some(wanted));
        Ok(())
    }

    async fn claim(&self, partition: PartitionRef) -> Result<Claimed, ReadModelError> {
        self.home.build.check()?;
        let generation = self.prepared()?;
        generation.check_partition(partition, &CONTEXTS)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        self.home
            .file
            .blocking(move |file| {
                file.write(|transaction| {
                    let claimed = ledger::claim(transaction, &generation, partition, now)?;
                    sums::seal(transaction, generation.number, Sum::default())?;
                    Ok(claimed)
                })
            })
            .await
    }

    async fn load(&self, partition: PartitionRef, keys: &[SearchKey]) -> Result<Loaded<SearchRow>, ReadModelError> {
        let generation = self.prepared()?;
        let keys = keys.to_vec();
        self.home
            .file
            .blocking(move |file| {
                file.read(|transaction| {
                    let rows = keys.iter().map(|key| rows::load(transaction, generation.number, key));
                    let rows = rows.collect::<Result<_, _>>()?;
                    Ok(Loaded { checkpoint: ledger::checkpoint(transaction, generation.number, partition)?, rows })
                })
            })
            .await
    }

    async fn apply(&self, batch: &Batch<SearchKey, SearchRow>) -> Result<(), ReadModelError> {
        self.home.build.check()?;
        let generation = self.prepared()?;
        generation.check_partition(batch.partition, &CONTEXTS)?;
        let batch = batch.clone();
        metrics::timed_apply(NAME, async {
            self.home
                .file
                .blocking(move |file| file.write(|transaction| rows::apply(transaction, &generation, &batch)))
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
        self.read_generation(|transaction, generation| ledger::status(transaction, generation, &CONTEXTS)).await
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
    const CONTEXTS: &'static [Context] = &CONTEXTS;

    async fn file(&self) -> Result<SqliteFile, ReadModelError> {
        self.home.build.check()?;
        Ok(self.home.file.clone())
    }

    async fn file_to_write(&self) -> Result<SqliteFile, ReadModelError> {
        self.home.build.check()?;
        Ok(self.home.file.clone())
    }

    fn written_generation(&self) -> Option<Arc<Generation>> {
        self.prepared.load_full()
    }
}

fn home(dir: &Path, number: u32) -> Result<(Builds, SearchCatalogue), ReadModelError> {
    if number == 0 {
        let problem = format!("there is no {NAME}@0: generations are counted from 1");
        return Err(ReadModelError::Permanent { name: NAME.to_owned(), problem });
    }
    Ok((Builds::of_generation(dir, number), SearchCatalogue::in_dir(dir)))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReadModelError> + Send + 'static,
) -> Result<T, ReadModelError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(ReadModelError::Permanent { name: NAME.to_owned(), problem: error.to_string() }))
}
