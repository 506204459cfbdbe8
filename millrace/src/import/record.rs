//! One row of a file before anything is known about products: a line number, the text, and named cells.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use super::decimal::NumberText;
use super::lines::Line;

/// Characters of a refused row that the rejects file shows. No row keeps more: any of them may be refused later.
const SHOWN: usize = 2_000;
/// Bytes that hold as many characters.
pub const SHOWN_BYTES: usize = 4 * SHOWN;

#[derive(Debug)]
pub struct Record {
    /// Line on which it begins, from 1.
    pub line: u64,
    /// As in the file, as far as the rejects show it.
    pub text: String,
    /// Or why it cannot be read.
    pub cells: Result<Cells, String>,
}

#[derive(Debug)]
pub enum Cells {
    /// In the order of the header.
    Row(Vec<String>),
    Object(HashMap<String, Box<RawValue>>),
}

/// A column of the file: its name, and its place where places are fixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub index: usize,
}

/// A number as it stands in a cell.
#[derive(Debug)]
pub struct NumberCell<'a> {
    text: Cow<'a, str>,
    is_json: bool,
}

// === impl Record ===

impl Record {
    pub fn refused(line: &Line, problem: String) -> Self {
        Self { line: line.number, text: shown(&line.text), cells: Err(problem) }
    }
}

/// The beginning of a row's bytes that is enough for [`shown`].
pub fn shown_bytes(text: &[u8]) -> &[u8] {
    &text[..text.len().min(SHOWN_BYTES)]
}

/// What the rejects show of a row.
pub fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(shown_bytes(text)).chars().take(SHOWN).collect()
}

// === impl Cells ===

impl Cells {
    /// The trimmed text of a cell; blank and missing ones are `None`.
    pub fn text(&self, column: &Column) -> Result<Option<Cow<'_, str>>, String> {
        let text = match self {
            Cells::Row(values) => Cow::Borrowed(values.get(column.index).map_or("", String::as_str)),
            Cells::Object(values) => match values.get(&column.name) {
                None => return Ok(None),
                Some(value) => scalar(&column.name, value)?,
            },
        };
        let trimmed = trim(&text);
        Ok(match trimmed {
            "" => None,
            _ if trimmed.len() == text.len() => Some(text),
            _ => Some(Cow::Owned(trimmed.to_owned())),
        })
    }

    /// The texts of a cell that may hold a JSON list.
    pub fn texts(&self, column: &Column) -> Result<Vec<String>, String> {
        if let Cells::Object(values) = self
            && let Some(value) = values.get(&column.name)
            && value.get().starts_with('[')
        {
            let list: Vec<Option<String>> = serde_json::from_str(value.get())
                .map_err(|_| format!("{:?} is a list of something else than texts", column.name))?;
            return Ok(list
                .into_iter()
                .flatten()
                .map(|text| trim(&text).to_owned())
                .filter(|text| !text.is_empty())
                .collect());
        }
        Ok(self.text(column)?.map(Cow::into_owned).into_iter().collect())
    }

    pub fn number(&self, column: &Column) -> Result<Option<NumberCell<'_>>, String> {
        let is_json = match self {
            Cells::Row(_) => false,
            Cells::Object(values) => values.get(&column.name).is_some_and(|value| !value.get().starts_with('"')),
        };
        Ok(self.text(column)?.map(|text| NumberCell { text, is_json }))
    }
}

// === impl NumberCell ===

impl NumberCell<'_> {
    pub fn as_text(&self) -> NumberText<'_> {
        NumberText { text: &self.text, is_json: self.is_json }
    }
}

fn scalar<'a>(name: &str, value: &'a RawValue) -> Result<Cow<'a, str>, String> {
    let raw = value.get();
    match raw.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(raw).map(Cow::Owned).map_err(|error| format!("{name:?}: {error}")),
        Some(b'n') => Ok(Cow::Borrowed("")),
        Some(b'{') => Err(format!("{name:?} is an object, a text or number is wanted")),
        Some(b'[') => Err(format!("{name:?} is a list, a text or number is wanted")),
        Some(b't' | b'f') => Err(format!("{name:?} is {raw}, a text or number is wanted")),
        _ => Ok(Cow::Borrowed(raw)),
    }
}

/// Also takes off what looks like nothing but is no white space to Unicode.
fn trim(text: &str) -> &str {
    text.trim_matches(|character: char| {
        character.is_whitespace() || matches!(character, '\u{feff}' | '\u{200b}' | '\u{2060}')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Cells {
        Cells::Object(serde_json::from_str(json).unwrap())
    }

    fn column(name: &str) -> Column {
        Column { name: name.to_owned(), index: 0 }
    }

    #[test]
    fn cells_are_trimmed_and_blank_ones_are_none() {
        let row = |value: &str| Cells::Row(vec![value.to_owned()]);
        assert_eq!(row(" \u{a0}Milk\u{200b}\t").text(&column("a")).unwrap().as_deref(), Some("Milk"));
        assert_eq!(row("\u{feff} ").text(&column("a")).unwrap(), None);
    }

    #[test]
    fn json_values_are_texts_numbers_or_refused() {
        let cells = object(r#"{"a":"x","n":null,"p":1.50,"o":{},"l":["A"," ","B"],"t":true,"m":[1]}"#);
        assert_eq!(cells.text(&column("a")).unwrap().as_deref(), Some("x"));
        assert_eq!(cells.text(&column("n")).unwrap(), None);
        assert_eq!(cells.text(&column("gone")).unwrap(), None);
        assert_eq!(cells.text(&column("p")).unwrap().as_deref(), Some("1.50"));
        assert!(cells.number(&column("p")).unwrap().unwrap().is_json);
        assert!(!cells.number(&column("a")).unwrap().unwrap().is_json);
        assert_eq!(cells.texts(&column("l")).unwrap(), ["A", "B"]);
        for bad in ["o", "l", "t"] {
            assert!(cells.text(&column(bad)).is_err(), "{bad}");
        }
        assert!(cells.texts(&column("m")).is_err());
    }
}
