//! Metrics of the rolling audit.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::report::{Kind, Place, Report};

const DIFFERENCES: &str = "millrace_audit_differences";
const NOT_COMPARED: &str = "millrace_audit_not_compared";
const EVENTS: &str = "millrace_audit_events_total";
const LAST_ROUND: &str = "millrace_audit_last_round_timestamp_seconds";

/// Describes the metrics once, for whoever scrapes.
pub fn describe_metrics() {
    describe_gauge!(
        DIFFERENCES,
        Unit::Count,
        "Differences between event table, topics and read models, by kind and place"
    );
    describe_gauge!(
        NOT_COMPARED,
        Unit::Count,
        "Partitions of read models, and the search index, that the last round could not compare"
    );
    describe_counter!(EVENTS, Unit::Count, "Events of the event table that the audit walked");
    describe_gauge!(LAST_ROUND, Unit::Seconds, "When the last round of the audit ended, in seconds since 1970");
}

/// Tells of a round; kinds that are gone go back to 0.
pub(crate) fn round_ended(report: &Report, events: u64) {
    for kind in Kind::ALL {
        for place in Place::ALL {
            let count = report.count(kind, place);
            gauge!(DIFFERENCES, "kind" => kind.as_str(), "where" => place.as_str()).set(count as f64);
        }
    }
    gauge!(NOT_COMPARED).set(report.left_out() as f64);
    counter!(EVENTS).increment(events);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    gauge!(LAST_ROUND).set(now);
}
