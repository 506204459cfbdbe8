//! Projectors: every generation of a read model that is to be fed, as its catalogue says.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use event_log::{EventLog, SchemaRegistry};
use projectors::generations::{component_of, group_of};
use projectors::{
    DeadLetterMirror, FeedSettings, GenerationStores, OpenGeneration, Projection, ProjectorSettings, SearchProjection,
    StockProjection, run_generations,
};
use read_models::search::{SearchCatalogue, SearchReadModel};
use read_models::stock::{SharedStock, StockReadModel};
use read_models::{Generations, ReadModel, ReadModelError};
use telemetry::ComponentHealth;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use super::parts::{live, watch};
use super::process::{OnFailure, Process};

/// The generations of a stock store: all on one connection, or in one file.
pub struct StockGenerations {
    stock: SharedStock,
}

/// The generations of a search directory. Each full copy of one reads the whole log, in a group of its own.
pub struct SearchGenerations {
    dir: PathBuf,
    catalogue: SearchCatalogue,
    /// Held from the start on: who cannot have the directory is told at once.
    first: Mutex<Option<SearchReadModel>>,
    /// How long a holder may give no sign of life; without it a generation that another one holds is an error.
    frozen_after: Option<Duration>,
}

pub fn stock_projector(
    process: &mut Process,
    stock: &SharedStock,
    log: &Arc<dyn EventLog>,
    registry: &Arc<dyn SchemaRegistry>,
    settings: ProjectorSettings,
    on_failure: OnFailure,
) {
    let stores = StockGenerations { stock: Arc::clone(stock) };
    projector::<StockProjection, _>(process, "stock projector", stores, log, registry, settings, on_failure);
}

pub fn search_projector(
    process: &mut Process,
    search: SearchGenerations,
    log: &Arc<dyn EventLog>,
    registry: &Arc<dyn SchemaRegistry>,
    settings: ProjectorSettings,
    on_failure: OnFailure,
) {
    projector::<SearchProjection, _>(process, "search projector", search, log, registry, settings, on_failure);
}

fn projector<P: Projection, S: GenerationStores<P>>(
    process: &mut Process,
    name: &'static str,
    stores: S,
    log: &Arc<dyn EventLog>,
    registry: &Arc<dyn SchemaRegistry>,
    settings: ProjectorSettings,
    on_failure: OnFailure,
) {
    let mirror = DeadLetterMirror::new(Arc::clone(log));
    let settings = FeedSettings {
        projector: ProjectorSettings { dead_letter_mirror: Some(mirror), ..settings },
        ends_with_serving: on_failure == OnFailure::EndProcess,
        ..FeedSettings::default()
    };
    let feeding = run_generations::<P, S>(
        Arc::new(stores),
        Arc::clone(log),
        Arc::clone(registry),
        settings,
        process.health.clone(),
        process.shutdown.clone(),
    );
    let health = process.health.component(name);
    process.spawn_component(name, health, on_failure, async move { Ok(feeding.await?) });
}

// === impl StockGenerations ===

#[async_trait]
impl GenerationStores<StockProjection> for StockGenerations {
    type Model = dyn StockReadModel;

    fn catalogue(&self) -> &dyn Generations {
        self.stock.as_ref()
    }

    async fn open(
        &self,
        generation: u32,
        _health: &ComponentHealth,
        _shutdown: &CancellationToken,
    ) -> Result<Option<OpenGeneration<Self::Model>>, ReadModelError> {
        let read_model = self.stock.of_generation(generation);
        Ok(Some(OpenGeneration { read_model, group: group_of(StockProjection::NAME, generation), beside: None }))
    }
}

// === impl SearchGenerations ===

impl SearchGenerations {
    /// Takes the first generation, unless it is gone by now.
    pub async fn take(dir: PathBuf) -> Result<Self, ReadModelError> {
        let first = match SearchReadModel::open(&dir).await {
            Err(ReadModelError::Retired { .. }) => None,
            opened => Some(opened?),
        };
        Self::of(dir, first, None).await
    }

    /// Waits until the first generation is free, or its holder frozen. `None` when the process is stopped meanwhile.
    pub async fn take_when_free(
        dir: PathBuf,
        frozen_after: Duration,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, ReadModelError> {
        let first = match SearchReadModel::open_when_free(&dir, frozen_after, shutdown.clone()).await {
            Err(ReadModelError::Retired { .. }) => None,
            opened => match opened? {
                None => return Ok(None),
                opened => opened,
            },
        };
        Self::of(dir, first, Some(frozen_after)).await.map(Some)
    }

    async fn of(
        dir: PathBuf,
        first: Option<SearchReadModel>,
        frozen_after: Option<Duration>,
    ) -> Result<Self, ReadModelError> {
        let catalogue = SearchCatalogue::open(&dir).await?;
        Ok(Self { dir, catalogue, first: Mutex::new(first), frozen_after })
    }

    async fn generation(
        &self,
        number: u32,
        shutdown: &CancellationToken,
    ) -> Result<Option<SearchReadModel>, ReadModelError> {
        if number == 1 {
            let held = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
            if held.is_some() {
                return Ok(held);
            }
        }
        match self.frozen_after {
            None => SearchReadModel::open_generation(&self.dir, number).await.map(Some),
            Some(frozen_after) => {
                let shutdown = shutdown.clone();
                SearchReadModel::open_generation_when_free(&self.dir, number, frozen_after, shutdown).await
            }
        }
    }
}

#[async_trait]
impl GenerationStores<SearchProjection> for SearchGenerations {
    type Model = SearchReadModel;

    fn catalogue(&self) -> &dyn Generations {
        &self.catalogue
    }

    async fn open(
        &self,
        generation: u32,
        health: &ComponentHealth,
        shutdown: &CancellationToken,
    ) -> Result<Option<OpenGeneration<SearchReadModel>>, ReadModelError> {
        let Some(search) = self.generation(generation, shutdown).await? else { return Ok(None) };
        let search = Arc::new(search);
        let named = |part| component_of(SearchProjection::NAME, generation, part);
        let (indexing, answers) = (health.companion(named("indexer")), health.companion(named("read model")));
        let indexed = Arc::clone(&search);
        Ok(Some(OpenGeneration {
            group: format!("millrace-search-{}", search.id()),
            read_model: search,
            beside: Some(Box::new(move |stop| Box::pin(index(indexed, indexing, answers, stop)))),
        }))
    }
}

/// Says of the indexer whether it keeps up. It has no start of its own: it works from its first pass on, or fails.
async fn tell(mut problem: Receiver<Option<String>>, indexing: &ComponentHealth) -> Infallible {
    loop {
        match problem.borrow_and_update().clone() {
            Some(problem) => indexing.degraded(problem),
            None => indexing.ready(),
        }
        if problem.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps the index up with the rows, and says how both are.
async fn index(
    search: Arc<SearchReadModel>,
    indexing: ComponentHealth,
    answers: ComponentHealth,
    stop: CancellationToken,
) -> Result<(), ReadModelError> {
    let told = tell(search.index_problem(), &indexing);
    let watching = watch(stop.child_token(), || async { live(search.status().await) }, answers);
    let indexer = search.run_indexer(stop.clone());
    tokio::select! {
        indexed = indexer => indexed.inspect_err(|error| indexing.not_ready(error.to_string())),
        never = told => match never {},
        // Only once it is told to end: the indexer does so by itself.
        () = async { watching.await; std::future::pending::<()>().await } => Ok(()),
    }
}
