//! The search read model: the contract of its rows, what it answers, and how its index comes back.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod dead_letters;
mod search_suite;
