//! The audit: proves that event table, topics and read models say the same, and names what does not.
//!
//! It stops nothing and writes nothing. One walk over the event table in the relay's order gives what every topic
//! partition and every read model should hold; sums of digests find the blocks that differ, and only those are looked
//! at event by event.

mod auditor;
mod behind;
mod digest;
mod error;
mod metrics;
mod narrow;
mod oracle;
mod pace;
mod report;
mod rolling;
mod rows;
mod side;
mod since;
mod topics;
mod walk;
#[cfg(test)]
mod world;

pub use auditor::{AuditSettings, Auditor};
pub use error::AuditError;
pub use metrics::describe_metrics;
pub use pace::Progress;
pub use report::{Difference, IndexReport, Kind, KindCount, Place, ReadModelReport, Report, TopicReport, Verdict};
pub use rolling::{RollingSettings, run_rolling};
pub use since::Since;
