//! The event table in relay order: which event belongs at each sequence of each partition.

use std::collections::HashMap;

use event_store::{EventStore, RelayCursor, StoredEvent, Topology};
use schemas::{StorePosition, partition_of};
use uuid::Uuid;

use crate::error::RelayError;

/// Topic and partition.
pub(super) type Place = (String, u32);

const PAGE: usize = 5_000;

/// What the table says of every partition.
#[derive(Default)]
pub(super) struct TableWalk {
    /// Fingerprint of the event at each sequence, from 1.
    pub(super) events: HashMap<Place, Vec<u64>>,
    /// Place of the last row.
    pub(super) end: StorePosition,
}

// === impl TableWalk ===

impl TableWalk {
    pub(super) async fn walk(
        store: &dyn EventStore,
        topology: Topology,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, RelayError> {
        let mut walk = Self::default();
        loop {
            let page = store.read_committed(walk.end, PAGE).await?;
            let Some(last) = page.last() else { return Ok(walk) };
            walk.end = last.position;
            progress(page.len() as u64);
            for event in &page {
                walk.events.entry(place_of(event, topology)).or_default().push(fingerprint(event.id));
            }
        }
    }

    pub(super) fn stored(&self, place: &Place) -> u64 {
        self.events.get(place).map_or(0, |events| events.len() as u64)
    }

    pub(super) fn at(&self, place: &Place, sequence: u64) -> Option<u64> {
        let index = usize::try_from(sequence.checked_sub(1)?).ok()?;
        self.events.get(place)?.get(index).copied()
    }
}

/// The place before the first event that `is_missing`, with the sequences up to there; behind the last event when none
/// is.
pub(super) async fn cursor_before_first(
    store: &dyn EventStore,
    topology: Topology,
    is_missing: impl Fn(&Place, u64) -> bool,
) -> Result<RelayCursor, RelayError> {
    let mut cursor = RelayCursor::default();
    loop {
        let page = store.read_committed(cursor.position, PAGE).await?;
        if page.is_empty() {
            return Ok(cursor);
        }
        for event in &page {
            let place = place_of(event, topology);
            let sequence = cursor.sequences.get(&place).copied().unwrap_or(0) + 1;
            if is_missing(&place, sequence) {
                return Ok(cursor);
            }
            cursor.sequences.insert(place, sequence);
            cursor.position = event.position;
        }
    }
}

fn place_of(event: &StoredEvent, topology: Topology) -> Place {
    (event.topic.clone(), partition_of(event.key.as_bytes(), topology.partitions))
}

/// Half of an id: enough to tell two events of one sequence apart.
pub(super) fn fingerprint(id: Uuid) -> u64 {
    let (high, low) = id.as_u64_pair();
    high ^ low
}
