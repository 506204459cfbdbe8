//! Two writers of the same streams: each goes on.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use command_api::{CommandHandler, HandlerSettings};
use event_store::{
    AppendBatch, Appended, EventStore, EventStoreError, LoadRequest, Loaded, RelayCursor, RelayLease, RestoredRows,
    SqliteEventStore, StoredEvent, StoredOutcome, StreamId, Timer, Topology,
};
use schemas::{CommandEnvelope, OutcomeKind, StorePosition};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const NOW: i64 = 1_700_000_000_000;
const TOPOLOGY: Topology = Topology { partitions: 1 };

/// Another writer is so quick that only a command by itself comes between two of its own.
struct Contended {
    store: Arc<dyn EventStore>,
}

#[async_trait]
impl EventStore for Contended {
    async fn append(&self, batch: &AppendBatch) -> Result<Appended, EventStoreError> {
        if batch.commands.len() > 1 {
            return Err(EventStoreError::Conflict { what: "the stream of the other writer".to_owned() });
        }
        self.store.append(batch).await
    }

    async fn lease_relay(&self) -> Result<RelayLease, EventStoreError> {
        self.store.lease_relay().await
    }

    async fn release_relay(&self) -> Result<(), EventStoreError> {
        self.store.release_relay().await
    }

    async fn reset_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        self.store.reset_cursor(epoch, cursor).await
    }

    async fn restore(&self, rows: &RestoredRows) -> Result<(), EventStoreError> {
        self.store.restore(rows).await
    }

    async fn read_committed(&self, after: StorePosition, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        self.store.read_committed(after, limit).await
    }

    async fn relay_cursor(&self) -> Result<RelayCursor, EventStoreError> {
        self.store.relay_cursor().await
    }

    async fn save_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        self.store.save_cursor(epoch, cursor).await
    }

    async fn wait_for_appends(&self, timeout: Duration) {
        self.store.wait_for_appends(timeout).await;
    }

    async fn topology(&self) -> Result<Option<Topology>, EventStoreError> {
        self.store.topology().await
    }

    async fn fix_topology(&self, asked: Topology) -> Result<Topology, EventStoreError> {
        self.store.fix_topology(asked).await
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, EventStoreError> {
        self.store.load(request).await
    }

    async fn relay_lag(&self, now: i64) -> Result<(u64, Option<i64>), EventStoreError> {
        self.store.relay_lag(now).await
    }

    async fn command_offsets(&self, topic: &str) -> Result<HashMap<u32, u64>, EventStoreError> {
        self.store.command_offsets(topic).await
    }

    async fn due_timers(&self, now: i64, limit: usize) -> Result<Vec<Timer>, EventStoreError> {
        self.store.due_timers(now, limit).await
    }

    async fn outcome(&self, id: Uuid) -> Result<Option<StoredOutcome>, EventStoreError> {
        self.store.outcome(id).await
    }

    async fn forget_outcomes(&self, before: i64, limit: usize) -> Result<u64, EventStoreError> {
        self.store.forget_outcomes(before, limit).await
    }

    async fn read_stream(&self, of: &StreamId, from: u64, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        self.store.read_stream(of, from, limit).await
    }

    async fn ping(&self) -> Result<(), EventStoreError> {
        self.store.ping().await
    }
}

#[tokio::test]
async fn a_group_that_always_meets_another_writer_is_decided_in_pieces_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn EventStore> = Arc::new(SqliteEventStore::open(folder.path().join("events.db")).unwrap());
    store.fix_topology(TOPOLOGY).await.unwrap();
    let contended = Arc::new(Contended { store: store.clone() });
    let settings = HandlerSettings { retry_for: Duration::from_millis(500), ..HandlerSettings::default() };
    let shutdown = CancellationToken::new();
    let (handler, running) = CommandHandler::start(contended, TOPOLOGY, settings, shutdown.clone());

    let mut waiting = Vec::new();
    for number in 1..=21_u64 {
        let data = json!({ "sku": "TEA", "warehouse": "ham-1", "region": "north", "quantity": number });
        let text = json!({ "id": Uuid::from_u128(number.into()), "type": "ReceiveStock", "data": data }).to_string();
        let command = CommandEnvelope::from_json(text.as_bytes(), None, NOW).unwrap();
        waiting.push(handler.enqueue(vec![command]).await);
    }
    for (number, one) in (1..).zip(waiting) {
        let outcomes = one.outcomes().await;
        assert_eq!((outcomes[0].outcome, outcomes[0].version), (OutcomeKind::Accepted, Some(number)), "{outcomes:?}");
    }
    shutdown.cancel();
    running.await.unwrap();
}
