//! Lines of a file of any encoding, with their numbers, in bounded memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use encoding_rs::Encoding;
use encoding_rs_io::DecodeReaderBytesBuilder;

/// Longest line (and longest record of several lines) that is kept; the rest of a longer one is skipped.
pub const MAX_LINE_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 256 * 1024;

/// One line without its end.
#[derive(Debug, Clone)]
pub struct Line {
    /// From 1.
    pub number: u64,
    pub text: Vec<u8>,
    /// It was longer than [`MAX_LINE_BYTES`].
    pub is_cut: bool,
    /// Some of its bytes mean nothing in the file's encoding.
    pub is_lossy: bool,
}

pub struct Lines {
    reader: Box<dyn BufRead + Send>,
    number: u64,
    end: u8,
    /// Bytes that the encoding does not know have become replacement characters.
    is_decoded: bool,
}

// === impl Line ===

impl Line {
    pub fn is_blank(&self) -> bool {
        self.text.iter().all(u8::is_ascii_whitespace)
    }

    /// Why no record can come of this line, whatever is in it.
    pub fn problem(&self) -> Option<String> {
        if self.is_cut {
            return Some(format!("the line is longer than {MAX_LINE_BYTES} bytes"));
        }
        self.is_lossy
            .then(|| "has bytes that the file's encoding does not know; name the right one with --encoding".to_owned())
    }
}

// === impl Lines ===

impl Lines {
    /// Opens a file. Without a named encoding a byte-order mark decides, and what has none is UTF-8; bytes that are no
    /// UTF-8 are left as they are, so that only their row is refused. Lines end with `\n` or `\r\n`, or with `\r` where
    /// the beginning of the file has no other end.
    pub fn open(path: &Path, encoding: Option<&'static Encoding>) -> io::Result<Self> {
        let encoding = encoding.filter(|encoding| *encoding != encoding_rs::UTF_8);
        let mut beginning = Vec::new();
        File::open(path)?.take(BUFFER_BYTES as u64).read_to_end(&mut beginning)?;
        let marked = Encoding::for_bom(&beginning).map(|(marked, _)| marked);
        let end = if !beginning.contains(&b'\n') && beginning.contains(&b'\r') { b'\r' } else { b'\n' };
        let decoded = DecodeReaderBytesBuilder::new()
            .encoding(encoding)
            .utf8_passthru(true)
            .strip_bom(true)
            .build(File::open(path)?);
        let lines = Self::new(Box::new(BufReader::with_capacity(BUFFER_BYTES, decoded)));
        let is_decoded = encoding.or(marked).is_some_and(|encoding| encoding != encoding_rs::UTF_8);
        Ok(Self { is_decoded, end, ..lines })
    }

    /// Lines of UTF-8 that end with `\n` or `\r\n`.
    pub fn new(reader: Box<dyn BufRead + Send>) -> Self {
        Self { reader, number: 0, end: b'\n', is_decoded: false }
    }

    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        let mut line = Line { number: self.number + 1, text: Vec::new(), is_cut: false, is_lossy: false };
        loop {
            let buffered = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if buffered.is_empty() {
                if line.text.is_empty() && !line.is_cut {
                    return Ok(None);
                }
                break;
            }
            let end = buffered.iter().position(|byte| *byte == self.end);
            let piece = &buffered[..end.unwrap_or(buffered.len())];
            let room = MAX_LINE_BYTES.saturating_sub(line.text.len());
            line.is_cut |= piece.len() > room;
            line.text.extend_from_slice(&piece[..piece.len().min(room)]);
            let used = end.map_or(buffered.len(), |end| end + 1);
            self.reader.consume(used);
            if end.is_some() {
                break;
            }
        }
        if line.text.last() == Some(&b'\r') {
            line.text.pop();
        }
        line.is_lossy = self.is_decoded && line.text.windows(3).any(|bytes| bytes == "\u{fffd}".as_bytes());
        self.number += 1;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn all(mut lines: Lines) -> Vec<(u64, Vec<u8>)> {
        let mut read = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            read.push((line.number, line.text));
        }
        read
    }

    #[test]
    fn byte_order_marks_decide_and_are_not_text() {
        let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain("é\nb".encode_utf16().flat_map(u16::to_le_bytes)).collect();
        for bytes in [
            b"\xef\xbb\xbf\xc3\xa9\nb".to_vec(),
            utf16,
            b"\xc3\xa9\nb".to_vec(),
            b"\xc3\xa9\r\nb\r\n".to_vec(),
            b"\xc3\xa9\rb".to_vec(),
        ] {
            let file = write(&bytes);
            let read = all(Lines::open(file.path(), None).unwrap());
            assert_eq!(read, [(1, "é".as_bytes().to_vec()), (2, b"b".to_vec())], "{bytes:?}");
        }
    }

    #[test]
    fn a_named_encoding_is_decoded_and_bad_bytes_are_kept_otherwise() {
        let file = write(b"Cr\xe8me");
        assert_eq!(all(Lines::open(file.path(), None).unwrap())[0].1, b"Cr\xe8me");
        let latin = Encoding::for_label(b"latin1");
        assert_eq!(all(Lines::open(file.path(), latin).unwrap())[0].1, "Crème".as_bytes());
    }

    #[test]
    fn a_decoded_line_that_lost_bytes_says_so() {
        let file = write(b"\xff\xfea\0\n\0\x00\xd8\n\0");
        let mut lines = Lines::open(file.path(), None).unwrap();
        assert_eq!(lines.next_line().unwrap().unwrap().problem(), None);
        assert!(lines.next_line().unwrap().unwrap().problem().is_some());
        // A replacement character that stands in the file is a character.
        let mut lines = Lines::open(write("a\u{fffd}".as_bytes()).path(), None).unwrap();
        assert_eq!(lines.next_line().unwrap().unwrap().problem(), None);
    }

    #[test]
    fn a_line_without_end_is_cut_and_the_next_is_whole() {
        let mut bytes = vec![b'x'; MAX_LINE_BYTES + 10];
        bytes.extend_from_slice(b"\nnext");
        let mut lines = Lines::new(Box::new(io::Cursor::new(bytes)));
        let long = lines.next_line().unwrap().unwrap();
        assert!(long.is_cut && long.text.len() == MAX_LINE_BYTES);
        let next = lines.next_line().unwrap().unwrap();
        assert_eq!((next.number, next.text, next.is_cut), (2, b"next".to_vec(), false));
    }
}
