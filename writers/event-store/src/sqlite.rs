//! The event store in one SQLite file: the embedded default, nothing to install.
//!
//! Guarantees: an append is one transaction and is on the disk when it returns (`synchronous` FULL: one fsync per
//! group of commands). There is one writer at a time, so `position` alone is the commit order; `xid` is always 0.
//!
//! One relay leads, across processes, by a lock on a file beside the database; the operating system gives it up with
//! the process that held it.

mod append;
mod file;
mod load;
mod relay;
mod restore;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Transaction, params};
use schemas::{Outcome, StorePosition};
use tokio::sync::Notify;
use uuid::Uuid;

use self::file::{Abort, EventFile};
use crate::error::EventStoreError;
use crate::outcome_row::stored_digest;
use crate::rebuild::stored_schema;
use crate::store::{
    AppendBatch, Appended, EventStore, LoadRequest, Loaded, RecordIdentity, RelayCursor, RelayLease, RestoredRows,
    StoredEvent, StoredOffset, StoredOutcome, Timer, Topology,
};
use domain::StreamId;

/// How often a relay that waits for its turn looks whether the leader is gone.
const LEASE_POLL: Duration = Duration::from_millis(200);

/// An event store in a SQLite file.
pub struct SqliteEventStore {
    file: Arc<EventFile>,
    appended: Notify,
}

// === impl SqliteEventStore ===

impl SqliteEventStore {
    /// Opens the file, makes it when it is missing, and brings its tables up to date. Blocks for as long as that takes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, EventStoreError> {
        Ok(Self { file: Arc::new(EventFile::open(path.as_ref())?), appended: Notify::new() })
    }

    /// Opens an existing file for reading, beside a process that may be writing to it.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, EventStoreError> {
        Ok(Self { file: Arc::new(EventFile::open_read_only(path.as_ref())?), appended: Notify::new() })
    }

    /// Runs blocking file work off the runtime.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&EventFile) -> Result<T, EventStoreError> + Send + 'static,
    ) -> Result<T, EventStoreError> {
        let file = self.file.clone();
        match tokio::task::spawn_blocking(move || work(&file)).await {
            Ok(result) => result,
            Err(error) => Err(EventStoreError::Permanent { problem: error.to_string() }),
        }
    }
}

#[async_trait]
impl EventStore for SqliteEventStore {
    async fn topology(&self) -> Result<Option<Topology>, EventStoreError> {
        self.blocking(|file| file.read(|reader| Ok(fixed_topology(reader)?))).await
    }

    async fn fix_topology(&self, asked: Topology) -> Result<Topology, EventStoreError> {
        self.blocking(move |file| {
            file.write(|transaction| {
                transaction
                    .execute("INSERT OR IGNORE INTO topology (one, partitions) VALUES (1, ?1)", [asked.partitions])?;
                match fixed_topology(transaction)? {
                    Some(stored) if stored != asked => Err(Abort::Refused(EventStoreError::Topology {
                        stored: stored.partitions,
                        asked: asked.partitions,
                    })),
                    _ => Ok(asked),
                }
            })
        })
        .await
    }

    async fn load(&self, request: &LoadRequest) -> Result<Loaded, EventStoreError> {
        let request = request.clone();
        self.blocking(move |file| file.read(|reader| load::load(reader, &request))).await
    }

    async fn append(&self, batch: &AppendBatch) -> Result<Appended, EventStoreError> {
        let batch = batch.clone();
        let appended = self.blocking(move |file| file.write(|transaction| append::append(transaction, &batch))).await?;
        self.appended.notify_one();
        Ok(appended)
    }

    async fn command_offsets(&self, topic: &str) -> Result<HashMap<u32, StoredOffset>, EventStoreError> {
        let topic = topic.to_owned();
        self.blocking(move |file| {
            file.read(|reader| {
                let mut select = reader.prepare_cached(
                    "SELECT partition, next_offset, last_offset, last_digest FROM command_offsets WHERE topic = ?1",
                )?;
                let rows = select.query_map([topic], stored_offset)?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
        })
        .await
    }

    async fn due_timers(&self, now: i64, limit: usize) -> Result<Vec<Timer>, EventStoreError> {
        self.blocking(move |file| {
            file.read(|reader| {
                let mut select = reader.prepare_cached(
                    "SELECT key, due_at, command FROM timers WHERE due_at <= ?1 ORDER BY due_at, key LIMIT ?2",
                )?;
                let rows = select.query_map(params![now, limit as i64], |row| {
                    Ok(Timer { key: row.get(0)?, due_at: row.get(1)?, command: row.get(2)? })
                })?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
        })
        .await
    }

    async fn outcome(&self, id: Uuid) -> Result<Option<StoredOutcome>, EventStoreError> {
        self.blocking(move |file| file.read(|reader| stored_outcome(reader, id))).await
    }

    async fn forget_outcomes(&self, before: i64, limit: usize) -> Result<u64, EventStoreError> {
        self.blocking(move |file| {
            file.write(|transaction| {
                let forgotten = transaction.execute(
                    "DELETE FROM commands WHERE id IN
                         (SELECT id FROM commands WHERE received_at < ?1 ORDER BY received_at LIMIT ?2)",
                    params![before, limit as i64],
                )?;
                Ok(forgotten as u64)
            })
        })
        .await
    }

    async fn lease_relay(&self) -> Result<RelayLease, EventStoreError> {
        while !self.blocking(|file| file.take_relay_lock()).await? {
            tokio::time::sleep(LEASE_POLL).await;
        }
        self.blocking(|file| file.write(relay::lease)).await
    }

    async fn release_relay(&self) -> Result<(), EventStoreError> {
        self.blocking(|file| {
            file.release_relay_lock();
            Ok(())
        })
        .await
    }

    async fn reset_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        let cursor = cursor.clone();
        self.blocking(move |file| file.write(|transaction| relay::reset_cursor(transaction, epoch, &cursor))).await
    }

    async fn restore(&self, rows: &RestoredRows) -> Result<(), EventStoreError> {
        let rows = rows.clone();
        self.blocking(move |file| file.write(|transaction| restore::restore(transaction, &rows))).await?;
        self.appended.notify_one();
        Ok(())
    }

    async fn read_committed(&self, cursor: StorePosition, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError> {
        self.blocking(move |file| file.read(|reader| relay::read_committed(reader, cursor, limit))).await
    }

    async fn relay_cursor(&self) -> Result<RelayCursor, EventStoreError> {
        self.blocking(|file| file.read(relay::cursor)).await
    }

    async fn save_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError> {
        let cursor = cursor.clone();
        self.blocking(move |file| file.write(|transaction| relay::save_cursor(transaction, epoch, &cursor))).await
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
        let stream = stream.clone();
        self.blocking(move |file| file.read(|reader| relay::read_stream(reader, &stream, from_version, limit))).await
    }

    async fn relay_lag(&self, now: i64) -> Result<(u64, Option<i64>), EventStoreError> {
        self.blocking(move |file| file.read(|reader| relay::lag(reader, now))).await
    }

    async fn unpublished(&self) -> Result<u64, EventStoreError> {
        self.blocking(|file| file.read(|reader| Ok(relay::unpublished(reader)?))).await
    }

    async fn is_published_again(&self) -> Result<bool, EventStoreError> {
        self.blocking(|file| file.read(|reader| Ok(relay::published_again_to(reader)?.is_some()))).await
    }

    async fn ping(&self) -> Result<(), EventStoreError> {
        self.blocking(|file| file.read(|reader| Ok(fixed_topology(reader)?))).await.map(|_| ())
    }
}

fn fixed_topology(reader: &Transaction<'_>) -> rusqlite::Result<Option<Topology>> {
    reader
        .prepare_cached("SELECT partitions FROM topology")?
        .query_row([], |row| Ok(Topology { partitions: row.get(0)? }))
        .optional()
}

fn stored_offset(row: &rusqlite::Row<'_>) -> rusqlite::Result<(u32, StoredOffset)> {
    // Only ever compared: one that cannot be is none.
    let digest = row.get::<_, Option<Vec<u8>>>(3)?.and_then(|bytes| bytes.try_into().ok());
    let last = row.get::<_, Option<i64>>(2)?.zip(digest);
    let last = last.map(|(offset, digest)| RecordIdentity { offset: offset as u64, digest });
    Ok((row.get(0)?, StoredOffset { next: row.get::<_, i64>(1)? as u64, last }))
}

fn stored_outcome(reader: &Transaction<'_>, id: Uuid) -> Result<Option<StoredOutcome>, Abort> {
    let found: Option<(Vec<u8>, String)> = reader
        .prepare_cached("SELECT digest, outcome FROM commands WHERE id = ?1")?
        .query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((digest, text)) = found else { return Ok(None) };
    let damaged = |problem: String| EventStoreError::Damaged { what: format!("outcome of command {id}"), problem };
    let digest = stored_digest(&digest).map_err(damaged)?;
    let outcome: Outcome = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(StoredOutcome { digest, outcome }))
}

/// The columns of [`StoredEvent`], in the order that [`stored_event`] reads them.
const EVENT_COLUMNS: &str = "position, topic, stream, version, key, id, schema, schema_version, body, time,
     correlation_id, causation_id, actor, traceparent";

fn stored_event(row: &rusqlite::Row<'_>) -> Result<StoredEvent, Abort> {
    let schema: String = row.get(6)?;
    Ok(StoredEvent {
        position: StorePosition { xid: 0, position: row.get::<_, i64>(0)? as u64 },
        topic: row.get(1)?,
        stream: StreamId::from_stored(row.get::<_, String>(2)?),
        version: row.get::<_, i64>(3)? as u64,
        key: row.get(4)?,
        id: Uuid::from_bytes(row.get(5)?),
        schema: stored_schema(&schema, row.get(7)?)?,
        body: row.get(8)?,
        time: row.get(9)?,
        correlation_id: row.get(10)?,
        causation_id: row.get(11)?,
        actor: row.get(12)?,
        traceparent: row.get(13)?,
    })
}
