//! What the log counts, each metric described once.

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use std::time::Duration;

const PUBLISHED: &str = "millrace_published_records_total";
const CONSUMED: &str = "millrace_consumed_records_total";
const PUBLISH_SECONDS: &str = "millrace_publish_seconds";

pub fn describe_metrics() {
    describe_counter!(PUBLISHED, Unit::Count, "records that the event log acknowledged");
    describe_counter!(CONSUMED, Unit::Count, "records that subscriptions handed out");
    describe_histogram!(PUBLISH_SECONDS, Unit::Seconds, "time from a batch of records to its acknowledgement");
}

pub(crate) fn published(records: usize, took: Duration) {
    counter!(PUBLISHED).increment(records as u64);
    histogram!(PUBLISH_SECONDS).record(took.as_secs_f64());
}

pub(crate) fn consumed(topic: &str, records: usize) {
    counter!(CONSUMED, "topic" => topic.to_owned()).increment(records as u64);
}
