//! A read model whose generations are built, compared and switched: what the command line, HTTP and the controller have
//! at hand of it, whichever it is.

use std::sync::Arc;

use projectors::{Projection, SearchProjection, StockProjection};
use read_models::generations::Catalogue;
use read_models::search::SearchReader;
use read_models::stock::SharedStock;
use read_models::{DeadLetters, Generations, PartitionRef, ReadModelError, ReadModelStatus};

use crate::dry_run::{DryRunReport, dry_run};
use crate::error::ReplayError;
use crate::log_reader::LogReader;
use crate::observed::Observed;
use crate::operations::Operations;
use crate::ownership::Ownership;
use crate::parity::{self, Progress, Sides};
use crate::queries::{self, QueryBounds};
use crate::repair::{self, Selection};
use crate::report::ParityReport;
use crate::rules::Rules;

/// One read model. Cheap to clone.
#[derive(Clone)]
pub struct Replayed {
    rows: Rows,
    operations: Operations,
}

#[derive(Clone)]
enum Rows {
    Stock(SharedStock),
    Search(SearchReader),
}

/// Keys of a repair by the partition that they are in.
pub type Selected = std::collections::BTreeMap<PartitionRef, std::collections::BTreeSet<String>>;

// === impl Replayed ===

impl Replayed {
    pub fn stock(stock: SharedStock, ownership: Arc<Ownership>) -> Self {
        let generations: Arc<dyn Generations> = Arc::clone(&stock) as _;
        Self { rows: Rows::Stock(stock), operations: Operations::new(generations, ownership) }
    }

    pub fn search(search: SearchReader, ownership: Arc<Ownership>) -> Self {
        let generations: Arc<dyn Generations> = Arc::new(search.catalogue().clone());
        Self { rows: Rows::Search(search), operations: Operations::new(generations, ownership) }
    }

    /// `stock` or `search`.
    pub fn name(&self) -> &'static str {
        self.operations.name()
    }

    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    pub async fn catalogue(&self) -> Result<Catalogue, ReplayError> {
        Ok(self.operations.generations().catalogue().await?)
    }

    /// Versions of the fold that this program has, ascending.
    pub fn folds(&self) -> &'static [u32] {
        match self.rows {
            Rows::Stock(_) => StockProjection::FOLDS,
            Rows::Search(_) => SearchProjection::FOLDS,
        }
    }

    /// How a generation stands; `None` while nobody has begun to build it.
    pub async fn status(&self, generation: u32) -> Result<Option<ReadModelStatus>, ReplayError> {
        let status = match &self.rows {
            Rows::Stock(stock) => stock.of_generation(generation).status().await,
            Rows::Search(search) => search.of_generation(generation).status().await,
        };
        match status {
            Ok(status) => Ok(Some(status)),
            Err(ReadModelError::Rebuilding { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Of each generation that is fed and there. A damaged one counts as not there: it must not hide the others.
    pub async fn statuses(&self, catalogue: &Catalogue) -> Result<Vec<ReadModelStatus>, ReplayError> {
        let mut statuses = Vec::new();
        for number in catalogue.fed() {
            match self.status(number).await {
                Ok(status) => statuses.extend(status),
                Err(ReplayError::ReadModel(error)) if !error.is_transient() => {
                    tracing::warn!(read_model = self.name(), generation = number, %error, "generation counts as not there");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(statuses)
    }

    /// What gates look at. `now` in milliseconds since 1970.
    pub async fn observed(&self, catalogue: &Catalogue, now: i64) -> Result<Observed, ReplayError> {
        let statuses = self.statuses(catalogue).await?;
        Observed::gather(self.operations.generations().as_ref(), &statuses, now).await
    }

    /// Compares a generation with what serves. `queries` are asked of a search read model only.
    #[expect(clippy::too_many_arguments, reason = "each is one thing that the command line names")]
    pub async fn compare(
        &self,
        catalogue: &Catalogue,
        generation: u32,
        log: &LogReader,
        rules: &Rules,
        queries: &[String],
        progress: &Progress,
        now: i64,
    ) -> Result<ParityReport, ReplayError> {
        let serving = catalogue.serving;
        let (live_fold, candidate_fold) = (fold_of(catalogue, serving)?, fold_of(catalogue, generation)?);
        match &self.rows {
            Rows::Stock(stock) => {
                let (live, candidate) = (stock.of_generation(serving), stock.of_generation(generation));
                let sides = Sides::<StockProjection> { live: &live, live_fold, candidate: &candidate, candidate_fold };
                parity::compare(&sides, log, rules, progress, now).await
            }
            Rows::Search(search) => {
                let (live, candidate) = (search.of_generation(serving), search.of_generation(generation));
                let sides = Sides::<SearchProjection> { live: &live, live_fold, candidate: &candidate, candidate_fold };
                let mut report = parity::compare(&sides, log, rules, progress, now).await?;
                if !queries.is_empty() {
                    let bounds = QueryBounds::default();
                    report.queries =
                        Some(queries::compare(&live, &candidate, queries, bounds, queries::PATIENCE).await?);
                }
                Ok(report)
            }
        }
    }

    /// Runs a fold over the log in memory, and compares with what serves.
    pub async fn dry_run(
        &self,
        catalogue: &Catalogue,
        fold: u32,
        log: &LogReader,
        rules: &Rules,
        progress: &Progress,
    ) -> Result<DryRunReport, ReplayError> {
        let serving = catalogue.serving;
        let live_fold = fold_of(catalogue, serving)?;
        match &self.rows {
            Rows::Stock(stock) => {
                let live = stock.of_generation(serving);
                dry_run::<StockProjection>(&live, live_fold, fold, log, rules, progress).await
            }
            Rows::Search(search) => {
                let live = search.of_generation(serving);
                dry_run::<SearchProjection>(&live, live_fold, fold, log, rules, progress).await
            }
        }
    }

    /// The keys that a selection means.
    pub async fn select(
        &self,
        log: &LogReader,
        partitions: u32,
        selection: &Selection,
        progress: &Progress,
    ) -> Result<Selected, ReplayError> {
        match self.rows {
            Rows::Stock(_) => repair::select::<StockProjection>(log, partitions, selection, progress).await,
            Rows::Search(_) => repair::select::<SearchProjection>(log, partitions, selection, progress).await,
        }
    }

    /// Where the owners of a generation's partitions are asked.
    pub fn requests(&self, generation: u32) -> Arc<dyn DeadLetters> {
        match &self.rows {
            Rows::Stock(stock) => stock.of_generation(generation) as _,
            Rows::Search(search) => Arc::new(search.of_generation(generation)) as _,
        }
    }
}

fn fold_of(catalogue: &Catalogue, generation: u32) -> Result<u32, ReplayError> {
    let entry = catalogue.generations.get(&generation);
    entry.map(|entry| entry.fold_version).ok_or(ReplayError::NotThere { number: generation })
}
