//! What an import says: a bar while it runs, a file of rejected rows, a summary at the end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

const HEADER: [&str; 3] = ["line", "reason", "record"];

/// A row that did not go in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub line: u64,
    pub reason: String,
    pub record: String,
}

/// The rejects file. Made with the first reject.
pub struct Rejects {
    path: PathBuf,
    writer: Option<csv::Writer<File>>,
}

/// How it went.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    pub rows_read: u64,
    /// Rows of which something is new.
    pub imported: u64,
    /// Rows that were there already.
    pub unchanged: u64,
    /// Rows that a later row of the file repeats.
    pub duplicates_repeated: u64,
    /// Rows that a later row of the same SKU overrules.
    pub duplicates_overruled: u64,
    pub rejected: u64,
    /// Commands with an outcome.
    pub commands: u64,
    pub seconds: f64,
    pub commands_per_second: f64,
    pub rejects_file: Option<PathBuf>,
    pub dry_run: bool,
}

// === impl Rejects ===

impl Rejects {
    pub fn new(path: PathBuf) -> Self {
        Self { path, writer: None }
    }

    pub fn write(&mut self, reject: &Reject) -> anyhow::Result<()> {
        let cannot = || format!("{} cannot be written; name another file with --rejects", self.path.display());
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let mut writer = csv::Writer::from_path(&self.path).with_context(cannot)?;
                writer.write_record(HEADER).with_context(cannot)?;
                none.insert(writer)
            }
        };
        writer.write_record([&reject.line.to_string(), &reject.reason, &reject.record]).with_context(cannot)
    }

    pub fn flush(&mut self) -> anyhow::Result<()> {
        match &mut self.writer {
            Some(writer) => writer.flush().with_context(|| format!("{} cannot be written", self.path.display())),
            None => Ok(()),
        }
    }

    /// The file, if there is one. Rejects of an earlier import are taken away: they would be read as this one's.
    pub fn finish(mut self) -> anyhow::Result<Option<PathBuf>> {
        self.flush()?;
        if self.writer.is_some() {
            return Ok(Some(self.path));
        }
        if is_rejects_file(&self.path) {
            std::fs::remove_file(&self.path).with_context(|| format!("{} cannot be removed", self.path.display()))?;
        }
        Ok(None)
    }
}

fn is_rejects_file(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let mut header = String::new();
    BufReader::new(file).read_line(&mut header).is_ok() && header.trim_end() == HEADER.join(",")
}

// === impl Summary ===

impl Summary {
    pub fn finish(&mut self, elapsed: Duration, rejects_file: Option<PathBuf>) {
        self.seconds = elapsed.as_secs_f64();
        self.commands_per_second = self.commands as f64 / self.seconds.max(0.001);
        self.rejects_file = rejects_file;
    }

    /// For people.
    pub fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let duplicates = self.duplicates_repeated + self.duplicates_overruled;
        writeln!(
            out,
            "{} rows read: {} {}, {} unchanged, {duplicates} duplicates, {} rejected",
            self.rows_read,
            self.imported,
            if self.dry_run { "good" } else { "imported" },
            self.unchanged,
            self.rejected
        )?;
        if duplicates > 0 {
            writeln!(
                out,
                "duplicates: {} repeated by a later row, {} overruled by a later row of their SKU",
                self.duplicates_repeated, self.duplicates_overruled
            )?;
        }
        if let Some(file) = &self.rejects_file {
            writeln!(out, "rejected rows with line and reason: {}", file.display())?;
        }
        match self.dry_run {
            true => writeln!(out, "nothing was imported: dry run"),
            false => writeln!(
                out,
                "{} commands in {:.1} s: {:.0} commands/s",
                self.commands, self.seconds, self.commands_per_second
            ),
        }
    }
}

/// A bar with rate and time left on a terminal; nothing elsewhere.
pub fn progress_bar(rows: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(rows), ProgressDrawTarget::stderr_with_hz(5));
    let template = "{bar:30} {human_pos}/{human_len} rows  {per_sec}  {eta} left  {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// While the file is read the first time.
pub fn spinner(message: String) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
    bar.set_message(message);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_are_written_only_if_there_are_any_and_stale_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.rejects.csv");
        let mut rejects = Rejects::new(path.clone());
        let record = "a,\"b\nc\"".to_owned();
        rejects.write(&Reject { line: 7, reason: "price, \"x\"".to_owned(), record: record.clone() }).unwrap();
        assert_eq!(rejects.finish().unwrap(), Some(path.clone()));
        let mut read = csv::Reader::from_path(&path).unwrap();
        let row = read.records().next().unwrap().unwrap();
        assert_eq!(row.iter().collect::<Vec<_>>(), ["7", "price, \"x\"", &record]);

        assert_eq!(Rejects::new(path.clone()).finish().unwrap(), None);
        assert!(!path.exists(), "an earlier import's rejects would be taken for this one's");

        std::fs::write(&path, "somebody's own file\n").unwrap();
        assert_eq!(Rejects::new(path.clone()).finish().unwrap(), None);
        assert!(path.exists());
    }

    #[test]
    fn the_summary_counts_everything() {
        let mut summary = Summary {
            rows_read: 10,
            imported: 5,
            unchanged: 1,
            duplicates_overruled: 1,
            duplicates_repeated: 1,
            rejected: 2,
            commands: 15,
            ..Summary::default()
        };
        summary.finish(Duration::from_secs(3), Some(PathBuf::from("r.csv")));
        let mut text = Vec::new();
        summary.print(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("10 rows read: 5 imported, 1 unchanged, 2 duplicates, 2 rejected\n"), "{text}");
        assert!(text.contains("r.csv") && text.contains("15 commands in 3.0 s: 5 commands/s"), "{text}");
    }
}
