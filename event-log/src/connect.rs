//! Picks the adapters that addresses name.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::EventLogError;
use crate::kafka::{KafkaEventLog, KafkaSettings};
use crate::log::EventLog;
use crate::registry::{EmbeddedRegistry, HttpRegistry, SchemaRegistry};
use crate::sqlite::SqliteEventLog;

/// Connects to `sqlite:PATH` or `kafka://host:port,…[?option=value]`.
pub async fn connect_event_log(url: &str) -> Result<Arc<dyn EventLog>, EventLogError> {
    connect_event_log_with(url, None).await
}

/// The same; topics that it makes on Kafka get so many replicas ([`KafkaEventLog::with_replicas`]).
pub async fn connect_event_log_with(
    url: &str,
    kafka_replicas: Option<u32>,
) -> Result<Arc<dyn EventLog>, EventLogError> {
    if url.starts_with("kafka:") {
        let log = KafkaEventLog::connect(KafkaSettings::parse(url)?)?;
        return Ok(Arc::new(log.with_replicas(kafka_replicas)));
    }
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || SqliteEventLog::open(path)).await;
        return match opened {
            Ok(log) => Ok(Arc::new(log?)),
            Err(error) => Err(EventLogError::Permanent { problem: error.to_string() }),
        };
    }
    // The rest of the address may hold a password.
    let scheme: String = url.chars().take_while(|character| *character != ':').take(20).collect();
    let problem = format!("{scheme:?} is no event log: use sqlite:PATH or kafka://host:port,host:port");
    Err(EventLogError::Setting { key: "event-log", problem })
}

/// The registry at `http(s)://…`, with a file that keeps what it answered; the compiled-in one for `None`.
pub fn connect_registry(
    url: Option<&str>,
    cache_file: Option<PathBuf>,
) -> Result<Arc<dyn SchemaRegistry>, EventLogError> {
    match url {
        Some(url) => Ok(Arc::new(HttpRegistry::new(url, cache_file)?)),
        None => Ok(Arc::new(EmbeddedRegistry::default())),
    }
}
