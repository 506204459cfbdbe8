//! The file as rows: opened, its columns known, read from the start as often as needed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use encoding_rs::Encoding;
use sha2::{Digest, Sha256};

use super::args::{FileFormat, ProductsArgs};
use super::csv_rows::CsvRows;
use super::lines::Lines;
use super::ndjson_rows::NdjsonRows;
use super::record::{Cells, Record};

/// NDJSON rows whose keys are taken for the file's columns.
const ROWS_FOR_COLUMNS: usize = 1_000;

/// A file of rows.
#[derive(Debug, Clone)]
pub struct SourceFile {
    path: PathBuf,
    format: FileFormat,
    delimiter: u8,
    encoding: Option<&'static Encoding>,
    limit: u64,
}

/// One reading of a file.
pub struct Rows {
    inner: Inner,
    left: u64,
}

enum Inner {
    Csv(CsvRows),
    Ndjson(NdjsonRows),
}

// === impl SourceFile ===

impl SourceFile {
    pub fn of(args: &ProductsArgs) -> Self {
        Self {
            path: args.file.clone(),
            format: args.file_format(),
            delimiter: args.csv_delimiter(),
            encoding: args.encoding,
            limit: args.limit.unwrap_or(u64::MAX),
        }
    }

    pub fn rows(&self) -> anyhow::Result<Rows> {
        let name = self.path.display();
        let lines = Lines::open(&self.path, self.encoding).with_context(|| format!("{name} cannot be read"))?;
        let inner = match self.format {
            FileFormat::Csv => Inner::Csv(CsvRows::new(lines, self.delimiter).with_context(|| name.to_string())?),
            FileFormat::Ndjson => Inner::Ndjson(NdjsonRows::new(lines)),
        };
        Ok(Rows { inner, left: self.limit })
    }

    /// The header, or the keys of the first rows.
    pub fn columns(&self) -> anyhow::Result<Vec<String>> {
        let mut rows = self.rows()?;
        if let Inner::Csv(csv) = &rows.inner {
            return Ok(csv.columns().to_vec());
        }
        let mut keys = BTreeSet::new();
        for _ in 0..ROWS_FOR_COLUMNS {
            let Some(record) = rows.next_record()? else { break };
            if let Ok(Cells::Object(values)) = record.cells {
                keys.extend(values.into_keys());
            }
        }
        Ok(keys.into_iter().collect())
    }

    /// A delivery is its bytes: the name that it has unless it is given one.
    pub fn digest(&self) -> anyhow::Result<String> {
        let cannot = || format!("{} cannot be read", self.path.display());
        let mut file = File::open(&self.path).with_context(cannot)?;
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => digest.update(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(cannot),
            }
        }
        Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether it can be read more than once, as an import does.
    pub fn is_regular(&self) -> anyhow::Result<bool> {
        let metadata =
            std::fs::metadata(&self.path).with_context(|| format!("{} cannot be read", self.path.display()))?;
        Ok(metadata.is_file())
    }

    /// Tells whether the file is still the one that was read before.
    pub fn stamp(&self) -> anyhow::Result<(u64, Option<SystemTime>)> {
        let metadata =
            std::fs::metadata(&self.path).with_context(|| format!("{} cannot be read", self.path.display()))?;
        Ok((metadata.len(), metadata.modified().ok()))
    }
}

// === impl Rows ===

impl Rows {
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        match &mut self.inner {
            Inner::Csv(rows) => rows.next_record(),
            Inner::Ndjson(rows) => rows.next_record(),
        }
    }
}
