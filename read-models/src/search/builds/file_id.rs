//! Tells a file from one that was put in its place: an open file outlives its name.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::search) struct FileId {
    device: u64,
    inode: u64,
    /// Inodes of files that nobody has open any more are given to new ones. `None` where the file system does not tell.
    born: Option<SystemTime>,
}

// === impl FileId ===

impl FileId {
    pub(in crate::search) fn of(file: &File) -> std::io::Result<Self> {
        Ok(Self::of_metadata(&file.metadata()?))
    }

    /// Of what is at the path now; `None` where nothing is. It opens nothing: to close a file that SQLite has open
    /// would give up the locks that SQLite holds on it.
    pub(in crate::search) fn at(path: &Path) -> std::io::Result<Option<Self>> {
        match std::fs::metadata(path) {
            Ok(found) => Ok(Some(Self::of_metadata(&found))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn of_metadata(found: &Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino(), born: found.created().ok() }
    }
}
