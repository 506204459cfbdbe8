//! The event table in relay order: which event belongs at each sequence of each partition.

use std::collections::HashMap;

use event_store::{EventStore, RelayCursor, Topology};
use schemas::StorePosition;
use uuid::Uuid;

use crate::error::RelayError;

/// Topic and number of a partition, as [`RelayCursor`] names it.
pub(super) type Partition = (String, u32);

const PAGE: usize = 5_000;

/// What the table says of every partition.
#[derive(Default)]
pub(super) struct TableFingerprints {
    /// Fingerprint of the event at each sequence, from 1.
    pub(super) events: HashMap<Partition, Vec<u64>>,
    /// Place of the last row.
    pub(super) end: StorePosition,
}

// === impl TableFingerprints ===

impl TableFingerprints {
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
                let partition = (event.topic.clone(), topology.partition_of(&event.key));
                walk.events.entry(partition).or_default().push(fingerprint(event.id));
            }
        }
    }

    pub(super) fn stored(&self, partition: &Partition) -> u64 {
        self.events.get(partition).map_or(0, |events| events.len() as u64)
    }

    pub(super) fn at(&self, partition: &Partition, sequence: u64) -> Option<u64> {
        let index = usize::try_from(sequence.checked_sub(1)?).ok()?;
        self.events.get(partition)?.get(index).copied()
    }
}

/// The place before the first event that `is_missing`, with the sequences up to there; behind the last event when none
/// is.
pub(super) async fn cursor_before_first(
    store: &dyn EventStore,
    topology: Topology,
    is_missing: impl Fn(&Partition, u64) -> bool,
) -> Result<RelayCursor, RelayError> {
    let mut cursor = RelayCursor::default();
    loop {
        let page = store.read_committed(cursor.position, PAGE).await?;
        if page.is_empty() {
            return Ok(cursor);
        }
        for event in &page {
            let (partition, sequence) = cursor.peek(event, topology);
            if is_missing(&partition, sequence) {
                return Ok(cursor);
            }
            cursor.advance(event, topology);
        }
    }
}

/// Half of an id: enough to tell two events of one sequence apart.
pub(super) fn fingerprint(id: Uuid) -> u64 {
    let (high, low) = id.as_u64_pair();
    high ^ low
}
