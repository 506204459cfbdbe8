//! Replay as an operation: build a generation of a read model beside the live one, compare them, switch, switch back.
//!
//! Invariants R1 (no cutover without clean parity at one vector, and approval), R2 (rollback is one step and loses
//! nothing) and R3 (a replay causes no outside effect) are kept here.

mod by;
mod controller;
mod decide;
mod dry_run;
mod error;
mod evidence;
pub mod fields;
pub mod gates;
mod history;
pub mod http;
mod log_reader;
#[cfg(test)]
mod memory;
mod metrics;
mod next_steps;
mod observed;
mod operations;
mod outcome;
pub mod ownership;
pub mod parity;
pub mod plan;
mod publish;
pub mod queries;
mod record;
pub mod repair;
mod replayed;
pub mod report;
pub mod rules;
pub mod sides;
mod target;
pub mod triggers;
mod view;

pub use by::By;
pub use controller::run_controller;
pub use decide::{CutoverRequest, StartRequest};
pub use dry_run::{DryRunReport, Failure, dry_run};
pub use error::ReplayError;
pub use evidence::{ParityEvidence, QueryEvidence};
pub use gates::Missing;
pub use history::{History, HistoryPage};
pub use log_reader::LogReader;
pub use metrics::describe_metrics;
pub use next_steps::next_steps;
pub use observed::{MirroredReads, Observed, ObservedGeneration};
pub use operations::Operations;
pub use outcome::{Done, NextStep, Outcome, Refused, Reversal};
pub use ownership::Ownership;
pub use plan::Plan;
pub use publish::{command_id, publish_decisions};
pub use record::{Approval, CutOver, EnteredStage, ReplayRecord, ThrottleBounds, current_replays};
pub use replayed::{Replayed, Selected};
pub use target::{Target, time_of, until_of};
pub use view::{GenerationView, MirrorView, ProgressView, ReplayView, ReplaysView, Role, ThrottleView};
