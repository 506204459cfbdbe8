//! The write side's front: commands come in over HTTP or from command topics, are decided in groups and committed.
//!
//! One queue, one handler loop, one transaction per group: many commands share a commit, and each still has an
//! outcome of its own.

mod cache;
mod error;
mod expiry;
mod group;
mod handler;
pub mod http;
mod intake_gate;
mod metrics;
mod refusal;
mod restored;
mod topic_intake;

pub use error::HandlerError;
pub use expiry::{derived_release_id, run_expiry};
pub use handler::{CommandHandler, Enqueued, HandlerSettings, RecordCommand, RecordGroup};
pub use metrics::describe_metrics;
pub use restored::restored_rows;
pub use topic_intake::{COMMAND_GROUP, TopicIntakeSettings, run_topic_intake};
