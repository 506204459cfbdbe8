//! The data directory of embedded stores: made when missing, held by one process.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A held data directory. The lock goes with the process, however it ends.
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    pub fn hold(path: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("data directory {} cannot be made; choose another with --data", path.display()))?;
        let lock_path = path.join("LOCK");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).with_context(|| {
            format!("{} cannot be opened; choose another directory with --data", lock_path.display())
        })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!(
                "data directory {} is in use by another millrace process; stop it, use its HTTP address (import --to URL), or choose another with --data",
                path.display()
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("{} cannot be locked", lock_path.display()))
            }
        }
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_held_once_and_free_again_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let held = DataDir::hold(&path).unwrap();
        let error = DataDir::hold(&path).err().unwrap().to_string();
        assert!(error.contains("in use") && error.contains("--data"), "{error}");
        drop(held);
        assert!(DataDir::hold(&path).is_ok());
    }
}
