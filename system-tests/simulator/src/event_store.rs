//! A simulated event store: transactions with ids that are open for a while, commit out of order and hold the snapshot
//! horizon back, as Postgres does.
//!
//! An append takes what it locks at once or waits, so transactions never wait for each other in a circle.

mod append;
mod tables;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use event_store::{
    AppendBatch, Appended, EventStore, EventStoreError, LoadRequest, Loaded, RelayCursor, RelayLease, RestoredRows,
    StoredEvent, StoredOffset, StoredOutcome, StreamId, Timer, Topology,
};
use schemas::StorePosition;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::guard::Guard;
use crate::process::{Call, Lost, Process, deliver};
use tables::Tables;

/// The server: what outlives the processes.
#[derive(Clone, Default)]
pub struct EventStoreServer {
    tables: Arc<Mutex<Tables>>,
    /// Told at the end of each transaction, and when a lease is given up.
    changed: Arc<Notify>,
}

/// A process's connection to it.
pub struct SimulatedEventStore {
    server: EventStoreServer,
    process: Process,
    /// Tells one connection from another: the relay's lease belongs to one.
    connection: u64,
    appended: Notify,
}

/// How long a silent leader keeps its lease.
const LEASE: Duration = Duration::from_secs(4);
/// How often what only time changes is looked at.
const LOOK: Duration = Duration::from_millis(50);

// === impl EventStoreServer ===

impl EventStoreServer {
    pub fn connect(&self, process: Process) -> SimulatedEventStore {
        let connection = self.tables().next_connection();
        SimulatedEventStore { server: self.clone(), process, connection, appended: Notify::new() }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every committed row, in the relay's order.
    pub fn committed(&self) -> Vec<StoredEvent> {
        self.tables().rows.values().cloned().collect()
    }

    /// Whether a transaction is open: nothing is settled then.
    pub fn is_busy(&self) -> bool {
        !self.tables().open.is_empty()
    }

    /// Timers that nobody has given yet, by now or later.
    pub fn offsets(&self) -> Vec<((String, u32), u64)> {
        self.tables().offsets.iter().map(|(at, stored)| (at.clone(), stored.next)).collect()
    }
}

// === impl SimulatedEventStore ===

impl SimulatedEventStore {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.server.tables()
    }

    async fn begin(&self, operation: &'static str) -> Result<Call, EventStoreError> {
        self.process.begin(operation).await.map_err(unavailable)
    }

    /// Reads or writes in one step.
    async fn at_once<T>(
        &self,
        operation: &'static str,
        effect: impl FnOnce(&mut Tables) -> Result<T, EventStoreError>,
    ) -> Result<T, EventStoreError> {
        let call = self.begin(operation).await?;
        let result = effect(&mut self.tables());
        self.process.finish(call).await.map_err(unavailable)?;
        result
    }
}

fn unavailable(lost: Lost) -> EventStoreError {
    EventStoreError::Unavailable { address: "simulated".to_owned(), problem: lost.0.to_owned() }
}

impl Drop for SimulatedEventStore {
    fn drop(&mut self) {
        let mut tables = self.tables();
        if tables.relay.holder.as_ref().is_some_and(|(connection, _)| *connection == self.connection) {
            tables.relay.holder = None;
        }
        drop(tables);
        self.server.changed.notify_waiters();
    }
}

#[async_trait]
impl EventStore for SimulatedEventStore {
    async fn topology(&self) -> Result<Option<Topology>, EventStoreError> {
        self.at_once("topology", |tables| Ok(tables.topology)).await
    }

    async fn fix_topology(&self, asked: Topology) -> Result<Topology, EventStoreError> {
        self.at_once("fix_topology", |tables| {
            let stored = *tables.topology.get_or_insert(asked);
            if stored == asked {
                return Ok(stored);
            }
            Err(EventStoreError::Topology { stored: stored.partitions, asked: asked.partitions })
        })
        .await
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, EventStoreError> {
        let forgets_ids = self.process.world().is_off(Guard::CommandId);
        self.at_once("load", |tables| tables.load(request, forgets_ids)).await
    }

    async fn append(&self, batch: &AppendBatch) -> Result<Appended, EventStoreError> {
        let appended = append::append(self, batch).await;
        self.appended.notify_one();
        appended
    }

    async fn command_offsets(&self, topic: &str) -> Result<HashMap<u32, StoredOffset>, EventStoreError> {
        self.at_once("command_offsets", |tables| {
            let of_topic = tables.offsets.iter().filter(|((stored, _), _)| stored == topic);
            Ok(of_topic.map(|((_, partition), stored)| (*partition, *stored)).collect())
        })
        .await
    }

    async fn due_timers(&self, now: i64, limit: usize) -> Result<Vec<Timer>, EventStoreError> {
        self.at_once("due_timers", |tables| {
            let mut due: Vec<Timer> = tables.timers.values().filter(|timer| timer.due_at <= now).cloned().collect();
            due.sort_by(|a, b| (a.due_at, &a.key).cmp(&(b.due_at, &b.key)));
            due.truncate(limit);
            Ok(due)
        })
        .await
    }

    async fn outcome(&self, id: Uuid) -> Result<Option<StoredOutcome>, EventStoreError> {
        self.at_once("outcome", |tables| Ok(tables.commands.get(&id).map(|stored| stored.outcome.clone()))).await
    }

    async fn forget_outcomes(&self, before: i64, limit: usize) -> Result<u64, EventStoreError> {
        self.at_once("forget_outcomes", |tables| Ok(tables.forget(before, limit))).await
    }

    async fn lease_relay(&self) -> Result<RelayLease, EventStoreError> {
        loop {
            let call = self.begin("lease_relay").await?;
            let lease = {
                let mut tables = self.tables();
                let is_held = tables.relay.holder.as_ref().is_some_and(|(connection, holder)| {
                    *connection != self.connection && !holder.is_dead() && holder.silent_for() < LEASE
                });
                if is_held {
                    None
                } else {
                    tables.relay.epoch += 1;
                    tables.relay.holder = Some((self.connection, self.process.clone()));
                    let cursor =
                        RelayCursor { position: tables.relay.position, sequences: tables.relay.sequences.clone() };
                    Some(RelayLease { epoch: tables.relay.epoch, cursor })
                }
            };
            self.process.finish(call).await.map_err(unavailable)?;
            if let Some(lease) = lease {
                let world = self.process.world();
                world.count(|stats| stats.relay_takeovers += 1);
                world.trace(|| format!("{} leads with epoch {}", self.process.name(), lease.epoch));
                return Ok(lease);
            }
            let _ = tokio::time::timeout(LOOK * 10, self.server.changed.notified()).await;
        }
    }

    async fn relay_cursor(&self) -> Result<RelayCursor, EventStoreError> {
        self.at_once("relay_cursor", |tables| {
            Ok(RelayCursor { position: tables.relay.position, sequences: tables.relay.sequences.clone() })
        })
        .await
    }

    async fn release_relay(&self) -> Result<(), EventStoreError> {
        let connection = self.connection;
        self.at_once("release_relay", |tables| {
            tables.relay.holder.take_if(|(holder, _)| *holder == connection);
            Ok(())
        })
        .await?;
        self.server.changed.notify_waiters();
        Ok(())
    }

    async fn reset_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        self.at_once("reset_cursor", |tables| tables.reset_cursor(epoch, cursor)).await
    }

    async fn restore(&self, rows: &RestoredRows) -> Result<(), EventStoreError> {
        self.at_once("restore", |tables| append::restore(tables, rows)).await?;
        self.appended.notify_one();
        Ok(())
    }

    async fn read_committed(&self, cursor: StorePosition, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        let world = self.process.world().clone();
        self.at_once("read_committed", |tables| {
            tables.reap();
            Ok(tables.read_committed(&world, cursor, limit))
        })
        .await
    }

    async fn save_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        let (server, process, cursor) = (self.server.clone(), self.process.clone(), cursor.clone());
        deliver(async move {
            let is_unguarded = process.world().is_off(Guard::RelayEpoch);
            let call = process.begin("save_cursor").await.map_err(unavailable)?;
            let result = server.tables().save_cursor(epoch, &cursor, is_unguarded);
            process.world().trace(|| format!("{} saves {}: {}", call.place, cursor.position, told(&result)));
            process.finish(call).await.map_err(unavailable)?;
            result
        })
        .await
    }

    async fn wait_for_appends(&self, timeout: Duration) {
        let _ = tokio::time::timeout(timeout, self.appended.notified()).await;
        self.process.awake().await;
    }

    async fn read_stream(
        &self,
        stream: &StreamId,
        from_version: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, EventStoreError> {
        self.at_once("read_stream", |tables| {
            let of_stream = tables.rows.values().filter(|row| row.stream == *stream && row.version >= from_version);
            let mut rows: Vec<StoredEvent> = of_stream.cloned().collect();
            rows.sort_by_key(|row| row.version);
            rows.truncate(limit);
            Ok(rows)
        })
        .await
    }

    async fn relay_lag(&self, now: i64) -> Result<(u64, Option<i64>), EventStoreError> {
        self.at_once("relay_lag", |tables| Ok(tables.lag(now))).await
    }

    async fn ping(&self) -> Result<(), EventStoreError> {
        self.at_once("ping", |_| Ok(())).await
    }
}

fn told<T>(result: &Result<T, EventStoreError>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(error) => error.to_string(),
    }
}
