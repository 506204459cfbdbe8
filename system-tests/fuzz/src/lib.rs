//! Hostile input for every parser and decoder at an edge, as a plain program on a stable compiler.
//!
//! Each target makes its inputs from valid ones (written by the real encoders) and from what its grammar is made of. An
//! input follows from seed, target and number alone, so any one can be made again. Every input is held to the same bounds:
//! no panic, an answer in time, a bounded peak of memory, and what the target itself promises.

pub mod bounds;
pub mod mutation;
pub mod regressions;
pub mod run;
pub mod target;
mod targets;

pub use targets::all;
