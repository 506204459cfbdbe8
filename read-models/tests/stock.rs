//! What every stock store does, whatever keeps it: one suite, run on each adapter.

#[cfg(test)]
mod dead_letters;
#[cfg(test)]
mod suite;

use suite::dead_letters as letters;
use suite::{Fixture, fencing, generations, parking, reading, scanning};

macro_rules! contract {
    ($($group:ident::$test:ident,)*) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    crate::$group::$test(&crate::Fixture::sqlite().await).await;
                }
            )*
        }

        mod on_redis {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs servers: run make test"]
                async fn $test() {
                    crate::$group::$test(&crate::Fixture::redis().await).await;
                }
            )*
        }

        mod on_redis_cluster {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs servers: run make test"]
                async fn $test() {
                    crate::$group::$test(&crate::Fixture::redis_cluster().await).await;
                }
            )*
        }
    };
}

contract!(
    fencing::a_generation_is_prepared_twice,
    fencing::another_fold_or_partition_count_is_refused,
    fencing::nothing_is_written_without_a_generation_or_to_a_partition_that_is_none,
    fencing::each_claim_raises_the_epoch,
    fencing::what_was_applied_is_loaded_and_claimed,
    fencing::a_repeated_batch_is_refused_and_changes_nothing,
    fencing::a_superseded_owner_changes_nothing,
    fencing::an_owner_whose_claim_is_lost_claims_again,
    fencing::a_partition_that_was_never_claimed_is_not_written,
    fencing::five_thousand_rows_are_one_batch,
    fencing::owners_side_by_side_write_each_step_once,
    parking::parked_events_keep_their_order_and_bytes,
    parking::records_of_nobody_share_a_sequence_and_none_is_lost,
    parking::answers_tell_whether_the_sku_is_parked,
    letters::keys_and_queues_are_listed_in_pages,
    letters::a_redrive_is_one_write_and_what_is_left_keeps_its_order,
    letters::what_is_discarded_is_recorded,
    letters::only_the_owner_resolves_and_a_refused_write_leaves_all_as_it_was,
    letters::requests_and_answers_are_bounded_and_asked_once,
    letters::the_mirror_s_mark_only_goes_on,
    letters::another_process_asks,
    scanning::a_scan_meets_every_row_of_its_partition_and_no_other,
    scanning::a_scan_goes_on_while_rows_are_written,
    reading::reads_are_refused_until_the_partition_is_live,
    reading::answers_come_in_the_order_asked_with_their_own_positions,
    reading::rows_and_position_are_of_one_moment,
    reading::a_wait_ends_when_the_position_is_there,
    reading::a_wait_survives_a_store_that_is_being_rebuilt,
    reading::status_tells_every_partition,
    reading::rows_of_every_fold_read_back,
    reading::the_first_generation_serves_while_another_is_built,
    generations::a_store_without_a_catalogue_has_one_of_version_0,
    generations::of_two_that_change_the_catalogue_one_does,
    generations::a_switch_is_seen_at_once_and_no_request_mixes,
    generations::a_stage_answers_from_the_candidate_whom_it_is_for,
    generations::a_retired_generation_is_removed_for_good_and_the_other_is_not_touched,
    generations::a_bound_handle_tells_of_its_generation_alone,
    generations::the_last_report_of_each_process_is_read,
);
