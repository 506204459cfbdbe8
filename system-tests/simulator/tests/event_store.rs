//! The simulated event store keeps the contract of the real ones: a simulator with other ports would prove nothing.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

// The suite names futures, tempfile, tokio_postgres and others of this crate.
#[path = "../../../writers/event-store/tests/suite/mod.rs"]
mod suite;

use std::sync::Arc;

use simulator::event_store::EventStoreServer;
use simulator::process::Process;
use simulator::world::World;

/// A server without faults; each opening is a process of its own.
fn fixture() -> suite::Fixture {
    let server = EventStoreServer::default();
    let world = Arc::new(World::quiet(suite::PARTITIONS));
    suite::Fixture::opening(move || Arc::new(server.connect(Process::new(world.clone(), "test"))), fixture)
}

macro_rules! contract {
    ($($area:ident::$test:ident,)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                crate::suite::$area::$test(&crate::fixture()).await;
            }
        )*
    };
}

contract!(
    streams::appended_events_are_loaded_back,
    streams::a_version_conflict_writes_nothing,
    streams::an_append_ahead_of_its_stream_is_a_conflict,
    streams::concurrent_appenders_lose_and_double_no_version,
    streams::a_batch_keeps_the_order_of_its_commands,
    streams::snapshots_are_used_and_never_lowered,
    streams::a_snapshot_that_does_not_read_is_passed_over,
    streams::everything_is_there_after_opening_again,
    streams::topology_is_fixed_once,
    commands::a_known_command_id_is_a_conflict,
    commands::outcomes_are_stored_with_their_position,
    commands::an_accepted_command_without_events_stands_where_its_stream_does,
    commands::outcomes_of_topic_commands_go_out,
    commands::a_published_outcome_is_never_too_large_for_a_broker,
    commands::outcomes_are_forgotten_by_age,
    commands::a_warehouse_lies_in_one_region,
    commands::offsets_are_compared_and_set,
    commands::an_offset_comes_with_the_last_record_that_was_taken,
    commands::timers_are_set_cleared_and_due,
    commands::a_given_timer_is_cleared_only_while_it_is_the_same,
    relay::committed_rows_are_read_in_pages,
    relay::a_second_relay_waits_and_a_zombie_is_refused,
    relay::one_process_leads_again_without_waiting_for_itself,
    relay::the_cursor_comes_back_and_nothing_in_it_is_lowered,
    relay::lag_counts_what_is_behind_the_cursor,
    relay::a_long_lag_is_not_counted_to_its_end,
    relay::an_append_wakes_whoever_waits,
    relay::a_released_relay_is_free_for_another,
    relay::a_cursor_is_set_back_by_the_holder_alone,
    relay::lost_rows_come_back_at_their_places,
    relay::lost_outcomes_come_back_for_any_body,
);
