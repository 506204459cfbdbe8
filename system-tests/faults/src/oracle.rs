//! The oracle: folds the event table by itself and compares everything else with it.
//!
//! [`table`], [`topics`] and [`views`] read what there is; [`fold`] says what there should be; [`checks`] are pure functions
//! from both to violations, so that each can be shown a lost, doubled or altered piece and must find it.

pub mod answers;
pub mod checks;
pub mod fold;
pub mod generations;
pub mod steady;
pub mod table;
#[cfg(test)]
mod tests;
pub mod topics;
pub mod views;

use std::fmt;

/// Something that must never be, by the id of the invariant that it breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
}

impl Violation {
    pub fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.invariant, self.what)
    }
}
