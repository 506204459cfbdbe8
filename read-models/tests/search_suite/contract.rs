//! The contract of a read model, on the rows of search: P2, P3 and P4.

use read_models::{Claimed, DeadLetters, Head, ParkedEvent};

use super::*;

const AT: PartitionRef = PartitionRef { context: Context::Catalogue, partition: 0 };

async fn prepared() -> Fixture {
    let mut store = Fixture::empty().await;
    store.start().await;
    store
}

fn batch(claimed: &Claimed, to: Checkpoint) -> Batch<SearchKey, SearchRow> {
    Batch { to, ..Batch::unmoved(AT, claimed.epoch, claimed.checkpoint, false) }
}

fn parked(sequence: u64) -> ParkedEvent {
    ParkedEvent {
        key: "A".to_owned(),
        sequence,
        offset: sequence + 10,
        position: checkpoint(sequence).position,
        headers: vec![("ce_id".to_owned(), "é\n".to_owned())],
        value: vec![0, 255],
        reason: "cannot be read".to_owned(),
        parked_at: 1_700_000_000_123,
    }
}

/// Nothing of a refused batch is there, nor is a document marked as changed.
async fn unchanged(store: &Fixture, found: Checkpoint) {
    let model = store.model();
    assert_eq!(model.load(AT, &[named("A", "x").0]).await.unwrap().rows, [None]);
    assert!(model.parked(AT, None, 10).await.unwrap().is_empty());
    let claimed = model.claim(AT).await.unwrap();
    assert_eq!((claimed.checkpoint, claimed.live, claimed.parked_keys.len()), (found, false, 0));
}

#[tokio::test]
async fn a_generation_is_prepared_twice_and_another_of_its_number_refused() {
    let store = prepared().await;
    let model = store.model();
    model.prepare(&generation()).await.unwrap();
    for other in [Generation { fold_version: 2, ..generation() }, Generation { partitions: 3, ..generation() }] {
        let refused = model.prepare(&other).await.unwrap_err();
        assert!(matches!(refused, ReadModelError::Generation { .. }), "{refused}");
    }
    model.ping().await.unwrap();
}

#[tokio::test]
async fn nothing_is_written_without_a_generation_or_to_a_partition_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let model = SearchReadModel::open(folder.path()).await.unwrap();
    assert!(matches!(model.claim(AT).await, Err(ReadModelError::Permanent { .. })));
    model.prepare(&generation()).await.unwrap();
    let outside = PartitionRef { partition: PARTITIONS, ..AT };
    assert!(matches!(model.claim(outside).await, Err(ReadModelError::Permanent { .. })));
    let claimed = model.claim(AT).await.unwrap();
    let outside = Batch { partition: outside, ..batch(&claimed, checkpoint(1)) };
    assert!(matches!(model.apply(&outside).await, Err(ReadModelError::Permanent { .. })));
}

#[tokio::test]
async fn what_was_applied_is_loaded_and_claimed_after_a_restart() {
    let mut store = prepared().await;
    let rows = vec![
        named("A", "Leek"),
        discontinued("B"),
        revised(plain("C", "Chard"), 7, 1_700_000_000_123),
        price("A", "eu.west", i64::MAX),
        stock("A", "w-1", "eu.west", 3),
        stock("A", "w-2", "eu.west", 0),
    ];
    for (key, row) in &rows {
        let claimed = store.model().claim(home(key)).await.unwrap();
        let to = checkpoint(claimed.checkpoint.sequence + 1);
        let write = Batch { partition: home(key), changes: vec![(key.clone(), row.clone())], ..batch(&claimed, to) };
        store.model().apply(&write).await.unwrap();
    }
    store.stop().await;
    store.start().await;
    for (key, row) in &rows {
        let absent = SearchKey::Product(sku("Z"));
        let loaded = store.model().load(home(key), &[absent, key.clone()]).await.unwrap().rows;
        assert_eq!(loaded, [None, Some(row.clone())]);
        assert!(store.model().claim(home(key)).await.unwrap().checkpoint.sequence > 0);
    }
}

#[tokio::test]
async fn a_repeated_batch_is_refused_and_changes_nothing() {
    let store = prepared().await;
    let claimed = store.model().claim(AT).await.unwrap();
    store.model().apply(&batch(&claimed, checkpoint(5))).await.unwrap();
    let repeated =
        Batch { changes: vec![named("A", "x")], parked: vec![parked(6)], live: true, ..batch(&claimed, checkpoint(6)) };
    match store.model().apply(&repeated).await.unwrap_err() {
        ReadModelError::CheckpointMoved { partition, expected, found, .. } => {
            assert_eq!((partition, expected, found), (AT, Checkpoint::default(), checkpoint(5)));
        }
        other => panic!("{other}"),
    }
    unchanged(&store, checkpoint(5)).await;
}

#[tokio::test]
async fn a_superseded_owner_changes_nothing_nor_does_one_whose_claim_is_lost() {
    let store = prepared().await;
    let zombie = store.model().claim(AT).await.unwrap();
    let owner = store.model().claim(AT).await.unwrap();
    let late =
        Batch { changes: vec![named("A", "x")], parked: vec![parked(1)], live: true, ..batch(&zombie, checkpoint(1)) };
    match store.model().apply(&late).await.unwrap_err() {
        ReadModelError::Superseded { partition, epoch, current, .. } => {
            assert_eq!((partition, epoch, current), (AT, zombie.epoch, owner.epoch));
        }
        other => panic!("{other}"),
    }
    unchanged(&store, Checkpoint::default()).await;
    let lost = Claimed { epoch: owner.epoch + 1_000_000, ..owner };
    let refused = store.model().apply(&batch(&lost, checkpoint(1))).await.unwrap_err();
    assert!(matches!(refused, ReadModelError::CheckpointMoved { .. }), "{refused}");
    unchanged(&store, Checkpoint::default()).await;
}

#[tokio::test]
async fn a_row_that_does_not_fit_its_key_takes_the_whole_batch_back() {
    let store = prepared().await;
    let claimed = store.model().claim(AT).await.unwrap();
    let misfit = (SearchKey::Product(sku("B")), price("B", "eu", 1).1);
    let changes = vec![named("A", "x"), misfit];
    let write = Batch { changes, parked: vec![parked(1)], live: true, ..batch(&claimed, checkpoint(1)) };
    assert!(matches!(store.model().apply(&write).await, Err(ReadModelError::Permanent { .. })));
    unchanged(&store, Checkpoint::default()).await;
}

#[tokio::test]
async fn parked_events_keep_their_order_and_their_keys_are_claimed() {
    let store = prepared().await;
    let claimed = store.model().claim(AT).await.unwrap();
    let events = vec![parked(2), parked(3)];
    store.model().apply(&Batch { parked: events.clone(), ..batch(&claimed, checkpoint(3)) }).await.unwrap();
    assert_eq!(store.model().parked(AT, None, 10).await.unwrap(), events);
    assert_eq!(store.model().parked(AT, Some(events[0].place()), 10).await.unwrap(), events[1..]);
    assert!(store.model().claim(AT).await.unwrap().parked_keys.contains("A"));
    let status = store.model().status().await.unwrap();
    let at = status.partitions.iter().find(|partition| partition.partition == AT).unwrap();
    assert_eq!((at.parked_keys, at.parked_events), (1, 2));
}

#[tokio::test]
async fn the_log_end_is_told_beside_the_checkpoint() {
    let store = prepared().await;
    let claimed = store.model().claim(AT).await.unwrap();
    store.model().apply(&Batch { live: true, ..batch(&claimed, checkpoint(4)) }).await.unwrap();
    // The last one holds, though the clock went back.
    let head = Head { next_offset: 99, seen_at: 999 };
    store.model().observe(&[(AT, Head { next_offset: 50, seen_at: 1_000 }), (AT, head)]).await.unwrap();
    for status in [store.model().status().await.unwrap(), store.reader.status().await.unwrap()] {
        let at = status.partitions.iter().find(|partition| partition.partition == AT).unwrap();
        assert_eq!((at.checkpoint, at.head), (checkpoint(4), Some(head)));
    }
}
