//! What every event store needs beside its tables, for an adapter that lives in another crate: the simulated one.
//!
//! An adapter that folded streams or wrote outcomes in its own way would not show how the real ones behave.

pub use crate::outcome_row::{NewestPositions, positioned, published};
pub use crate::rebuild::{PastEvent, Snapshot, rebuild};
