//! Replay as an operation: build a generation of a read model beside the live one, compare them, switch, switch back.
//!
//! Invariants R1 (no cutover without clean parity at one vector, and approval), R2 (rollback is one step and loses
//! nothing) and R3 (a replay causes no outside effect) are kept here.

mod by;
mod controller;
mod decide;
mod error;
mod evidence;
pub mod gates;
mod history;
pub mod http;
#[cfg(test)]
mod memory;
mod metrics;
mod next_steps;
mod observed;
mod operations;
mod outcome;
pub mod ownership;
pub mod plan;
mod publish;
mod record;
mod replayed;
mod target;
pub mod triggers;
mod view;

pub use by::By;
pub use controller::run_controller;
pub use decide::{CutoverRequest, StartRequest};
mod dry_run;
pub mod fields;
pub mod parity;
pub mod queries;
pub mod repair;
pub mod report;
pub mod rules;
pub mod sides;
pub use dry_run::{DryRunReport, Failure, dry_run};
pub use error::ReplayError;
pub use evidence::{ParityEvidence, QueryEvidence};
pub use gates::Missing;
pub use history::{History, HistoryPage};
pub use metrics::describe_metrics;
pub use next_steps::next_steps;
pub use observed::{MirroredReads, Observed, ObservedGeneration};
pub use operations::Operations;
pub use outcome::{Done, NextStep, Outcome, Refused, Reversal};
pub use ownership::Ownership;
pub use plan::Plan;
pub use publish::{command_id, publish_decisions};
pub use record::{Approval, CutOver, EnteredStage, ReplayRecord, ThrottleBounds, current_replays};
pub use replayed::{LogReader, Replayed, Selected};
pub use target::{Target, time_of, until_of};
pub use view::{GenerationView, MirrorView, ProgressView, ReplayView, ReplaysView, Role, ThrottleView};
