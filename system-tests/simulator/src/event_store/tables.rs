//! What the server holds, and what is read or written in one step.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use domain::STATE_VERSION;
use event_store::adapter::{PastEvent, Snapshot, rebuild};
use event_store::{
    EventStoreError, LoadRequest, Loaded, LoadedStream, MOST_COUNTED, RelayCursor, StoredEvent, StoredOffset,
    StoredOutcome, StreamId, Timer, Topology,
};
use schemas::{RegionId, StorePosition, WarehouseId};
use uuid::Uuid;

use crate::guard::Guard;
use crate::poison;
use crate::process::Process;
use crate::world::World;

#[derive(Default)]
pub(super) struct Tables {
    pub(super) topology: Option<Topology>,
    /// Committed rows, in the relay's order.
    pub(super) rows: BTreeMap<StorePosition, StoredEvent>,
    /// Place of each version of a stream.
    pub(super) streams: HashMap<StreamId, BTreeMap<u64, StorePosition>>,
    pub(super) commands: HashMap<Uuid, StoredCommand>,
    pub(super) warehouses: HashMap<WarehouseId, RegionId>,
    pub(super) offsets: BTreeMap<(String, u32), StoredOffset>,
    pub(super) timers: BTreeMap<String, Timer>,
    pub(super) snapshots: HashMap<StreamId, (u64, u32, Vec<u8>)>,
    pub(super) relay: Relay,
    pub(super) open: BTreeMap<u64, Open>,
    pub(super) last_xid: u64,
    pub(super) last_position: u64,
    connections: u64,
}

pub(super) struct StoredCommand {
    pub(super) outcome: StoredOutcome,
    pub(super) received_at: i64,
}

#[derive(Default)]
pub(super) struct Relay {
    pub(super) epoch: u64,
    pub(super) position: StorePosition,
    pub(super) sequences: HashMap<(String, u32), u64>,
    pub(super) holder: Option<(u64, Process)>,
}

/// An open transaction.
pub(super) struct Open {
    pub(super) locks: BTreeSet<Lock>,
    pub(super) process: Process,
    /// Its connection is gone; the server finds out later.
    pub(super) is_abandoned: bool,
}

/// What a transaction holds until its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lock {
    Stream(StreamId),
    Command(Uuid),
    Offset(String, u32),
    Warehouse(WarehouseId),
}

/// How long a server takes to see that a client is gone.
const DETECTED: Duration = Duration::from_secs(2);

// === impl Tables ===

impl Tables {
    pub(super) fn next_connection(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    /// Ends the transactions of clients that are gone.
    pub(super) fn reap(&mut self) {
        self.open.retain(|_, open| !(open.is_abandoned && open.process.silent_for() >= DETECTED));
    }

    pub(super) fn load(&self, request: &LoadRequest, forgets_ids: bool) -> Result<Loaded, EventStoreError> {
        let mut loaded = Loaded::default();
        for stream in &request.streams {
            loaded.streams.insert(stream.clone(), self.load_stream(stream)?);
        }
        for id in request.command_ids.iter().filter(|_| !forgets_ids) {
            if let Some(stored) = self.commands.get(id) {
                loaded.outcomes.insert(*id, stored.outcome.clone());
            }
        }
        for warehouse in &request.warehouses {
            if let Some(region) = self.warehouses.get(warehouse) {
                loaded.regions.insert(warehouse.clone(), region.clone());
            }
        }
        Ok(loaded)
    }

    fn load_stream(&self, stream: &StreamId) -> Result<LoadedStream, EventStoreError> {
        let snapshot = self.snapshots.get(stream).filter(|(_, state_version, _)| *state_version == STATE_VERSION);
        let snapshot = snapshot.and_then(|(version, _, body)| Snapshot::read(stream.as_str(), *version, body));
        let from = snapshot.as_ref().map_or(1, |snapshot| snapshot.version);
        let places = self.streams.get(stream);
        let events = places.into_iter().flat_map(|places| places.range(from..)).filter_map(|(version, position)| {
            let row = self.rows.get(position)?;
            Some(PastEvent { version: *version, position: *position, schema: row.schema, body: row.body.clone() })
        });
        rebuild(stream, snapshot, events)
    }

    pub(super) fn newest_version(&self, stream: &StreamId) -> u64 {
        self.streams.get(stream).and_then(|places| places.keys().next_back().copied()).unwrap_or(0)
    }

    pub(super) fn read_committed(&self, world: &World, cursor: StorePosition, limit: usize) -> Vec<StoredEvent> {
        let horizon = match self.open.keys().next() {
            Some(oldest) if !world.is_off(Guard::SnapshotHorizon) => *oldest,
            _ => u64::MAX,
        };
        let below = self.rows.values().filter(|row| row.position.xid < horizon);
        let rows: Vec<StoredEvent> = if world.is_off(Guard::PairCursor) {
            let mut rows: Vec<&StoredEvent> = below.filter(|row| row.position.position > cursor.position).collect();
            rows.sort_by_key(|row| row.position.position);
            rows.into_iter().take(limit).cloned().collect()
        } else {
            below.filter(|row| row.position > cursor).take(limit).cloned().collect()
        };
        rows.into_iter().map(|row| poison::poisoned(world, row)).collect()
    }

    pub(super) fn save_cursor(
        &mut self,
        epoch: u64,
        cursor: &RelayCursor,
        is_unguarded: bool,
    ) -> Result<(), EventStoreError> {
        let relay = &mut self.relay;
        if is_unguarded {
            relay.position = cursor.position;
            relay.sequences.extend(cursor.sequences.iter().map(|(at, sequence)| (at.clone(), *sequence)));
            return Ok(());
        }
        if relay.epoch != epoch {
            return Err(EventStoreError::RelaySuperseded { epoch, current: relay.epoch });
        }
        relay.position = relay.position.max(cursor.position);
        for (at, sequence) in &cursor.sequences {
            let stored = relay.sequences.entry(at.clone()).or_default();
            *stored = (*stored).max(*sequence);
        }
        Ok(())
    }

    pub(super) fn reset_cursor(&mut self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        let relay = &mut self.relay;
        if relay.epoch != epoch {
            return Err(EventStoreError::RelaySuperseded { epoch, current: relay.epoch });
        }
        relay.position = cursor.position;
        relay.sequences = cursor.sequences.clone();
        Ok(())
    }

    pub(super) fn lag(&self, now: i64) -> (u64, Option<i64>) {
        let mut behind = self.rows.values().filter(|row| row.position > self.relay.position).peekable();
        let age = behind.peek().map(|row| (now - row.time).max(0));
        (behind.take(MOST_COUNTED as usize).count() as u64, age)
    }

    pub(super) fn forget(&mut self, before: i64, limit: usize) -> u64 {
        let mut old: Vec<(i64, Uuid)> = self
            .commands
            .iter()
            .filter(|(_, stored)| stored.received_at < before)
            .map(|(id, stored)| (stored.received_at, *id))
            .collect();
        old.sort_unstable();
        old.truncate(limit);
        for (_, id) in &old {
            self.commands.remove(id);
        }
        old.len() as u64
    }
}
