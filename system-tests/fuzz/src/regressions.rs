//! Inputs that once broke something, kept for good: a file each, below a folder with the name of its target.

use std::path::{Path, PathBuf};

/// Folder of the kept inputs.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

/// The kept inputs of a target with their files, in the order of their names.
pub fn of(target: &str) -> std::io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = folder().join(target);
    let mut files: Vec<PathBuf> = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        listed => listed?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?,
    };
    files.sort();
    files.into_iter().map(|file| std::fs::read(&file).map(|input| (file, input))).collect()
}
