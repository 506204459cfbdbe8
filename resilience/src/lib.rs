//! Failure handling in one place: how long to wait and how often to try again, when to stop asking a server that does
//! not answer, and the names of the guards that keep every event from being lost or doubled.
//!
//! Whether an error is transient is said by the error's own type (`is_transient()` of each crate's error enum); what to
//! do about a transient one is said here.

mod backoff;
mod breaker;
pub mod guard;
mod metrics;

pub use backoff::{Backoff, Policy, retry};
pub use breaker::{Admission, Breaker, BreakerSettings, Open};
pub use guard::{Guard, GuardError};
pub use metrics::describe_metrics;
