//! A simulator: the command handler, the relay and the projector engine as they are, on simulated stores, log, clock and
//! crashes, all of it following from one seed.
//!
//! A checker sees every commit, record, claim and write, and holds them against the invariants by id
//! (`docs/invariants.md`). What a seed finds is found again by the same seed.

pub mod campaign;
mod checker;
pub mod event_log;
pub mod event_store;
pub mod guard;
mod incident;
mod poison;
pub mod process;
pub mod projection;
pub mod read_model;
mod roles;
mod scenario;
pub mod shrink;
mod workload;
pub mod world;

pub use scenario::{Verdict, run};
