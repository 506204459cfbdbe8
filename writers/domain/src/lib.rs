//! The aggregates: what may happen, decided from what has happened.
//!
//! Pure and synchronous: no clock, no randomness, no I/O. Time and ids come in with the command, so a decision
//! can be repeated and tested as a table of given, when, then.

mod aggregate;
mod catalogue;
mod inventory;
mod platform;
mod pricing;
mod rejection;
mod stream;
#[cfg(test)]
mod testing;

pub use aggregate::{State, apply, decide};
pub use catalogue::ProductState;
pub use inventory::{Reservation, StockState};
pub use platform::DecisionsState;
pub use pricing::PriceState;
pub use rejection::Rejection;
pub use stream::StreamId;

/// Version of the serialized form of [`State`] in snapshots. Raise it when a state changes its shape or an
/// `apply` its meaning: older snapshots are then passed over and the stream is folded from its events.
pub const STATE_VERSION: u32 = 1;
