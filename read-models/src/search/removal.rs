//! How a generation ends: a tombstone first, then its builds as they come free.
//!
//! ```text
//! generations/<n>.retired     nobody begins, fills or takes over a build of generation n any more
//! ```
//!
//! A tombstone stays for good, since the number is never used again. Whoever comes with an old view of things (a writer
//! that was frozen, a process that has read the catalogue before) finds it: before it makes a directory, again once it
//! holds a lock, and with each beat. So a build is removed only under its lock, and comes back under none.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::ReadModelError;
use crate::search::NAME;
use crate::search::builds::{BUILDS, Builds, LOCK, POINTER, POINTER_DRAFT};

pub(super) const GENERATIONS: &str = "generations";
const TOMBSTONE: &str = "retired";

/// The lock of a build that nobody holds, kept while that build is removed.
pub(super) struct Unheld {
    _lock: Option<File>,
}

/// What a search directory tells of its generations, whatever the catalogue does.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    /// Those that have a directory, and 1, in order.
    pub(super) there: Vec<u32>,
    pub(super) retired: Vec<u32>,
}

// === impl Found ===

impl Found {
    pub(super) fn in_dir(root: &Path) -> std::io::Result<Self> {
        let mut found = Found { there: vec![1], retired: Vec::new() };
        let entries = match std::fs::read_dir(root.join(GENERATIONS)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            match (name.parse(), name.strip_suffix(TOMBSTONE).and_then(|rest| rest.strip_suffix('.')?.parse().ok())) {
                (Ok(number), _) => found.there.push(number),
                (_, Some(number)) => found.retired.push(number),
                _ => {}
            }
        }
        found.there.sort_unstable();
        found.there.retain(|number| !found.retired.contains(number));
        Ok(found)
    }
}

// === impl Builds ===

impl Builds {
    fn tombstone(&self) -> PathBuf {
        self.root.join(GENERATIONS).join(format!("{}.{TOMBSTONE}", self.generation))
    }

    pub(super) fn is_retired(&self) -> bool {
        self.tombstone().exists()
    }

    pub(super) fn check_not_retired(&self) -> Result<(), ReadModelError> {
        if self.is_retired() { Err(self.retired()) } else { Ok(()) }
    }

    pub(super) fn retired(&self) -> ReadModelError {
        ReadModelError::Retired { name: format!("{NAME}@{}", self.generation) }
    }

    /// Sets the tombstone: nobody begins to write here from now on, and those who write notice.
    pub(super) fn retire(&self) -> Result<(), ReadModelError> {
        if self.is_retired() {
            return Ok(());
        }
        let set = || {
            let dir = self.root.join(GENERATIONS);
            std::fs::create_dir_all(&dir)?;
            File::create(self.tombstone())?.sync_all()?;
            File::open(&dir)?.sync_all()?;
            File::open(&self.root)?.sync_all()
        };
        set().map_err(|error| self.failed(&error))
    }

    /// Takes readers away, then removes one build that nobody holds. `false` once nothing is left of a retired
    /// generation; `true` also while somebody, perhaps frozen, still holds a build.
    pub(super) fn remove_some(&self) -> Result<bool, ReadModelError> {
        for name in [POINTER, POINTER_DRAFT] {
            gone(std::fs::remove_file(self.dir.join(name))).map_err(|error| self.failed(&error))?;
        }
        let numbers = self.numbers()?;
        for number in &numbers {
            if let Some(_free) = self.unheld(*number) {
                match gone(std::fs::remove_dir_all(self.path(*number))) {
                    // A reader that is still there may open its rows meanwhile, and SQLite makes files beside them.
                    Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => return Ok(true),
                    removed => removed.map_err(|error| self.failed(&error))?,
                }
                tracing::info!(
                    generation = self.generation,
                    build = number,
                    "build of a retired generation is removed"
                );
                return Ok(true);
            }
        }
        if !numbers.is_empty() {
            return Ok(true);
        }
        // Whoever made a build in this moment removes it itself: a directory that is not empty stays.
        let mut emptied = vec![self.dir.join(BUILDS)];
        if self.dir != self.root {
            emptied.push(self.dir.clone());
        }
        for dir in emptied {
            match gone(std::fs::remove_dir(dir)) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => return Ok(true),
                removed => removed.map_err(|error| self.failed(&error))?,
            }
        }
        Ok(false)
    }

    /// `None` while somebody holds the build: it still writes there, or will when it wakes.
    pub(super) fn unheld(&self, number: u64) -> Option<Unheld> {
        match File::options().write(true).open(self.path(number).join(LOCK)) {
            Ok(lock) => match lock.try_lock() {
                Ok(()) => Some(Unheld { _lock: Some(lock) }),
                Err(TryLockError::WouldBlock | TryLockError::Error(_)) => None,
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Some(Unheld { _lock: None }),
            Err(_) => None,
        }
    }
}

/// What is not there need not be removed.
pub(super) fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
