use crate::auditor::Auditor;
use crate::oracle::Folds;
use crate::report::{Kind, Place, ReadModelReport};
use crate::world::{Fold, TOPOLOGY, World, home, key, sku_in};

use super::*;

const MOST: usize = 10;
/// More than may wait.
const EVENTS: u64 = 30;

/// A world in which SKU `a` has partition 0 to itself, and `b` partition 1.
async fn world() -> (World, String, String, Auditor) {
    let world = World::new().await;
    let (a, b) = (sku_in(0), sku_in(1));
    world.append(&a, 1..=EVENTS).await;
    world.append(&b, 1..=EVENTS).await;
    world.publish().await;
    let mut auditor = world.auditor().await;
    auditor.set_most_later(MOST);
    (world, a, b, auditor)
}

/// A round over all partitions: what it says of each, and how many differences of stock it tells.
async fn round(auditor: &mut Auditor) -> (Vec<ReadModelReport>, u64) {
    let report = auditor.round(TOPOLOGY.partitions as usize).await.unwrap();
    let differences = Kind::ALL.into_iter().map(|kind| report.count(kind, Place::Stock)).sum();
    (report.read_models, differences)
}

fn is_given_up(report: &ReadModelReport) -> bool {
    report.skipped.as_ref().is_some_and(|why| why.contains("too far behind"))
}

#[tokio::test]
async fn a_halted_partition_is_given_up_and_compared_again_once_it_is_near() {
    let (world, a, b, mut auditor) = world().await;
    world.prepare(1).await;
    world.fold(Fold::of(&a, 1).row(&a, 1)).await;
    world.fold(Fold::of(&b, EVENTS).row(&b, EVENTS - 1)).await;
    let (told, differences) = round(&mut auditor).await;
    assert!(is_given_up(&told[0]), "{told:?}");
    assert!(auditor.most_that_waits() <= MOST, "{} events wait", auditor.most_that_waits());
    // The other partition is compared all the same: its row lacks an update.
    assert_eq!((&told[1].skipped, told[1].keys, differences), (&None, 1, 1));

    // Still too far: nothing is walked anew for it.
    world.fold(Fold::of(&a, EVENTS / 2).row(&a, EVENTS / 2)).await;
    let walked = auditor.progress().events.load(std::sync::atomic::Ordering::Relaxed);
    assert!(is_given_up(&round(&mut auditor).await.0[0]));
    assert_eq!(auditor.progress().events.load(std::sync::atomic::Ordering::Relaxed), walked);

    // Near again: compared again, and what is wrong there is found.
    world.fold(Fold::of(&a, EVENTS - 2).row(&a, EVENTS - 4)).await;
    let (told, differences) = round(&mut auditor).await;
    assert_eq!((&told[0].skipped, told[0].keys, differences), (&None, 1, 2), "{told:?}");
}

#[tokio::test]
async fn what_waits_for_a_read_model_that_is_being_built_is_bounded() {
    let (world, a, b, mut auditor) = world().await;
    let (told, _) = round(&mut auditor).await;
    assert!(told.iter().all(|told| told.skipped.as_deref() == Some("it is being built")), "{told:?}");
    assert!(auditor.most_that_waits() <= MOST, "{} events wait", auditor.most_that_waits());
    world.prepare(1).await;
    for sku in [&a, &b] {
        world.fold(Fold::of(sku, EVENTS).row(sku, EVENTS)).await;
    }
    let (told, differences) = round(&mut auditor).await;
    assert!(told.iter().all(|told| told.skipped.is_none() && told.keys == 1), "{told:?}");
    assert_eq!(differences, 0);
}

#[tokio::test]
async fn a_read_model_that_went_on_during_the_walk_is_not_given_up() {
    let (world, a, _, auditor) = world().await;
    world.prepare(1).await;
    world.fold(Fold::of(&a, 1).row(&a, 1)).await;
    let sources = auditor.sources();
    let mut walk = TableWalk::from_beginning(TOPOLOGY, Folds::default(), MOST);
    sources.models.fold_to_checkpoints(&mut walk).await.unwrap();
    world.fold(Fold::of(&a, EVENTS).row(&a, EVENTS)).await;
    let end = sources.store.relay_cursor().await.unwrap().position;
    assert!(sources.walk_to(&mut walk, end, Pace::of(1.0), &Progress::default()).await.unwrap());
    let partition = walk.stock.partition(home(&a));
    assert!(!partition.is_given_up);
    assert_eq!(partition.keys[&key(&a)].version, EVENTS);
}

#[tokio::test]
async fn who_compares_once_compares_what_is_far_behind_as_well() {
    let (world, a, _, mut auditor) = world().await;
    world.prepare(1).await;
    world.fold(Fold::of(&a, 1).row(&a, 1)).await;
    let report = auditor.audit_once().await.unwrap();
    assert_eq!(report.not_compared(), Vec::<String>::new());
}
