//! Brings the tables up to date: numbered files that only ever add, each applied once, all under one lock.

use tokio_postgres::Client;

use super::failure::Failure;
use crate::error::EventStoreError;

/// Number of a file below `sql/postgres`, and its text.
const MIGRATIONS: [(i32, &str); 3] = [
    (1, include_str!("../../sql/postgres/0001_tables.sql")),
    (2, include_str!("../../sql/postgres/0002_published.sql")),
    (3, include_str!("../../sql/postgres/0003_last_record.sql")),
];

const MIGRATIONS_TABLE: &str = "
    CREATE TABLE IF NOT EXISTS migrations (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())";

/// Applies what is missing. Two programs that start at once do it one after the other. Refuses tables of a newer build.
pub(super) async fn migrate(client: &Client) -> Result<(), Failure> {
    // Without the lock first: a user who may not create tables can then use tables that are up to date.
    if applied(client).await? < newest() {
        // A lock of the session, taken before the transaction begins: what another program has just created is seen
        // from the beginning of a transaction on, not from the end of a wait within one. A lost connection unlocks.
        client.batch_execute("SELECT pg_advisory_lock(hashtextextended('millrace migrations', 0))").await?;
        client.batch_execute("BEGIN").await?;
        // Not by asking whether the table is there: the session may remember from before the lock that it was not.
        client.batch_execute(MIGRATIONS_TABLE).await?;
        let applied = newest_applied(client).await?;
        for (version, sql) in MIGRATIONS.iter().filter(|(version, _)| *version > applied) {
            client.batch_execute(sql).await?;
            client.execute("INSERT INTO migrations (version) VALUES ($1)", &[version]).await?;
        }
        client.batch_execute("COMMIT").await?;
        client.batch_execute("SELECT pg_advisory_unlock(hashtextextended('millrace migrations', 0))").await?;
    }
    check(client).await
}

/// Refuses tables of a newer build.
async fn check(client: &Client) -> Result<(), Failure> {
    let (applied, newest) = (applied(client).await?, newest());
    if applied > newest {
        let problem = format!("the tables are of version {applied}, this build knows {newest}: run a newer build");
        return Err(EventStoreError::Permanent { problem }.into());
    }
    check_transaction_ids(client).await
}

/// As [`migrate`], but changes nothing: what reads beside an older build must not shut it out. Somebody else may yet
/// bring the tables up to date: trying again may help.
pub(super) async fn check_to_read(client: &Client, address: &str) -> Result<(), Failure> {
    let (applied, newest) = (applied(client).await?, newest());
    let problem = match applied {
        0 => "it has no tables yet: start `millrace up` or `millrace write` to make them".to_owned(),
        older if older < newest => format!(
            "its tables are of version {older}, this build reads {newest}: start a `write` or `relay` of this build once, \
             which brings them up to date, or read them with the build that made them"
        ),
        _ => return check(client).await,
    };
    Err(EventStoreError::Unavailable { address: address.to_owned(), problem }.into())
}

/// A dump that was restored into another cluster keeps its xids, while that cluster counts from its own: what is
/// appended then would sort before what is stored.
async fn check_transaction_ids(client: &Client) -> Result<(), Failure> {
    const AHEAD: &str = "SELECT max(position) FROM events WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())";
    let ahead: Option<i64> = client.query_one(AHEAD, &[]).await?.try_get(0)?;
    match ahead {
        None => Ok(()),
        Some(position) => {
            let problem = format!(
                "the event at position {position} was written by a transaction that this cluster has not reached: restore \
                 a physical backup, or raise the cluster's transaction ids with pg_resetwal"
            );
            Err(EventStoreError::Permanent { problem }.into())
        }
    }
}

/// 0 before the first one.
async fn applied(client: &Client) -> Result<i32, Failure> {
    let is_there: bool = client.query_one("SELECT to_regclass('migrations') IS NOT NULL", &[]).await?.try_get(0)?;
    if !is_there {
        return Ok(0);
    }
    newest_applied(client).await
}

async fn newest_applied(client: &Client) -> Result<i32, Failure> {
    Ok(client.query_one("SELECT coalesce(max(version), 0) FROM migrations", &[]).await?.try_get(0)?)
}

fn newest() -> i32 {
    MIGRATIONS[MIGRATIONS.len() - 1].0
}
