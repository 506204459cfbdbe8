//! The reader's side of a search directory, in the writer's process or beside it.
//!
//! Whoever asks first after a commit loads it, at most every few milliseconds; everyone is answered from one loaded
//! state, the searcher and the position that it is true at. A reader may be there before the directory is.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use rusqlite::Transaction;
use schemas::{Context, PositionToken, Sku};
use tantivy::{IndexReader, ReloadPolicy};

use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::read_model::{Generation, RowPage};
use crate::row_scan;
use crate::search::builds::Builds;
use crate::search::documents::{self, DocumentCheck};
use crate::search::index::{self, Commit, Fields, META_FILE};
use crate::search::query::Plan;
use crate::search::read_model::{INDEX_DIR, ROWS_FILE};
use crate::search::rows::{self, RowsState};
use crate::search::scan;
use crate::search::view::View;
use crate::search::{CONTEXTS, NAME, ProductAnswer, SearchAnswer, SearchKey, SearchRequest, SearchRow};
use crate::sqlite::dead_letters::InSqlite;
use crate::sqlite::{Abort, SqliteFile, ledger};
use crate::status::ReadModelStatus;

/// How long a loaded state is answered from before the directory is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How often a waiting read looks.
const POLL: Duration = Duration::from_millis(10);
/// A commit that comes while one is being loaded is loaded, too; so often in a row at most.
const LOADS: usize = 3;

/// Answers searches from a directory that a [`SearchReadModel`](crate::search::SearchReadModel) writes.
pub struct SearchReader {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    builds: Builds,
    loading: Mutex<Loading>,
    loaded: ArcSwapOption<Loaded>,
}

/// What is kept between loads.
#[derive(Default)]
struct Loading {
    build: Option<u64>,
    file: Option<SqliteFile>,
    index: Option<OpenIndex>,
}

struct OpenIndex {
    /// Bytes of the meta file that the reader was last loaded from.
    meta: Vec<u8>,
    commit: Commit,
    fields: Fields,
    reader: IndexReader,
}

/// The directory as of one look.
struct Loaded {
    looked_at: Instant,
    rows: Result<SqliteFile, ReadModelError>,
    index: Result<View, ReadModelError>,
}

// === impl SearchReader ===

impl SearchReader {
    /// Reads from `dir`, which need not be there yet: until it is, answers are [`ReadModelError::Rebuilding`].
    pub async fn open(dir: impl AsRef<Path>) -> Result<Self, ReadModelError> {
        let dir = dir.as_ref().to_owned();
        let builds = Builds::in_dir(&dir);
        let inner = Inner { dir, builds, loading: Mutex::default(), loaded: ArcSwapOption::empty() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// One page of hits. [`ReadModelError::Query`] when the request is not one.
    pub async fn search(&self, request: SearchRequest) -> Result<SearchAnswer, ReadModelError> {
        self.on_view(move |inner, view| {
            let plan = Plan::new(&view.fields, &request)?;
            view.answer(&plan, &request).map_err(|error| inner.failed(error))?
        })
        .await
    }

    /// Product names that begin as typed, then those that have the typed words; none twice.
    pub async fn suggest(&self, typed: &str, limit: usize) -> Result<(Vec<String>, PositionToken), ReadModelError> {
        let typed = typed.to_owned();
        self.on_view(move |inner, view| {
            let names = view.suggestions(&typed, limit).map_err(|error| inner.failed(error))??;
            Ok((names, view.position.clone()))
        })
        .await
    }

    /// Product and prices of a SKU, from the rows.
    pub async fn product(&self, sku: &Sku) -> Result<ProductAnswer, ReadModelError> {
        let sku = sku.clone();
        self.on_rows(move |file| {
            file.read(|transaction| {
                let generation = ledger::serving(transaction, NAME)?;
                let mut position = rows::live_position(transaction, &generation, Context::Catalogue, &sku)?;
                position.merge(&rows::live_position(transaction, &generation, Context::Pricing, &sku)?);
                let parts = rows::parts(transaction, generation.number, &sku)?;
                Ok(ProductAnswer {
                    product: parts.product,
                    revised_at: parts.revised_at,
                    prices: parts.prices,
                    position,
                })
            })
        })
        .await
    }

    /// Waits until what [`search`](Self::search) answers is true at `min` or later; `false` when `timeout` passed
    /// first.
    pub async fn wait_for(&self, min: &PositionToken, timeout: Duration) -> Result<bool, ReadModelError> {
        let min = min.clone();
        self.wait(timeout, move |inner| {
            let loaded = inner.look();
            Ok(matches!(&loaded.index, Ok(view) if covers(&view.position, &min)))
        })
        .await
    }

    /// Waits until what [`product`](Self::product) answers is true at `min` or later.
    pub async fn wait_for_rows(&self, min: &PositionToken, timeout: Duration) -> Result<bool, ReadModelError> {
        let min = min.clone();
        self.wait(timeout, move |inner| {
            let file = inner.look().rows.as_ref().map_err(told_again)?.clone();
            file.read(|transaction| {
                let generation = ledger::serving(transaction, NAME)?;
                ledger::is_reached(transaction, &generation, &[Context::Catalogue, Context::Pricing], &min)
            })
        })
        .await
    }

    /// A page of the rows of one partition, as [`ReadModel::rows`](crate::ReadModel::rows) gives them.
    pub async fn rows(
        &self,
        partition: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<SearchKey, SearchRow>, ReadModelError> {
        let from = row_scan::place(NAME, from)?.unwrap_or_default();
        self.on_generation(move |transaction, generation| scan::page(transaction, generation, partition, from, limit))
            .await
    }

    /// Holds the index against the rows: see [`DocumentCheck`].
    pub async fn check_documents(&self) -> Result<DocumentCheck, ReadModelError> {
        let inner = Arc::clone(&self.inner);
        self.blocking(move || {
            let loaded = inner.look();
            let file = loaded.rows.as_ref().map_err(told_again)?;
            match &loaded.index {
                Ok(view) => documents::check(file, view),
                Err(error) => {
                    let build = inner.builds.current().map(|number| inner.builds.path(number));
                    let checked = build.map(|build| documents::check_files(&build.join(INDEX_DIR))).transpose()?;
                    checked.flatten().ok_or_else(|| told_again(error))
                }
            }
        })
        .await
    }

    /// How the rows stand. No partition is live while the index cannot be answered from.
    pub async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        let inner = Arc::clone(&self.inner);
        self.blocking(move || {
            let loaded = inner.look();
            let file = loaded.rows.as_ref().map_err(told_again)?;
            let mut status = file.read(|transaction| {
                let generation = ledger::serving(transaction, NAME)?;
                ledger::status(transaction, &generation, &CONTEXTS)
            })?;
            let is_searchable = loaded.index.is_ok();
            for partition in &mut status.partitions {
                partition.live &= is_searchable;
            }
            Ok(status)
        })
        .await
    }

    async fn on_view<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &View) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        let inner = Arc::clone(&self.inner);
        self.blocking(move || {
            let loaded = inner.look();
            match &loaded.index {
                Ok(view) if view.live => work(&inner, view),
                Ok(_) => Err(rebuilding()),
                Err(error) => Err(told_again(error)),
            }
        })
        .await
    }

    async fn on_rows<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SqliteFile) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        let inner = Arc::clone(&self.inner);
        self.blocking(move || work(inner.look().rows.as_ref().map_err(told_again)?)).await
    }

    async fn on_generation<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>, &Generation) -> Result<T, Abort> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        self.on_rows(move |file| file.read(|transaction| work(transaction, &ledger::serving(transaction, NAME)?))).await
    }

    async fn wait(
        &self,
        timeout: Duration,
        is_reached: impl Fn(&Inner) -> Result<bool, ReadModelError> + Clone + Send + 'static,
    ) -> Result<bool, ReadModelError> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let inner = Arc::clone(&self.inner);
            let is_reached = is_reached.clone();
            match self.blocking(move || is_reached(&inner)).await {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error),
            }
            let now = tokio::time::Instant::now();
            if now >= deadline {
                return Ok(false);
            }
            tokio::time::sleep_until(deadline.min(now + POLL)).await;
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            // tantivy panics on some damaged files; the indexer makes the index again.
            Err(error) => Err(self.inner.failed(error)),
        }
    }
}

/// A reader may ask for a redrive: it writes that one note beside the process that holds the directory.
#[async_trait]
impl InSqlite for SearchReader {
    const NAME: &'static str = NAME;
    const CONTEXTS: &'static [Context] = &CONTEXTS;

    async fn file(&self) -> Result<SqliteFile, ReadModelError> {
        self.on_rows(|file| Ok(file.clone())).await
    }

    async fn file_to_write(&self) -> Result<SqliteFile, ReadModelError> {
        self.on_rows(SqliteFile::beside_its_writer).await
    }

    fn written_generation(&self) -> Option<Arc<Generation>> {
        None
    }
}

// === impl Inner ===

impl Inner {
    /// The directory as it is now, or was a few milliseconds ago.
    fn look(&self) -> Arc<Loaded> {
        let is_fresh = |loaded: &Arc<Loaded>| loaded.looked_at.elapsed() < LOOK_EVERY;
        if let Some(loaded) = self.loaded.load_full().filter(is_fresh) {
            return loaded;
        }
        // A poisoned lock is only a lock: a load that broke off is done again.
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.loaded.load_full();
        if let Some(loaded) = before.clone().filter(is_fresh) {
            return loaded;
        }
        let looked_at = Instant::now();
        let build = self.builds.current();
        if loading.build != build {
            *loading = Loading { build, ..Loading::default() };
        }
        let (index, rows) = match build.map(|number| self.builds.path(number)) {
            Some(path) => {
                let index = self.load_index(&path, &mut loading.index);
                let rows = self.load_rows(&path, &mut loading, index.as_ref().ok().map(|view| &view.commit));
                (index, rows)
            }
            None => (Err(rebuilding()), Err(rebuilding())),
        };
        let (rows, index) = match (rows, index) {
            (Ok((file, state)), Ok(view)) => (Ok(file), self.at(view, state.as_ref(), before.as_deref())),
            (Ok((file, _)), Err(error)) => (Ok(file), Err(error)),
            // Without rows nobody keeps the index up to date.
            (Err(error), _) => (Err(told_again(&error)), Err(error)),
        };
        let loaded = Arc::new(Loaded { looked_at, rows, index });
        self.loaded.store(Some(Arc::clone(&loaded)));
        loaded
    }

    /// The newest commit, with a position that it is true at or beyond.
    fn load_index(&self, build: &Path, open: &mut Option<OpenIndex>) -> Result<View, ReadModelError> {
        let dir = build.join(INDEX_DIR);
        for _ in 0..LOADS {
            let meta = match std::fs::read(dir.join(META_FILE)) {
                Ok(meta) => meta,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    *open = None;
                    return Err(rebuilding());
                }
                Err(error) => return Err(self.failed(error)),
            };
            if open.as_ref().is_some_and(|open| open.meta == meta) {
                break;
            }
            // Before its first commit an index is only a beginning.
            let Some(commit) = Commit::of_meta(&meta) else {
                *open = None;
                return Err(rebuilding());
            };
            let is_same_index = open.as_ref().is_some_and(|open| open.commit.index == commit.index);
            *open = match open.take().filter(|_| is_same_index) {
                Some(mut open) => {
                    open.reader.reload().map_err(|error| self.failed(error))?;
                    open.meta = meta;
                    open.commit = commit;
                    Some(open)
                }
                None => {
                    // It may have gone bad while nobody wrote here.
                    let (index, fields) = index::open_whole(&dir).map_err(|error| self.failed(error))?;
                    let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into();
                    Some(OpenIndex { meta, commit, fields, reader: reader.map_err(|error| self.failed(error))? })
                }
            };
            // Round again: what was loaded may be of a commit that came after the meta file was read.
        }
        let Some(open) = open else { return Err(rebuilding()) };
        Ok(View {
            searcher: open.reader.searcher(),
            fields: open.fields,
            position: open.commit.position.clone(),
            live: open.commit.live,
            commit: open.commit.clone(),
        })
    }

    /// The row file and its state, which is `None` before the first generation.
    fn load_rows(
        &self,
        build: &Path,
        loading: &mut Loading,
        commit: Option<&Commit>,
    ) -> Result<(SqliteFile, Option<RowsState>), ReadModelError> {
        let path = build.join(ROWS_FILE);
        // An open file outlives its name: a store that was made again is known by its id.
        for _ in 0..2 {
            let file = match loading.file.take() {
                Some(file) if path.exists() => file,
                _ => SqliteFile::open_read_only(NAME, &path, &rows::LAYOUT, rows::REMEDY)?.ok_or_else(rebuilding)?,
            };
            let state = match file.read(|transaction| rows::state(transaction)) {
                Ok(state) => Some(state),
                Err(ReadModelError::Rebuilding { .. }) => None,
                Err(error) => return Err(error),
            };
            let is_other = commit.zip(state.as_ref()).is_some_and(|(commit, state)| commit.store != state.store);
            if !is_other {
                loading.file = Some(file.clone());
                return Ok((file, state));
            }
        }
        Err(rebuilding())
    }

    /// While no document changed since the commit, it is true at the rows' own position; and what it was once true
    /// at, it stays true at.
    fn at(&self, mut view: View, rows: Option<&RowsState>, before: Option<&Loaded>) -> Result<View, ReadModelError> {
        let Some(rows) = rows else { return Err(rebuilding()) };
        if rows.generation != view.commit.generation {
            return Err(rebuilding());
        }
        if rows.row_version == view.commit.row_version {
            view.position.merge(&rows.position);
            view.live |= rows.live;
        }
        if let Some(Ok(before)) = before.map(|before| &before.index)
            && before.commit == view.commit
        {
            view.position.merge(&before.position);
            view.live |= before.live;
        }
        Ok(view)
    }

    fn failed(&self, error: impl std::fmt::Display) -> ReadModelError {
        ReadModelError::Unavailable {
            name: NAME.to_owned(),
            address: self.dir.display().to_string(),
            problem: error.to_string(),
        }
    }
}

/// Positions of topics that are not read here do not count.
fn covers(position: &PositionToken, min: &PositionToken) -> bool {
    min.iter().filter(|wanted| CONTEXTS.contains(&wanted.context)).all(|wanted| {
        position.get(wanted.context, wanted.partition).is_some_and(|position| position >= wanted.position)
    })
}

fn rebuilding() -> ReadModelError {
    ReadModelError::Rebuilding { name: NAME.to_owned() }
}

/// The error of a look, told to one more of those who share it.
fn told_again(error: &ReadModelError) -> ReadModelError {
    match error {
        ReadModelError::Rebuilding { name } => ReadModelError::Rebuilding { name: name.clone() },
        ReadModelError::Unavailable { name, address, problem } => {
            ReadModelError::Unavailable { name: name.clone(), address: address.clone(), problem: problem.clone() }
        }
        ReadModelError::Damaged { name, problem } => {
            ReadModelError::Damaged { name: name.clone(), problem: problem.clone() }
        }
        other => ReadModelError::Permanent { name: NAME.to_owned(), problem: other.to_string() },
    }
}
