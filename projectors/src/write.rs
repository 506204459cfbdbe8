//! What a worker reads from its store and writes to it: the rows of a batch, and the batch as one.

use std::collections::HashSet;

use event_log::Record;
use metrics::{counter, histogram};
use read_models::{Batch, ReadModel, ReadModelError};
use resilience::{Guard, Policy, guard, retry};
use tracing::Instrument;

use crate::claim::{Owned, unmoved};
use crate::error::ProjectorError;
use crate::fold::{Fold, Read};
use crate::metrics::{
    APPLIED, BATCH_EVENTS, DUPLICATES, FOREIGN, FOREIGN_DROPPED, PARKED, SUPERSEDED, VISIBLE_SECONDS,
};
use crate::projection::{Projection, contained};
use crate::worker::{WorkerContext, now};

/// Rows kept in memory by one worker.
const MAX_ROWS: usize = 50_000;

/// Brings the rows of the batch's keys into memory, in one read.
pub(crate) async fn load_rows<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    reads: &[(&Record, Read)],
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    if owned.rows.len() > MAX_ROWS {
        owned.rows.clear();
        owned.has_all_rows = false;
    }
    if owned.has_all_rows {
        return Ok(());
    }
    let mut missing: Vec<P::Key> = Vec::new();
    let mut seen = HashSet::new();
    for (_, read) in reads {
        let Read::Event { event: Ok(event), .. } = read else { continue };
        // The fold finds the same error, and parks it.
        if let Ok(Some(key)) = contained(|| Ok(P::key(event)))
            && !owned.rows.contains_key(&key)
            && seen.insert(key.clone())
        {
            missing.push(key);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let rows = retrying(|| async { Ok(context.read_model.load(context.partition, &missing).await?.rows) }).await?;
    owned.rows.extend(missing.into_iter().zip(rows).filter_map(|(key, row)| row.map(|row| (key, row))));
    Ok(())
}

/// Stop 9: effect, checkpoint and parked events in one atomic write.
pub(crate) async fn write<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    fold: Fold<P>,
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let has_all = owned.may_lack.is_none() && fold.checkpoint.next_offset >= owned.head;
    let live = owned.live || owned.is_at_bound || has_all;
    if fold.checkpoint == owned.checkpoint && live == owned.live {
        return Ok(());
    }
    let parked = owned.parked_keys.union(&fold.newly_parked).count();
    if !fold.newly_parked.is_empty() && parked > context.settings.parked_keys_limit {
        let limit = context.settings.parked_keys_limit;
        return Err(ProjectorError::TooManyParked { partition: context.partition, parked, limit });
    }
    let batch = Batch {
        to: fold.checkpoint,
        changes: fold.changes.into_iter().collect(),
        parked: fold.parked,
        live,
        ..unmoved(context, owned)
    };
    apply(context, &batch).instrument(tracing::debug_span!("apply")).await.inspect_err(|error| {
        if matches!(error, ProjectorError::ReadModel(ReadModelError::Superseded { .. })) {
            counter!(SUPERSEDED, "projection" => context.label.clone()).increment(1);
        }
    })?;
    if fold.applied > 0 {
        let age = now().saturating_sub(batch.to.event_time).max(0);
        histogram!(VISIBLE_SECONDS, "projection" => context.label.clone()).record(age as f64 / 1000.0);
        histogram!(BATCH_EVENTS, "projection" => context.label.clone()).record(fold.applied as f64);
    }
    counter!(APPLIED, "projection" => context.label.clone()).increment(fold.applied);
    counter!(DUPLICATES, "projection" => context.label.clone()).increment(fold.duplicates);
    counter!(FOREIGN, "projection" => context.label.clone()).increment(fold.foreign);
    counter!(FOREIGN_DROPPED, "projection" => context.label.clone()).increment(fold.foreign_dropped);
    owned.foreign_records += fold.foreign - fold.foreign_dropped;
    counter!(PARKED, "projection" => context.label.clone()).increment(batch.parked.len() as u64);
    owned.checkpoint = batch.to;
    owned.live = batch.live;
    owned.parked_keys.extend(fold.newly_parked);
    owned.rows.extend(batch.changes);
    Ok(())
}

pub(crate) async fn apply<M>(context: &WorkerContext<M>, batch: &Batch<M::Key, M::Row>) -> Result<(), ProjectorError>
where
    M: ReadModel + ?Sized,
{
    if guard::holds(Guard::CheckpointInCommit) {
        return apply_at_once(context, batch).await;
    }
    // The checkpoint first, then what it stands for: a crash between the two loses the batch.
    let moved = Batch { to: batch.to, ..Batch::unmoved(batch.partition, batch.epoch, batch.from, batch.live) };
    apply_at_once(context, &moved).await?;
    apply_at_once(context, &Batch { from: batch.to, ..batch.clone() }).await
}

async fn apply_at_once<M>(context: &WorkerContext<M>, batch: &Batch<M::Key, M::Row>) -> Result<(), ProjectorError>
where
    M: ReadModel + ?Sized,
{
    let mut delays = Policy::STORE.backoff();
    let mut is_retry = false;
    loop {
        match context.read_model.apply(batch).await {
            Ok(()) => return Ok(()),
            // The answer of the first try was lost, not its effect.
            Err(ReadModelError::CheckpointMoved { found, .. }) if is_retry && found == batch.to => return Ok(()),
            Err(error) if error.is_transient() => {
                tracing::warn!(partition = %context.partition, %error, "write waits");
                is_retry = true;
                delays.wait().await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Until it works: a worker that is not wanted any more is cancelled from outside.
pub(crate) async fn retrying<T, F>(operation: impl FnMut() -> F) -> Result<T, ProjectorError>
where
    F: Future<Output = Result<T, ProjectorError>>,
{
    retry(Policy::STORE, None, ProjectorError::is_transient, operation).await
}
