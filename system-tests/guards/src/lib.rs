//! Shows what each guard is for: with it a situation ends well, and without it the checker reports the violation.
//!
//! The scenarios are the tests of this crate. They need the feature `unguarded`, which no other build has on:
//! `cargo test -p guards --features unguarded -- --include-ignored --test-threads 1`.

/// Whether this build can turn guards off: the scenarios mean something only then.
pub const CAN_TURN_OFF: bool = resilience::guard::IS_SWITCHABLE;
