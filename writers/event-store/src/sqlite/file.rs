//! The SQLite file: its tables, its one writer, its readers, the relay's lock, and how its errors are told.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::error::EventStoreError;

/// Each brings a file of the version before it to its own. Only ever added to. A build refuses a file that a newer one
/// has opened for writing: what it does not know of it would not keep.
const MIGRATIONS: [&str; 3] = [
    include_str!("../../sql/sqlite/0001_tables.sql"),
    include_str!("../../sql/sqlite/0002_published.sql"),
    include_str!("../../sql/sqlite/0003_last_record.sql"),
];

/// How long a transaction waits for one of another process.
const BUSY: Duration = Duration::from_secs(5);
/// Reader connections kept open while nobody uses them.
const IDLE_READERS: usize = 8;

pub(super) struct EventFile {
    path: PathBuf,
    /// `None`: opened for reading only.
    writer: Option<Mutex<Connection>>,
    idle_readers: Mutex<Vec<Connection>>,
    /// Locked while this process leads the relay.
    relay_lock: Mutex<Option<File>>,
}

/// Why a transaction was given up.
#[derive(Debug)]
pub(super) enum Abort {
    Sqlite(rusqlite::Error),
    Refused(EventStoreError),
}

impl From<rusqlite::Error> for Abort {
    fn from(error: rusqlite::Error) -> Self {
        Abort::Sqlite(error)
    }
}

impl From<EventStoreError> for Abort {
    fn from(error: EventStoreError) -> Self {
        Abort::Refused(error)
    }
}

// === impl EventFile ===

impl EventFile {
    pub(super) fn open(path: &Path) -> Result<Self, EventStoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut writer = Connection::open_with_flags(path, flags).map_err(|error| sqlite_error(path, &error))?;
        migrate(path, &mut writer)?;
        Ok(Self::with(path, Some(Mutex::new(writer))))
    }

    pub(super) fn open_read_only(path: &Path) -> Result<Self, EventStoreError> {
        if !path.exists() {
            let problem =
                format!("{} does not exist; start `millrace up` or `millrace write` to create it", path.display());
            return Err(EventStoreError::Permanent { problem });
        }
        let file = Self::with(path, None);
        let reader = file.reader()?;
        let found: u32 =
            reader.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|error| file.error(&error))?;
        if found as usize != MIGRATIONS.len() {
            return Err(unknown_tables(path, found));
        }
        Ok(file)
    }

    fn with(path: &Path, writer: Option<Mutex<Connection>>) -> Self {
        Self { path: path.to_owned(), writer, idle_readers: Mutex::default(), relay_lock: Mutex::default() }
    }

    /// One write transaction: all of `work`, or nothing. On the disk when it returns.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Abort>,
    ) -> Result<T, EventStoreError> {
        let Some(writer) = &self.writer else {
            let problem = format!("{} was opened for reading only", address(&self.path));
            return Err(EventStoreError::Permanent { problem });
        };
        // A poisoned lock is only a lock: the transaction of the thread that panicked was rolled back.
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction =
            writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|error| self.error(&error))?;
        let result = work(&transaction).map_err(|abort| self.aborted(abort))?;
        transaction.commit().map_err(|error| self.error(&error))?;
        Ok(result)
    }

    /// One read transaction: everything that `work` reads is of one moment.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Abort>,
    ) -> Result<T, EventStoreError> {
        let mut reader = self.reader()?;
        let transaction = reader.transaction().map_err(|error| self.error(&error))?;
        let result = work(&transaction).map_err(|abort| self.aborted(abort));
        transaction.finish().map_err(|error| self.error(&error))?;
        // A connection that met an error is not used again.
        if result.is_ok() {
            let mut idle = self.idle_readers.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_READERS {
                idle.push(reader);
            }
        }
        result
    }

    fn reader(&self) -> Result<Connection, EventStoreError> {
        if let Some(reader) = self.idle_readers.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(reader);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags(&self.path, flags).map_err(|error| self.error(&error))?;
        set_up(&reader).map_err(|error| self.error(&error))?;
        Ok(reader)
    }

    /// Takes the relay's lock, or says that another holds it. Taking it again is no error: the relay leads anew after
    /// an error of the log, say.
    pub(super) fn take_relay_lock(&self) -> Result<bool, EventStoreError> {
        let mut held = self.relay_lock.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Ok(true);
        }
        let path = self.path.with_added_extension("relay-lock");
        let unavailable = |problem: String| EventStoreError::Unavailable { address: address(&path), problem };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| unavailable(error.to_string()))?;
        match file.try_lock() {
            Ok(()) => {
                *held = Some(file);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(unavailable(error.to_string())),
        }
    }

    /// The operating system gives the lock up with the file.
    pub(super) fn release_relay_lock(&self) {
        self.relay_lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn aborted(&self, abort: Abort) -> EventStoreError {
        match abort {
            Abort::Sqlite(error) => self.error(&error),
            Abort::Refused(error) => error,
        }
    }

    fn error(&self, error: &rusqlite::Error) -> EventStoreError {
        sqlite_error(&self.path, error)
    }
}

fn migrate(path: &Path, writer: &mut Connection) -> Result<(), EventStoreError> {
    let fails = |error: rusqlite::Error| sqlite_error(path, &error);
    set_up(writer).map_err(fails)?;
    // Moving the log into the file after 16 MB instead of 4 keeps that work off most commits.
    writer
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;")
        .map_err(fails)?;
    let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fails)?;
    let found: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fails)?;
    let Some(missing) = MIGRATIONS.get(found as usize..) else {
        return Err(unknown_tables(path, found));
    };
    for migration in missing {
        transaction.execute_batch(migration).map_err(fails)?;
    }
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as u32).map_err(fails)?;
    transaction.commit().map_err(fails)
}

fn unknown_tables(path: &Path, found: u32) -> EventStoreError {
    let known = MIGRATIONS.len();
    let problem = if found as usize > known {
        format!("{} has tables of version {found}, this build knows {known}: run the newer one", path.display())
    } else {
        format!("{} has tables of version {found}, this build reads {known}: start it for writing once", path.display())
    };
    EventStoreError::Permanent { problem }
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

/// A full disk, a failed write, too many open files and a lock that another process holds may pass; a damaged file does
/// not.
fn sqlite_error(path: &Path, error: &rusqlite::Error) -> EventStoreError {
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
        ) => EventStoreError::Unavailable { address: address(path), problem: error.to_string() },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            EventStoreError::Damaged { what: address(path), problem: format!("{error}; restore it from a backup") }
        }
        _ => EventStoreError::Permanent { problem: format!("{}: {error}", address(path)) },
    }
}

fn address(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn a_file_of_the_first_version_is_brought_up_to_date() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.execute_batch("PRAGMA user_version = 1; UPDATE relay SET epoch = 3, position = 7").unwrap();
        old.execute_batch("INSERT INTO command_offsets VALUES ('pricing.commands', 3, 8)").unwrap();
        drop(old);
        let file = EventFile::open(&path).unwrap();
        let relay = "SELECT epoch, position, published FROM relay";
        let columns = |row: &rusqlite::Row<'_>| Ok([row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?]);
        assert_eq!(file.read(|reader| Ok(reader.query_row(relay, [], columns)?)).unwrap(), [3, 7, 0]);
        let offset = "SELECT next_offset, last_offset, last_digest FROM command_offsets";
        let columns = |row: &rusqlite::Row<'_>| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?, row.get::<_, Option<Vec<u8>>>(2)?))
        };
        assert_eq!(file.read(|reader| Ok(reader.query_row(offset, [], columns)?)).unwrap(), (8, None, None));
        drop(file);
        EventFile::open_read_only(&path).unwrap();
    }

    #[test]
    fn what_may_pass_is_transient() {
        let told = |code| sqlite_error(Path::new("f"), &rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for code in [ffi::SQLITE_BUSY, ffi::SQLITE_FULL, ffi::SQLITE_CANTOPEN, ffi::SQLITE_PROTOCOL] {
            assert!(told(code).is_transient(), "{}", told(code));
        }
        assert!(!told(ffi::SQLITE_CORRUPT).is_transient());
    }
}
