//! The metrics of this crate, each described once.

use metrics::{describe_counter, describe_gauge, describe_histogram};

pub(crate) const EVENTS: &str = "millrace_relay_events_total";
pub(crate) const BATCH_SECONDS: &str = "millrace_relay_batch_seconds";
pub(crate) const LAG_EVENTS: &str = "millrace_relay_lag_events";
pub(crate) const LAG_SECONDS: &str = "millrace_relay_lag_seconds";
pub(crate) const LEADER: &str = "millrace_relay_leader";
pub(crate) const HALTED: &str = "millrace_relay_halted";

pub fn describe_metrics() {
    describe_counter!(EVENTS, "Events published, by topic");
    describe_histogram!(BATCH_SECONDS, "From reading a batch to saving the cursor behind it");
    describe_gauge!(LAG_EVENTS, "Committed events that are not published yet");
    describe_gauge!(LAG_SECONDS, "Age of the oldest committed event that is not published yet");
    describe_gauge!(HALTED, "1 while the relay publishes nothing because an operator must look first");
    describe_gauge!(LEADER, "1 while this process holds the relay");
}
