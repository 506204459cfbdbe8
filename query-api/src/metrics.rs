//! The metrics of this crate, each described once.

use std::time::Duration;

use axum::http::StatusCode;
use metrics::{describe_histogram, histogram};

const READ_SECONDS: &str = "millrace_read_seconds";

pub fn describe_metrics() {
    describe_histogram!(READ_SECONDS, "Time of a read by route and status, waiting for a position included");
}

pub(crate) fn read(route: &str, status: StatusCode, took: Duration) {
    let status = status.as_u16().to_string();
    histogram!(READ_SECONDS, "route" => route.to_owned(), "status" => status).record(took.as_secs_f64());
}
