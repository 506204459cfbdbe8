//! The metrics of this crate, each described once.

use metrics::{describe_counter, describe_gauge, describe_histogram};

pub(crate) const COMMANDS: &str = "millrace_commands_total";
pub(crate) const GROUP_COMMANDS: &str = "millrace_command_group_commands";
pub(crate) const GROUP_SECONDS: &str = "millrace_command_group_seconds";
pub(crate) const QUEUED: &str = "millrace_commands_queued";
pub(crate) const RETRIES: &str = "millrace_command_group_retries_total";
pub(crate) const EXPIRED: &str = "millrace_reservations_expired_total";
pub(crate) const OVERDUE: &str = "millrace_reservation_overdue_seconds";
pub(crate) const SET_BACK: &str = "millrace_command_offsets_set_back_total";
pub(crate) const WAITING: &str = "millrace_command_partitions_waiting";
pub(crate) const INTAKE_HELD: &str = "millrace_intake_held";

pub fn describe_metrics() {
    describe_counter!(COMMANDS, "Commands by type and outcome");
    describe_histogram!(GROUP_COMMANDS, "Commands that shared one transaction");
    describe_histogram!(GROUP_SECONDS, "From taking a group off the queue to its commit");
    describe_gauge!(QUEUED, "Commands that wait to be decided");
    describe_gauge!(INTAKE_HELD, "1 while no commands are taken because the relay is too far behind");
    describe_counter!(RETRIES, "Groups decided again, by cause");
    describe_counter!(
        SET_BACK,
        "Partitions of command topics that were taken anew, since they did not have the next command"
    );
    describe_gauge!(
        WAITING,
        "Partitions of command topics whose next command cannot be taken now, with those behind it"
    );
    describe_counter!(EXPIRED, "Reservations released because their time was over");
    describe_gauge!(
        OVERDUE,
        "For how long the oldest reservation whose time is over waits to be released; 0 when none does"
    );
}
