//! A read model whose generations are built, compared and switched: what the command line, HTTP and the controller have
//! at hand of it, whichever it is.

use std::sync::Arc;

use projectors::{Projection, SearchProjection, StockProjection};
use read_models::generations::Catalogue;
use read_models::search::SearchReader;
use read_models::stock::SharedStock;
use read_models::{Generations, ReadModelError, ReadModelStatus};

use crate::error::ReplayError;
use crate::observed::Observed;
use crate::operations::Operations;
use crate::ownership::Ownership;

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

    /// Of each generation that is fed and there.
    pub async fn statuses(&self, catalogue: &Catalogue) -> Result<Vec<ReadModelStatus>, ReplayError> {
        let mut statuses = Vec::new();
        for number in catalogue.fed() {
            statuses.extend(self.status(number).await?);
        }
        Ok(statuses)
    }

    /// What gates look at. `now` in milliseconds since 1970.
    pub async fn observed(&self, catalogue: &Catalogue, now: i64) -> Result<Observed, ReplayError> {
        let statuses = self.statuses(catalogue).await?;
        Observed::gather(self.operations.generations().as_ref(), &statuses, now).await
    }
}
