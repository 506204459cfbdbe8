use crate::world::{Fold, World, home, sku_in};

use super::*;

async fn audited(world: &World) -> Report {
    world.auditor().await.audit_once().await.unwrap()
}

#[tokio::test]
async fn what_was_not_compared_is_not_level() {
    let (world, sku) = (World::new().await, sku_in(0));
    world.append(&sku, 1..=2).await;
    // Emptied, and nobody folds.
    let report = audited(&world).await;
    assert_eq!(report.verdict(), Verdict::NotCompared);
    assert_eq!(report.not_compared(), ["stock, 2 partitions: it is being built"]);
    world.prepare(1).await;
    // Behind, which is no reason: it is compared at its checkpoint.
    assert_eq!(audited(&world).await.verdict(), Verdict::Level);
    world.fold(Fold::of(&sku, 2).row(&sku, 1)).await;
    assert_eq!(audited(&world).await.verdict(), Verdict::Differs);
    world.fold(Fold::of(&sku, 2).row(&sku, 2)).await;
    assert_eq!(audited(&world).await.verdict(), Verdict::Level);
}

#[tokio::test]
async fn a_fold_that_this_program_lacks_is_not_level() {
    let (world, sku) = (World::new().await, sku_in(0));
    world.append(&sku, 1..=2).await;
    world.prepare(99).await;
    world.fold(Fold::of(&sku, 2).row(&sku, 2)).await;
    let report = audited(&world).await;
    assert_eq!(report.verdict(), Verdict::NotCompared);
    assert!(report.not_compared()[0].contains("fold version 99 built it"), "{:?}", report.not_compared());
}

#[tokio::test]
async fn what_differs_outweighs_what_was_not_compared() {
    let (world, sku) = (World::new().await, sku_in(0));
    world.append(&sku, 1..=2).await;
    world.prepare(1).await;
    world.fold(Fold::of(&sku, 2).row(&sku, 1)).await;
    let mut report = audited(&world).await;
    let other = report.read_models.iter_mut().find(|model| model.partition != home(&sku).partition).unwrap();
    other.skipped = Some("its checkpoint went back during the audit".to_owned());
    assert_eq!(report.verdict(), Verdict::Differs);
    assert_eq!(report.not_compared(), ["stock inventory.events/1: its checkpoint went back during the audit"]);
}

#[test]
fn an_index_that_was_left_out_is_no_reason_and_one_that_is_being_built_is() {
    let mut report = Report {
        position: String::new(),
        since: None,
        events: 0,
        topics: Vec::new(),
        read_models: Vec::new(),
        index: None,
        counts: Vec::new(),
        differences: Vec::new(),
    };
    assert_eq!(report.verdict(), Verdict::Level);
    let skipped = Some("it is being built".to_owned());
    report.index = Some(IndexReport { documents: 0, shown: 0, newer: 0, differences: 0, skipped });
    assert_eq!(
        (report.verdict(), report.not_compared()),
        (Verdict::NotCompared, vec!["search index: it is being built".to_owned()])
    );
}
