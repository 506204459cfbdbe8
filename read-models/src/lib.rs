//! Read models: what is read, kept with the checkpoint that it is true at, fenced by epoch.
//!
//! The only crate that knows Redis and tantivy. Whatever the store: effect, checkpoint and parked events change
//! as one atomic unit, or not at all.

mod checkpoint;
mod dead_letters;
mod error;
pub mod generations;
mod metrics;
mod parked;
pub mod process_report;
mod read_model;
mod row_scan;
pub mod search;
mod sqlite;
mod status;
pub mod stock;

pub use checkpoint::{Checkpoint, PartitionRef};
pub use dead_letters::{
    DeadLetterAction, DeadLetterAnswer, DeadLetterOutcome, DeadLetterRequest, DeadLetters, DiscardNote, DiscardedEvent,
    KEPT_ANSWERS, MAX_REQUESTS, Resolution, Resolved,
};
pub use error::ReadModelError;
pub use generations::{Catalogue, Generations, ReadChoice};
pub use metrics::describe_metrics;
pub use parked::{FOREIGN_KEY, ParkedEvent, ParkedKey, ParkedPlace};
pub use read_model::{Batch, Claimed, Generation, Head, Loaded, ReadModel, RowPage};
pub use status::{PartitionStatus, ReadModelStatus};
