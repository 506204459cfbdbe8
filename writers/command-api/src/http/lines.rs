//! Splits a streamed body into lines of bounded length, numbered from 1.
//!
//! A line that is too long is reported once and passed over to its end, so that one hostile line costs neither
//! memory nor the rest of the body.

use bytes::{Bytes, BytesMut};

/// A line of a bulk body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Text { number: u64, text: Bytes },
    TooLong { number: u64 },
}

pub(super) struct LineSplitter {
    buffer: BytesMut,
    number: u64,
    limit: usize,
    /// Inside a line that was reported as too long.
    skipping: bool,
}

impl LineSplitter {
    pub(super) fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), number: 0, limit, skipping: false }
    }

    /// Takes a piece of the body and gives the lines that it completes. Blank lines are passed over.
    pub(super) fn push(&mut self, piece: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.extend(&rest[..end], &mut lines);
            self.end_line(&mut lines);
            rest = &rest[end + 1..];
        }
        self.extend(rest, &mut lines);
        lines
    }

    /// The last line, which need not end in a newline.
    pub(super) fn finish(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        self.end_line(&mut lines);
        lines
    }

    fn extend(&mut self, piece: &[u8], lines: &mut Vec<Line>) {
        if self.skipping {
            return;
        }
        if self.buffer.len() + piece.len() > self.limit {
            self.buffer.clear();
            self.skipping = true;
            lines.push(Line::TooLong { number: self.number + 1 });
            return;
        }
        self.buffer.extend_from_slice(piece);
    }

    fn end_line(&mut self, lines: &mut Vec<Line>) {
        self.number += 1;
        let text = self.buffer.split().freeze();
        if !std::mem::take(&mut self.skipping) && !text.trim_ascii().is_empty() {
            lines.push(Line::Text { number: self.number, text });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(number: u64, text: &str) -> Line {
        Line::Text { number, text: Bytes::copy_from_slice(text.as_bytes()) }
    }

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let body = b"one\n\n two \r\nthree";
        for size in 1..=body.len() {
            let mut splitter = LineSplitter::new(10);
            let mut lines: Vec<Line> = body.chunks(size).flat_map(|piece| splitter.push(piece)).collect();
            lines.extend(splitter.finish());
            assert_eq!(lines, [text(1, "one"), text(3, " two \r"), text(4, "three")], "pieces of {size}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_named_and_the_next_one_is_read() {
        let mut splitter = LineSplitter::new(4);
        let mut lines = splitter.push(b"12345");
        lines.extend(splitter.push(b"67890"));
        lines.extend(splitter.push(b"\nok\n"));
        lines.extend(splitter.finish());
        assert_eq!(lines, [Line::TooLong { number: 1 }, text(2, "ok")]);
    }
}
