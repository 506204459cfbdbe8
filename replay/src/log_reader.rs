//! The log, as comparisons, dry runs and repairs read it: a log or a registry that is away for a moment is waited for,
//! so that a walk over millions of events does not begin again because of it.

use std::sync::Arc;
use std::time::Duration;

use event_log::{
    DecodeError, DecodedEvent, EventDecoder, EventLog, EventLogError, PartitionEnds, Record, TopicPartition,
};
use resilience::{Policy, retry};
use tokio::time::Instant;

/// The log, and what decodes its records. Its own methods are patient; who asks `log` or `decoder` hears at once.
#[derive(Clone)]
pub struct LogReader {
    pub log: Arc<dyn EventLog>,
    pub decoder: Arc<EventDecoder>,
}

/// How long each call waits for a log or a registry that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);

// === impl LogReader ===

impl LogReader {
    /// As [`EventLog::read`].
    pub(crate) async fn read(
        &self,
        at: &TopicPartition,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Record>, EventLogError> {
        retry(Policy::STORE, deadline(), EventLogError::is_transient, || self.log.read(at, from, limit)).await
    }

    /// As [`EventLog::ends_of`].
    pub(crate) async fn ends_of(&self, at: &TopicPartition) -> Result<Option<PartitionEnds>, EventLogError> {
        retry(Policy::STORE, deadline(), EventLogError::is_transient, || self.log.ends_of(at)).await
    }

    /// As [`EventDecoder::decode`].
    pub(crate) async fn decode(&self, record: &Record) -> Result<DecodedEvent, DecodeError> {
        retry(Policy::STORE, deadline(), DecodeError::is_transient, || self.decoder.decode(record)).await
    }
}

fn deadline() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}
