//! A wall clock that can be set, for Millrace's own processes: libfaketime, which reads the offset from a file, and the
//! waits that it leaves out. The monotonic clock stays as it is.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::servers::postgres::run;

const FILE: &str = "clock";
const WAITS: &str = include_str!("clock_waits.c");

/// Variables for the processes; `None` when libfaketime is not installed.
pub fn variables(folder: &Path) -> anyhow::Result<Option<Vec<(String, String)>>> {
    let Some(library) = library() else { return Ok(None) };
    shift(folder, 0)?;
    let (source, waits) = (folder.join("clock_waits.c"), folder.join("clock_waits.so"));
    std::fs::write(&source, WAITS)?;
    run(Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&waits).arg(&source))?;
    let variables = [
        ("LD_PRELOAD", format!("{}:{}", waits.display(), library.display())),
        ("FAKETIME_TIMESTAMP_FILE", folder.join(FILE).display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    Ok(Some(variables.map(|(name, value)| (name.to_owned(), value)).to_vec()))
}

/// Sets the clock off by so many seconds; seen within a second.
pub fn shift(folder: &Path, seconds: i64) -> anyhow::Result<()> {
    // Replaced whole: a reader must never see half of it.
    let part = folder.join("clock.part");
    std::fs::write(&part, format!("{seconds:+}s\n"))?;
    Ok(std::fs::rename(part, folder.join(FILE))?)
}

fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.filter_map(Result::ok).map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}
