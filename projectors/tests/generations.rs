//! Several generations are fed beside each other, as the catalogue says. Real log and real rows, all in files.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use read_models::generations::{GenerationState, Until, check_chain};
use read_models::process_report::{LiveSide, ProcessReport, ThrottleStatus, YieldsTo};
use read_models::{Catalogue, Generations};
use schemas::{Context, PositionToken, StorePosition};
use serde_json::json;

use world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_generations_are_fed_at_once_and_the_retired_one_alone_goes() {
    let mut world = World::new().await;
    world.publish(300).await;
    world.change(|to| world::add(to, 1, 1, None)).await;
    world.change(|to| world::add(to, 2, 1, None)).await;
    let running = world.run();
    for generation in [1, 2] {
        world.level(generation).await;
        assert_eq!(world.rows(generation).await, world.oracle(|_| true), "generation {generation}");
    }
    // Both follow the log.
    world.publish(100).await;
    world.level(1).await;
    world.level(2).await;

    world.change(|to| to.generations.get_mut(&1).unwrap().state = GenerationState::Retired).await;
    world.change(|to| to.serving = 2).await;
    world
        .until("generation 1 is removed", |catalogue| catalogue.generations[&1].state == GenerationState::Removed)
        .await;
    assert_eq!(world.stores.removed(), [1], "and no other");
    world.publish(50).await;
    world.level(2).await;
    assert_eq!(world.rows(2).await, world.oracle(|_| true));
    assert_ne!(world.rows(1).await, world.oracle(|_| true), "nobody feeds it");
    let components = world.health.report().components;
    assert!(components.keys().all(|name| name.starts_with("stock@2")), "{components:?}");
    check_chain(&world.stores.decisions()).unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_while_it_served_is_fed_again_after_the_rollback() {
    let mut world = World::new().await;
    world.publish(50).await;
    world.change(|to| world::add(to, 1, 1, None)).await;
    world.change(|to| world::add(to, 2, 1, None)).await;
    world.change(|to| (to.serving, to.previous) = (2, Some(1))).await;
    world.stores.break_store(Some(2));
    let running = world.run();
    world.until_health("stock@2 projector", |told| told.contains("broken")).await;
    world.stores.break_store(None);
    world.change(|to| (to.serving, to.previous) = (1, Some(2))).await;
    world.level(2).await;
    assert_eq!(world.rows(2).await, world.oracle(|_| true));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_is_killed_in_the_middle_is_gone_on_with() {
    let mut world = World::new().await;
    world.change(|to| world::add(to, 1, 1, None)).await;
    world.change(|to| world::add(to, 2, 1, None)).await;
    for _ in 0..5 {
        world.publish(400).await;
        let running = world.run();
        world.applied(2, 1).await;
        running.kill().await;
    }
    world.publish(10).await;
    let running = world.run();
    for generation in [1, 2] {
        world.level(generation).await;
        assert_eq!(world.rows(generation).await, world.oracle(|_| true), "generation {generation}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_of_the_past_stands_still_at_its_time_or_position_and_stays_there() {
    let mut world = World::new().await;
    world.publish(200).await;
    // Each event is of a later millisecond than the one before, and of the next position.
    let time = world.time_of(120);
    let mut position = PositionToken::default();
    let named = world.events.iter().filter(|event| event.number <= 150 && event.partition != 2);
    named.for_each(|event| {
        let place = StorePosition { xid: 0, position: event.number };
        position.advance(Context::Inventory, event.partition, place);
    });
    world.change(|to| world::add(to, 1, 1, None)).await;
    world.change(|to| world::add(to, 2, 1, Some(Until::Time(time)))).await;
    world.change(|to| world::add(to, 3, 1, Some(Until::Position(position)))).await;
    for _restart in 0..2 {
        let running = world.run();
        world.level(1).await;
        world.stands_still(2).await;
        world.stands_still(3).await;
        assert_eq!(world.rows(1).await, world.oracle(|_| true));
        assert_eq!(world.rows(2).await, world.oracle(|event| event.number <= 120));
        let named = world.oracle(|event| event.number <= 150 && event.partition != 2);
        assert_eq!(world.rows(3).await, named, "and nothing of a partition that is not named");
        running.stop().await;
        world.publish(60).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_a_shadow_back_is_told_through_the_store() {
    let mut world = World::new().await;
    world.publish(100).await;
    world.change(|to| world::add(to, 1, 1, None)).await;
    let running = world.run();
    world.level(1).await;
    assert_eq!(world.stores.throttle(), None, "there is no shadow");
    world.stores.is_blind.store(true, Ordering::SeqCst);
    world.change(|to| world::add(to, 2, 1, None)).await;
    world.until_throttled(|told| told.yields_to == Some(YieldsTo::Unseen) && told.rate.is_some()).await;
    world.stores.is_blind.store(false, Ordering::SeqCst);
    world.until_throttled(|told| told.yields_to.is_none() && told.rate.is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_does_not_feed_what_serves_hears_of_it_from_one_that_does() {
    let mut world = World::new().await;
    world.publish(100).await;
    world.change(|to| world::add(to, 1, 99, None)).await;
    world.change(|to| world::add(to, 2, 1, None)).await;
    let running = world.run();
    world.until_throttled(|told| told.yields_to == Some(YieldsTo::Unseen)).await;
    let tell = |lag_events, events_come| {
        let live = Some(LiveSide { generation: 1, lag_events, events_come, arrivals: 0 });
        ProcessReport { process: "another".to_owned(), at: i64::MAX, live, ..ProcessReport::default() }
    };
    world.stores.note_report(&tell(2_500, true)).await.unwrap();
    let lags = |told: &ThrottleStatus| matches!(told.yields_to, Some(YieldsTo::LiveLag { events: 2_500, .. }));
    world.until_throttled(lags).await;
    world.stores.note_report(&tell(0, true)).await.unwrap();
    world.until_throttled(|told| told.yields_to.is_none() && told.rate.is_some()).await;
    world.stores.note_report(&tell(0, false)).await.unwrap();
    world.until_throttled(|told| *told == ThrottleStatus::default()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_ahead_of_its_topic_is_told_through_the_store_until_it_goes_on() {
    let mut world = World::new().await;
    world.publish(60).await;
    world.change(|to| world::add(to, 1, 1, None)).await;
    let running = world.run();
    world.level(1).await;
    world.until_halted(1, |lag, halted| lag == Some(0) && halted.is_empty()).await;
    running.stop().await;

    world.lose_all_after(20).await;
    let running = world.run();
    let is_lost = |why: &String| why.contains("the log lost");
    world.until_halted(1, |lag, halted| lag.is_none() && halted.values().any(is_lost)).await;
    world.publish_again(20, 60).await;
    world.until_halted(1, |lag, halted| lag == Some(0) && halted.is_empty()).await;
    world.level(1).await;
    assert_eq!(world.rows(1).await, world.oracle(|_| true));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_fold_is_told_and_the_others_go_on() {
    let mut world = World::new().await;
    world.publish(100).await;
    world.change(|to| world::add(to, 1, 1, None)).await;
    world.change(|to| world::add(to, 2, 99, None)).await;
    let running = world.run();
    world.level(1).await;
    world.until_health("stock projector", |told| told == "ready").await;
    world.until_health("stock@2 projector", |told| told.contains("a replay is due")).await;
    assert!(world.health.report().ready, "what serves does without it: {:?}", world.health.report());
    // It serves now: nobody here feeds what is answered.
    world.change(|to| to.serving = 2).await;
    let begun = std::time::Instant::now();
    while world.health.report().ready {
        assert!(begun.elapsed() < world::DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.publish(20).await;
    world.level(1).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_knows_more_brings_the_catalogue_back_behind_one_who_knew_less() {
    let mut world = World::new().await;
    world.publish(40).await;
    world.change(|to| world::add(to, 1, 1, None)).await;
    world.change(|to| world::add(to, 2, 1, None)).await;
    let old = world.stores.kept();
    world.change(|to| to.serving = 2).await;
    let running = world.run();
    world.level(2).await;
    let known = world.stores.catalogue_now();

    // Of the same version, with another decision in it.
    world.stores.put_back(old, |to| to.previous = Some(7));
    world.until("it is back", |catalogue| catalogue.version == known.version + 1).await;
    let after = world.stores.catalogue_now();
    assert_eq!((after.id, after.serving, after.previous), (known.id, 2, known.previous));
    let decisions = world.stores.decisions();
    check_chain(&decisions).unwrap();
    assert_eq!(decisions.last().unwrap().action, "restored_after_loss");
    // And it is followed from there on.
    world.change(|to| world::add(to, 3, 1, None)).await;
    world.level(3).await;
    check_chain(&world.stores.decisions()).unwrap();
    // What is kept of it joins up, too.
    let known = world.stores.catalogue_now();
    world.stores.wipe_catalogue();
    world.until("it is back once more", |catalogue| catalogue.version == known.version + 1).await;
    check_chain(&world.stores.decisions()).unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_lies_in_another_partition_than_its_readers_look_into_halts() {
    let mut world = World::new().await;
    world.publish(40).await;
    let running = world.run();
    world.level(1).await;
    world.publish_elsewhere().await;
    world.until_health("stock projector", |told| told.contains("that this generation was begun with")).await;
    assert_eq!(world.rows(1).await, world.oracle(|_| true));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_is_stored_the_first_generation_is_built() {
    let mut world = World::new().await;
    world.publish(40).await;
    let running = world.run();
    world.level(1).await;
    assert_eq!(world.rows(1).await, world.oracle(|_| true));
    assert_eq!(world.stores.catalogue_now(), Catalogue::of_built(None), "and none is made of it");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_that_its_store_lost_is_written_back_with_all_decisions() {
    let mut world = World::new().await;
    world.publish(40).await;
    world.change(|to| world::add(to, 1, 1, None)).await;
    world.change(|to| world::add(to, 2, 1, None)).await;
    world.change(|to| to.serving = 2).await;
    let running = world.run();
    world.level(2).await;
    let before = world.stores.catalogue_now();

    world.stores.wipe_catalogue();
    world.until("it is back", |catalogue| catalogue.version == before.version + 1).await;
    let after = world.stores.catalogue_now();
    assert_eq!((after.serving, &after.generations), (2, &before.generations));
    assert_ne!(after.id, before.id);
    let decisions = world.stores.decisions();
    check_chain(&decisions).unwrap();
    let restored = decisions.last().unwrap();
    assert_eq!((restored.number, restored.action.as_str()), (before.decisions + 1, "restored_after_loss"));
    assert_eq!(restored.evidence, json!({ "found": 0, "known": before.version }));
    // Once, and what comes then is followed.
    world.change(|to| to.serving = 1).await;
    world.publish(10).await;
    world.level(1).await;
    assert_eq!(world.stores.catalogue_now().version, before.version + 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_that_went_back_by_several_versions_is_brought_back_once() {
    let mut world = World::new().await;
    world.publish(40).await;
    world.change(|to| world::add(to, 1, 1, None)).await;
    let old = world.stores.kept();
    world.change(|to| world::add(to, 2, 1, None)).await;
    world.change(|to| to.serving = 2).await;
    world.change(|to| to.previous = Some(1)).await;
    let (first, second) = (world.run(), world.run());
    world.level(2).await;
    let before = world.stores.catalogue_now();

    world.stores.restore(old);
    world.until("it is back", |catalogue| catalogue.version > before.version).await;
    // Both look some times more.
    world.change(|to| world::add(to, 3, 1, None)).await;
    world.publish(10).await;
    world.level(3).await;
    let after = world.stores.catalogue_now();
    assert_eq!((after.id, after.version, after.serving), (before.id, before.version + 2, 2));
    let decisions = world.stores.decisions();
    check_chain(&decisions).unwrap();
    assert_eq!(decisions.iter().filter(|decision| decision.action == "restored_after_loss").count(), 1);
    first.stop().await;
    second.stop().await;
}
