//! How far a read model has folded a partition: kept in the read model, written with the effect.

use std::fmt;

use schemas::{Context, PositionToken, StorePosition};
use serde::{Deserialize, Serialize};

/// A partition of a context's event topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PartitionRef {
    pub context: Context,
    pub partition: u32,
}

/// A place in one partition. The default is before its first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Sequence of the last event that is applied or parked; 0 before the first.
    pub sequence: u64,
    /// Log offset to read next.
    pub next_offset: u64,
    /// Place of that event in the event table.
    pub position: StorePosition,
    /// Time of that event, milliseconds since 1970; 0 before the first.
    pub event_time: i64,
}

impl PartitionRef {
    pub fn token(self, position: StorePosition) -> PositionToken {
        PositionToken::of(self.context, self.partition, position)
    }
}

impl fmt::Display for PartitionRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.context.events_topic(), self.partition)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sequence {} (offset {}, position {})", self.sequence, self.next_offset, self.position)
    }
}
