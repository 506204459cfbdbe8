//! Parked events: what could not be folded, with everything that a redrive needs.

use std::fmt;

use schemas::StorePosition;
use serde::{Deserialize, Serialize};

/// A dead letter that is nobody's, since it has no readable envelope: it parks no key of ours, as no id holds this
/// character.
pub const FOREIGN_KEY: &str = "!foreign";

/// An event that waits, in order behind the first of its key that could not be folded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedEvent {
    /// Partition key: the SKU.
    pub key: String,
    pub sequence: u64,
    pub offset: u64,
    /// Place in the event table; zero where the headers could not be read.
    pub position: StorePosition,
    /// Record headers as they came.
    pub headers: Vec<(String, String)>,
    /// Record value as it came, frame included.
    pub value: Vec<u8>,
    /// Why the first one could not be folded; "behind a parked event" for those after it.
    pub reason: String,
    /// When it was parked, milliseconds since 1970.
    pub parked_at: i64,
}

/// Where a parked event stands among those of its partition. A record that is no event of ours shares its sequence with
/// the event before it (0 before the first): the offset tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ParkedPlace {
    pub sequence: u64,
    pub offset: u64,
}

/// A key whose events wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedKey {
    pub key: String,
    /// Events that wait.
    pub events: u64,
    /// The first of them: what it waits for.
    pub first: ParkedPlace,
    pub reason: String,
    /// When the first was parked, milliseconds since 1970.
    pub parked_at: i64,
}

// === impl ParkedEvent ===

impl ParkedEvent {
    pub fn place(&self) -> ParkedPlace {
        ParkedPlace { sequence: self.sequence, offset: self.offset }
    }
}

// === impl ParkedPlace ===

impl fmt::Display for ParkedPlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sequence {} (offset {})", self.sequence, self.offset)
    }
}
