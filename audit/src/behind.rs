//! Read models that are behind the walk.
//!
//! What lies behind a checkpoint waits event by event until the read model comes to it. A read model that stays away, a
//! halted partition or a rebuild of millions of events would let the process grow that takes commands. So only so many
//! wait in a partition; one that is further behind is given up. The walk goes on for all others, and once what was
//! given up is near again everything is walked anew, so that it is compared again.

use std::sync::Arc;

use read_models::search::SearchReader;
use read_models::stock::SharedStock;
use read_models::{ReadModelError, ReadModelStatus};
use schemas::StorePosition;

use crate::error::AuditError;
use crate::oracle::{Audited, Standing};
use crate::pace::{Pace, Progress};
use crate::rows::OracleOf;
use crate::topics::Sources;
use crate::walk::TableWalk;

/// Events that may wait behind the checkpoint of one partition of a read model while the audit goes on in rounds, about
/// 130 bytes each. It is looked at after each page of the table, but not while rows are held against the events between
/// two checkpoints: what is written meanwhile waits as well. docs/operations.md names it.
pub(crate) const MOST_LATER: usize = 20_000;

/// The read models that are compared.
pub(crate) struct ReadModels {
    pub(crate) stock: Option<SharedStock>,
    pub(crate) search: Option<Arc<SearchReader>>,
}

// === impl Sources ===

impl Sources {
    /// Walks on as [`TableWalk::advance`] does. A long walk takes hours, and read models go on meanwhile: before one is
    /// given up, its checkpoints are read again.
    pub(crate) async fn walk_to(
        &self,
        walk: &mut TableWalk,
        target: StorePosition,
        pace: Pace,
        progress: &Progress,
    ) -> Result<bool, AuditError> {
        while walk.position() < target {
            if !walk.step(&self.store, pace, progress).await? {
                return Ok(false);
            }
            if walk.is_full() {
                self.models.fold_to_checkpoints(walk).await?;
                walk.give_up_full();
            }
        }
        Ok(true)
    }
}

// === impl ReadModels ===

impl ReadModels {
    /// Lets the oracles fold each partition as far as its checkpoint stands.
    pub(crate) async fn fold_to_checkpoints(&self, walk: &mut TableWalk) -> Result<(), AuditError> {
        if let Some(stock) = &self.stock {
            fold_to_checkpoints(stock, walk, |walk| &mut walk.stock).await?;
        }
        if let Some(search) = &self.search {
            fold_to_checkpoints(search.as_ref(), walk, |walk| &mut walk.search).await?;
        }
        Ok(())
    }

    /// Whether all that was given up of a read model is near the walk by now.
    pub(crate) async fn is_near_again(&self, walk: &mut TableWalk) -> Result<bool, AuditError> {
        if let Some(stock) = &self.stock
            && is_near_again(stock, walk, |walk| &mut walk.stock).await?
        {
            return Ok(true);
        }
        match &self.search {
            Some(search) => is_near_again(search.as_ref(), walk, |walk| &mut walk.search).await,
            None => Ok(false),
        }
    }
}

async fn fold_to_checkpoints<P: Audited>(
    model: &dyn Standing<P>,
    walk: &mut TableWalk,
    oracle: OracleOf<P>,
) -> Result<(), AuditError> {
    let Some(status) = status(model).await? else { return Ok(()) };
    for partition in status.partitions {
        oracle(walk).partition(partition.partition).fold_to(partition.checkpoint.sequence);
    }
    Ok(())
}

async fn is_near_again<P: Audited>(
    model: &dyn Standing<P>,
    walk: &mut TableWalk,
    oracle: OracleOf<P>,
) -> Result<bool, AuditError> {
    let given_up = oracle(walk).given_up();
    if given_up.is_empty() {
        return Ok(false);
    }
    let Some(status) = status(model).await? else { return Ok(false) };
    // Half of what may wait: what is written until then must not make it be given up at once.
    let near = walk.most_later as u64 / 2;
    Ok(given_up.into_iter().all(|(at, walked)| {
        let found = status.partitions.iter().find(|partition| partition.partition == at);
        found.is_some_and(|partition| partition.checkpoint.sequence.saturating_add(near) >= walked)
    }))
}

/// `None` while nothing serves.
async fn status<P: Audited>(model: &dyn Standing<P>) -> Result<Option<ReadModelStatus>, AuditError> {
    match model.status().await {
        Err(ReadModelError::Rebuilding { .. }) => Ok(None),
        status => Ok(Some(status?)),
    }
}

#[cfg(test)]
mod tests;
