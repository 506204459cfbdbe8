//! Stop 5 on Postgres: the committed rows in their order, and how far the relay is.
//!
//! Order is (xid, position), read below the snapshot horizon: a transaction that still runs may commit a lower
//! position than one already seen, but never a lower place below the horizon (fault 2).

use std::collections::HashMap;
use std::time::Duration;

use resilience::{Guard, guard};
use schemas::StorePosition;
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;

use super::failure::{Failure, unavailable};
use super::pool::{Server, Session, within};
use super::rows::{position, stored_event, unsigned};
use super::statements::{READ_COMMITTED, SAVE_CURSOR};
use crate::error::EventStoreError;
use crate::store::{MOST_COUNTED, RelayCursor, RelayLease, StoredEvent};

/// How often a relay that waits for its turn asks for the lock. Asking again and again, rather than waiting in one
/// statement, holds no snapshot that would keep the server from vacuuming.
const LEASE_POLL: Duration = Duration::from_millis(200);

const TRY_LOCK: &str = "SELECT pg_try_advisory_lock(hashtextextended('millrace relay', 0))";

/// The session that holds the relay's lock; the server gives the lock up with it. The cursor moves in it alone: what
/// another server, or the same one after it was started anew, has committed need not be what was published.
#[derive(Default)]
pub(super) struct RelayLock {
    session: Mutex<Option<Session>>,
}

// === impl RelayLock ===

impl RelayLock {
    /// Waits for the lock, then takes a higher epoch. The same process may lead again without waiting for itself.
    pub(super) async fn lease(&self, server: &Server) -> Result<RelayLease, EventStoreError> {
        let mut held = self.session.lock().await;
        let session = match held.take() {
            Some(session) if !session.client().is_closed() => session,
            _ => server.session().await?,
        };
        loop {
            let asking = async { Ok(session.client().query_one(TRY_LOCK, &[]).await?.try_get::<_, bool>(0)?) };
            match within(asking).await {
                Ok(true) => break,
                Ok(false) => tokio::time::sleep(LEASE_POLL).await,
                Err(failure) => return Err(failure.into_error(server.address())),
            }
        }
        let lease = within(raise_epoch(&session)).await.map_err(|failure| failure.into_error(server.address()))?;
        *held = Some(session);
        Ok(lease)
    }

    pub(super) async fn save_cursor(
        &self,
        server: &Server,
        epoch: u64,
        cursor: &RelayCursor,
    ) -> Result<(), EventStoreError> {
        self.leading(server, epoch, async |session| save_cursor(session, epoch, cursor).await).await
    }

    pub(super) async fn reset_cursor(
        &self,
        server: &Server,
        epoch: u64,
        cursor: &RelayCursor,
    ) -> Result<(), EventStoreError> {
        self.leading(server, epoch, async |session| reset_cursor(session, epoch, cursor).await).await
    }

    /// Works in the session that holds the lock.
    async fn leading(
        &self,
        server: &Server,
        epoch: u64,
        work: impl AsyncFnOnce(&Session) -> Result<(), Failure>,
    ) -> Result<(), EventStoreError> {
        let mut held = self.session.lock().await;
        let Some(session) = held.take().filter(|session| !session.client().is_closed()) else {
            let session = server.session().await?;
            let current =
                within(current_epoch(&session)).await.map_err(|failure| failure.into_error(server.address()))?;
            if current != epoch {
                return Err(EventStoreError::RelaySuperseded { epoch, current });
            }
            return Err(unavailable(server.address(), "the session that held the relay's lock ended".to_owned()));
        };
        let worked = within(work(&session)).await;
        if let Ok(()) | Err(Failure::Refused(_)) = &worked {
            *held = Some(session);
        }
        worked.map_err(|failure| failure.into_error(server.address()))
    }

    /// Ends the session, and the lock with it.
    pub(super) async fn release(&self) {
        self.session.lock().await.take();
    }
}

/// A new epoch and the cursor as the leader before left it: one transaction.
async fn raise_epoch(session: &Session) -> Result<RelayLease, Failure> {
    let Session { statements, .. } = session;
    let client = session.client();
    client.batch_execute("BEGIN").await?;
    let row = client.query_one(&statements.raise_epoch, &[]).await?;
    let (epoch, cursor) = (unsigned(&row, 0)?, position(&row, 1, 2)?);
    check_table_end(session, cursor).await?;
    let mut sequences = HashMap::new();
    for row in client.query(&statements.relay_sequences, &[]).await? {
        sequences.insert((row.try_get(0)?, row.try_get::<_, i32>(1)? as u32), unsigned(&row, 2)?);
    }
    client.batch_execute("COMMIT").await?;
    Ok(RelayLease { epoch, cursor: RelayCursor { position: cursor, sequences } })
}

pub(super) async fn read_committed(
    session: &Session,
    cursor: StorePosition,
    limit: usize,
) -> Result<Vec<StoredEvent>, Failure> {
    let (xid, after, limit) = (cursor.xid.to_string(), cursor.position as i64, limit as i64);
    let rows = if guard::holds(Guard::SnapshotHorizon) && guard::holds(Guard::PairCursor) {
        session.client().query(&session.statements.read_committed, &[&xid, &after, &limit]).await?
    } else {
        session.client().query(&unguarded_read(guard::holds), &[&xid, &after, &limit]).await?
    };
    if rows.is_empty() {
        check_table_end(session, cursor).await?;
    }
    rows.iter().map(stored_event).collect()
}

/// A cursor stands on a row that was read, and rows are not deleted: a table that ends before it has lost some, and its
/// next rows would be passed over. A whole database that was restored takes its cursor back too; that is not seen here.
async fn check_table_end(session: &Session, cursor: StorePosition) -> Result<(), Failure> {
    if cursor == StorePosition::default() {
        return Ok(());
    }
    let row = session.client().query_opt(&session.statements.table_end, &[]).await?;
    let end = row.map(|row| position(&row, 0, 1)).transpose()?.unwrap_or_default();
    if cursor <= end {
        return Ok(());
    }
    Err(EventStoreError::TableEndsBefore { end, cursor }.into())
}

/// Rows after the highest place that was ever published, [`MOST_COUNTED`] at most.
pub(super) async fn unpublished(session: &Session) -> Result<u64, Failure> {
    unsigned(&session.client().query_one(&session.statements.unpublished, &[&(MOST_COUNTED as i64)]).await?, 0)
}

pub(super) async fn is_published_again(session: &Session) -> Result<bool, Failure> {
    Ok(session.client().query_one(&session.statements.is_published_again, &[]).await?.try_get(0)?)
}

const SET_BACK: &str = "
    BEGIN;
    UPDATE relay SET published_xid = xid, published_position = position
    WHERE (xid, position) > (published_xid, published_position);
    UPDATE relay SET xid = '0', position = 0;
    DELETE FROM relay_sequences";

/// One transaction.
async fn reset_cursor(session: &Session, epoch: u64, cursor: &RelayCursor) -> Result<(), Failure> {
    let client = session.client();
    client.batch_execute(SET_BACK).await?;
    match save_cursor(session, epoch, cursor).await {
        Ok(()) => Ok(client.batch_execute("COMMIT").await?),
        Err(Failure::Refused(refused)) => {
            client.batch_execute("ROLLBACK").await?;
            Err(refused.into())
        }
        // The session is closed with its transaction.
        Err(failure) => Err(failure),
    }
}

/// The cursor as it was last saved.
pub(super) async fn cursor(session: &Session) -> Result<RelayCursor, Failure> {
    let mut cursor = RelayCursor::default();
    for row in session.client().query(&session.statements.relay_cursor, &[]).await? {
        cursor.position = position(&row, 0, 1)?;
        if let Some(topic) = row.try_get(2)? {
            cursor.sequences.insert((topic, row.try_get::<_, i32>(3)? as u32), unsigned(&row, 4)?);
        }
    }
    Ok(cursor)
}

async fn save_cursor(session: &Session, epoch: u64, cursor: &RelayCursor) -> Result<(), Failure> {
    let Session { statements, .. } = session;
    let client = session.client();
    let (xid, position) = (cursor.position.xid.to_string(), cursor.position.position as i64);
    // In one order, as every upsert of many rows.
    let mut sequences: Vec<_> = cursor.sequences.iter().collect();
    sequences.sort_unstable();
    let topics: Vec<&str> = sequences.iter().map(|((topic, _), _)| topic.as_str()).collect();
    let partitions: Vec<i32> = sequences.iter().map(|((_, partition), _)| *partition as i32).collect();
    let numbers: Vec<i64> = sequences.iter().map(|(_, sequence)| **sequence as i64).collect();
    let epoch_asked = epoch as i64;
    let cursor: [&(dyn ToSql + Sync); 6] = [&epoch_asked, &xid, &position, &topics, &partitions, &numbers];
    let held = if guard::holds(Guard::RelayEpoch) && guard::holds(Guard::PairCursor) {
        client.query_opt(&statements.save_cursor, &cursor).await?
    } else {
        client.query_opt(&unguarded_save(guard::holds), &cursor).await?
    };
    if held.is_some() {
        return Ok(());
    }
    let current = current_epoch(session).await?;
    Err(EventStoreError::RelaySuperseded { epoch, current }.into())
}

async fn current_epoch(session: &Session) -> Result<u64, Failure> {
    unsigned(&session.client().query_one(&session.statements.relay_epoch, &[]).await?, 0)
}

/// The read without the guards that do not hold.
fn unguarded_read(holds: impl Fn(Guard) -> bool) -> String {
    let mut read = READ_COMMITTED.to_owned();
    if !holds(Guard::SnapshotHorizon) {
        read = read.replace(" AND xid < pg_snapshot_xmin(pg_current_snapshot())", "");
    }
    if !holds(Guard::PairCursor) {
        read = read
            .replace("(xid, position) > ($1::text::xid8, $2)", "$1::text IS NOT NULL AND position > $2")
            .replace("ORDER BY events.xid, events.position", "ORDER BY events.position");
    }
    read
}

/// The save without the guards that do not hold.
fn unguarded_save(holds: impl Fn(Guard) -> bool) -> String {
    let mut save = SAVE_CURSOR.to_owned();
    if !holds(Guard::RelayEpoch) {
        save = save.replace("WHERE epoch = $1", "WHERE $1::bigint IS NOT NULL");
    }
    if !holds(Guard::PairCursor) {
        save = save.replace("($2::text::xid8, $3) > (xid, position)", "$3 > position");
    }
    save
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_that_is_off_is_gone_from_its_statement_alone() {
        assert_eq!(unguarded_read(|_| true), READ_COMMITTED);
        assert_eq!(unguarded_save(|_| true), SAVE_CURSOR);
        let without_horizon = unguarded_read(|guard| guard != Guard::SnapshotHorizon);
        assert!(!without_horizon.contains("pg_snapshot_xmin") && without_horizon.contains("(xid, position) >"));
        let without_pair = unguarded_read(|guard| guard != Guard::PairCursor);
        assert!(without_pair.contains("pg_snapshot_xmin") && !without_pair.contains("(xid, position) >"));
        assert!(without_pair.contains("ORDER BY events.position LIMIT"));
        let without_epoch = unguarded_save(|guard| guard != Guard::RelayEpoch);
        assert!(!without_epoch.contains("epoch = $1") && without_epoch.contains("> (xid, position)"));
        let without_pair = unguarded_save(|guard| guard != Guard::PairCursor);
        assert!(without_pair.contains("epoch = $1") && !without_pair.contains("> (xid, position)"));
    }
}
