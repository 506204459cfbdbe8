//! The file of the SQLite log: its tables, its connections and every statement that runs on them. All of it blocks.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};
use tokio::sync::watch;

use crate::error::EventLogError;
use crate::log::{NewRecord, PartitionEnds, Record, TopicPartition, TopicSpec};
use crate::sqlite::page::Page;

/// Version of the tables, in `PRAGMA user_version`.
const LAYOUT: i64 = 1;
const TABLES: &str = "
    CREATE TABLE topics (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        partitions INTEGER NOT NULL
    );
    CREATE TABLE records (
        topic INTEGER NOT NULL,
        partition INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        timestamp INTEGER NOT NULL,
        key BLOB NOT NULL,
        headers BLOB NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (topic, partition, offset)
    ) WITHOUT ROWID;
    PRAGMA user_version = 1;";
/// Bytes that one read takes from one partition, about.
const READ_BYTES: usize = 4 << 20;
/// Reader connections kept open while nobody uses them.
const IDLE_READERS: usize = 4;

pub(super) struct LogFile {
    path: PathBuf,
    /// `None`: opened for reading only.
    writer: Option<Mutex<Connection>>,
    idle_readers: Mutex<Vec<Connection>>,
    /// The offset after the last known record of each partition. Behind the truth when another process wrote.
    heads: Mutex<HashMap<(i64, u32), Arc<AtomicU64>>>,
    /// Changes whenever this process has appended.
    appended: watch::Sender<()>,
}

/// A partition to read from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub at: TopicPartition,
    topic_id: i64,
    head: Arc<AtomicU64>,
}

// === impl Source ===

impl Source {
    /// The offset after the last record that this process knows of.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }
}

// === impl LogFile ===

impl LogFile {
    pub fn open(path: &Path) -> Result<Self, EventLogError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let at = Place(path);
        let mut writer = Connection::open_with_flags(path, flags).map_err(|error| at.unopened(error))?;
        prepare(&writer).map_err(|error| at.unopened(error))?;
        // Checkpoints of 16 MB instead of 4 keep them off most commits.
        writer
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;")
            .map_err(|error| at.unopened(error))?;
        let transaction =
            writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|error| at.unopened(error))?;
        match layout_of(&transaction).map_err(|error| at.unopened(error))? {
            0 => transaction.execute_batch(TABLES).map_err(|error| at.unopened(error))?,
            LAYOUT => {}
            other => return Err(at.unknown_layout(other)),
        }
        transaction.commit().map_err(|error| at.unopened(error))?;
        Ok(Self::with(path, Some(Mutex::new(writer))))
    }

    pub fn open_read_only(path: &Path) -> Result<Self, EventLogError> {
        let at = Place(path);
        if !path.exists() {
            return Err(at.file("there is no such file; start `millrace up` or `millrace relay` to create it"));
        }
        let file = Self::with(path, None);
        let reader = file.reader()?;
        match layout_of(&reader).map_err(|error| at.unopened(error))? {
            LAYOUT => file.give_back(reader),
            other => return Err(at.unknown_layout(other)),
        }
        Ok(file)
    }

    fn with(path: &Path, writer: Option<Mutex<Connection>>) -> Self {
        Self {
            path: path.to_owned(),
            writer,
            idle_readers: Mutex::default(),
            heads: Mutex::default(),
            appended: watch::Sender::new(()),
        }
    }

    pub fn is_read_only(&self) -> bool {
        self.writer.is_none()
    }

    /// Changes whenever this process has appended.
    pub fn appended(&self) -> watch::Receiver<()> {
        self.appended.subscribe()
    }

    pub fn permanent(&self, problem: impl fmt::Display) -> EventLogError {
        EventLogError::Permanent { problem: format!("{}: {problem}", Place(&self.path).address()) }
    }

    pub fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), EventLogError> {
        let mut writer = self.writer()?;
        let transaction =
            writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|error| self.error(error))?;
        for topic in topics {
            if topic.partitions == 0 {
                return Err(self.permanent(format!("topic {} must have at least 1 partition", topic.name)));
            }
            match topic_of(&transaction, &topic.name).map_err(|error| self.error(error))? {
                Some((_, found)) if found != topic.partitions => {
                    return Err(EventLogError::PartitionCount {
                        topic: topic.name.clone(),
                        found,
                        wanted: topic.partitions,
                    });
                }
                Some(_) => {}
                None => {
                    transaction
                        .execute(
                            "INSERT INTO topics (name, partitions) VALUES (?1, ?2)",
                            params![topic.name, topic.partitions],
                        )
                        .map_err(|error| self.error(error))?;
                }
            }
        }
        transaction.commit().map_err(|error| self.error(error))
    }

    /// Appends all records or none.
    pub fn append(&self, records: &[NewRecord]) -> Result<(), EventLogError> {
        let mut writer = self.writer()?;
        let transaction =
            writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|error| self.error(error))?;
        let mut topics: HashMap<&str, (i64, u32)> = HashMap::new();
        let mut next_offsets: HashMap<(i64, u32), u64> = HashMap::new();
        {
            let mut insert = transaction
                .prepare_cached(
                    "INSERT INTO records (topic, partition, offset, timestamp, key, headers, value)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )
                .map_err(|error| self.error(error))?;
            for record in records {
                let name = record.at.topic.as_str();
                let (topic, partitions) = match topics.get(name) {
                    Some(topic) => *topic,
                    None => {
                        let topic = topic_of(&transaction, name)
                            .map_err(|error| self.error(error))?
                            .ok_or_else(|| EventLogError::UnknownTopic { topic: name.to_owned() })?;
                        topics.insert(name, topic);
                        topic
                    }
                };
                let partition = record.at.partition;
                if partition >= partitions {
                    return Err(self.permanent(format!("{} has {partitions} partitions, no {}", name, record.at)));
                }
                let offset = match next_offsets.get(&(topic, partition)) {
                    Some(next) => *next,
                    None => ends_of(&transaction, topic, partition).map_err(|error| self.error(error))?.next,
                };
                insert
                    .execute(params![
                        topic,
                        partition,
                        stored(offset),
                        record.timestamp,
                        record.key,
                        record.headers.as_bytes(),
                        record.value
                    ])
                    .map_err(|error| self.error(error))?;
                next_offsets.insert((topic, partition), offset + 1);
            }
        }
        transaction.commit().map_err(|error| self.error(error))?;
        // Still under the writer's lock, so heads only rise.
        for ((topic, partition), next) in next_offsets {
            self.raise_head(topic, partition, next);
        }
        self.appended.send_replace(());
        Ok(())
    }

    pub fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        self.read(|reader| {
            let Some((id, partitions)) = topic_of(reader, topic)? else { return Ok(None) };
            (0..partitions).map(|partition| ends_of(reader, id, partition)).collect::<Result<_, _>>().map(Some)
        })?
        .ok_or_else(|| EventLogError::UnknownTopic { topic: topic.to_owned() })
    }

    /// All partitions of some topics.
    pub fn sources(&self, topics: &[String]) -> Result<Vec<Source>, EventLogError> {
        let mut sources = Vec::new();
        for topic in topics {
            let found = self.read(|reader| {
                let Some((id, partitions)) = topic_of(reader, topic)? else { return Ok(None) };
                let ends = (0..partitions).map(|partition| ends_of(reader, id, partition));
                Ok(Some((id, ends.collect::<Result<Vec<_>, _>>()?)))
            })?;
            let (topic_id, ends) = found.ok_or_else(|| EventLogError::UnknownTopic { topic: topic.clone() })?;
            sources.extend(ends.into_iter().map(|ends| Source {
                at: TopicPartition::new(topic, ends.partition),
                topic_id,
                head: self.raise_head(topic_id, ends.partition, ends.next),
            }));
        }
        Ok(sources)
    }

    /// One partition.
    pub fn source(&self, at: &TopicPartition) -> Result<Source, EventLogError> {
        let missing = || EventLogError::UnknownTopic { topic: at.topic.clone() };
        let (topic_id, partitions) = self.read(|reader| topic_of(reader, &at.topic))?.ok_or_else(missing)?;
        if at.partition >= partitions {
            return Err(self.permanent(format!("{} has {partitions} partitions, no {at}", at.topic)));
        }
        Ok(Source { at: at.clone(), topic_id, head: self.raise_head(topic_id, at.partition, 0) })
    }

    pub fn ends_of(&self, source: &Source) -> Result<PartitionEnds, EventLogError> {
        self.read(|reader| ends_of(reader, source.topic_id, source.at.partition))
    }

    /// The next records of each source, at most `limit` and about [`READ_BYTES`] of each.
    pub fn records_from(&self, wanted: &[(Source, u64)], limit: usize) -> Result<Vec<Vec<Record>>, EventLogError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let pages: Vec<_> = self.read(|reader| {
            let mut select = reader.prepare_cached(
                "SELECT offset, timestamp, key, headers, value FROM records
                 WHERE topic = ?1 AND partition = ?2 AND offset >= ?3 ORDER BY offset LIMIT ?4",
            )?;
            wanted
                .iter()
                .map(|(source, from)| {
                    let place = params![source.topic_id, source.at.partition, stored(*from), limit];
                    let mut rows = select.query(place)?;
                    let mut page = Page::default();
                    while page.bytes() < READ_BYTES
                        && let Some(row) = rows.next()?
                        && page.take(row)?
                    {}
                    Ok((&source.at, page))
                })
                .collect()
        })?;
        let damaged = |problem: String| Place(&self.path).damaged(problem);
        pages.into_iter().map(|(at, page): (_, Page)| page.into_records(at).map_err(damaged)).collect()
    }

    pub fn ping(&self) -> Result<(), EventLogError> {
        self.read(|reader| layout_of(reader).map(|_| ()))
    }

    fn raise_head(&self, topic: i64, partition: u32, next: u64) -> Arc<AtomicU64> {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let head = heads.entry((topic, partition)).or_default();
        head.fetch_max(next, Ordering::AcqRel);
        head.clone()
    }

    fn writer(&self) -> Result<MutexGuard<'_, Connection>, EventLogError> {
        match &self.writer {
            // A poisoned lock is only a lock: the transaction of the thread that panicked was rolled back.
            Some(writer) => Ok(writer.lock().unwrap_or_else(PoisonError::into_inner)),
            None => Err(Place(&self.path).file("it was opened for reading only")),
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, EventLogError> {
        let reader = self.reader()?;
        let result = read(&reader).map_err(|error| self.error(error));
        if result.is_ok() {
            self.give_back(reader);
        }
        result
    }

    fn reader(&self) -> Result<Connection, EventLogError> {
        let idle = self.idle_readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(reader) = idle {
            return Ok(reader);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags(&self.path, flags).map_err(|error| self.error(error))?;
        prepare(&reader).map_err(|error| self.error(error))?;
        Ok(reader)
    }

    fn give_back(&self, reader: Connection) {
        let mut idle = self.idle_readers.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(reader);
        }
    }

    fn error(&self, error: rusqlite::Error) -> EventLogError {
        Place(&self.path).error(error)
    }
}

/// What brings a damaged file back: all that was published is in the event store.
const REMEDY: &str = "stop Millrace, move the file and those named after it away, run `millrace relay reconcile`, and start: \
                      the events are published again";

/// Where the file is, for errors.
struct Place<'a>(&'a Path);

// === impl Place ===

impl Place<'_> {
    fn address(&self) -> String {
        format!("sqlite:{}", self.0.display())
    }

    fn file(&self, problem: impl fmt::Display) -> EventLogError {
        EventLogError::File { path: self.0.display().to_string(), problem: problem.to_string() }
    }

    fn unknown_layout(&self, found: i64) -> EventLogError {
        self.file(format!(
            "it has layout {found}, this build reads layout {LAYOUT}: another program or version wrote it"
        ))
    }

    /// A full disk, a failed write, too many open files and a lock that another process holds may pass; a damaged file
    /// does not.
    fn error(&self, error: rusqlite::Error) -> EventLogError {
        match error.sqlite_error_code() {
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::OutOfMemory
                | ErrorCode::OperationInterrupted
                | ErrorCode::CannotOpen
                | ErrorCode::FileLockingProtocolFailed,
            ) => EventLogError::Unavailable { address: self.address(), problem: error.to_string() },
            _ if matches!(error, rusqlite::Error::InvalidColumnType(..)) => self.damaged(error),
            _ => self.unopened(error),
        }
    }

    /// At the start nothing is tried again.
    fn unopened(&self, error: rusqlite::Error) -> EventLogError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => self.damaged(error),
            _ => self.file(error),
        }
    }

    fn damaged(&self, problem: impl fmt::Display) -> EventLogError {
        self.file(format!("{problem}; {REMEDY}"))
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(16);
    Ok(())
}

fn layout_of(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Id and partition count.
fn topic_of(connection: &Connection, name: &str) -> rusqlite::Result<Option<(i64, u32)>> {
    connection
        .prepare_cached("SELECT id, partitions FROM topics WHERE name = ?1")?
        .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

fn ends_of(connection: &Connection, topic: i64, partition: u32) -> rusqlite::Result<PartitionEnds> {
    // Two subqueries: each is one step at an end of the key, a single min and max would scan the partition.
    connection
        .prepare_cached(
            "SELECT (SELECT min(offset) FROM records WHERE topic = ?1 AND partition = ?2),
                    (SELECT max(offset) FROM records WHERE topic = ?1 AND partition = ?2)",
        )?
        .query_row(params![topic, partition], |row| {
            let first: Option<i64> = row.get(0)?;
            let last: Option<i64> = row.get(1)?;
            let next = last.map_or(0, |last| last as u64 + 1);
            Ok(PartitionEnds { partition, first: first.map_or(0, |first| first as u64), next })
        })
}

/// SQLite's integers are signed; an offset above their range is above every record as well.
fn stored(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn what_may_pass_is_transient() {
        let told = |code| Place(Path::new("f")).error(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_FULL, ffi::SQLITE_CANTOPEN, ffi::SQLITE_PROTOCOL] {
            assert!(told(code).is_transient(), "{}", told(code));
        }
        assert!(!told(ffi::SQLITE_CORRUPT).is_transient());
    }
}
