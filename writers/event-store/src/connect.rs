//! Picks the adapter that an address names.

use std::sync::Arc;

use crate::error::EventStoreError;
use crate::postgres::PostgresEventStore;
use crate::sqlite::SqliteEventStore;
use crate::store::EventStore;

/// Connects to `sqlite:PATH` or `postgres://user@host:port/database`, and brings its tables up to date.
pub async fn connect_event_store(url: &str) -> Result<Arc<dyn EventStore>, EventStoreError> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || SqliteEventStore::open(path)).await;
        return match opened {
            Ok(store) => Ok(Arc::new(store?)),
            Err(error) => Err(EventStoreError::Permanent { problem: error.to_string() }),
        };
    }
    if is_postgres(url) {
        return Ok(Arc::new(PostgresEventStore::connect(url).await?));
    }
    Err(no_store(url))
}

/// Connects as [`connect_event_store`] does, for reading only, beside processes that write: tables are left as they
/// are, and refused when they are of another build; an older one's may yet be brought up to date.
pub async fn connect_event_store_read_only(url: &str) -> Result<Arc<dyn EventStore>, EventStoreError> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        return Ok(Arc::new(SqliteEventStore::open_read_only(path)?));
    }
    if is_postgres(url) {
        return Ok(Arc::new(PostgresEventStore::connect_read_only(url).await?));
    }
    Err(no_store(url))
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

fn no_store(url: &str) -> EventStoreError {
    // The rest of the address may hold a password.
    let scheme: String = url.chars().take_while(|character| *character != ':').take(20).collect();
    let problem = format!("{scheme:?} is no event store: use sqlite:PATH or postgres://user@host:port/database");
    EventStoreError::Setting { key: "event-store", problem }
}
