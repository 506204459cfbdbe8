//! Why a well-formed command is not accepted: a business answer, not an error.

use schemas::Reason;

/// A refused command. The message says the numbers ("7 asked, 3 available").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// For programs: stable, lower case.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

// === impl Rejection ===

impl Rejection {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Rejection> for Reason {
    fn from(rejection: Rejection) -> Reason {
        Reason { code: rejection.code.to_owned(), message: rejection.message }
    }
}
