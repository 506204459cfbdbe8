//! For tests: an event table and a stock store in files, fed by hand, so that every damage and every moment can be
//! made.

use std::collections::HashMap;
use std::sync::Arc;

use event_log::{EmbeddedRegistry, EventEnvelope, SqliteEventLog};
use event_store::{AppendBatch, DecidedCommand, EventStore, NewEvent, RelayCursor, SqliteEventStore, Topology};
use read_models::stock::{SharedStock, StockKey, StockRow, connect_stock};
use read_models::{Batch, Checkpoint, DiscardNote, Generation, ParkedEvent, PartitionRef, Resolution, Resolved};
use schemas::event::{StockChange, StockUpdated};
use schemas::{
    Context, Event, Outcome, OutcomeKind, RegionId, Sku, StorePosition, WarehouseId, encode_event, partition_of,
};
use uuid::Uuid;

use crate::auditor::{AuditSettings, Auditor};
use crate::oracle::Audited;

pub(crate) const TOPOLOGY: Topology = Topology { partitions: 2 };

pub(crate) struct World {
    pub(crate) store: Arc<dyn EventStore>,
    /// Writes.
    pub(crate) stock: SharedStock,
    folder: tempfile::TempDir,
}

/// A partition whose checkpoint is moved, and what is written with that.
pub(crate) struct Fold {
    pub(crate) at: PartitionRef,
    /// Sequence of the new checkpoint.
    pub(crate) to: u64,
    pub(crate) rows: Vec<(StockKey, StockRow)>,
    pub(crate) parked: Vec<ParkedEvent>,
    pub(crate) dead_letters: Resolution,
}

// === impl World ===

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteEventStore::open(folder.path().join("events.db")).unwrap();
        store.fix_topology(TOPOLOGY).await.unwrap();
        let stock = connect_stock(&stock_url(&folder)).await.unwrap();
        Self { store: Arc::new(store), stock, folder }
    }

    /// The stock as who only reads has it.
    pub(crate) async fn reader(&self) -> SharedStock {
        connect_stock(&stock_url(&self.folder)).await.unwrap()
    }

    pub(crate) async fn auditor(&self) -> Auditor {
        let log = Arc::new(SqliteEventLog::open(self.folder.path().join("log.db")).unwrap());
        let (store, stock) = (Arc::clone(&self.store), self.reader().await);
        Auditor::new(store, log, Arc::new(EmbeddedRegistry::default()), Some(stock), None, AuditSettings::default())
    }

    pub(crate) async fn prepare(&self, fold_version: u32) {
        let (name, partitions) = ("stock".to_owned(), TOPOLOGY.partitions);
        self.stock.prepare(&Generation { name, number: 1, fold_version, partitions }).await.unwrap();
    }

    /// Events `versions` of a SKU: each leaves its version as the units on hand.
    pub(crate) async fn append(&self, sku: &str, versions: std::ops::RangeInclusive<u64>) {
        let commands = versions.map(|version| counted(sku, version)).collect();
        self.store.append(&AppendBatch { commands, ..AppendBatch::default() }).await.unwrap();
    }

    /// Notes all of the table as published.
    pub(crate) async fn publish(&self) {
        let lease = self.store.lease_relay().await.unwrap();
        let mut cursor = lease.cursor;
        for event in self.store.read_committed(cursor.position, 10_000).await.unwrap() {
            cursor.advance(&event, TOPOLOGY);
        }
        self.store.save_cursor(lease.epoch, &cursor).await.unwrap();
    }

    /// Moves a partition's checkpoint, as a projector does.
    pub(crate) async fn fold(&self, fold: Fold) {
        let claimed = self.stock.claim(fold.at).await.unwrap();
        let mut cursor = RelayCursor::default();
        let mut positions: HashMap<(u32, u64), StorePosition> = HashMap::new();
        for event in self.store.read_committed(StorePosition::default(), 10_000).await.unwrap() {
            positions.insert(cursor.advance(&event, TOPOLOGY), event.position);
        }
        let position = positions[&(fold.at.partition, fold.to)];
        let batch = Batch {
            to: Checkpoint { sequence: fold.to, next_offset: fold.to, position, event_time: 1 },
            changes: fold.rows,
            parked: fold.parked,
            dead_letters: fold.dead_letters,
            ..Batch::unmoved(fold.at, claimed.epoch, claimed.checkpoint, true)
        };
        self.stock.apply(&batch).await.unwrap();
    }
}

// === impl Fold ===

impl Fold {
    /// Of a SKU's partition.
    pub(crate) fn of(sku: &str, to: u64) -> Self {
        let (rows, parked) = (Vec::new(), Vec::new());
        Self { at: home(sku), to, rows, parked, dead_letters: Resolution::default() }
    }

    /// Writes the row that a version leaves.
    pub(crate) fn row(mut self, sku: &str, version: u64) -> Self {
        self.rows.push((key(sku), row(version)));
        self
    }

    pub(crate) fn park(mut self, sku: &str, version: u64) -> Self {
        self.parked.push(parked(sku, version));
        self
    }

    pub(crate) fn redrive(mut self, sku: &str, version: u64) -> Self {
        self.dead_letters.redriven.push(resolved(sku, version));
        self
    }

    pub(crate) fn discard(mut self, sku: &str, version: u64) -> Self {
        let (request, reason) = (Uuid::new_v4(), "wrong".to_owned());
        let note = DiscardNote { request, reason, by: None, discarded_at: 1 };
        self.dead_letters.discarded.push((resolved(sku, version), note));
        self
    }
}

fn stock_url(folder: &tempfile::TempDir) -> String {
    format!("sqlite:{}", folder.path().join("stock.db").display())
}

/// A SKU of that partition.
pub(crate) fn sku_in(partition: u32) -> String {
    let mut names = (0..).map(|number| format!("SKU-{number}"));
    names.find(|name| home(name).partition == partition).unwrap()
}

pub(crate) fn home(sku: &str) -> PartitionRef {
    PartitionRef { context: Context::Inventory, partition: partition_of(sku.as_bytes(), TOPOLOGY.partitions) }
}

pub(crate) fn key(sku: &str) -> StockKey {
    StockKey { sku: Sku::new(sku).unwrap(), warehouse: WarehouseId::new("w").unwrap() }
}

/// What a version leaves.
pub(crate) fn row(version: u64) -> StockRow {
    let region = RegionId::new("eu").unwrap();
    StockRow { region, on_hand: version as i64, reserved: 0, version, updated_at: None }
}

/// A SKU has its partition for itself: its versions are the sequences.
fn parked(sku: &str, version: u64) -> ParkedEvent {
    let envelope = EventEnvelope {
        id: Uuid::new_v4(),
        source: "/millrace/inventory".to_owned(),
        event_type: "millrace.inventory.StockUpdated".to_owned(),
        time: 1,
        subject: projectors::StockProjection::stream(&key(sku)).to_string(),
        partition_key: sku.to_owned(),
        sequence: version,
        stream_version: version,
        position: StorePosition::default(),
        correlation_id: None,
        causation_id: None,
        traceparent: None,
    };
    ParkedEvent {
        key: sku.to_owned(),
        sequence: version,
        offset: version - 1,
        position: StorePosition::default(),
        headers: envelope.to_headers().to_pairs(),
        value: Vec::new(),
        reason: "poison".to_owned(),
        parked_at: 1,
    }
}

fn resolved(sku: &str, version: u64) -> Resolved {
    Resolved { key: sku.to_owned(), place: parked(sku, version).place() }
}

fn counted(sku: &str, version: u64) -> DecidedCommand {
    let (id, stream, on_hand) = (Uuid::new_v4(), projectors::StockProjection::stream(&key(sku)), version as i64);
    let event = Event::StockUpdated(StockUpdated {
        sku: Sku::new(sku).unwrap(),
        warehouse: WarehouseId::new("w").unwrap(),
        region: RegionId::new("eu").unwrap(),
        change: StockChange::Counted,
        quantity: on_hand,
        on_hand,
        reserved: 0,
        reservation_id: None,
        expires_at: None,
        reason: None,
    });
    let encoded = encode_event(&event).unwrap();
    DecidedCommand {
        id,
        digest: [0; 32],
        received_at: 0,
        expected_version: version - 1,
        outcome: Outcome {
            id,
            outcome: OutcomeKind::Accepted,
            position: None,
            stream: Some(stream.to_string()),
            version: Some(version),
            reason: None,
        },
        events: vec![NewEvent {
            id: Uuid::new_v4(),
            context: Context::Inventory,
            key: sku.to_owned(),
            schema: encoded.schema,
            body: encoded.body,
            time: 0,
            correlation_id: None,
            causation_id: None,
            actor: None,
            traceparent: None,
        }],
        stream,
        claims: Vec::new(),
        timers: Vec::new(),
        snapshot: None,
        publish_outcome_on: None,
        outcome_key: sku.to_owned(),
        command_type: None,
    }
}
