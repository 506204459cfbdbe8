//! Replay as an operation: build a generation of a read model beside the live one, compare them, switch, switch back.
//!
//! Invariants R1 (no cutover without clean parity at one vector, and approval), R2 (rollback is one step and loses
//! nothing) and R3 (a replay causes no outside effect) are kept here.

mod error;
mod evidence;

pub use error::ReplayError;
pub use evidence::{ParityEvidence, QueryEvidence};
