//! Rows of one read, whose bytes lie in one piece of memory: one allocation for a thousand records.

use std::ops::Range;

use bytes::Bytes;
use rusqlite::types::Type;
use rusqlite::{Error, Row};

use crate::headers::Headers;
use crate::log::{Record, TopicPartition};

#[derive(Default)]
pub(super) struct Page {
    bytes: Vec<u8>,
    rows: Vec<PageRow>,
    /// Offset and problem of a row that is not what the table is for.
    damaged: Option<(u64, String)>,
}

struct PageRow {
    offset: u64,
    timestamp: i64,
    key: Range<usize>,
    headers: Range<usize>,
    value: Range<usize>,
}

// === impl Page ===

impl Page {
    /// Takes a row of offset, timestamp, key, headers and value. False after the last one, which is a damaged one.
    pub fn take(&mut self, row: &Row<'_>) -> rusqlite::Result<bool> {
        let offset = row.get::<_, i64>(0)? as u64;
        match self.read(offset, row) {
            Ok(read) => self.rows.push(read),
            Err(error @ (Error::InvalidColumnType(..) | Error::FromSqlConversionFailure(..))) => {
                self.damaged = Some((offset, error.to_string()));
            }
            Err(error) => return Err(error),
        }
        Ok(self.damaged.is_none())
    }

    fn read(&mut self, offset: u64, row: &Row<'_>) -> rusqlite::Result<PageRow> {
        let timestamp = row.get(1)?;
        let (key, headers, value) = (self.copy(row, 2)?, self.copy(row, 3)?, self.copy(row, 4)?);
        Ok(PageRow { offset, timestamp, key, headers, value })
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn copy(&mut self, row: &Row<'_>, column: usize) -> rusqlite::Result<Range<usize>> {
        let begin = self.bytes.len();
        let blob = row
            .get_ref(column)?
            .as_blob()
            .map_err(|error| Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error)))?;
        self.bytes.extend_from_slice(blob);
        Ok(begin..self.bytes.len())
    }

    /// The records of a partition; in words, the place of the first that cannot be read, and why.
    pub fn into_records(self, at: &TopicPartition) -> Result<Vec<Record>, String> {
        let bytes = Bytes::from(self.bytes);
        let damaged = |offset: u64, problem: &str| format!("{at} offset {offset} cannot be read: {problem}");
        let record = |row: PageRow| -> Result<Record, String> {
            let headers =
                Headers::from_bytes(bytes.slice(row.headers)).ok_or_else(|| damaged(row.offset, "its headers"))?;
            let (key, value) = (bytes.slice(row.key), bytes.slice(row.value));
            Ok(Record { at: at.clone(), offset: row.offset, timestamp: row.timestamp, key, headers, value })
        };
        let records = self.rows.into_iter().map(record).collect::<Result<_, _>>()?;
        match self.damaged {
            Some((offset, problem)) => Err(damaged(offset, &problem)),
            None => Ok(records),
        }
    }
}
