//! A worker's hold on its partition: claimed under a new epoch, with what the store says of it.

use std::collections::{HashMap, HashSet};

use event_log::Record;
use read_models::{Batch, Checkpoint, PartitionRef, ReadModel, ReadModelError};
use tokio::time::Instant;

use crate::error::ProjectorError;
use crate::history::{RecentEvents, ends_of};
use crate::projection::Projection;
use crate::refold::Refolding;
use crate::whole::MayLack;
use crate::worker::WorkerContext;
use crate::write::{apply, retrying};

/// A worker's hold on its partition.
pub(crate) struct Owned<P: Projection> {
    pub(crate) epoch: u64,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) parked_keys: HashSet<String>,
    /// Records kept that are nobody's.
    pub(crate) foreign_records: u64,
    pub(crate) live: bool,
    /// The log's end when the partition was claimed: from there on it counts as live.
    pub(crate) head: u64,
    /// It is not known yet whether it has all that was published: it is not live before.
    pub(crate) may_lack: Option<MayLack>,
    /// Nothing beyond its bound is applied, and it is there: it is live though the log goes on.
    pub(crate) is_at_bound: bool,
    /// The store has no row but those in `rows`: a partition that is folded from its beginning needs to load none.
    pub(crate) has_all_rows: bool,
    /// Rows as this owner last wrote or read them; right as long as its epoch holds.
    pub(crate) rows: HashMap<P::Key, P::Row>,
    pub(crate) gap: Option<Gap>,
    /// Records of nobody that stand behind it, and why they are: they are passed over with it, and kept then.
    pub(crate) behind_gap: Vec<(Record, String)>,
    pub(crate) recent: RecentEvents,
    /// Keys that are being folded anew.
    pub(crate) refolding: Option<Refolding<P>>,
    /// Dead letters were written, and the partition is not claimed anew yet: nothing else may be.
    pub(crate) is_unsure: bool,
}

/// A sequence that is missing, and since when it is.
#[derive(Clone, Copy)]
pub(crate) struct Gap {
    pub(crate) since: Instant,
    /// Sequence of the last event before it.
    pub(crate) last: u64,
    /// Sequence and offset of the first event behind it.
    pub(crate) found: u64,
    pub(crate) offset: u64,
}

/// A write of the owner that leaves the checkpoint where it is.
pub(crate) fn unmoved<P, M>(context: &WorkerContext<M>, owned: &Owned<P>) -> Batch<P::Key, P::Row>
where
    P: Projection,
    M: ?Sized,
{
    Batch::unmoved(context.partition, owned.epoch, owned.checkpoint, owned.live)
}

/// Writes nothing, which is refused when the store is not where this owner left it.
pub(crate) async fn check<P, M>(context: &WorkerContext<M>, owned: &Owned<P>) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    apply(context, &unmoved(context, owned)).await
}

/// Claims the partition once more, after a write that left the checkpoint where it was. Under the epoch of before, a
/// store that loses that write (fault 9) would look as its owner left it; with it goes the new epoch.
pub(crate) async fn claim_again<P, M>(context: &WorkerContext<M>, owned: &mut Owned<P>) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    // What was written may be lost already.
    owned.rows.clear();
    owned.has_all_rows = false;
    owned.is_unsure = true;
    let claimed = retrying(|| async { Ok(context.read_model.claim(context.partition).await?) }).await?;
    if claimed.checkpoint != owned.checkpoint {
        return Err(ReadModelError::CheckpointMoved {
            name: P::NAME.to_owned(),
            partition: context.partition,
            expected: owned.checkpoint,
            found: claimed.checkpoint,
        }
        .into());
    }
    owned.epoch = claimed.epoch;
    owned.parked_keys = claimed.parked_keys;
    owned.foreign_records = claimed.foreign_records;
    owned.is_unsure = false;
    Ok(())
}

pub(crate) async fn claim<P, M>(context: &WorkerContext<M>) -> Result<Owned<P>, ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let claimed = retrying(|| async { Ok(context.read_model.claim(context.partition).await?) }).await?;
    let head = retrying(|| ends_of(&*context.log, &context.at)).await?.next;
    tracing::debug!(partition = %context.partition, epoch = claimed.epoch, checkpoint = %claimed.checkpoint, head, "partition claimed");
    Ok(Owned {
        epoch: claimed.epoch,
        checkpoint: claimed.checkpoint,
        parked_keys: claimed.parked_keys,
        foreign_records: claimed.foreign_records,
        live: claimed.live,
        head,
        may_lack: (!claimed.live && context.settings.event_table.is_some()).then(MayLack::new),
        is_at_bound: false,
        // Where nothing was applied there is no row.
        has_all_rows: claimed.checkpoint.sequence == 0,
        rows: HashMap::new(),
        gap: None,
        behind_gap: Vec::new(),
        recent: RecentEvents::new(),
        refolding: None,
        is_unsure: false,
    })
}

// === impl Gap ===

impl Gap {
    pub(crate) fn error(self, partition: PartitionRef) -> ProjectorError {
        let Self { last, found, offset, .. } = self;
        let remedy = "run `millrace relay reconcile`; the projector goes on by itself once they are on the log";
        ProjectorError::Gap { partition, last, found, offset, remedy }
    }
}
