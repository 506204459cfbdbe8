//! The metrics of this crate, each described once.

use metrics::describe_gauge;

pub(crate) const BREAKER_STATE: &str = "millrace_breaker_state";

/// Describes the metrics of this crate; the program calls it once, after it has installed its recorder.
pub fn describe_metrics() {
    describe_gauge!(
        BREAKER_STATE,
        "Breaker towards a server: 0 closed, 1 half open, 2 open (calls are refused at once)"
    );
}
