//! Where a generation of the past stops, partition by partition, and how it is told that it has no lag there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use event_log::EventEnvelope;
use read_models::generations::Until;
use read_models::{Checkpoint, PartitionRef};
use schemas::StorePosition;

/// Where one partition stops.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    Nowhere,
    /// Before the first event of a later time.
    Time(i64),
    /// Behind the last event up to this position.
    Position(StorePosition),
}

/// The partitions that this process feeds of a generation with a bound, and the offset at which each stands still. Only
/// their owner knows that offset: so an owner alone says how far its partitions are behind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    held: Arc<Mutex<BTreeMap<PartitionRef, Option<u64>>>>,
}

/// A partition is held until this is dropped.
pub(crate) struct Held {
    standing: Standing,
    partition: PartitionRef,
}

// === impl Bound ===

impl Bound {
    pub(crate) fn of(until: Option<&Until>, partition: PartitionRef) -> Self {
        match until {
            None => Bound::Nowhere,
            Some(Until::Time(time)) => Bound::Time(*time),
            // Before everything where the token names no position.
            Some(Until::Position(token)) => {
                Bound::Position(token.get(partition.context, partition.partition).unwrap_or_default())
            }
        }
    }

    /// Whether nothing can follow, without a look at the log: which may have forgotten what comes behind.
    pub(crate) fn is_reached(&self, checkpoint: &Checkpoint) -> bool {
        matches!(self, Bound::Position(last) if checkpoint.position >= *last)
    }

    /// Whether an event, the next one of its partition, is beyond.
    pub(crate) fn is_passed_by(&self, envelope: &EventEnvelope) -> bool {
        match self {
            Bound::Nowhere => false,
            Bound::Time(last) => envelope.time > *last,
            Bound::Position(last) => envelope.position > *last,
        }
    }
}

// === impl Standing ===

impl Standing {
    pub(crate) fn hold(&self, partition: PartitionRef) -> Held {
        self.set(partition, None);
        Held { standing: self.clone(), partition }
    }

    /// Says that a partition that is held stands still.
    pub(crate) fn stop(&self, partition: PartitionRef, next_offset: u64) {
        self.set(partition, Some(next_offset));
    }

    /// The end to note for a partition whose log ends at `end`; `None` where another process says it.
    pub(crate) fn end_of(&self, partition: PartitionRef, end: u64) -> Option<u64> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&partition).map(|stopped| stopped.unwrap_or(end))
    }

    fn set(&self, partition: PartitionRef, stopped: Option<u64>) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, stopped);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.standing.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.partition);
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Context, PositionToken};

    use super::*;

    const PARTITION: PartitionRef = PartitionRef { context: Context::Inventory, partition: 2 };

    #[test]
    fn a_position_is_reached_by_the_checkpoint_alone() {
        let position = StorePosition { xid: 1, position: 7 };
        let until = Until::Position(PositionToken::of(Context::Inventory, 2, position));
        let bound = Bound::of(Some(&until), PARTITION);
        assert_eq!(bound, Bound::Position(position));
        let before = Checkpoint { position: StorePosition { xid: 1, position: 6 }, ..Checkpoint::default() };
        assert!(!bound.is_reached(&before));
        assert!(bound.is_reached(&Checkpoint { position, ..Checkpoint::default() }));
        let elsewhere = PartitionRef { partition: 3, ..PARTITION };
        assert!(Bound::of(Some(&until), elsewhere).is_reached(&Checkpoint::default()), "nothing of it was there");
        assert!(!Bound::of(Some(&Until::Time(0)), PARTITION).is_reached(&before), "only an event tells");
    }

    #[test]
    fn an_owner_alone_says_where_its_partition_ends() {
        let standing = Standing::default();
        assert_eq!(standing.end_of(PARTITION, 9), None);
        let held = standing.hold(PARTITION);
        assert_eq!(standing.end_of(PARTITION, 9), Some(9));
        standing.stop(PARTITION, 4);
        assert_eq!(standing.end_of(PARTITION, 9), Some(4));
        drop(held);
        assert_eq!(standing.end_of(PARTITION, 9), None);
    }
}
