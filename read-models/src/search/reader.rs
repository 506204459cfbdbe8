//! The reader's side of a search directory, in the writer's process or beside it.
//!
//! The catalogue says which generation answers a request. It is looked at at most every few milliseconds, so that a
//! pointer that moved is followed at once, and a request is answered from one generation alone. A reader may be there
//! before the directory is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use rusqlite::Transaction;
use schemas::{Context, PositionToken, Sku};

use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::generations::{Catalogue, ReadChoice};
use crate::read_model::{Generation, Loaded, RowPage};
use crate::row_scan;
use crate::search::catalogue::SearchCatalogue;
use crate::search::documents::DocumentCheck;
use crate::search::loaded::{LOOK_EVERY, LoadedGeneration};
use crate::search::query::Plan;
use crate::search::view::View;
use crate::search::{
    CONTEXTS, NAME, ProductAnswer, SearchAnswer, SearchKey, SearchRequest, SearchRow, SuggestAnswer, rows, scan,
};
use crate::sqlite::dead_letters::InSqlite;
use crate::sqlite::{Abort, SqliteFile, ledger};
use crate::status::ReadModelStatus;

/// How often a waiting read looks.
const POLL: Duration = Duration::from_millis(10);

/// Answers searches from a directory that a [`SearchReadModel`](crate::search::SearchReadModel) writes.
#[derive(Clone)]
pub struct SearchReader {
    shared: Arc<Shared>,
    /// Reads this one, whatever serves.
    bound: Option<u32>,
}

struct Shared {
    root: PathBuf,
    catalogue: SearchCatalogue,
    pointer: ArcSwapOption<Pointer>,
    /// One who looks at a time.
    looking: Mutex<()>,
    /// Loaded, or on their way.
    generations: Mutex<BTreeMap<u32, Arc<LoadedGeneration>>>,
}

/// The catalogue as of one look.
struct Pointer {
    looked_at: Instant,
    catalogue: Arc<Catalogue>,
}

// === impl SearchReader ===

impl SearchReader {
    /// Reads from `dir`, which need not be there yet: until it is, answers are [`ReadModelError::Rebuilding`].
    pub async fn open(dir: impl AsRef<Path>) -> Result<Self, ReadModelError> {
        let root = dir.as_ref().to_owned();
        let catalogue = SearchCatalogue::in_dir(&root);
        let (pointer, looking, generations) = (ArcSwapOption::empty(), Mutex::default(), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { root, catalogue, pointer, looking, generations }), bound: None })
    }

    /// The same directory, read from one generation, whatever serves and whatever a request chooses.
    pub fn of_generation(&self, number: u32) -> Self {
        Self { shared: Arc::clone(&self.shared), bound: Some(number) }
    }

    /// What says which generation answers.
    pub fn catalogue(&self) -> &SearchCatalogue {
        &self.shared.catalogue
    }

    /// One page of hits. [`ReadModelError::Query`] when the request is not one.
    pub async fn search(&self, request: SearchRequest, choice: &ReadChoice) -> Result<SearchAnswer, ReadModelError> {
        self.on_view(choice, move |generation, view| {
            let plan = Plan::new(&view.fields, &request)?;
            view.answer(&plan, &request).map_err(|error| generation.failed(error))?
        })
        .await
    }

    /// Completes a product name.
    pub async fn suggest(
        &self,
        typed: &str,
        limit: usize,
        choice: &ReadChoice,
    ) -> Result<SuggestAnswer, ReadModelError> {
        let typed = typed.to_owned();
        self.on_view(choice, move |generation, view| {
            let names = view.suggestions(&typed, limit).map_err(|error| generation.failed(error))??;
            Ok(SuggestAnswer { names, position: view.position.clone(), generation: view.commit.generation })
        })
        .await
    }

    /// Product and prices of a SKU, from the rows.
    pub async fn product(&self, sku: &Sku, choice: &ReadChoice) -> Result<ProductAnswer, ReadModelError> {
        let sku = sku.clone();
        self.on_rows(Some(choice), move |file| {
            file.read(|transaction| {
                let generation = ledger::serving(transaction, NAME)?;
                let mut position = rows::live_position(transaction, &generation, Context::Catalogue, &sku)?;
                position.merge(&rows::live_position(transaction, &generation, Context::Pricing, &sku)?);
                let parts = rows::parts(transaction, &generation, &sku)?;
                Ok(ProductAnswer {
                    product: parts.product,
                    revised_at: parts.revised_at,
                    prices: parts.prices,
                    parked: parts.parked,
                    position,
                    generation: generation.number,
                })
            })
        })
        .await
    }

    /// Waits until what [`search`](Self::search) answers is true at `min` or later; `false` when `timeout` passed
    /// first.
    pub async fn wait_for(
        &self,
        min: &PositionToken,
        choice: &ReadChoice,
        timeout: Duration,
    ) -> Result<bool, ReadModelError> {
        // Positions of topics that are not read here do not count.
        let min = min.of_contexts(&CONTEXTS);
        self.wait(choice, timeout, move |generation| {
            Ok(generation.look().index().is_ok_and(|view| view.position.covers(&min)))
        })
        .await
    }

    /// Waits until what [`product`](Self::product) answers is true at `min` or later.
    pub async fn wait_for_rows(
        &self,
        min: &PositionToken,
        choice: &ReadChoice,
        timeout: Duration,
    ) -> Result<bool, ReadModelError> {
        let min = min.clone();
        self.wait(choice, timeout, move |generation| {
            generation.look().rows()?.read(|transaction| {
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

    /// Some rows of a partition and the checkpoint that they are true at, as
    /// [`ReadModel::load`](crate::ReadModel::load) gives them.
    pub async fn load(&self, partition: PartitionRef, keys: &[SearchKey]) -> Result<Loaded<SearchRow>, ReadModelError> {
        let keys = keys.to_vec();
        self.on_generation(move |transaction, generation| {
            let rows = keys.iter().map(|key| rows::load(transaction, generation.number, key));
            let rows = rows.collect::<Result<_, _>>()?;
            Ok(Loaded { checkpoint: ledger::checkpoint(transaction, generation.number, partition)?, rows })
        })
        .await
    }

    /// Holds the index against the rows: see [`DocumentCheck`].
    pub async fn check_documents(&self) -> Result<DocumentCheck, ReadModelError> {
        self.on_loaded(None, |generation| generation.check_documents()).await
    }

    /// How the rows stand. No partition is live while the index cannot be answered from.
    pub async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        self.on_loaded(None, |generation| {
            let loaded = generation.look();
            let mut status = loaded.rows()?.read(|transaction| {
                let generation = ledger::serving(transaction, NAME)?;
                ledger::status(transaction, &generation, &CONTEXTS)
            })?;
            let is_searchable = loaded.index().is_ok();
            for partition in &mut status.partitions {
                partition.live &= is_searchable;
            }
            Ok(status)
        })
        .await
    }

    /// Without a choice it is what serves: a share of requests says nothing of checks.
    fn number(&self, choice: Option<&ReadChoice>) -> Result<u32, ReadModelError> {
        match (self.bound, choice) {
            (Some(number), _) => Ok(number),
            (None, Some(choice)) => self.shared.pointer()?.choose(NAME, choice),
            (None, None) => Ok(self.shared.pointer()?.serving),
        }
    }

    async fn on_loaded<T: Send + 'static>(
        &self,
        choice: Option<&ReadChoice>,
        work: impl FnOnce(&LoadedGeneration) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        let (own, choice) = (self.clone(), choice.cloned());
        let answered = tokio::task::spawn_blocking(move || work(&own.shared.generation(own.number(choice.as_ref())?)));
        match answered.await {
            Ok(result) => result,
            // tantivy panics on some damaged files; the indexer makes the index again.
            Err(error) => Err(ReadModelError::Unavailable {
                name: NAME.to_owned(),
                address: self.shared.root.display().to_string(),
                problem: error.to_string(),
            }),
        }
    }

    async fn on_view<T: Send + 'static>(
        &self,
        choice: &ReadChoice,
        work: impl FnOnce(&LoadedGeneration, &View) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        self.on_loaded(Some(choice), |generation| work(generation, generation.look().view()?)).await
    }

    async fn on_rows<T: Send + 'static>(
        &self,
        choice: Option<&ReadChoice>,
        work: impl FnOnce(&SqliteFile) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        self.on_loaded(choice, |generation| work(generation.look().rows()?)).await
    }

    async fn on_generation<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>, &Generation) -> Result<T, Abort> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        self.on_rows(None, move |file| file.read(|transaction| work(transaction, &ledger::serving(transaction, NAME)?)))
            .await
    }

    async fn wait(
        &self,
        choice: &ReadChoice,
        timeout: Duration,
        is_reached: impl Fn(&LoadedGeneration) -> Result<bool, ReadModelError> + Clone + Send + 'static,
    ) -> Result<bool, ReadModelError> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            match self.on_loaded(Some(choice), is_reached.clone()).await {
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
}

/// A reader may ask for a redrive: it writes that one note beside the process that holds the directory.
#[async_trait]
impl InSqlite for SearchReader {
    const NAME: &'static str = NAME;
    const CONTEXTS: &'static [Context] = &CONTEXTS;

    async fn file(&self) -> Result<SqliteFile, ReadModelError> {
        self.on_rows(None, |file| Ok(file.clone())).await
    }

    async fn file_to_write(&self) -> Result<SqliteFile, ReadModelError> {
        self.on_rows(None, SqliteFile::beside_its_writer).await
    }

    fn written_generation(&self) -> Option<Arc<Generation>> {
        None
    }
}

// === impl Shared ===

impl Shared {
    /// The catalogue as it is now, or was a few milliseconds ago.
    fn pointer(&self) -> Result<Arc<Catalogue>, ReadModelError> {
        let is_fresh = |pointer: &Arc<Pointer>| pointer.looked_at.elapsed() < LOOK_EVERY;
        if let Some(pointer) = self.pointer.load_full().filter(is_fresh) {
            return Ok(Arc::clone(&pointer.catalogue));
        }
        // A poisoned lock is only a lock: a look that broke off is done again.
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.pointer.load_full();
        if let Some(pointer) = before.clone().filter(is_fresh) {
            return Ok(Arc::clone(&pointer.catalogue));
        }
        let looked_at = Instant::now();
        let known = before.as_ref().map(|pointer| &pointer.catalogue);
        let catalogue = self.catalogue.pointer(known)?;
        if known.is_none_or(|known| !Arc::ptr_eq(known, &catalogue)) {
            // What is retired lets its files go.
            let is_in_use = |number: u32| number == catalogue.serving || catalogue.fed().any(|fed| fed == number);
            let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
            generations.retain(|number, _| is_in_use(*number));
        }
        for number in catalogue.fed().filter(|number| *number != catalogue.serving) {
            self.generation(number).warm();
        }
        self.pointer.store(Some(Arc::new(Pointer { looked_at, catalogue: Arc::clone(&catalogue) })));
        Ok(catalogue)
    }

    fn generation(&self, number: u32) -> Arc<LoadedGeneration> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(LoadedGeneration::of(&self.root, number));
        Arc::clone(generations.entry(number).or_insert_with(new))
    }
}
