//! A subscription to the SQLite log. There is no group to share with: it is assigned every partition at once.
//!
//! Reads run on the blocking pool, one at a time, and their handle is kept in the subscription: a `next` that is
//! dropped loses nothing. What a read found is taken only if the partition still stands where the read began.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::file::{LogFile, Source};
use crate::error::EventLogError;
use crate::log::{Record, Signal, Subscription, TopicPartition};
use crate::metrics;

/// Records that one read takes from one partition at most.
const READ_RECORDS: usize = 1_000;

pub(super) struct SqliteSubscription {
    file: Arc<LogFile>,
    appended: watch::Receiver<()>,
    is_assigned: bool,
    cursors: Vec<Cursor>,
    /// Batches that were read and not yet delivered, with the index of their cursor. At most one per cursor.
    ready: VecDeque<(usize, Vec<Record>)>,
    reading: Option<Reading>,
    poll_every: Duration,
    /// When to look for records of another process.
    poll_at: Instant,
}

/// Where the delivery of one partition stands.
struct Cursor {
    source: Source,
    /// Offset of the next record to read; `None` before `start`.
    next: Option<u64>,
    is_paused: bool,
}

/// A read under way.
struct Reading {
    /// Index of each cursor that it reads for, and the offset that it began at.
    wanted: Vec<(usize, u64)>,
    found: JoinHandle<Result<Vec<Vec<Record>>, EventLogError>>,
}

// === impl SqliteSubscription ===

impl SqliteSubscription {
    pub fn new(file: Arc<LogFile>, sources: Vec<Source>, poll_every: Duration) -> Self {
        Self {
            appended: file.appended(),
            file,
            is_assigned: false,
            cursors: sources.into_iter().map(|source| Cursor { source, next: None, is_paused: false }).collect(),
            ready: VecDeque::new(),
            reading: None,
            poll_every,
            poll_at: Instant::now() + poll_every,
        }
    }

    fn index_of(&self, at: &TopicPartition) -> Result<usize, EventLogError> {
        self.cursors
            .iter()
            .position(|cursor| cursor.source.at == *at)
            .ok_or_else(|| self.file.permanent(format!("{at} is not assigned to this subscription")))
    }

    fn take_ready(&mut self) -> Option<Vec<Record>> {
        let deliverable = self.ready.iter().position(|(index, _)| !self.cursors[*index].is_paused)?;
        self.ready.remove(deliverable).map(|(_, records)| records)
    }

    /// The cursors to read for: those with known records, or all of them when it is time to look for others.
    fn wanted(&self, look_for_others: bool) -> Vec<(usize, u64)> {
        let mut wanted = Vec::new();
        for (index, cursor) in self.cursors.iter().enumerate() {
            let Some(next) = cursor.next else { continue };
            let is_waiting = self.ready.iter().any(|(ready, _)| *ready == index);
            if !cursor.is_paused && !is_waiting && (look_for_others || cursor.source.head() > next) {
                wanted.push((index, next));
            }
        }
        wanted
    }

    fn read(&mut self, wanted: Vec<(usize, u64)>) {
        let sources: Vec<(Source, u64)> =
            wanted.iter().map(|(index, next)| (self.cursors[*index].source.clone(), *next)).collect();
        let file = self.file.clone();
        let found = tokio::task::spawn_blocking(move || file.records_from(&sources, READ_RECORDS));
        self.reading = Some(Reading { wanted, found });
    }

    fn keep(&mut self, wanted: Vec<(usize, u64)>, found: Vec<Vec<Record>>) {
        for ((index, began_at), records) in wanted.into_iter().zip(found) {
            let cursor = &mut self.cursors[index];
            let Some(last) = records.last() else { continue };
            // `start` may have moved the cursor meanwhile.
            if cursor.next == Some(began_at) {
                cursor.next = Some(last.offset + 1);
                self.ready.push_back((index, records));
            }
        }
    }
}

#[async_trait]
impl Subscription for SqliteSubscription {
    async fn next(&mut self) -> Result<Signal, EventLogError> {
        if !self.is_assigned {
            self.is_assigned = true;
            return Ok(Signal::Assigned(self.cursors.iter().map(|cursor| cursor.source.at.clone()).collect()));
        }
        loop {
            if let Some(records) = self.take_ready() {
                if let Some(record) = records.first() {
                    metrics::consumed(&record.at.topic, records.len());
                }
                return Ok(Signal::Records(records));
            }
            if let Some(reading) = &mut self.reading {
                let found = (&mut reading.found).await;
                let Some(Reading { wanted, .. }) = self.reading.take() else { continue };
                self.keep(wanted, found.map_err(|error| self.file.permanent(error))??);
                continue;
            }
            // Marked as seen before the heads are read: an append after that wakes the wait below.
            self.appended.borrow_and_update();
            let look_for_others = Instant::now() >= self.poll_at;
            if look_for_others {
                self.poll_at = Instant::now() + self.poll_every;
            }
            let wanted = self.wanted(look_for_others);
            if !wanted.is_empty() {
                self.read(wanted);
                continue;
            }
            tokio::select! {
                _ = self.appended.changed() => {}
                () = tokio::time::sleep_until(self.poll_at) => {}
            }
        }
    }

    async fn start(&mut self, at: &TopicPartition, offset: u64) -> Result<(), EventLogError> {
        let index = self.index_of(at)?;
        let source = self.cursors[index].source.clone();
        let file = self.file.clone();
        let ends = tokio::task::spawn_blocking(move || file.ends_of(&source))
            .await
            .map_err(|error| self.file.permanent(error))??;
        if !(ends.first..=ends.next).contains(&offset) {
            return Err(EventLogError::OffsetOutOfRange {
                at: at.clone(),
                asked: offset,
                first: ends.first,
                next: ends.next,
            });
        }
        self.ready.retain(|(ready, _)| *ready != index);
        self.cursors[index].next = Some(offset);
        self.cursors[index].is_paused = false;
        // Another process may have written what our head does not show.
        self.poll_at = Instant::now();
        Ok(())
    }

    async fn pause(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        let index = self.index_of(at)?;
        self.cursors[index].is_paused = true;
        Ok(())
    }

    async fn resume(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        let index = self.index_of(at)?;
        self.cursors[index].is_paused = false;
        Ok(())
    }

    /// Nothing to tell: a SQLite log has no readers but Millrace, and Millrace resumes from its read models.
    async fn commit(&mut self, at: &TopicPartition, _next_offset: u64) -> Result<(), EventLogError> {
        self.index_of(at).map(|_| ())
    }
}
