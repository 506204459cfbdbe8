//! The simulated stock store keeps the contract of the real ones.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

// Of the dependencies the suite names redis, tempfile.
#[path = "../../../read-models/tests/suite/mod.rs"]
mod suite;

#[path = "../../../read-models/tests/dead_letters/mod.rs"]
mod dead_letters;

use std::sync::Arc;

use read_models::stock::SharedStock;
use simulator::process::Process;
use simulator::projection::Stock;
use simulator::read_model::ReadModelServer;
use simulator::world::World;
use suite::{Fixture, dead_letters as letters, fencing, parking, reading};

/// A server without faults; each opening is a process of its own.
fn simulated() -> Fixture {
    let server = ReadModelServer::<Stock>::default();
    let world = Arc::new(World::quiet(suite::PARTITIONS));
    Fixture::opening(move || -> SharedStock { Arc::new(server.connect(Process::new(world.clone(), "test"))) })
}

macro_rules! contract {
    ($($group:ident::$test:ident,)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                crate::$group::$test(&crate::simulated()).await;
            }
        )*
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
    reading::reads_are_refused_until_the_partition_is_live,
    reading::answers_come_in_the_order_asked_with_their_own_positions,
    reading::rows_and_position_are_of_one_moment,
    reading::a_wait_ends_when_the_position_is_there,
    reading::a_wait_survives_a_store_that_is_being_rebuilt,
    reading::status_tells_every_partition,
    reading::the_first_generation_serves_while_another_is_built,
);
