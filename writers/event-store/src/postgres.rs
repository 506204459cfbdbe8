//! The event store on Postgres (13 or newer): the scale-out adapter, for several writers and a standby relay.
//!
//! Guarantees: an append is one transaction, on the disk when it returns. Loads end before it, and its first write
//! draws its xid, so along a stream versions, xids and commits have one order (fault 3). No NOTIFY: it would take a
//! lock across the whole server at every commit; a relay of the same process is woken, others poll.
//!
//! Sessions keep prepared statements, settings and the relay's lock: a pooler between must pool by session.

mod append;
mod early;
mod event_rows;
mod failure;
mod horizon;
mod load;
mod migrate;
mod pool;
mod relay;
mod restore;
mod rows;
mod statements;

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use domain::StreamId;
use resilience::{Guard, Open, guard};
use schemas::StorePosition;
use tokio::sync::Notify;
use uuid::Uuid;

use self::early::EarlyTransaction;
use self::failure::Failure;
use self::horizon::HorizonWatch;
use self::pool::{Pool, Server, Session, within};
use self::relay::RelayLock;
use self::rows::{stored_event, stored_offset, stored_outcome};
use crate::error::EventStoreError;
use crate::store::{
    AppendBatch, Appended, EventStore, LoadRequest, Loaded, RelayCursor, RelayLease, RestoredRows, StoredEvent,
    StoredOffset, StoredOutcome, Timer, Topology,
};

/// An event store in a Postgres database.
pub struct PostgresEventStore {
    pool: Pool,
    relay_lock: RelayLock,
    /// Empty while the guard holds.
    early: EarlyTransaction,
    horizon: HorizonWatch,
    appended: Notify,
    /// Once fixed it never changes.
    topology: OnceLock<Topology>,
}

// === impl PostgresEventStore ===

impl PostgresEventStore {
    /// Connects to `postgres://user@host:port/database`, and brings its tables up to date.
    pub async fn connect(url: &str) -> Result<Self, EventStoreError> {
        let server = Server::of(url)?;
        let connection = server.connect().await?;
        let migrated = within(migrate::migrate(&connection.client)).await;
        migrated.map_err(|failure| failure.into_error(server.address()))?;
        Ok(Self::on(server))
    }

    /// Connects for reading only: nothing can be written, and tables of an older build wait for somebody to bring them
    /// up to date.
    pub async fn connect_read_only(url: &str) -> Result<Self, EventStoreError> {
        let server = Server::of(url)?.read_only();
        let connection = server.connect().await?;
        let checked = within(migrate::check_to_read(&connection.client, server.address())).await;
        checked.map_err(|failure| failure.into_error(server.address()))?;
        Ok(Self::on(server))
    }

    fn on(server: Server) -> Self {
        Self {
            pool: Pool::new(server),
            relay_lock: RelayLock::default(),
            early: EarlyTransaction::default(),
            horizon: HorizonWatch::new(),
            appended: Notify::new(),
            topology: OnceLock::new(),
        }
    }

    async fn fixed_topology(&self, session: &Session) -> Result<Option<Topology>, Failure> {
        if let Some(topology) = self.topology.get() {
            return Ok(Some(*topology));
        }
        let Some(row) = session.client().query_opt(&session.statements.topology, &[]).await? else { return Ok(None) };
        let topology = Topology { partitions: row.try_get::<_, i32>(0)? as u32 };
        Ok(Some(*self.topology.get_or_init(|| topology)))
    }

    async fn append_in(&self, session: &Session, batch: &AppendBatch) -> Result<Appended, Failure> {
        let topology = self.fixed_topology(session).await?.ok_or_else(|| EventStoreError::Permanent {
            problem: "no topology is fixed: start `millrace up` or `millrace write` first".to_owned(),
        })?;
        append::append(session, batch, topology).await
    }
}

#[async_trait]
impl EventStore for PostgresEventStore {
    async fn topology(&self) -> Result<Option<Topology>, EventStoreError> {
        let session = self.pool.session().await?;
        let found = within(self.fixed_topology(&session)).await;
        session.settle(found)
    }

    async fn fix_topology(&self, asked: Topology) -> Result<Topology, EventStoreError> {
        let session = self.pool.session().await?;
        let fixing = async {
            session.client().execute(&session.statements.fix_topology, &[&(asked.partitions as i32)]).await?;
            match self.fixed_topology(&session).await? {
                Some(stored) if stored != asked => {
                    Err(EventStoreError::Topology { stored: stored.partitions, asked: asked.partitions }.into())
                }
                _ => Ok(asked),
            }
        };
        let fixed = within(fixing).await;
        session.settle(fixed)
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, EventStoreError> {
        if !guard::holds(Guard::LoadsBeforeWrites) {
            return self.early.load(self.pool.server(), request).await;
        }
        let session = self.pool.session_of_command().await?;
        let loaded = within(load::load(&session, request)).await;
        session.settle(loaded)
    }

    async fn append(&self, batch: &AppendBatch) -> Result<Appended, EventStoreError> {
        let early = if guard::holds(Guard::LoadsBeforeWrites) { None } else { self.early.take().await };
        let appended = match early {
            Some(session) => {
                let appended = within(self.append_in(&session, batch)).await;
                appended.map_err(|failure| failure.into_error(self.pool.server().address()))?
            }
            None => {
                let session = self.pool.session_of_command().await?;
                let appended = within(self.append_in(&session, batch)).await;
                session.settle(appended)?
            }
        };
        // Kept for the relay where it does not wait just now.
        self.appended.notify_one();
        Ok(appended)
    }

    async fn command_offsets(&self, topic: &str) -> Result<HashMap<u32, StoredOffset>, EventStoreError> {
        let session = self.pool.session_of_command().await?;
        let reading = async {
            let rows = session.client().query(&session.statements.command_offsets, &[&topic]).await?;
            rows.iter().map(stored_offset).collect()
        };
        let offsets = within(reading).await;
        session.settle(offsets)
    }

    async fn due_timers(&self, now: i64, limit: usize) -> Result<Vec<Timer>, EventStoreError> {
        let session = self.pool.session().await?;
        let reading = async {
            let rows = session.client().query(&session.statements.due_timers, &[&now, &(limit as i64)]).await?;
            rows.iter()
                .map(|row| Ok(Timer { key: row.try_get(0)?, due_at: row.try_get(1)?, command: row.try_get(2)? }))
                .collect()
        };
        let timers = within(reading).await;
        session.settle(timers)
    }

    async fn outcome(&self, id: Uuid) -> Result<Option<StoredOutcome>, EventStoreError> {
        let session = self.pool.session_of_command().await?;
        let reading = async {
            let row = session.client().query_opt(&session.statements.outcomes, &[&vec![id]]).await?;
            Ok(row.as_ref().map(stored_outcome).transpose()?.map(|(_, outcome)| outcome))
        };
        let outcome = within(reading).await;
        session.settle(outcome)
    }

    async fn forget_outcomes(&self, before: i64, limit: usize) -> Result<u64, EventStoreError> {
        let session = self.pool.session().await?;
        let forgetting = async {
            Ok(session.client().execute(&session.statements.forget_outcomes, &[&before, &(limit as i64)]).await?)
        };
        let forgotten = within(forgetting).await;
        session.settle(forgotten)
    }

    async fn lease_relay(&self) -> Result<RelayLease, EventStoreError> {
        self.relay_lock.lease(self.pool.server()).await
    }

    async fn release_relay(&self) -> Result<(), EventStoreError> {
        self.relay_lock.release().await;
        Ok(())
    }

    async fn reset_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        self.relay_lock.reset_cursor(self.pool.server(), epoch, cursor).await
    }

    async fn restore(&self, rows: &RestoredRows) -> Result<(), EventStoreError> {
        let session = self.pool.session().await?;
        let restored = restore::restore(&session, rows).await;
        session.settle(restored)?;
        self.appended.notify_one();
        Ok(())
    }

    async fn read_committed(&self, cursor: StorePosition, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        let session = self.pool.session().await?;
        let events = within(relay::read_committed(&session, cursor, limit)).await;
        session.settle(events)
    }

    async fn relay_cursor(&self) -> Result<RelayCursor, EventStoreError> {
        let session = self.pool.session().await?;
        let cursor = within(relay::cursor(&session)).await;
        session.settle(cursor)
    }

    async fn save_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        self.relay_lock.save_cursor(self.pool.server(), epoch, cursor).await
    }

    async fn wait_for_appends(&self, timeout: Duration) {
        // A timeout is the other way to wake up: appends of other processes notify nobody here.
        let _ = tokio::time::timeout(timeout, self.appended.notified()).await;
    }

    async fn read_stream(
        &self,
        stream: &StreamId,
        from_version: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, EventStoreError> {
        let session = self.pool.session().await?;
        let reading = async {
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                [&stream.as_str(), &(from_version as i64), &(limit as i64)];
            let rows = session.client().query(&session.statements.read_stream, &parameters).await?;
            rows.iter().map(stored_event).collect()
        };
        let events = within(reading).await;
        session.settle(events)
    }

    async fn relay_lag(&self, now: i64) -> Result<(u64, Option<i64>), EventStoreError> {
        let session = self.pool.session().await?;
        let lag = within(self.horizon.lag(&session, now)).await;
        session.settle(lag)
    }

    async fn unpublished(&self) -> Result<u64, EventStoreError> {
        let session = self.pool.session().await?;
        let waiting = within(relay::unpublished(&session)).await;
        session.settle(waiting)
    }

    async fn is_published_again(&self) -> Result<bool, EventStoreError> {
        let session = self.pool.session().await?;
        let is_again = within(relay::is_published_again(&session)).await;
        session.settle(is_again)
    }

    fn refusal(&self) -> Option<Open> {
        self.pool.refusal()
    }

    async fn ping(&self) -> Result<(), EventStoreError> {
        let session = self.pool.session().await?;
        let pinged = within(async { Ok(session.client().simple_query("SELECT 1").await.map(|_| ())?) }).await;
        session.settle(pinged)
    }
}

#[cfg(test)]
mod tests;
