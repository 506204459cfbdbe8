//! The simulated event log keeps the contract of the real ones.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../../event-log/tests/fixture/mod.rs"]
mod fixture;

use std::sync::Arc;

use fixture::{Fixture, suite};
use simulator::event_log::EventLogServer;
use simulator::process::Process;
use simulator::world::World;

fn simulated() -> Fixture {
    let process = Process::new(Arc::new(World::quiet(1)), "test");
    Fixture { log: Arc::new(EventLogServer::default().connect(process)), prefix: "t".to_owned(), folder: None }
}

macro_rules! contract {
    ($($test:ident,)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                crate::suite::$test(&crate::simulated()).await;
            }
        )*
    };
}

contract!(
    topics_are_made_once_and_keep_their_partition_count,
    records_of_a_partition_keep_their_order,
    five_thousand_records_go_out_in_one_call,
    delivery_begins_exactly_where_it_is_started,
    a_started_partition_can_be_started_again,
    an_offset_out_of_range_is_refused,
    a_paused_partition_is_silent_until_resumed,
    each_group_sees_everything,
    ends_follow_what_is_published,
    any_bytes_and_headers_survive,
    a_waiting_subscription_gets_records_within_a_second,
    a_dropped_wait_loses_nothing,
    a_topic_that_is_not_there_is_named,
    nothing_is_delivered_before_start,
    a_partition_is_read_page_by_page,
    a_read_sees_what_was_published_since_the_last_page,
    a_read_outside_the_partition_is_refused,
    a_partition_is_read_at_speed,
);
