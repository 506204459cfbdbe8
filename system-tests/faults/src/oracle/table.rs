//! The event table as it is, and the stored outcomes beside it: everything else is measured by them.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use event_store::{EventStore, SqliteEventStore, StoredEvent};
use schemas::{Outcome, StorePosition};
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::system::Deployment;

/// What was committed.
#[derive(Debug, Default)]
pub struct Table {
    /// In the relay's order, (xid, position).
    pub events: Vec<StoredEvent>,
    pub outcomes: HashMap<Uuid, Outcome>,
    /// Partitions of each topic.
    pub partitions: u32,
    /// Events that an operator took out of the dead letters: no read model folds them.
    pub discarded: HashSet<Uuid>,
}

const PAGE: usize = 20_000;

// === impl Table ===

impl Table {
    pub async fn read(deployment: &Deployment) -> anyhow::Result<Self> {
        let store: Arc<dyn EventStore> = match deployment {
            Deployment::Roles { postgres, .. } => event_store::connect_event_store(postgres).await?,
            Deployment::Embedded { data } => Arc::new(SqliteEventStore::open(data.join("events.db"))?),
        };
        let mut events: Vec<StoredEvent> = Vec::new();
        loop {
            let after = events.last().map_or(StorePosition::default(), |event| event.position);
            let page = store.read_committed(after, PAGE).await?;
            let is_last = page.len() < PAGE;
            events.extend(page);
            if is_last {
                break;
            }
        }
        let topology = store.topology().await?.context("the event store has no topology")?;
        let outcomes = outcomes(deployment).await?;
        Ok(Self { events, outcomes, partitions: topology.partitions, discarded: HashSet::new() })
    }

    /// Rows in the table, counted past the horizon: whatever is committed.
    pub async fn count(deployment: &Deployment) -> anyhow::Result<u64> {
        match deployment {
            Deployment::Roles { postgres, .. } => {
                let client = session(postgres).await?;
                let row = client.query_one("SELECT count(*) FROM events", &[]).await?;
                Ok(row.get::<_, i64>(0) as u64)
            }
            Deployment::Embedded { data } => {
                let file = read_only(&data.join("events.db"))?;
                Ok(file.query_row("SELECT count(*) FROM events", [], |row| row.get::<_, i64>(0))? as u64)
            }
        }
    }
}

pub async fn session(postgres: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(postgres, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A SQLite file beside the process that writes it.
pub fn read_only(path: &Path) -> anyhow::Result<rusqlite::Connection> {
    let file = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| path.display().to_string())?;
    file.busy_timeout(std::time::Duration::from_secs(10))?;
    Ok(file)
}

/// Every stored outcome by its command's id.
pub async fn outcomes(deployment: &Deployment) -> anyhow::Result<HashMap<Uuid, Outcome>> {
    let mut outcomes = HashMap::new();
    match deployment {
        Deployment::Roles { postgres, .. } => {
            let client = session(postgres).await?;
            for row in client.query("SELECT id::text, outcome::text FROM commands", &[]).await? {
                outcomes.insert(row.get::<_, String>(0).parse()?, serde_json::from_str(&row.get::<_, String>(1))?);
            }
        }
        Deployment::Embedded { data } => {
            let file = read_only(&data.join("events.db"))?;
            let mut select = file.prepare("SELECT id, outcome FROM commands")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let id: Vec<u8> = row.get(0)?;
                outcomes.insert(Uuid::from_slice(&id)?, serde_json::from_str(&row.get::<_, String>(1)?)?);
            }
        }
    }
    Ok(outcomes)
}
