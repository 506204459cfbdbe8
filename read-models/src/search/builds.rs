//! The builds of a generation in a search directory: which one is read, and who writes which.
//!
//! ```text
//! CURRENT             number of the build that is read, replaced in one step
//! builds/<n>/         a whole read model: rows.db, index/
//! builds/<n>/LOCK     held by the process that writes it, for as long as that process lives
//! builds/<n>/BEAT     a counter that its holder raises every second
//! ```
//!
//! So lies generation 1 in the search directory itself, and each later one in `generations/<number>/` below it.
//!
//! A process that was frozen keeps its lock, and may wake at any instruction: it can never be made to write nothing.
//! So nobody takes a build over whose lock is held; a new one is begun beside it, and read once it is whole. What the
//! frozen process still writes goes into a build that nobody reads, and it ends as soon as it sees that. Old builds are
//! removed once their locks are free.
//!
//! A build may be deleted under its holder, by hand. Its rows then go on in a file without a name, which no reader
//! finds, and its lock keeps nobody out. So with each beat, before each index commit and before readers are sent to it,
//! the holder looks whether lock and rows are still at their paths; once they are not it lets go, and makes nothing
//! there again.
//!
//! Two healthy writers on one directory do not take turns. Only the newest build is contended for, and a new one is
//! begun only when its holder's counter stood still through a whole row of looks: looks and not seconds, so that a
//! watcher that was itself frozen, or a clock that jumps, proves nothing. A holder that writes but slowly still beats:
//! the counter is raised by a thread of its own. The second writer waits for as long as the first one beats.

mod file_id;

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use resilience::{Guard, guard};

use crate::error::ReadModelError;
use crate::search::NAME;
use crate::search::read_model::ROWS_FILE;
use crate::search::removal::{GENERATIONS, gone};
pub(super) use file_id::FileId;

pub(super) const POINTER: &str = "CURRENT";
pub(super) const POINTER_DRAFT: &str = "CURRENT.new";
pub(super) const BUILDS: &str = "builds";
pub(super) const LOCK: &str = "LOCK";
const BEAT: &str = "BEAT";
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// One generation in a search directory.
#[derive(Debug, Clone)]
pub(super) struct Builds {
    /// The search directory.
    pub(super) root: PathBuf,
    pub(super) generation: u32,
    /// What the generation has for itself.
    pub(super) dir: PathBuf,
}

/// A build that this process writes, until it is dropped.
#[derive(Debug)]
pub(super) struct HeldBuild {
    builds: Builds,
    pub(super) number: u64,
    standing: Arc<Standing>,
    _lock: File,
    /// Ends the beat.
    _alive: Sender<()>,
}

/// What its holder knows of a build. Each of the two, once set, stays set: the build is of no use any more.
#[derive(Debug)]
struct Standing {
    path: PathBuf,
    lock: FileId,
    /// Once they are open.
    rows: OnceLock<FileId>,
    /// Another build is read instead, or the generation is retired.
    is_replaced: AtomicBool,
    /// Lock or rows are not at their paths any more.
    is_deleted: AtomicBool,
}

/// Looks at the holder of the newest build.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: Option<(u64, Vec<u8>)>,
    looks: u32,
    is_new: bool,
}

// === impl Builds ===

impl Builds {
    pub(super) fn of_generation(root: &Path, generation: u32) -> Self {
        let dir = match generation {
            0 | 1 => root.to_owned(),
            later => root.join(GENERATIONS).join(later.to_string()),
        };
        Self { root: root.to_owned(), generation, dir }
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(BUILDS).join(number.to_string())
    }

    /// The build that is read. `None` when there is none: no pointer, one that says nothing, or one to a build that is
    /// not there.
    pub(super) fn current(&self) -> Option<u64> {
        let pointer = std::fs::read_to_string(self.dir.join(POINTER)).ok()?;
        let number = pointer.trim_end().parse().ok()?;
        self.path(number).is_dir().then_some(number)
    }

    /// Holds the newest build, or the first one. [`ReadModelError::Locked`] while another process does,
    /// [`ReadModelError::Retired`] once nobody is to write here any more.
    pub(super) fn hold(&self) -> Result<Arc<HeldBuild>, ReadModelError> {
        let newest = self.numbers()?.into_iter().max();
        self.hold_build(newest.unwrap_or(1))
    }

    /// Begins a build that is newer than `number`.
    pub(super) fn begin_after(&self, number: u64) -> Result<Arc<HeldBuild>, ReadModelError> {
        self.check_not_retired()?;
        let next = number + 1;
        std::fs::create_dir_all(self.dir.join(BUILDS)).map_err(|error| self.failed(&error))?;
        match std::fs::create_dir(self.path(next)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(self.failed_or_retired(&error)),
            // Somebody who began it in the same moment has its lock, or leaves it to us.
            _ => self.hold_build(next),
        }
    }

    fn hold_build(&self, number: u64) -> Result<Arc<HeldBuild>, ReadModelError> {
        self.check_not_retired()?;
        let path = self.path(number);
        std::fs::create_dir_all(&path).map_err(|error| self.failed(&error))?;
        let open = |name: &str| File::options().create(true).truncate(false).write(true).open(path.join(name));
        let lock = open(LOCK).map_err(|error| self.failed_or_retired(&error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if !guard::holds(Guard::SearchLock) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ReadModelError::Locked { path: self.dir.display().to_string() });
            }
            Err(TryLockError::Error(error)) => return Err(self.failed(&error)),
        }
        // It may have been retired and removed before the lock was ours: then nothing is left behind here.
        if let Err(retired) = self.check_not_retired() {
            drop(lock);
            let _ = self.remove_some();
            return Err(retired);
        }
        let lock_id = FileId::of(&lock).map_err(|error| self.failed(&error))?;
        // It may also have been removed between the two: a lock without a name keeps nobody out.
        if FileId::at(&path.join(LOCK)).map_err(|error| self.failed(&error))? != Some(lock_id) {
            return Err(ReadModelError::Locked { path: self.dir.display().to_string() });
        }
        let beat = open(BEAT).map_err(|error| self.failed(&error))?;
        let standing = Arc::new(Standing {
            path,
            lock: lock_id,
            rows: OnceLock::new(),
            is_replaced: AtomicBool::new(false),
            is_deleted: AtomicBool::new(false),
        });
        let (alive, ended) = channel();
        let held =
            HeldBuild { builds: self.clone(), number, standing: Arc::clone(&standing), _lock: lock, _alive: alive };
        let builds = self.clone();
        let thread = std::thread::Builder::new().name("search-beat".to_owned());
        thread
            .spawn(move || {
                let mut count: u64 = 0;
                loop {
                    // A write that fails is a beat that is missed; the disk may be full for a while.
                    let _ = beat.write_all_at(format!("{count:020}").as_bytes(), 0);
                    if builds.current().is_some_and(|current| current > number) || builds.is_retired() {
                        standing.is_replaced.store(true, Ordering::Relaxed);
                    }
                    standing.look();
                    count += 1;
                    if ended.recv_timeout(BEAT_EVERY) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })
            .map_err(|error| self.failed(&error))?;
        Ok(Arc::new(held))
    }

    pub(super) fn numbers(&self) -> Result<Vec<u64>, ReadModelError> {
        let entries = match std::fs::read_dir(self.dir.join(BUILDS)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(&error)),
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.failed(&error))?;
            numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(numbers)
    }

    /// Replaces the pointer in one step: a reader sees the old build or the new one.
    fn point_to(&self, number: u64) -> std::io::Result<()> {
        let draft = self.dir.join(POINTER_DRAFT);
        let mut file = File::create(&draft)?;
        writeln!(file, "{number}")?;
        file.sync_all()?;
        std::fs::rename(&draft, self.dir.join(POINTER))?;
        File::open(&self.dir)?.sync_all()
    }

    /// A file that is missed may have been taken by whoever removes a retired generation.
    fn failed_or_retired(&self, error: &std::io::Error) -> ReadModelError {
        if self.is_retired() { self.retired() } else { self.failed(error) }
    }

    pub(super) fn failed(&self, error: &std::io::Error) -> ReadModelError {
        let (name, problem) = (NAME.to_owned(), error.to_string());
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::Interrupted => {
                ReadModelError::Unavailable { name, address: self.dir.display().to_string(), problem }
            }
            _ => ReadModelError::Permanent { name, problem: format!("{}: {problem}", self.dir.display()) },
        }
    }
}

// === impl HeldBuild ===

impl HeldBuild {
    pub(super) fn generation(&self) -> u32 {
        self.builds.generation
    }

    pub(super) fn path(&self) -> PathBuf {
        self.builds.path(self.number)
    }

    /// Its rows are those at its path now, which are open: from here on they are missed when they are gone.
    pub(super) fn hold_rows(&self) -> Result<(), ReadModelError> {
        let found = FileId::at(&self.path().join(ROWS_FILE)).map_err(|error| self.builds.failed(&error))?;
        let rows = found.ok_or_else(|| self.standing.deleted())?;
        self.standing.rows.get_or_init(|| rows);
        Ok(())
    }

    /// Lets readers come here, unless they are here or at a newer build already.
    pub(super) fn point_to_it(&self) -> Result<(), ReadModelError> {
        self.check_there()?;
        match self.builds.current() {
            Some(current) if current >= self.number => return Ok(()),
            _ => {
                self.notice_retirement()?;
                self.builds.point_to(self.number).map_err(|error| self.builds.failed_or_retired(&error))?;
            }
        }
        tracing::info!(build = self.number, "search build is read from now on");
        Ok(())
    }

    /// Where nothing is read, this one is, whole or not: readers see then how far it has come.
    pub(super) fn read_if_none_is(&self) -> Result<(), ReadModelError> {
        if self.builds.current().is_none() { self.point_to_it() } else { Ok(()) }
    }

    /// Begins a newer build where this one turned out to be damaged: nobody is answered from this one any more.
    pub(super) fn begin_anew(&self) -> Result<Arc<HeldBuild>, ReadModelError> {
        let next = self.builds.begin_after(self.number)?;
        self.condemn()?;
        Ok(next)
    }

    /// Takes readers away, to no build at all.
    pub(super) fn condemn(&self) -> Result<(), ReadModelError> {
        // What is there after a deletion is another one's.
        if self.builds.current() != Some(self.number) || self.standing.look() {
            return Ok(());
        }
        gone(std::fs::remove_file(self.builds.dir.join(POINTER))).map_err(|error| self.builds.failed(&error))
    }

    pub(super) fn builds(&self) -> &Builds {
        &self.builds
    }

    /// An error once another build is read instead of this one, or none of this generation, or it was deleted. As of
    /// the last beat.
    pub(super) fn check(&self) -> Result<(), ReadModelError> {
        if self.standing.is_replaced.load(Ordering::Relaxed) {
            self.builds.check_not_retired()?;
            return Err(ReadModelError::Replaced { path: self.path().display().to_string() });
        }
        if self.is_deleted() { Err(self.standing.deleted()) } else { Ok(()) }
    }

    /// The same, and of now as far as deletion goes. Before anything is made at its path.
    pub(super) fn check_there(&self) -> Result<(), ReadModelError> {
        self.standing.look();
        self.check()
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.standing.is_deleted.load(Ordering::Relaxed)
    }

    /// The last beat may not have seen it yet, and whoever removes the generation has just taken the pointer.
    fn notice_retirement(&self) -> Result<(), ReadModelError> {
        if self.builds.is_retired() {
            self.standing.is_replaced.store(true, Ordering::Relaxed);
        }
        self.check()
    }

    /// Removes the builds before this one that nobody reads or writes.
    pub(super) fn remove_older(&self) {
        let current = self.builds.current();
        let Ok(numbers) = self.builds.numbers() else { return };
        for number in numbers.into_iter().filter(|number| *number < self.number && Some(*number) != current) {
            if let Some(_free) = self.builds.unheld(number) {
                let removed = std::fs::remove_dir_all(self.builds.path(number));
                match removed {
                    Ok(()) => tracing::info!(build = number, "old search build is removed"),
                    Err(error) => tracing::warn!(build = number, %error, "old search build stays for now"),
                }
            }
        }
    }
}

// === impl Standing ===

impl Standing {
    /// Whether it was deleted, now or before. What cannot be looked at may still be there.
    fn look(&self) -> bool {
        let is_gone =
            |name: &str, held: FileId| FileId::at(&self.path.join(name)).is_ok_and(|found| found != Some(held));
        let is_deleted = is_gone(LOCK, self.lock) || self.rows.get().is_some_and(|rows| is_gone(ROWS_FILE, *rows));
        if is_deleted && !self.is_deleted.swap(true, Ordering::Relaxed) {
            tracing::error!(path = %self.path.display(), "search build was deleted under its writer");
        }
        self.is_deleted.load(Ordering::Relaxed)
    }

    fn deleted(&self) -> ReadModelError {
        let problem = format!("{} was deleted under its writer, or exchanged", self.path.display());
        ReadModelError::Damaged { name: NAME.to_owned(), problem }
    }
}

// === impl Watch ===

impl Watch {
    /// Whether the last look was the first one at this build.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// How many looks in a row have found the newest build held and its holder's counter as it was before.
    pub(super) fn look(&mut self, builds: &Builds) -> Result<(u64, u32), ReadModelError> {
        let newest = builds.numbers()?.into_iter().max().unwrap_or(0);
        let seen = (newest, std::fs::read(builds.path(newest).join(BEAT)).unwrap_or_default());
        self.is_new = self.seen.as_ref().is_none_or(|(number, _)| *number != newest);
        self.looks = if self.seen.as_ref() == Some(&seen) { self.looks + 1 } else { 0 };
        self.seen = Some(seen);
        Ok((newest, self.looks))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use super::*;

    #[test]
    fn readers_are_not_sent_to_a_build_that_was_retired_since_the_last_beat() {
        for generation in [1, 2] {
            let folder = tempfile::tempdir().unwrap();
            let builds = Builds::of_generation(folder.path(), generation);
            let held = builds.hold().unwrap();
            held.point_to_it().unwrap();
            builds.retire().unwrap();
            assert!(builds.remove_some().unwrap(), "a build that is held");
            let sent = held.point_to_it();
            assert!(matches!(sent, Err(ReadModelError::Retired { .. })), "{sent:?}");
            assert!(matches!(held.check(), Err(ReadModelError::Retired { .. })), "the writer goes on");
            assert_eq!(builds.current(), None);
        }
    }

    /// The pointer is drafted, then put in place: the draft may be taken in between.
    #[test]
    fn a_pointer_that_is_taken_while_it_is_made_is_no_failure_of_a_retired_generation() {
        let folder = tempfile::tempdir().unwrap();
        let builds = Builds::of_generation(folder.path(), 1);
        let missed = std::io::Error::from(ErrorKind::NotFound);
        assert!(matches!(builds.failed_or_retired(&missed), ReadModelError::Permanent { .. }));
        builds.retire().unwrap();
        assert!(matches!(builds.failed_or_retired(&missed), ReadModelError::Retired { .. }));
    }
}
