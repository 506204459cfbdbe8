//! The metrics of this crate, each described once.

use metrics::describe_counter;

pub(crate) const ROLLBACKS: &str = "millrace_replay_rollbacks_total";

pub fn describe_metrics() {
    describe_counter!(ROLLBACKS, "Generations that a trigger of their plan rolled back, by projection");
}
