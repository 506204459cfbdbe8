//! The port: one atomic unit of effect, checkpoint and parked events, fenced by epoch.
//!
//! Every adapter passes the same contract suite. Invariants P2 (read model = fold up to its checkpoint) and P3
//! (a superseded owner changes nothing) rest on [`ReadModel::apply`] alone.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;

use async_trait::async_trait;
use schemas::Context;

use crate::checkpoint::{Checkpoint, PartitionRef};
use crate::dead_letters::{DeadLetters, Resolution};
use crate::error::ReadModelError;
use crate::parked::ParkedEvent;
use crate::status::ReadModelStatus;

/// A build of a read model: `stock@1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// `stock` or `search`.
    pub name: String,
    /// 1, 2, 3 …
    pub number: u32,
    /// Version of the fold that builds it.
    pub fold_version: u32,
    /// Partitions of each event topic.
    pub partitions: u32,
}

/// What a new owner of a partition finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    /// Higher than every earlier owner's.
    pub epoch: u64,
    /// Where to go on.
    pub checkpoint: Checkpoint,
    /// Keys whose events must be parked behind the one that could not be folded.
    pub parked_keys: HashSet<String>,
    /// Records kept under [`FOREIGN_KEY`](crate::parked::FOREIGN_KEY).
    pub foreign_records: u64,
    pub live: bool,
}

/// One atomic write to one partition.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch<K, R> {
    pub partition: PartitionRef,
    pub epoch: u64,
    /// The checkpoint that the batch starts from: the write is refused unless the stored one is exactly this.
    pub from: Checkpoint,
    pub to: Checkpoint,
    /// The new rows, one per key.
    pub changes: Vec<(K, R)>,
    /// Events to append to the parked ones, in order.
    pub parked: Vec<ParkedEvent>,
    /// What becomes of events that were parked before.
    pub dead_letters: Resolution,
    /// Marks the partition as readable; a partition that is readable stays so.
    pub live: bool,
}

/// The log's end, as a projector saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Offset that the next record will get.
    pub next_offset: u64,
    /// Milliseconds since 1970.
    pub seen_at: i64,
}

/// Some rows of a partition, as a scan met them.
#[derive(Debug, Clone, PartialEq)]
pub struct RowPage<K, R> {
    /// A row that does not read says why.
    pub rows: Vec<(K, Result<R, String>)>,
    /// What lies among the rows and has no key that a row could have.
    pub foreign: Vec<String>,
    /// Where the next page begins, for the same store; `None` behind the last.
    pub next: Option<String>,
}

/// Some rows of a partition, and the checkpoint that they are true at.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded<R> {
    /// The default where the partition was never claimed.
    pub checkpoint: Checkpoint,
    /// In the order of the keys.
    pub rows: Vec<Option<R>>,
}

/// Where a projection's rows live.
#[async_trait]
pub trait ReadModel: DeadLetters {
    /// Names a row.
    type Key: Clone + Eq + Hash + fmt::Debug + Send + Sync;
    /// A row, in the shape of the fold's version.
    type Row: Clone + PartialEq + fmt::Debug + Send + Sync;

    /// Creates the generation where it is missing; refuses one of another fold version or partition count, and, with
    /// [`ReadModelError::Retired`], one that is retired: `claim` and `apply` refuse it as well.
    async fn prepare(&self, generation: &Generation) -> Result<(), ReadModelError>;

    /// Takes a partition over: a higher epoch, and the state to go on from.
    async fn claim(&self, partition: PartitionRef) -> Result<Claimed, ReadModelError>;

    /// The rows of some keys of one partition, and its checkpoint, read as one.
    async fn load(&self, partition: PartitionRef, keys: &[Self::Key]) -> Result<Loaded<Self::Row>, ReadModelError>;

    /// Writes a batch, or nothing. Refused with [`ReadModelError::CheckpointMoved`] unless the stored checkpoint is
    /// exactly `batch.from`, or when the store has none: a partition is claimed before it is written. Refused with
    /// [`ReadModelError::Superseded`] when a higher epoch is stored; with a lower one stored, the store lost the claim
    /// and what came behind it, as if it had no checkpoint (ADR 17).
    async fn apply(&self, batch: &Batch<Self::Key, Self::Row>) -> Result<(), ReadModelError>;

    /// Notes the log's end, for lag and freshness. Not fenced: the last note holds, and the next one comes soon.
    async fn observe(&self, heads: &[(PartitionRef, Head)]) -> Result<(), ReadModelError>;

    async fn status(&self) -> Result<ReadModelStatus, ReadModelError>;

    /// A page of the rows of one partition as they stand, for checks: of what this process writes, or else of what
    /// serves. Pages have no order and are not of one moment: a row that is there during the whole scan is met, more
    /// than once perhaps; one that comes meanwhile may be. About `limit` rows are looked at, so that a page may be
    /// empty and not the last. `from` is the `next` of the page before.
    async fn rows(
        &self,
        partition: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<Self::Key, Self::Row>, ReadModelError>;

    /// Whether the store answers; for readiness.
    async fn ping(&self) -> Result<(), ReadModelError>;
}

// === impl Generation ===

impl Generation {
    /// Refuses one of the same number that was built by another fold, or for another number of partitions.
    pub fn check(&self, wanted: &Generation) -> Result<(), ReadModelError> {
        if self == wanted {
            return Ok(());
        }
        let told = |one: &Generation| format!("fold version {} of {} partitions", one.fold_version, one.partitions);
        Err(ReadModelError::Generation {
            name: self.to_string(),
            found: told(self),
            needed: told(wanted),
            remedy: "run the program that built it, or build a new generation by a replay".to_owned(),
        })
    }

    /// Refuses another one than a handle is bound to.
    pub(crate) fn check_bound(&self, bound: Option<u32>) -> Result<(), ReadModelError> {
        match bound {
            Some(number) if number != self.number => {
                let problem = format!("this handle is bound to {}@{number}", self.name);
                Err(ReadModelError::Permanent { name: self.to_string(), problem })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a partition that is none of this generation's.
    pub fn check_partition(&self, partition: PartitionRef, contexts: &[Context]) -> Result<(), ReadModelError> {
        if contexts.contains(&partition.context) && partition.partition < self.partitions {
            return Ok(());
        }
        let problem = format!("{partition} is none of its {} partitions", self.partitions);
        Err(ReadModelError::Permanent { name: self.to_string(), problem })
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.name, self.number)
    }
}

// === impl Batch ===

impl<K, R> Batch<K, R> {
    /// The write of an owner at checkpoint `at` that changes nothing.
    pub fn unmoved(partition: PartitionRef, epoch: u64, at: Checkpoint, live: bool) -> Self {
        Self {
            partition,
            epoch,
            from: at,
            to: at,
            changes: Vec::new(),
            parked: Vec::new(),
            dead_letters: Resolution::default(),
            live,
        }
    }
}
