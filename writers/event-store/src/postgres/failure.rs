//! Which errors of the server may pass with time, which mean that another was faster, and which stay.

use tokio_postgres::error::{DbError, SqlState};

use crate::error::EventStoreError;

/// Why work on a session did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// A decision of ours; no transaction is open, the session can be used again.
    Refused(EventStoreError),
    /// The server or the way to it; what the session is in now is not known.
    Database(tokio_postgres::Error),
    TimedOut,
}

// === impl Failure ===

impl Failure {
    /// The error for the caller. `address` never holds a password.
    pub(super) fn into_error(self, address: &str) -> EventStoreError {
        match self {
            Failure::Refused(error) => error,
            Failure::Database(error) => of_database(&error, address),
            Failure::TimedOut => unavailable(address, "no answer within the operation's time".to_owned()),
        }
    }
}

impl From<EventStoreError> for Failure {
    fn from(error: EventStoreError) -> Self {
        Failure::Refused(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Failure::Database(error)
    }
}

pub(super) fn unavailable(address: &str, problem: String) -> EventStoreError {
    EventStoreError::Unavailable { address: address.to_owned(), problem }
}

fn of_database(error: &tokio_postgres::Error, address: &str) -> EventStoreError {
    let Some(answer) = error.as_db_error() else { return of_connection(error, address) };
    let problem = format!("{} ({})", answer.message(), answer.code().code());
    if is_conflict(answer) {
        return EventStoreError::Conflict { what: format!("another transaction: {problem}") };
    }
    if may_pass(answer) { unavailable(address, problem) } else { EventStoreError::Permanent { problem } }
}

/// The transaction was rolled back by the server: another one was in its way.
fn is_conflict(answer: &DbError) -> bool {
    [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::UNIQUE_VIOLATION,
    ]
    .contains(answer.code())
}

/// Connection trouble (08), too little room or memory (53), a canceled statement or a server that stops or
/// starts (57), the system below it (58), a session that sat in a transaction, and a server that is a standby now.
fn may_pass(answer: &DbError) -> bool {
    let class = answer.code().code().get(..2).unwrap_or_default();
    matches!(class, "08" | "53" | "57" | "58")
        || [SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT, SqlState::READ_ONLY_SQL_TRANSACTION].contains(answer.code())
}

/// An error without an answer of the server. The client library keeps the kind to itself, so its fixed first words
/// decide; everything not listed here is about the connection.
fn of_connection(error: &tokio_postgres::Error, address: &str) -> EventStoreError {
    const STAYS: [&str; 6] = [
        "error serializing parameter",
        "error deserializing column",
        "invalid column",
        "query returned an unexpected number",
        "authentication error",
        "invalid configuration",
    ];
    let said = error.to_string();
    let mut problem = said.clone();
    if let Some(source) = std::error::Error::source(error) {
        problem = format!("{said}: {source}");
    }
    if STAYS.iter().any(|words| said.starts_with(words)) {
        return EventStoreError::Permanent { problem: format!("{address}: {problem}") };
    }
    unavailable(address, problem)
}
