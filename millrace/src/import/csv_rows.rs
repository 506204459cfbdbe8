//! Rows of a CSV file, one bad row at a time.
//!
//! Guarantee: a row that cannot be read costs that row and no other. The `csv` crate cannot give this: an opening
//! quote without its end makes it swallow the file up to the next quote. Here a quoted field may span lines only when
//! the record that results has the header's number of fields and nothing behind its closing quotes, and when no line
//! inside it, without quotes, is a row by itself; else the line with the open quote is refused alone and reading goes on behind it.

use std::collections::VecDeque;
use std::io;

use super::lines::{Line, Lines, MAX_LINE_BYTES};
use super::record::{Cells, Record, SHOWN_BYTES, shown, shown_bytes};

/// Most lines of one record.
const MAX_RECORD_LINES: usize = 200;
/// Most lines of one record that end one quoted field and open the next. Bounds how often a line of a hostile file is read:
/// a line that would open a quote by itself, met inside an open quote, ends the record or counts here.
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
mod tests {
    use super::*;

    fn rows(text: &[u8]) -> Vec<(u64, Result<Vec<String>, String>)> {
        let lines = Lines::new(Box::new(io::Cursor::new(text.to_vec())));
        let mut rows = CsvRows::new(lines, b',').unwrap();
        let mut read = Vec::new();
        while let Some(record) = rows.next_record().unwrap() {
            let cells = record.cells.map(|cells| match cells {
                Cells::Row(values) => values,
                Cells::Object(_) => unreachable!(),
            });
            read.push((record.line, cells));
        }
        read
    }

    fn good(rows: &[(u64, Result<Vec<String>, String>)]) -> Vec<(u64, String)> {
        rows.iter().filter_map(|(line, cells)| cells.as_ref().ok().map(|cells| (*line, cells.join("|")))).collect()
    }

    fn bad(rows: &[(u64, Result<Vec<String>, String>)]) -> Vec<u64> {
        rows.iter().filter(|(_, cells)| cells.is_err()).map(|(line, _)| *line).collect()
    }

    #[test]
    fn quotes_commas_and_line_ends_are_read_as_spreadsheets_write_them() {
        let read = rows(b"a,b,c\r\n1,\"x, \"\"y\"\"\",3\r\n\r\n2,,\r\n3,12\" pizza,\"z\"");
        assert_eq!(good(&read), [(2, "1|x, \"y\"|3".into()), (4, "2||".into()), (5, "3|12\" pizza|z".into())]);
        assert_eq!(bad(&read), Vec::<u64>::new());
    }

    #[test]
    fn a_quoted_field_may_span_lines() {
        let read = rows(b"a,b,c,d\n1,\"two\nlines, really\n\nor four\",3,4\n5,6,7,8\n");
        assert_eq!(good(&read), [(2, "1|two\nlines, really\n\nor four|3|4".into()), (6, "5|6|7|8".into())]);
        let read = rows(b"a,b,c,d\n\"begins\nends\",2,3,4\n");
        assert_eq!(good(&read), [(2, "begins\nends|2|3|4".into())]);
    }

    #[test]
    fn an_open_quote_costs_its_own_row_only() {
        for text in [
            &b"a,b,c,d\n1,\"open,3,4\n5,6,7,8\n9,10,11,12\n"[..],
            b"a,b,c,d\n1,\"open,3,4\n5,\"6\",7,8\n9,10,11,12\n",
            b"a,b,c,d\n1,\"open,3,4\n5,\"6, 6\",7,8\n9,10,11,12\n",
            b"a,b,c,d\n1,\"open,3,4\n5,6,7,8\n9,10 inch\",11,12\n",
        ] {
            let read = rows(text);
            assert_eq!(bad(&read), [2], "{}", String::from_utf8_lossy(text));
            assert_eq!(good(&read).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4]);
        }
        // With three columns a text line may look like a row, but garbage behind a quote still tells.
        let read = rows(b"a,b,c\n1,\"open,3\n2,\"good\",4\n5,6,7\n");
        assert_eq!((bad(&read), good(&read).len()), (vec![2], 2));
    }

    #[test]
    fn an_open_quote_in_the_last_line_or_before_a_long_rest_is_refused_alone() {
        assert_eq!(bad(&rows(b"a,b\n1,2\n3,\"4")), [3]);
        let mut text = b"a,b\n1,\"open\n".to_vec();
        for number in 0..1_000 {
            text.extend_from_slice(format!("{number},x\n").as_bytes());
        }
        let read = rows(&text);
        assert_eq!((bad(&read), good(&read).len()), (vec![2], 1_000));
    }

    /// The splitter as a whole: lines read one after the other give what the joined text gives.
    #[test]
    fn a_record_goes_on_where_its_last_line_ended() {
        let Split::Open(open) = split(b"1,\"two", b',') else { panic!("closed") };
        let Split::Open(open) = open.go_on(b"\"\"three\"\"", b',') else { panic!("closed") };
        let Split::Open(open) = open.go_on(b"four\" ,\"five", b',') else { panic!("closed") };
        assert_eq!(open.fields, [b"1".to_vec(), b"two\n\"three\"\nfour".to_vec()]);
        assert_eq!(
            open.go_on(b"\",", b','),
            Split::Fields(vec![b"1".to_vec(), b"two\n\"three\"\nfour".to_vec(), b"five\n".to_vec(), Vec::new()])
        );
    }

    /// What one reading costs is counted in bytes given to the splitter: a clock would blame the machine.
    #[test]
    fn hostile_quotes_cost_a_bounded_number_of_readings() {
        let padding = "y".repeat(5_000);
        let header: Vec<String> = (0..400).map(|number| format!("c{number}")).collect();
        for line in [
            format!("x,\"\"\" {padding}"),
            format!("x,\"\"\" {}", " ".repeat(5_000)),
            format!("x,\"{padding}"),
            format!("x\",{padding},\"\"\"z"),
            format!("x\",\"{padding}"),
            format!("\"{padding}\"\""),
        ] {
            let text = format!("{}\n{}", header.join(","), format!("{line}\n").repeat(300));
            SPLIT_BYTES.set(0);
            let read = rows(text.as_bytes());
            assert_eq!(good(&read).len(), 0);
            let readings = SPLIT_BYTES.get() / text.len();
            assert!(readings <= MAX_REOPENED + 3, "{readings} readings of {:?}…", &line[..12]);
        }
    }

    #[test]
    fn a_record_may_have_several_fields_of_several_lines() {
        let read = rows(b"a,b,c,d\n\"1\n1\",\"2\n2\",\"3\n3\",4\n5,6,7,8\n");
        assert_eq!(good(&read), [(2, "1\n1|2\n2|3\n3|4".into()), (6, "5|6|7|8".into())]);
    }

    #[test]
    fn a_good_row_keeps_no_more_text_than_a_reject_shows() {
        let text = format!("a,b\n1,{}\n2,\"{}\n{}\"\n", "é".repeat(100_000), "x".repeat(9_000), "y".repeat(9_000));
        let mut rows = CsvRows::new(Lines::new(Box::new(io::Cursor::new(text.into_bytes()))), b',').unwrap();
        let record = rows.next_record().unwrap().unwrap();
        assert_eq!(record.text.chars().count(), 2_000);
        assert!(record.text.capacity() <= 4 * SHOWN_BYTES && record.cells.is_ok());
        let record = rows.next_record().unwrap().unwrap();
        assert!(record.text.starts_with("2,\"xxx") && record.text.chars().count() == 2_000 && record.cells.is_ok());
    }

    #[test]
    fn ragged_rows_and_text_behind_quotes_are_refused_with_their_line() {
        let read = rows(b"a,b,c\n1,2\n1,2,3,4\n\"x\"y,2,3\n1,2,3\n");
        assert_eq!(bad(&read), [2, 3, 4]);
        assert_eq!(good(&read), [(5, "1|2|3".into())]);
        assert!(read[0].1.as_ref().unwrap_err().contains("2 fields, the header has 3"));
    }

    #[test]
    fn bytes_that_are_no_text_cost_their_row() {
        let read = rows(b"name,price\nCr\xe8me,3\nCr\xc3\xa8me,4\n");
        assert_eq!(bad(&read), [2]);
        assert!(read[0].1.as_ref().unwrap_err().contains("0xE8"), "{:?}", read[0]);
        assert_eq!(good(&read), [(3, "Crème|4".into())]);
    }

    #[test]
    fn a_file_without_a_header_is_told_so() {
        let new = |text: &[u8]| CsvRows::new(Lines::new(Box::new(io::Cursor::new(text.to_vec()))), b',').err();
        assert!(matches!(new(b""), Some(HeaderError::Missing)));
        assert!(matches!(new(b"\n\n"), Some(HeaderError::Missing)));
        assert!(matches!(new(b"a,\"b\n1,2\n"), Some(HeaderError::Quoting { line: 1 })));
        assert!(matches!(new(b"pr\xe9nom\n1\n"), Some(HeaderError::Encoding { line: 1 })));
    }

    proptest::proptest! {
        /// What the csv crate writes is read back, whatever is in the cells.
        #[test]
        fn what_a_writer_quotes_is_read_back(cells in proptest::collection::vec(proptest::collection::vec("[ a-c,\"\n]{0,6}", 5), 1..20)) {
            // A text line that looks like a row inside a quoted field is what the reader refuses on purpose.
            let looks_like_rows = cells.iter().flatten().any(|cell| cell.lines().any(|line| line.matches(',').count() >= 4));
            proptest::prop_assume!(!looks_like_rows);
            let mut writer = csv::WriterBuilder::new().quote_style(csv::QuoteStyle::Always).from_writer(Vec::new());
            writer.write_record(["a", "b", "c", "d", "e"]).unwrap();
            for row in &cells {
                writer.write_record(row).unwrap();
            }
            let read: Vec<Vec<String>> = rows(&writer.into_inner().unwrap()).into_iter().filter_map(|(_, cells)| cells.ok()).collect();
            proptest::prop_assert_eq!(read, cells);
        }

        #[test]
        fn no_bytes_panic_and_every_line_is_accounted_for(text in "[a,\"\n]{0,200}") {
            let text = format!("a,b,c,d\n{text}");
            rows(text.as_bytes());
        }
    }
}
