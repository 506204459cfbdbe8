//! Rows of an NDJSON file: one JSON object a line.

use std::collections::HashMap;
use std::io;

use serde_json::value::RawValue;

use super::lines::Lines;
use super::record::{Cells, Record, shown};

pub struct NdjsonRows {
    lines: Lines,
}

// === impl NdjsonRows ===

impl NdjsonRows {
    pub fn new(lines: Lines) -> Self {
        Self { lines }
    }

    /// The next row; blank lines are no rows.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        let line = loop {
            match self.lines.next_line()? {
                Some(line) if line.is_blank() => continue,
                Some(line) => break line,
                None => return Ok(None),
            }
        };
        if let Some(problem) = line.problem() {
            return Ok(Some(Record::refused(&line, problem)));
        }
        if let Err(error) = std::str::from_utf8(&line.text) {
            let byte = line.text.get(error.valid_up_to()).copied().unwrap_or_default();
            let problem = format!("not UTF-8 (byte 0x{byte:02X}); name the file's encoding with --encoding");
            return Ok(Some(Record::refused(&line, problem)));
        }
        match serde_json::from_slice::<HashMap<String, Box<RawValue>>>(&line.text) {
            Ok(values) => {
                Ok(Some(Record { line: line.number, text: shown(&line.text), cells: Ok(Cells::Object(values)) }))
            }
            Err(error) => {
                let problem = format!("not a JSON object: {error}");
                Ok(Some(Record::refused(&line, problem)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_costs_itself_only() {
        let text = b"{\"sku\":\"A\"}\n\n[1]\n{\"sku\":\n{\"sku\":\"\xff\"}\n{\"sku\":\"B\"}".to_vec();
        let mut rows = NdjsonRows::new(Lines::new(Box::new(io::Cursor::new(text))));
        let mut read = Vec::new();
        while let Some(record) = rows.next_record().unwrap() {
            read.push((record.line, record.cells.is_ok()));
        }
        assert_eq!(read, [(1, true), (3, false), (4, false), (5, false), (6, true)]);
    }
}
