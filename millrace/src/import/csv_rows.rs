//! Rows of a CSV file, one bad row at a time.
//!
//! Guarantee: a row that cannot be read costs that row and no other. The `csv` crate cannot give this: an opening
//! quote without its end makes it swallow the file up to the next quote. Here a quoted field may span lines only when
//! the record that results has the header's number of fields and nothing behind its closing quotes, and when no line
//! inside it, without quotes, is a row by itself; else the line with the open quote is refused alone and reading goes
//! on behind it.

use std::collections::VecDeque;
use std::io;

use super::lines::{Line, Lines, MAX_LINE_BYTES};
use super::record::{Cells, Record, SHOWN_BYTES, shown, shown_bytes};

/// Most lines of one record.
const MAX_RECORD_LINES: usize = 200;
/// Most lines of one record that end one quoted field and open the next. Bounds how often a line of a hostile file is
/// read: a line that would open a quote by itself, met inside an open quote, ends the record or counts here.
const MAX_REOPENED: usize = 32;
/// Fewer fields than this occur in running text too often to tell a row from a line of a description.
const ROW_LIKE_FIELDS: usize = 4;

pub struct CsvRows {
    lines: Lines,
    delimiter: u8,
    columns: Vec<String>,
    /// Lines read ahead for a record that did not come about.
    ahead: VecDeque<Line>,
}

/// What a piece of text is as one record.
#[derive(Debug, PartialEq)]
enum Split {
    Fields(Vec<Vec<u8>>),
    /// A quoted field has no end yet.
    Open(OpenRecord),
    TextBehindQuote {
        field: usize,
    },
}

/// A record whose last field is inside its quotes: goes on with the next line, and nothing is read twice.
#[derive(Debug, Default, PartialEq)]
struct OpenRecord {
    fields: Vec<Vec<u8>>,
    /// What the open field has so far.
    field: Vec<u8>,
}

/// A record of several lines.
struct Joined {
    /// As much as the rejects show.
    text: Vec<u8>,
    fields: Vec<Vec<u8>>,
}

// === impl CsvRows ===

impl CsvRows {
    /// Reads the header.
    pub fn new(mut lines: Lines, delimiter: u8) -> Result<Self, HeaderError> {
        let header = loop {
            match lines.next_line()? {
                None => return Err(HeaderError::Missing),
                Some(line) if line.is_blank() => continue,
                Some(line) => break line,
            }
        };
        let Split::Fields(fields) = split(&header.text, delimiter) else {
            return Err(HeaderError::Quoting { line: header.number });
        };
        let columns: Result<Vec<String>, _> = fields.into_iter().map(String::from_utf8).collect();
        let columns = columns.map_err(|_| HeaderError::Encoding { line: header.number })?;
        let columns = columns.iter().map(|column| column.trim().to_owned()).collect();
        Ok(Self { lines, delimiter, columns, ahead: VecDeque::new() })
    }

    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The next row; blank lines are no rows.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        let Some(first) = self.next_full_line()? else { return Ok(None) };
        if let Some(problem) = first.problem() {
            return Ok(Some(Record::refused(&first, problem)));
        }
        let (text, fields) = match split(&first.text, self.delimiter) {
            Split::Fields(fields) => (shown_bytes(&first.text).to_vec(), fields),
            Split::TextBehindQuote { field } => {
                let problem = format!("text behind the closing quote of field {}", field + 1);
                return Ok(Some(Record::refused(&first, problem)));
            }
            Split::Open(open) => {
                let field = open.fields.len();
                match self.join_lines(&first, open)? {
                    Some(joined) => (joined.text, joined.fields),
                    None => {
                        let problem = format!("the quote that opens field {} is never closed", field + 1);
                        return Ok(Some(Record::refused(&first, problem)));
                    }
                }
            }
        };
        if fields.len() != self.columns.len() {
            let problem = format!("has {} fields, the header has {}", fields.len(), self.columns.len());
            return Ok(Some(Record::refused(&first, problem)));
        }
        let mut cells = Vec::with_capacity(fields.len());
        for (field, column) in fields.into_iter().zip(self.columns.iter()) {
            match String::from_utf8(field) {
                Ok(field) => cells.push(field),
                Err(error) => {
                    let at = error.utf8_error().valid_up_to();
                    let byte = error.as_bytes().get(at).copied().unwrap_or_default();
                    let problem = format!(
                        "column {column:?} is not UTF-8 (byte 0x{byte:02X}); name the file's encoding with --encoding"
                    );
                    return Ok(Some(Record::refused(&first, problem)));
                }
            }
        }
        Ok(Some(Record { line: first.number, text: shown(&text), cells: Ok(Cells::Row(cells)) }))
    }

    /// The record that begins with an open quote, if the following lines make it one. Else they are kept for later.
    fn join_lines(&mut self, first: &Line, open: OpenRecord) -> io::Result<Option<Joined>> {
        let width = self.columns.len();
        let mut text = shown_bytes(&first.text).to_vec();
        let mut bytes = first.text.len();
        let mut open = open;
        let mut reopened = 0;
        let mut taken: Vec<Line> = Vec::new();
        let joined = loop {
            if taken.len() + 1 >= MAX_RECORD_LINES || bytes > MAX_LINE_BYTES || reopened > MAX_REOPENED {
                break None;
            }
            let Some(line) = self.next_any_line()? else { break None };
            bytes += 1 + line.text.len();
            if text.len() < SHOWN_BYTES {
                text.push(b'\n');
                text.extend_from_slice(shown_bytes(&line.text));
            }
            let is_unusable = line.problem().is_some();
            let is_row = width >= ROW_LIKE_FIELDS
                && !line.text.contains(&b'"')
                && matches!(split(&line.text, self.delimiter), Split::Fields(fields) if fields.len() == width);
            let fields_before = open.fields.len();
            let split = if is_unusable || is_row { None } else { Some(open.go_on(&line.text, self.delimiter)) };
            taken.push(line);
            match split {
                Some(Split::Fields(fields)) if fields.len() == width => break Some(fields),
                // An open field behind the last column will not become a row either.
                Some(Split::Open(further)) if further.fields.len() < width => {
                    reopened += usize::from(further.fields.len() > fields_before);
                    open = further;
                }
                _ => break None,
            }
        };
        match joined {
            Some(fields) => Ok(Some(Joined { text, fields })),
            None => {
                for line in taken.into_iter().rev() {
                    self.ahead.push_front(line);
                }
                Ok(None)
            }
        }
    }

    fn next_any_line(&mut self) -> io::Result<Option<Line>> {
        match self.ahead.pop_front() {
            Some(line) => Ok(Some(line)),
            None => self.lines.next_line(),
        }
    }

    fn next_full_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            match self.next_any_line()? {
                Some(line) if line.is_blank() => continue,
                other => return Ok(other),
            }
        }
    }
}

/// Why a CSV file has no usable header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("the file is empty; a CSV file begins with a line of column names")]
    Missing,
    #[error("line {line}: the quotes of the header do not match")]
    Quoting { line: u64 },
    #[error("line {line}: the header is not UTF-8; name the file's encoding with --encoding")]
    Encoding { line: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

// === impl OpenRecord ===

impl OpenRecord {
    /// Goes on with the next line: the line end belongs to the open field.
    fn go_on(mut self, line: &[u8], delimiter: u8) -> Split {
        self.field.push(b'\n');
        split_on(self, true, line, delimiter)
    }
}

/// Splits one record. Quotes count only at the beginning of a field, so `12" pizza` is a text like any other.
fn split(text: &[u8], delimiter: u8) -> Split {
    split_on(OpenRecord::default(), false, text, delimiter)
}

/// Splits the rest of a record. `is_quoted`: it begins inside the quotes of the open field.
fn split_on(open: OpenRecord, is_quoted: bool, text: &[u8], delimiter: u8) -> Split {
    #[cfg(test)]
    SPLIT_BYTES.set(SPLIT_BYTES.get() + text.len());
    let OpenRecord { mut fields, mut field } = open;
    let mut at = 0;
    let mut is_quoted = is_quoted;
    loop {
        if !is_quoted && text.get(at) == Some(&b'"') {
            is_quoted = true;
            at += 1;
        }
        if is_quoted {
            loop {
                match (text.get(at), text.get(at + 1)) {
                    (None, _) => return Split::Open(OpenRecord { fields, field }),
                    (Some(b'"'), Some(b'"')) => {
                        field.push(b'"');
                        at += 2;
                    }
                    (Some(b'"'), _) => {
                        at += 1;
                        break;
                    }
                    (Some(byte), _) => {
                        field.push(*byte);
                        at += 1;
                    }
                }
            }
            while delimiter != b' ' && text.get(at) == Some(&b' ') {
                at += 1;
            }
            if text.get(at).is_some_and(|byte| *byte != delimiter) {
                return Split::TextBehindQuote { field: fields.len() };
            }
        } else {
            let rest = &text[at..];
            let length = rest.iter().position(|byte| *byte == delimiter).unwrap_or(rest.len());
            field.extend_from_slice(&rest[..length]);
            at += length;
        }
        fields.push(std::mem::take(&mut field));
        if at >= text.len() {
            return Split::Fields(fields);
        }
        // The delimiter; behind it a field begins, and be it an empty last one.
        at += 1;
        is_quoted = false;
    }
}

#[cfg(test)]
thread_local! {
    /// Bytes that were split in this thread.
    static SPLIT_BYTES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests;
