//! The event log in one SQLite file: the embedded default, nothing to install.
//!
//! Guarantees: a call of `publish` is one transaction, so its records come all or not at all; offsets of a partition
//! are 0, 1, 2 … without a gap; a reader never sees half a call. WAL mode, so readers and the writer do not wait for
//! each other.
//!
//! `synchronous` is FULL: one fsync per call of `publish`. NORMAL would be faster and keep the file whole, but a power
//! cut could then take back records that were already acknowledged, while the relay's cursor, kept in another file,
//! says that they are out; readers would meet the gap, and someone would have to publish again from the event table.
//!
//! One process writes. Its own subscribers are woken by the commit; a slow poll finds what another process wrote, so
//! that `tail` can read beside a running system.

mod file;
mod page;
mod subscription;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use self::file::LogFile;
use self::subscription::SqliteSubscription;
use crate::error::EventLogError;
use crate::log::{EventLog, NewRecord, PartitionEnds, Record, Subscription, TopicPartition, TopicSpec};
use crate::metrics;

/// How often a subscription looks for records of another process, where this one writes too.
const POLL_BESIDE_WRITER: Duration = Duration::from_secs(1);
/// The same where this process only reads, and nothing wakes it.
const POLL_READ_ONLY: Duration = Duration::from_millis(100);

/// An event log in a SQLite file.
pub struct SqliteEventLog {
    file: Arc<LogFile>,
}

// === impl SqliteEventLog ===

impl SqliteEventLog {
    /// Opens the file for reading and writing, and makes it when it is missing. Blocks for as long as that takes.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, EventLogError> {
        Ok(Self { file: Arc::new(LogFile::open(path.as_ref())?) })
    }

    /// Opens an existing file for reading, beside a process that may be writing to it.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, EventLogError> {
        Ok(Self { file: Arc::new(LogFile::open_read_only(path.as_ref())?) })
    }

    /// Runs blocking file work off the runtime.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&LogFile) -> Result<T, EventLogError> + Send + 'static,
    ) -> Result<T, EventLogError> {
        let file = self.file.clone();
        match tokio::task::spawn_blocking(move || work(&file)).await {
            Ok(result) => result,
            Err(error) => Err(self.file.permanent(error)),
        }
    }
}

#[async_trait]
impl EventLog for SqliteEventLog {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), EventLogError> {
        let topics = topics.to_vec();
        self.blocking(move |file| file.ensure_topics(&topics)).await
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), EventLogError> {
        if records.is_empty() {
            return Ok(());
        }
        let count = records.len();
        let begun = Instant::now();
        self.blocking(move |file| file.append(&records)).await?;
        metrics::published(count, begun.elapsed());
        Ok(())
    }

    async fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        let topic = topic.to_owned();
        self.blocking(move |file| file.ends(&topic)).await
    }

    async fn read(&self, at: &TopicPartition, from: u64, limit: usize) -> Result<Vec<Record>, EventLogError> {
        let at = at.clone();
        self.blocking(move |file| {
            let source = file.source(&at)?;
            let ends = file.ends_of(&source)?;
            if !(ends.first..=ends.next).contains(&from) {
                return Err(EventLogError::OffsetOutOfRange { at, asked: from, first: ends.first, next: ends.next });
            }
            Ok(file.records_from(&[(source, from)], limit)?.pop().unwrap_or_default())
        })
        .await
    }

    async fn subscribe(&self, _group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, EventLogError> {
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let sources = self.blocking(move |file| file.sources(&topics)).await?;
        let poll = if self.file.is_read_only() { POLL_READ_ONLY } else { POLL_BESIDE_WRITER };
        Ok(Box::new(SqliteSubscription::new(self.file.clone(), sources, poll)))
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.blocking(LogFile::ping).await
    }
}
