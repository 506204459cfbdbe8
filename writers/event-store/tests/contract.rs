//! What every event store does, whatever keeps it: one suite, run on each adapter.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod suite;

/// Expands to one test per adapter for every listed function of the suite.
macro_rules! contract {
    ($($area:ident::$test:ident,)*) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let fixture = crate::suite::Fixture::sqlite();
                    crate::suite::$area::$test(&fixture).await;
                }
            )*
        }

        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs servers: run make test"]
                async fn $test() {
                    let fixture = crate::suite::Fixture::postgres().await;
                    crate::suite::$area::$test(&fixture).await;
                    fixture.drop_database().await;
                }
            )*
        }
    };
}

/// What only a server can show.
macro_rules! postgres_only {
    ($($test:ident,)*) => {
        mod only_on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs servers: run make test"]
                async fn $test() {
                    let fixture = crate::suite::Fixture::postgres().await;
                    crate::suite::postgres::$test(&fixture).await;
                    fixture.drop_database().await;
                }
            )*
        }
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
    streams::a_context_may_come_later,
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
    relay::the_cursor_is_read_without_a_lease,
    relay::lag_counts_what_is_behind_the_cursor,
    relay::a_long_lag_is_not_counted_to_its_end,
    relay::what_goes_out_again_is_lag_and_not_unpublished,
    relay::an_append_wakes_whoever_waits,
    relay::a_released_relay_is_free_for_another,
    relay::a_cursor_is_set_back_by_the_holder_alone,
    relay::lost_rows_come_back_at_their_places,
    relay::lost_outcomes_come_back_for_any_body,
);

postgres_only!(
    rows_of_an_older_open_transaction_are_not_skipped,
    transaction_ids_are_ordered_as_numbers,
    killed_sessions_are_a_transient_error_that_mends_itself,
    a_killed_leader_gives_up_the_lock,
    a_leader_without_its_lock_saves_nothing,
    what_was_decided_in_another_run_of_the_server_is_not_appended,
    groups_with_the_same_streams_do_not_deadlock,
    commands_are_refused_at_once_while_the_server_is_away,
    a_lost_answer_to_a_commit_is_unavailable_and_the_command_is_there,
    a_table_that_lost_rows_is_refused,
    what_is_restored_lies_below_the_server_s_next_transaction,
    a_published_place_that_the_table_lost_hides_nothing,
    many_lost_rows_come_back_in_one_transaction_of_many_statements,
    a_reader_changes_no_tables,
    tables_of_a_newer_build_are_refused,
    tables_of_the_first_version_are_brought_up_to_date,
    four_that_start_at_once_make_the_tables_once,
    errors_name_the_server_and_hide_the_password,
);
