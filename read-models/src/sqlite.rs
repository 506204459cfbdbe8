//! A read model's SQLite file: its connections, and how its errors are told. What the tables hold in common is in
//! [`ledger`].
//!
//! WAL mode, so that readers and the writer do not wait for each other. `synchronous` is NORMAL: a power cut may take
//! back the last transactions, effect and checkpoint together, and the log gives them again.

pub(crate) mod catalogue;
pub(crate) mod dead_letters;
pub(crate) mod ledger;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use tokio::sync::watch;

use crate::error::ReadModelError;

/// How long a transaction waits for one of another process.
const BUSY: Duration = Duration::from_secs(5);
/// Reader connections kept open while nobody uses them.
const IDLE_READERS: usize = 8;

/// One SQLite file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SqliteFile {
    inner: Arc<Inner>,
}

struct Inner {
    /// Read model, for errors.
    name: &'static str,
    path: PathBuf,
    /// What to do when the file is damaged.
    remedy: &'static str,
    /// `None`: opened for reading only.
    writer: Option<Mutex<Connection>>,
    idle_readers: Mutex<Vec<Connection>>,
    /// Changes whenever this process has written.
    written: watch::Sender<()>,
}

/// How a SQLite file is made.
pub(crate) struct Layout {
    /// Of layout 1.
    pub(crate) tables: &'static [&'static str],
    /// What each later layout adds. A file of an earlier one gets it when a writer opens it.
    pub(crate) additions: &'static [&'static str],
}

/// Why a transaction was given up.
#[derive(Debug)]
pub(crate) enum Abort {
    Sqlite(rusqlite::Error),
    Refused(ReadModelError),
}

impl From<rusqlite::Error> for Abort {
    fn from(error: rusqlite::Error) -> Self {
        Abort::Sqlite(error)
    }
}

impl From<ReadModelError> for Abort {
    fn from(error: ReadModelError) -> Self {
        Abort::Refused(error)
    }
}

// === impl Layout ===

impl Layout {
    /// In `PRAGMA user_version`; a higher one is refused.
    fn version(&self) -> i64 {
        1 + self.additions.len() as i64
    }

    fn in_memory(&self) -> rusqlite::Result<Connection> {
        let connection = Connection::open_in_memory()?;
        for statements in self.tables.iter().chain(self.additions) {
            connection.execute_batch(statements)?;
        }
        Ok(connection)
    }
}

// === impl SqliteFile ===

impl SqliteFile {
    /// Opens the file for reading and writing, and makes it when it is missing. Blocks for as long as that takes.
    pub(crate) fn open(
        name: &'static str,
        path: &Path,
        layout: &Layout,
        remedy: &'static str,
    ) -> Result<Self, ReadModelError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let fails = |error| sqlite_error(name, path, remedy, error);
        let mut writer = Connection::open_with_flags(path, flags).map_err(fails)?;
        set_up(&writer).map_err(fails)?;
        // Moving the log into the file after 16 MB instead of 4 keeps that work off most commits.
        writer
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4000;")
            .map_err(fails)?;
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fails)?;
        let found = layout_of(&transaction).map_err(fails)?;
        if found < 0 || found > layout.version() {
            return Err(unknown_layout(name, path, found, layout));
        }
        let tables = if found == 0 { layout.tables } else { &[] };
        let additions = layout.additions.iter().skip((found - 1).max(0) as usize);
        for statements in tables.iter().chain(additions) {
            transaction.execute_batch(statements).map_err(fails)?;
        }
        if found < layout.version() {
            transaction.pragma_update(None, "user_version", layout.version()).map_err(fails)?;
        }
        transaction.commit().map_err(fails)?;
        // Damage to the text of the tables is not seen by SQLite until a statement meets it, and would be met again
        // after each start.
        let wanted = layout.in_memory().and_then(|fresh| shape_of(&fresh)).map_err(fails)?;
        if shape_of(&writer).map_err(fails)? != wanted {
            return Err(damaged(name, path, remedy, "its tables are not those that were made"));
        }
        Ok(Self::with(name, path, remedy, Some(Mutex::new(writer))))
    }

    /// Opens a file that another process writes. `None` while there is none, or none that is ready.
    pub(crate) fn open_read_only(
        name: &'static str,
        path: &Path,
        layout: &Layout,
        remedy: &'static str,
    ) -> Result<Option<Self>, ReadModelError> {
        if !path.exists() {
            return Ok(None);
        }
        let file = Self::with(name, path, remedy, None);
        let reader = file.reader()?;
        match layout_of(&reader).map_err(|error| file.error(error))? {
            found if found == layout.version() => {
                file.give_back(reader);
                Ok(Some(file))
            }
            // Not made yet, or not brought up to this build's layout: that is for the writer.
            found if (0..layout.version()).contains(&found) => Ok(None),
            found => Err(unknown_layout(name, path, found, layout)),
        }
    }

    /// The same file, to write into beside the process that holds it: for notes to that process.
    pub(crate) fn beside_its_writer(&self) -> Result<Self, ReadModelError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let writer = Connection::open_with_flags(&self.inner.path, flags).map_err(|error| self.error(error))?;
        set_up(&writer).map_err(|error| self.error(error))?;
        Ok(Self::with(self.inner.name, &self.inner.path, self.inner.remedy, Some(Mutex::new(writer))))
    }

    fn with(name: &'static str, path: &Path, remedy: &'static str, writer: Option<Mutex<Connection>>) -> Self {
        let inner = Inner {
            name,
            path: path.to_owned(),
            remedy,
            writer,
            idle_readers: Mutex::default(),
            written: watch::Sender::new(()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Changes whenever this process has written.
    pub(crate) fn written(&self) -> watch::Receiver<()> {
        self.inner.written.subscribe()
    }

    /// Runs blocking file work off the runtime.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SqliteFile) -> Result<T, ReadModelError> + Send + 'static,
    ) -> Result<T, ReadModelError> {
        let file = self.clone();
        match tokio::task::spawn_blocking(move || work(&file)).await {
            Ok(result) => result,
            Err(error) => Err(self.permanent(error.to_string())),
        }
    }

    /// One write transaction: all of `work`, or nothing.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Abort>,
    ) -> Result<T, ReadModelError> {
        let mut writer = self.writer()?;
        self.write_on(&mut writer, work)
    }

    /// One write transaction that no power cut takes back, nor what was written before it.
    pub(crate) fn write_durably<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Abort>,
    ) -> Result<T, ReadModelError> {
        let mut writer = self.writer()?;
        let set = |writer: &Connection, mode: &str| {
            writer.pragma_update(None, "synchronous", mode).map_err(|error| self.error(error))
        };
        set(&writer, "FULL")?;
        let result = self.write_on(&mut writer, work);
        set(&writer, "NORMAL")?;
        result
    }

    fn writer(&self) -> Result<MutexGuard<'_, Connection>, ReadModelError> {
        let Some(writer) = &self.inner.writer else {
            return Err(self.permanent("it was opened for reading only".to_owned()));
        };
        // A poisoned lock is only a lock: the transaction of the thread that panicked was rolled back.
        Ok(writer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_on<T>(
        &self,
        writer: &mut Connection,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Abort>,
    ) -> Result<T, ReadModelError> {
        let transaction =
            writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|error| self.error(error))?;
        let result = work(&transaction).map_err(|abort| self.aborted(abort))?;
        transaction.commit().map_err(|error| self.error(error))?;
        self.inner.written.send_replace(());
        Ok(result)
    }

    /// One read transaction: everything that `work` reads is of one moment.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Abort>) -> Result<T, ReadModelError> {
        let mut reader = self.reader()?;
        let transaction = reader.transaction().map_err(|error| self.error(error))?;
        let result = work(&transaction).map_err(|abort| self.aborted(abort));
        transaction.finish().map_err(|error| self.error(error))?;
        // A connection that met an error is not used again.
        if !matches!(result, Err(ReadModelError::Unavailable { .. } | ReadModelError::Damaged { .. })) {
            self.give_back(reader);
        }
        result
    }

    fn reader(&self) -> Result<Connection, ReadModelError> {
        let idle = self.inner.idle_readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(reader) = idle {
            return Ok(reader);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let reader = Connection::open_with_flags(&self.inner.path, flags).map_err(|error| self.error(error))?;
        set_up(&reader).map_err(|error| self.error(error))?;
        Ok(reader)
    }

    fn give_back(&self, reader: Connection) {
        let mut idle = self.inner.idle_readers.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(reader);
        }
    }

    fn aborted(&self, abort: Abort) -> ReadModelError {
        match abort {
            Abort::Sqlite(error) => self.error(error),
            Abort::Refused(error) => error,
        }
    }

    fn error(&self, error: rusqlite::Error) -> ReadModelError {
        sqlite_error(self.inner.name, &self.inner.path, self.inner.remedy, error)
    }

    fn permanent(&self, problem: String) -> ReadModelError {
        ReadModelError::Permanent {
            name: self.inner.name.to_owned(),
            problem: format!("{}: {problem}", address(&self.inner.path)),
        }
    }
}

/// A full disk, a failed write and a lock that another process holds may pass; a damaged file does not.
fn sqlite_error(name: &str, path: &Path, remedy: &str, error: rusqlite::Error) -> ReadModelError {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            // Too many open files, or no room for the files beside it.
            | ErrorCode::CannotOpen
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted,
        ) => ReadModelError::Unavailable { name: name.to_owned(), address: address(path), problem: error.to_string() },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(name, path, remedy, error),
        // Without a code: a value that is not what the tables are for.
        None => damaged(name, path, remedy, error),
        Some(_) => ReadModelError::Permanent { name: name.to_owned(), problem: format!("{}: {error}", address(path)) },
    }
}

fn damaged(name: &str, path: &Path, remedy: &str, problem: impl std::fmt::Display) -> ReadModelError {
    let problem = format!("{}: {problem}; {remedy}", path.display());
    ReadModelError::Damaged { name: name.to_owned(), problem }
}

fn unknown_layout(name: &str, path: &Path, found: i64, layout: &Layout) -> ReadModelError {
    let wanted = layout.version();
    ReadModelError::Permanent {
        name: name.to_owned(),
        problem: format!(
            "{} has layout {found}, this build reads layout {wanted}: another program or version wrote it",
            path.display()
        ),
    }
}

fn address(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

/// Tables, indexes and their columns: what they are called, hold and are unique by.
fn shape_of(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut columns = connection.prepare(
        "SELECT concat_ws(' ', made.type, made.name, made.tbl_name, found.cid, found.name, found.type, found.\"notnull\", found.pk)
         FROM sqlite_schema AS made LEFT JOIN pragma_table_xinfo(made.name) AS found ORDER BY 1",
    )?;
    columns.query_map([], |row| row.get(0))?.collect()
}

fn layout_of(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}
