//! Invariant P4 on a stock store: the tests of every read model, on a partition of its own.

use super::*;
use crate::dead_letters as tests;

macro_rules! on_stock {
    ($($test:ident,)*) => {
        $(
            pub async fn $test(store: &Fixture) {
                store.stock.prepare(&generation()).await.unwrap();
                let sku = skus_of(3, 1).remove(0);
                tests::$test(store.stock.as_ref(), at(3), (key(&sku, "north"), row(5, 1))).await;
            }
        )*
    };
}

on_stock!(
    keys_and_queues_are_listed_in_pages,
    a_redrive_is_one_write_and_what_is_left_keeps_its_order,
    what_is_discarded_is_recorded,
    only_the_owner_resolves_and_a_refused_write_leaves_all_as_it_was,
    requests_and_answers_are_bounded_and_asked_once,
    the_mirror_s_mark_only_goes_on,
);

/// Whoever only reads the store asks in the same place.
pub async fn another_process_asks(store: &Fixture) {
    use read_models::{DeadLetterAction, DeadLetterRequest};

    let claimed = store.claimed(0).await;
    let sku = skus_of(0, 1).remove(0);
    let parked = vec![parked_event(sku.as_str(), 1, 1)];
    store.stock.apply(&Batch { parked: parked.clone(), ..batch(0, &claimed, checkpoint(1)) }).await.unwrap();
    let another = store.another().await;
    assert_eq!(another.partitions().await.unwrap().len(), PARTITIONS as usize);
    assert_eq!(another.parked_of(at(0), sku.as_str(), None, 9).await.unwrap(), parked);
    let request = DeadLetterRequest {
        id: uuid::Uuid::from_u128(4),
        key: sku.as_str().to_owned(),
        action: DeadLetterAction::Redrive,
        by: None,
        note: Some("try again".to_owned()),
        requested_at: 1,
    };
    another.request_dead_letter(at(0), &request).await.unwrap();
    assert_eq!(store.stock.dead_letter_requests(at(0)).await.unwrap(), [request]);
    assert!(store.stock.dead_letter_requests(at(1)).await.unwrap().is_empty());
}
