//! Invariants P2 and P3: effect and checkpoint move as one, and only for the owner.

use read_models::{Batch, Checkpoint, Generation, ReadModelError};

use super::*;

pub async fn a_generation_is_prepared_twice(store: &Fixture) {
    store.stock.prepare(&generation()).await.unwrap();
    store.stock.prepare(&generation()).await.unwrap();
    store.another().await.prepare(&generation()).await.unwrap();
}

pub async fn another_fold_or_partition_count_is_refused(store: &Fixture) {
    store.stock.prepare(&generation()).await.unwrap();
    let another = store.another().await;
    for other in [Generation { fold_version: 2, ..generation() }, Generation { partitions: 5, ..generation() }] {
        let refused = another.prepare(&other).await.unwrap_err();
        assert!(matches!(refused, ReadModelError::Generation { .. }), "{refused}");
    }
    // What was refused is not written to.
    assert!(matches!(another.claim(at(0)).await, Err(ReadModelError::Permanent { .. })));
    another.prepare(&Generation { number: 2, fold_version: 2, ..generation() }).await.unwrap();
}

pub async fn nothing_is_written_without_a_generation_or_to_a_partition_that_is_none(store: &Fixture) {
    assert!(matches!(store.stock.claim(at(0)).await, Err(ReadModelError::Permanent { .. })));
    let claimed = store.claimed(0).await;
    assert!(matches!(store.stock.claim(at(PARTITIONS)).await, Err(ReadModelError::Permanent { .. })));
    let outside = Batch { partition: at(PARTITIONS), ..batch(0, &claimed, checkpoint(1)) };
    assert!(matches!(store.stock.apply(&outside).await, Err(ReadModelError::Permanent { .. })));
}

pub async fn each_claim_raises_the_epoch(store: &Fixture) {
    let mut last = store.claimed(0).await;
    assert!(last.epoch > 0);
    assert_eq!((last.checkpoint, last.live, last.parked_keys.len()), (Checkpoint::default(), false, 0));
    let another = store.another().await;
    another.prepare(&generation()).await.unwrap();
    for number in 0..6 {
        let owner = if number % 2 == 0 { &another } else { &store.stock };
        let claimed = owner.claim(at(0)).await.unwrap();
        assert!(claimed.epoch > last.epoch, "{} after {}", claimed.epoch, last.epoch);
        last = claimed;
    }
}

pub async fn what_was_applied_is_loaded_and_claimed(store: &Fixture) {
    let claimed = store.claimed(1).await;
    let skus = skus_of(1, 3);
    let changes = vec![
        (key(&skus[0], "north"), row(10, 1)),
        (key(&skus[0], "south"), row(i64::MAX, u64::from(u32::MAX))),
        (key(&skus[1], "north"), row(0, 2)),
    ];
    let written = Batch { changes: changes.clone(), live: true, ..batch(1, &claimed, checkpoint(3)) };
    store.stock.apply(&written).await.unwrap();

    let keys = [key(&skus[1], "north"), key(&skus[2], "north"), key(&skus[0], "south"), key(&skus[1], "south")];
    let rows = store.stock.load(at(1), &keys).await.unwrap().rows;
    assert_eq!(rows, [Some(row(0, 2)), None, Some(changes[1].1.clone()), None]);
    assert!(store.stock.load(at(1), &[]).await.unwrap().rows.is_empty());

    let again = store.stock.claim(at(1)).await.unwrap();
    assert_eq!((again.checkpoint, again.live), (checkpoint(3), true));
    // The next batch goes on from there, and its rows replace the old ones. Live stays live.
    let next = Batch { changes: vec![(key(&skus[0], "north"), row(4, 2))], ..batch(1, &again, checkpoint(4)) };
    store.stock.apply(&next).await.unwrap();
    assert_eq!(store.stock.load(at(1), &[key(&skus[0], "north")]).await.unwrap().rows, [Some(row(4, 2))]);
    assert!(store.stock.claim(at(1)).await.unwrap().live);
}

pub async fn a_repeated_batch_is_refused_and_changes_nothing(store: &Fixture) {
    let claimed = store.claimed(2).await;
    let skus = skus_of(2, 1);
    store.stock.apply(&batch(2, &claimed, checkpoint(5))).await.unwrap();
    let repeated = Batch {
        changes: vec![(key(&skus[0], "north"), row(99, 9))],
        parked: vec![parked_event("SKU-0", 5, 5)],
        live: true,
        ..batch(2, &claimed, checkpoint(6))
    };
    match store.stock.apply(&repeated).await.unwrap_err() {
        ReadModelError::CheckpointMoved { partition, expected, found, .. } => {
            assert_eq!((partition, expected, found), (at(2), Checkpoint::default(), checkpoint(5)));
        }
        other => panic!("{other}"),
    }
    // Each field of the checkpoint counts.
    let stored = checkpoint(5);
    for from in [
        Checkpoint { sequence: 4, ..stored },
        Checkpoint { next_offset: stored.next_offset + 1, ..stored },
        Checkpoint { position: StorePosition { xid: stored.position.xid + 1, ..stored.position }, ..stored },
        Checkpoint { position: StorePosition { position: stored.position.position - 1, ..stored.position }, ..stored },
        Checkpoint { event_time: 0, ..stored },
    ] {
        let refused = store.stock.apply(&Batch { from, ..repeated.clone() }).await.unwrap_err();
        assert!(matches!(refused, ReadModelError::CheckpointMoved { .. }), "{refused}");
    }
    unchanged(store, 2, &skus[0], checkpoint(5)).await;
}

pub async fn a_superseded_owner_changes_nothing(store: &Fixture) {
    let zombie = store.claimed(3).await;
    let another = store.another().await;
    another.prepare(&generation()).await.unwrap();
    let owner = another.claim(at(3)).await.unwrap();
    let skus = skus_of(3, 1);
    let late = Batch {
        changes: vec![(key(&skus[0], "north"), row(99, 9))],
        parked: vec![parked_event("SKU-0", 1, 1)],
        live: true,
        ..batch(3, &zombie, checkpoint(1))
    };
    match store.stock.apply(&late).await.unwrap_err() {
        ReadModelError::Superseded { partition, epoch, current, .. } => {
            assert_eq!((partition, epoch, current), (at(3), zombie.epoch, owner.epoch));
        }
        other => panic!("{other}"),
    }
    unchanged(store, 3, &skus[0], Checkpoint::default()).await;
}

/// Nothing of a refused batch is there.
async fn unchanged(store: &Fixture, partition: u32, sku: &Sku, checkpoint: Checkpoint) {
    assert_eq!(store.stock.load(at(partition), &[key(sku, "north")]).await.unwrap().rows, [None]);
    assert!(store.stock.parked(at(partition), None, 10).await.unwrap().is_empty());
    let claimed = store.stock.claim(at(partition)).await.unwrap();
    assert_eq!((claimed.checkpoint, claimed.live), (checkpoint, false));
    assert!(claimed.parked_keys.is_empty());
}

/// Its claim was lost with the store's last second, and whatever it wrote behind it.
pub async fn an_owner_whose_claim_is_lost_claims_again(store: &Fixture) {
    let held = store.claimed(0).await;
    // More digits is more, whatever the digits are.
    for epoch in [held.epoch + 1, 99_999_999_999_999_999] {
        let owner = Claimed { epoch, ..held.clone() };
        let refused = store.stock.apply(&batch(0, &owner, checkpoint(1))).await.unwrap_err();
        assert!(matches!(refused, ReadModelError::CheckpointMoved { .. }), "{refused}");
    }
    store.stock.apply(&batch(0, &held, checkpoint(1))).await.unwrap();
    let late = batch(0, &Claimed { checkpoint: checkpoint(1), epoch: held.epoch - 1, ..held.clone() }, checkpoint(2));
    let refused = store.stock.apply(&late).await.unwrap_err();
    assert!(matches!(refused, ReadModelError::Superseded { current, .. } if current == held.epoch), "{refused}");
    assert!(store.stock.claim(at(0)).await.unwrap().epoch > held.epoch);
}

pub async fn a_partition_that_was_never_claimed_is_not_written(store: &Fixture) {
    let claimed = store.claimed(0).await;
    let refused = store.stock.apply(&batch(1, &claimed, checkpoint(1))).await.unwrap_err();
    assert!(matches!(refused, ReadModelError::CheckpointMoved { .. }), "{refused}");
}

pub async fn five_thousand_rows_are_one_batch(store: &Fixture) {
    let claimed = store.claimed(1).await;
    let skus = skus_of(1, 2_500);
    let changes: Vec<_> = skus
        .iter()
        .flat_map(|sku| ["north", "south"].map(|warehouse| (key(sku, warehouse), row(sku.as_str().len() as i64, 3))))
        .collect();
    let parked = (0..500).map(|number| parked_event("SKU-0", number + 1, number)).collect();
    let big = Batch { changes: changes.clone(), parked, ..batch(1, &claimed, checkpoint(5_000)) };
    tokio::time::timeout(DEADLINE, store.stock.apply(&big)).await.unwrap().unwrap();
    let keys: Vec<_> = changes.iter().map(|(key, _)| key.clone()).collect();
    let rows = store.stock.load(at(1), &keys).await.unwrap().rows;
    assert!(rows.into_iter().eq(changes.into_iter().map(|(_, row)| Some(row))));
    assert_eq!(store.stock.parked(at(1), None, 10_000).await.unwrap().len(), 500);
}

pub async fn owners_side_by_side_write_each_step_once(store: &Fixture) {
    const STEPS: u64 = 40;
    store.claimed(0).await;
    let sku = skus_of(0, 1).remove(0);
    let owners = (0..4).map(|_| async {
        let stock = store.another().await;
        stock.prepare(&generation()).await.unwrap();
        let mut written = 0;
        loop {
            let claimed = stock.claim(at(0)).await.unwrap();
            if claimed.checkpoint.sequence == STEPS {
                return written;
            }
            let held = stock.load(at(0), &[key(&sku, "north")]).await.unwrap().rows.remove(0);
            let next = row(held.map_or(0, |row| row.on_hand) + 1, 1);
            let step = Batch {
                changes: vec![(key(&sku, "north"), next)],
                ..batch(0, &claimed, checkpoint(claimed.checkpoint.sequence + 1))
            };
            match stock.apply(&step).await {
                Ok(()) => written += 1,
                Err(ReadModelError::Superseded { .. } | ReadModelError::CheckpointMoved { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    });
    let written = tokio::time::timeout(DEADLINE, futures::future::join_all(owners)).await.unwrap();
    assert_eq!(written.iter().sum::<u64>(), STEPS);
    let row = store.stock.load(at(0), &[key(&sku, "north")]).await.unwrap().rows.remove(0).unwrap();
    assert_eq!(row.on_hand as u64, STEPS);
}
