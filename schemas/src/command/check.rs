//! Sizes and ranges of what a command says, and the one error that names the field.

use super::CommandError;

/// Longest name, brand, reason, tag or category, in characters.
pub const MAX_TEXT: usize = 500;
/// Longest description, in characters.
pub const MAX_DESCRIPTION: usize = 10_000;
/// Most tags, and most levels of a category path.
pub const MAX_ITEMS: usize = 32;
/// Largest quantity, count or price: far above any warehouse, far below an overflow of their sums.
pub const MAX_NUMBER: i64 = 1_000_000_000_000;
/// Longest evidence of a decision, in characters: one message of it still fits every broker.
pub const MAX_EVIDENCE: usize = 100_000;

/// Checks the fields of one command.
#[derive(Clone, Copy)]
pub(super) struct Check {
    command_type: &'static str,
}

// === impl Check ===

impl Check {
    pub(super) const fn of(command_type: &'static str) -> Self {
        Self { command_type }
    }

    pub(super) fn refused(self, field: &'static str, problem: String) -> CommandError {
        CommandError::Field { command_type: self.command_type, field, problem }
    }

    /// A text that says something, of `most` characters.
    pub(super) fn text(self, field: &'static str, text: &str, most: usize) -> Result<(), CommandError> {
        self.length(field, text, most)?;
        let problem = if text.trim().is_empty() {
            "is empty".to_owned()
        } else if text.chars().any(|character| character.is_control() && !matches!(character, '\n' | '\r' | '\t')) {
            "has a control character".to_owned()
        } else {
            return Ok(());
        };
        Err(self.refused(field, problem))
    }

    pub(super) fn length(self, field: &'static str, text: &str, most: usize) -> Result<(), CommandError> {
        match text.chars().count() {
            length if length > most => Err(self.refused(field, format!("has {length} characters, at most {most} fit"))),
            _ => Ok(()),
        }
    }

    pub(super) fn optional(self, field: &'static str, text: Option<&str>, most: usize) -> Result<(), CommandError> {
        text.map_or(Ok(()), |text| self.text(field, text, most))
    }

    pub(super) fn list(self, field: &'static str, values: &[String]) -> Result<(), CommandError> {
        if values.len() > MAX_ITEMS {
            return Err(self.refused(field, format!("has {} items, at most {MAX_ITEMS} fit", values.len())));
        }
        values.iter().try_for_each(|value| self.text(field, value, MAX_TEXT))
    }

    /// A number from `least` to [`MAX_NUMBER`].
    pub(super) fn number(self, field: &'static str, value: i64, least: i64) -> Result<(), CommandError> {
        if (least..=MAX_NUMBER).contains(&value) {
            Ok(())
        } else {
            Err(self.refused(field, format!("{value} is not between {least} and {MAX_NUMBER}")))
        }
    }

    /// SHA-256 as 64 lower-case hex digits.
    pub(super) fn hash(self, field: &'static str, text: &str) -> Result<(), CommandError> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 64 && text.bytes().all(is_digit) {
            Ok(())
        } else {
            Err(self.refused(field, "is not a SHA-256 of 64 lower-case hex digits".to_owned()))
        }
    }
}
