//! The metrics of this crate, each described once.

use std::time::{Duration, Instant};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const APPLY_SECONDS: &str = "millrace_read_model_apply_seconds";
const INDEX_COMMIT_SECONDS: &str = "millrace_index_commit_seconds";
const DOCUMENTS_INDEXED: &str = "millrace_documents_indexed_total";
const INDEX_AGE_SECONDS: &str = "millrace_index_age_seconds";

pub fn describe_metrics() {
    describe_histogram!(APPLY_SECONDS, Unit::Seconds, "Time of one atomic write, by read model and result");
    describe_histogram!(INDEX_COMMIT_SECONDS, Unit::Seconds, "Time to index what changed and commit it");
    describe_counter!(DOCUMENTS_INDEXED, Unit::Count, "Documents written to the search index");
    describe_gauge!(INDEX_AGE_SECONDS, Unit::Seconds, "For how long rows have been waiting for the search index");
}

/// Times one apply.
pub(crate) async fn timed_apply<T, E>(
    read_model: &'static str,
    apply: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let begun = Instant::now();
    let result = apply.await;
    let outcome = if result.is_ok() { "written" } else { "refused" };
    histogram!(APPLY_SECONDS, "read_model" => read_model, "result" => outcome).record(begun.elapsed().as_secs_f64());
    result
}

pub(crate) fn index_committed(documents: usize, took: Duration) {
    histogram!(INDEX_COMMIT_SECONDS).record(took.as_secs_f64());
    counter!(DOCUMENTS_INDEXED).increment(documents as u64);
}

pub(crate) fn index_age(generation: u32, age: Duration) {
    gauge!(INDEX_AGE_SECONDS, "generation" => generation.to_string()).set(age.as_secs_f64());
}
