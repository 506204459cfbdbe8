//! Invariants Q1 and Q2: an answer is a state that the store held, and names its position; a store that has nothing to
//! answer from says so.

use std::time::Instant;

use read_models::{Batch, Checkpoint, Generation, Head, PartitionStatus, ReadChoice, ReadModelError};
use schemas::PositionToken;

use super::*;

pub async fn reads_are_refused_until_the_partition_is_live(store: &Fixture) {
    let skus = skus_of(0, 1);
    let is_rebuilding = |answer| matches!(answer, Err(ReadModelError::Rebuilding { .. }));
    assert!(is_rebuilding(store.stock.answers(&skus).await), "nothing prepared");
    assert!(matches!(store.stock.status().await, Err(ReadModelError::Rebuilding { .. })));
    store.stock.prepare(&generation()).await.unwrap();
    assert!(is_rebuilding(store.stock.answers(&skus).await), "nobody claimed it");
    let claimed = store.stock.claim(at(0)).await.unwrap();
    assert!(is_rebuilding(store.stock.answers(&skus).await), "not folded");
    store.stock.apply(&batch(0, &claimed, checkpoint(1))).await.unwrap();
    assert!(is_rebuilding(store.stock.answers(&skus).await), "not at the head");
    let owner = Claimed { checkpoint: checkpoint(1), ..claimed };
    store.stock.apply(&Batch { live: true, ..batch(0, &owner, checkpoint(1)) }).await.unwrap();
    assert!(store.stock.answers(&skus).await.unwrap()[0].warehouses.is_empty());
    // One partition that is not live holds back the SKUs that live there, and no others.
    assert!(is_rebuilding(store.stock.answers(&[skus[0].clone(), skus_of(1, 1).remove(0)]).await));
    assert!(!is_rebuilding(store.another().await.answers(&skus).await));
}

pub async fn answers_come_in_the_order_asked_with_their_own_positions(store: &Fixture) {
    store.live().await;
    for number in 0..PARTITIONS {
        let claimed = store.stock.claim(at(number)).await.unwrap();
        let changes = skus_of(number, 5)
            .into_iter()
            .flat_map(|sku| ["west", "north", "a"].map(|warehouse| (key(&sku, warehouse), row(i64::from(number), 1))))
            .collect();
        let to = checkpoint(u64::from(number) + 1);
        store.stock.apply(&Batch { changes, ..batch(number, &claimed, to) }).await.unwrap();
    }
    let mut skus: Vec<Sku> =
        (0..5).flat_map(|place| (0..PARTITIONS).map(move |number| skus_of(number, 5).remove(place))).collect();
    skus.push(skus[3].clone());
    skus.push(skus_of(1, 6).remove(5));
    let answers = store.another().await.answers(&skus).await.unwrap();
    assert_eq!(answers.iter().map(|answer| &answer.sku).collect::<Vec<_>>(), skus.iter().collect::<Vec<_>>());
    for (index, answer) in answers.iter().enumerate() {
        let number = home(&answer.sku);
        assert_eq!(answer.position, at(number).token(checkpoint(u64::from(number) + 1).position));
        let expected = if index == skus.len() - 1 { vec![] } else { vec!["a", "north", "west"] };
        assert_eq!(answer.warehouses.iter().map(|(warehouse, _)| warehouse.as_str()).collect::<Vec<_>>(), expected);
        assert!(answer.warehouses.iter().all(|(_, stored)| *stored == row(i64::from(number), 1)));
    }
    assert!(store.stock.answers(&[]).await.unwrap().is_empty());
}

pub async fn rows_and_position_are_of_one_moment(store: &Fixture) {
    const STEPS: u64 = 100;
    store.live().await;
    let sku = skus_of(0, 1).remove(0);
    let writer = async {
        let mut owner = store.stock.claim(at(0)).await.unwrap();
        for step in 1..=STEPS {
            let changes = ["a", "b"].map(|warehouse| (key(&sku, warehouse), row(step as i64, step))).to_vec();
            store.stock.apply(&Batch { changes, ..batch(0, &owner, checkpoint(step)) }).await.unwrap();
            owner.checkpoint = checkpoint(step);
        }
    };
    let reading = store.another().await;
    let reader = async {
        loop {
            let answer = reading.answers(std::slice::from_ref(&sku)).await.unwrap().remove(0);
            let step = answer.warehouses.first().map_or(0, |(_, row)| row.version);
            assert!(answer.warehouses.iter().all(|(_, row)| row.version == step), "{answer:?}");
            let position = if step == 0 { StorePosition::default() } else { checkpoint(step).position };
            assert_eq!(answer.position, at(0).token(position));
            if step == STEPS {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(writer, reader) }).await.unwrap();
}

pub async fn a_wait_ends_when_the_position_is_there(store: &Fixture) {
    store.live().await;
    let reading = store.another().await;
    let mut min = at(0).token(checkpoint(2).position);
    min.advance(Context::Catalogue, 0, checkpoint(9).position);
    let long = DEADLINE;
    assert!(reading.wait_for(&PositionToken::default(), any(), long).await.unwrap());
    // Positions of topics that are not read here do not count.
    assert!(
        reading.wait_for(&PositionToken::of(Context::Pricing, 1, checkpoint(1).position), any(), long).await.unwrap()
    );

    let owner = store.stock.claim(at(0)).await.unwrap();
    store.stock.apply(&batch(0, &owner, checkpoint(1))).await.unwrap();
    assert!(reading.wait_for(&at(0).token(checkpoint(1).position), any(), long).await.unwrap());
    let begun = Instant::now();
    assert!(!reading.wait_for(&min, any(), Duration::from_millis(60)).await.unwrap());
    assert!(begun.elapsed() >= Duration::from_millis(60));

    let waiting = reading.wait_for(&min, any(), long);
    let writing = async {
        let owner = Claimed { checkpoint: checkpoint(1), ..owner };
        store.stock.apply(&batch(0, &owner, checkpoint(3))).await.unwrap();
    };
    let (reached, ()) = tokio::join!(waiting, writing);
    assert!(reached.unwrap());
    assert!(begun.elapsed() < long);
    // Reached in one partition is not reached in another.
    assert!(!reading.wait_for(&at(1).token(checkpoint(1).position), any(), Duration::ZERO).await.unwrap());
}

pub async fn a_wait_survives_a_store_that_is_being_rebuilt(store: &Fixture) {
    let reading = store.another().await;
    assert!(!reading.wait_for(&at(0).token(checkpoint(1).position), any(), Duration::from_millis(30)).await.unwrap());
    let waiting = async { reading.wait_for(&at(0).token(checkpoint(1).position), any(), DEADLINE).await };
    let writing = async {
        let owner = store.claimed(0).await;
        store.stock.apply(&batch(0, &owner, checkpoint(1))).await.unwrap();
    };
    let (reached, ()) = tokio::join!(waiting, writing);
    assert!(reached.unwrap());
}

pub async fn status_tells_every_partition(store: &Fixture) {
    let claimed = store.claimed(2).await;
    let written = Batch {
        parked: vec![parked_event("x", 4, 4), parked_event("x", 5, 5), parked_event("y", 6, 6)],
        live: true,
        ..batch(2, &claimed, checkpoint(6))
    };
    store.stock.apply(&written).await.unwrap();
    let head = |next_offset, seen_at| Head { next_offset, seen_at };
    store.stock.observe(&[(at(2), head(5, 2_000)), (at(3), head(0, 10_000))]).await.unwrap();
    // The last one holds, though the clock went back.
    store.stock.observe(&[(at(2), head(1 << 60, 1_999)), (at(3), head(3, 10_001))]).await.unwrap();

    for stock in [store.stock.clone(), store.another().await] {
        let status = stock.status().await.unwrap();
        assert_eq!((status.name.as_str(), status.generation, status.fold_version), ("stock", 1, 1));
        let idle = |number| PartitionStatus {
            partition: at(number),
            checkpoint: Checkpoint::default(),
            live: false,
            head: None,
            parked_keys: 0,
            parked_events: 0,
        };
        let busy = PartitionStatus {
            checkpoint: checkpoint(6),
            live: true,
            head: Some(head(1 << 60, 1_999)),
            parked_keys: 2,
            parked_events: 3,
            ..idle(2)
        };
        let expected = [idle(0), idle(1), busy, PartitionStatus { head: Some(head(3, 10_001)), ..idle(3) }];
        assert_eq!(status.partitions, expected);
        stock.ping().await.unwrap();
    }
}

pub async fn the_first_generation_serves_while_another_is_built(store: &Fixture) {
    store.live().await;
    let sku = skus_of(0, 1).remove(0);
    let owner = store.stock.claim(at(0)).await.unwrap();
    let changes = vec![(key(&sku, "north"), row(5, 1))];
    store.stock.apply(&Batch { changes, ..batch(0, &owner, checkpoint(1)) }).await.unwrap();

    let shadow = store.another().await;
    shadow.prepare(&Generation { number: 2, fold_version: 2, ..generation() }).await.unwrap();
    let claimed = shadow.claim(at(0)).await.unwrap();
    assert_eq!(claimed.checkpoint, Checkpoint::default());
    assert_eq!(shadow.load(at(0), &[key(&sku, "north")]).await.unwrap().rows, [None]);
    let changes = vec![(key(&sku, "north"), row(77, 1))];
    shadow.apply(&Batch { changes, live: true, ..batch(0, &claimed, checkpoint(1)) }).await.unwrap();

    assert_eq!(shadow.status().await.unwrap().generation, 2);
    for stock in [&store.stock, &shadow] {
        let answer = stock.answers(std::slice::from_ref(&sku)).await.unwrap().remove(0);
        assert_eq!(answer.warehouses[0].1, row(5, 1));
    }
}

/// Rows of fold 1 and of fold 2, as loads, answers and scans give them. A store holds generations of both.
pub async fn rows_of_every_fold_read_back(store: &Fixture) {
    store.live().await;
    let second = store.another().await;
    second.prepare(&Generation { number: 2, fold_version: 2, ..generation() }).await.unwrap();
    let sku = &skus_of(1, 1)[0];
    let (first, other) = (key(sku, "north"), key(sku, "south"));
    let plain = vec![(first.clone(), row(10, 1)), (other.clone(), row(3, 4))];
    let dated = vec![
        (first.clone(), dated_row(10, 1, 1_700_000_000_123)),
        (other.clone(), dated_row(i64::MAX, u64::from(u32::MAX), -1)),
    ];
    for (stock, changes) in [(&store.stock, &plain), (&second, &dated)] {
        let claimed = stock.claim(at(1)).await.unwrap();
        let to = checkpoint(claimed.checkpoint.sequence + 2);
        let write = Batch { changes: changes.clone(), live: true, ..batch(1, &claimed, to) };
        stock.apply(&write).await.unwrap();
    }
    for (stock, changes) in [(&store.stock, &plain), (&second, &dated)] {
        let loaded = stock.load(at(1), &[first.clone(), other.clone()]).await.unwrap();
        assert_eq!(loaded.rows, changes.iter().map(|(_, row)| Some(row.clone())).collect::<Vec<_>>());
        let (mut scanned, mut from) = (Vec::new(), None);
        loop {
            let page = stock.rows(at(1), from.as_deref(), 1_000).await.unwrap();
            scanned.extend(page.rows);
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        scanned.sort_by(|left, right| left.0.cmp(&right.0));
        assert_eq!(scanned, changes.iter().map(|(key, row)| (key.clone(), Ok(row.clone()))).collect::<Vec<_>>());
    }
    let answer = |rows: &[(StockKey, StockRow)]| {
        rows.iter().map(|(key, row)| (key.warehouse.clone(), row.clone())).collect::<Vec<_>>()
    };
    let answered = store.stock.stock(std::slice::from_ref(sku), &ReadChoice::default()).await.unwrap();
    assert_eq!(answered.answers[0].warehouses, answer(&plain));
    // A row is replaced as a whole, whatever was there before.
    for change in [dated[0].clone(), plain[0].clone()] {
        let claimed = store.stock.claim(at(1)).await.unwrap();
        let to = checkpoint(claimed.checkpoint.sequence + 1);
        let write = Batch { changes: vec![change.clone()], ..batch(1, &claimed, to) };
        store.stock.apply(&write).await.unwrap();
        let answered = store.stock.stock(std::slice::from_ref(sku), &ReadChoice::default()).await.unwrap();
        assert_eq!(answered.answers[0].warehouses, answer(&[change, plain[1].clone()]));
    }
}
