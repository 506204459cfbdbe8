//! Rows of one read, whose bytes lie in one piece of memory: one allocation for a thousand records.

use std::ops::Range;

use bytes::Bytes;
use rusqlite::Row;

use crate::headers::Headers;
use crate::log::{Record, TopicPartition};

#[derive(Default)]
pub(super) struct Page {
    bytes: Vec<u8>,
    rows: Vec<PageRow>,
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
    /// Takes a row of offset, timestamp, key, headers and value.
    pub fn take(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let offset = row.get::<_, i64>(0)? as u64;
        let timestamp = row.get(1)?;
        let (key, headers, value) = (self.copy(row, 2)?, self.copy(row, 3)?, self.copy(row, 4)?);
        self.rows.push(PageRow { offset, timestamp, key, headers, value });
        Ok(())
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn copy(&mut self, row: &Row<'_>, column: usize) -> rusqlite::Result<Range<usize>> {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(row.get_ref(column)?.as_blob()?);
        Ok(begin..self.bytes.len())
    }

    /// The records of a partition; the place of the first whose headers cannot be read, in words.
    pub fn into_records(self, at: &TopicPartition) -> Result<Vec<Record>, String> {
        let bytes = Bytes::from(self.bytes);
        let record = |row: PageRow| {
            let headers = Headers::from_bytes(bytes.slice(row.headers))
                .ok_or_else(|| format!("the headers of {at}, offset {}, cannot be read", row.offset))?;
            let (key, value) = (bytes.slice(row.key), bytes.slice(row.value));
            Ok(Record { at: at.clone(), offset: row.offset, timestamp: row.timestamp, key, headers, value })
        };
        self.rows.into_iter().map(record).collect()
    }
}
