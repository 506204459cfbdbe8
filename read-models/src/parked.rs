//! Parked events: what could not be folded, with everything that a redrive needs.

use schemas::StorePosition;
use serde::{Deserialize, Serialize};

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
