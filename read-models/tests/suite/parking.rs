//! Invariant P4: what could not be folded is kept, in order, with everything that a redrive needs.

use read_models::Batch;

use super::*;

pub async fn parked_events_keep_their_order_and_bytes(store: &Fixture) {
    let claimed = store.claimed(0).await;
    let skus = skus_of(0, 2);
    let first = vec![
        parked_event(skus[0].as_str(), 9, 109),
        parked_event(skus[1].as_str(), 10, 110),
        parked_event(skus[0].as_str(), 11, 111),
    ];
    store.stock.apply(&Batch { parked: first.clone(), ..batch(0, &claimed, checkpoint(11)) }).await.unwrap();
    let again = store.stock.claim(at(0)).await.unwrap();
    assert_eq!(again.parked_keys, skus.iter().map(|sku| sku.as_str().to_owned()).collect());
    let second = vec![parked_event(skus[1].as_str(), 100, 200)];
    store.stock.apply(&Batch { parked: second.clone(), ..batch(0, &again, checkpoint(100)) }).await.unwrap();

    let all: Vec<_> = first.into_iter().chain(second).collect();
    assert_eq!(store.stock.parked(at(0), None, 100).await.unwrap(), all);
    assert_eq!(store.another().await.parked(at(0), None, usize::MAX).await.unwrap(), all);
    assert_eq!(store.stock.parked(at(0), Some(all[0].place()), 2).await.unwrap(), all[1..3]);
    assert!(store.stock.parked(at(0), Some(all[3].place()), 10).await.unwrap().is_empty());
    assert!(store.stock.parked(at(0), None, 0).await.unwrap().is_empty());
    assert!(store.stock.parked(at(1), None, 10).await.unwrap().is_empty());
}

pub async fn records_of_nobody_share_a_sequence_and_none_is_lost(store: &Fixture) {
    let claimed = store.claimed(0).await;
    let sku = skus_of(0, 1).remove(0);
    let all = [
        parked_event("!foreign", 0, 1),
        parked_event(sku.as_str(), 7, 2),
        parked_event("!foreign", 7, 9),
        parked_event("!foreign", 7, 10),
        parked_event("!foreign", 8, 11),
    ];
    store.stock.apply(&Batch { parked: all[..3].to_vec(), ..batch(0, &claimed, checkpoint(7)) }).await.unwrap();
    let again = store.stock.claim(at(0)).await.unwrap();
    store.stock.apply(&Batch { parked: all[3..].to_vec(), ..batch(0, &again, checkpoint(8)) }).await.unwrap();

    // The first of all has sequence 0: it came before any event of ours.
    assert_eq!(store.stock.parked(at(0), None, 100).await.unwrap(), all);
    assert_eq!(store.stock.parked(at(0), Some(all[1].place()), 2).await.unwrap(), all[2..4]);
    assert_eq!(store.stock.claim(at(0)).await.unwrap().foreign_records, 4);
}

pub async fn answers_tell_whether_the_sku_is_parked(store: &Fixture) {
    store.live().await;
    let skus = skus_of(2, 2);
    let claimed = store.stock.claim(at(2)).await.unwrap();
    let written = Batch {
        changes: vec![(key(&skus[0], "north"), row(5, 1))],
        parked: vec![parked_event(skus[0].as_str(), 2, 2)],
        ..batch(2, &claimed, checkpoint(2))
    };
    store.stock.apply(&written).await.unwrap();
    let answers = store.stock.answers(&skus).await.unwrap();
    assert_eq!((answers[0].parked, answers[0].warehouses.len()), (true, 1));
    assert_eq!((answers[1].parked, answers[1].warehouses.len()), (false, 0));
}
