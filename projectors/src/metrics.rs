//! The metrics of this crate, each described once.

use metrics::{SharedString, describe_counter, describe_gauge, describe_histogram, gauge};

pub(crate) const APPLIED: &str = "millrace_events_applied_total";
pub(crate) const DUPLICATES: &str = "millrace_events_duplicate_total";
pub(crate) const PARKED: &str = "millrace_events_parked_total";
pub(crate) const PARKED_KEYS: &str = "millrace_parked_keys";
pub(crate) const REDRIVEN: &str = "millrace_events_redriven_total";
pub(crate) const DISCARDED: &str = "millrace_events_discarded_total";
pub(crate) const FOREIGN_DROPPED: &str = "millrace_records_foreign_not_kept_total";
pub(crate) const FOREIGN: &str = "millrace_records_foreign_total";
pub(crate) const GAPS: &str = "millrace_sequence_gaps_total";
pub(crate) const DIFFERS: &str = "millrace_history_differs_total";
pub(crate) const HALTED: &str = "millrace_partitions_halted";
pub(crate) const LAG_EVENTS: &str = "millrace_projection_lag_events";
pub(crate) const LIVE: &str = "millrace_projection_live";
pub(crate) const VISIBLE_SECONDS: &str = "millrace_event_visible_seconds";
pub(crate) const BATCH_EVENTS: &str = "millrace_projector_batch_events";
pub(crate) const SHADOW_RATE: &str = "millrace_shadow_events_rate";
pub(crate) const SUPERSEDED: &str = "millrace_writes_superseded_total";

pub fn describe_metrics() {
    describe_counter!(APPLIED, "Events folded into a read model, by projection");
    describe_counter!(DUPLICATES, "Events dropped because their sequence was applied before, by projection");
    describe_counter!(PARKED, "Events parked, by projection");
    describe_gauge!(PARKED_KEYS, "Keys whose events wait in the read model's dead letters, by projection");
    describe_counter!(REDRIVEN, "Parked events that were folded after all, by projection");
    describe_counter!(DISCARDED, "Parked events that were taken out with a reason, by projection");
    describe_counter!(FOREIGN_DROPPED, "Records that are not events of ours beyond those that are kept, by projection");
    describe_counter!(FOREIGN, "Records on an event topic that are not events of ours, by projection");
    describe_counter!(GAPS, "Sequences that were not the next one, by projection");
    describe_counter!(DIFFERS, "Events that were not the ones applied under their sequence, by projection");
    describe_gauge!(HALTED, "Partitions that wait for an operator, by projection");
    describe_gauge!(
        LAG_EVENTS,
        "Records on the log that the read model has not applied, all partitions, by projection"
    );
    describe_gauge!(LIVE, "1 when reads are answered, 0 while the read model is being rebuilt, by projection");
    describe_histogram!(VISIBLE_SECONDS, "From a command's arrival to its event's visibility, by projection");
    describe_histogram!(BATCH_EVENTS, "Events that shared one write, by projection");
    describe_gauge!(
        SHADOW_RATE,
        "Events per second that the shadow generations of a process may apply; a million where nothing holds them back"
    );
    describe_counter!(SUPERSEDED, "Writes refused because another owner took the partition over, by projection");
}

/// A gauge stays as it was last set: a generation that nobody feeds any more neither lags nor waits for anybody.
pub(crate) fn fed_no_more(label: SharedString) {
    for name in [LAG_EVENTS, PARKED_KEYS, HALTED] {
        gauge!(name, "projection" => label.clone()).set(0.0);
    }
}
