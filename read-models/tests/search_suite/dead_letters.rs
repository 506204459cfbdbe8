//! Invariant P4 on the rows of search: the tests of every read model, and requests that a reader leaves beside the writer.

use read_models::{DeadLetterAction, DeadLetterRequest, DeadLetters, ParkedEvent};

use super::*;
use crate::dead_letters as tests;

const AT: PartitionRef = PartitionRef { context: Context::Pricing, partition: 0 };

macro_rules! on_search {
    ($($test:ident,)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                let mut store = Fixture::empty().await;
                store.start().await;
                tests::$test(store.model().as_ref(), AT, price("A", "eu", 5)).await;
            }
        )*
    };
}

on_search!(
    keys_and_queues_are_listed_in_pages,
    a_redrive_is_one_write_and_what_is_left_keeps_its_order,
    what_is_discarded_is_recorded,
    only_the_owner_resolves_and_a_refused_write_leaves_all_as_it_was,
    requests_and_answers_are_bounded_and_asked_once,
    the_mirror_s_mark_only_goes_on,
);

#[tokio::test]
async fn a_reader_sees_the_queue_and_leaves_its_request_with_the_writer() {
    let mut store = Fixture::empty().await;
    assert!(is_rebuilding(&store.reader.partitions().await));
    store.start().await;
    let claimed = store.model().claim(AT).await.unwrap();
    let parked = ParkedEvent {
        key: "A".to_owned(),
        sequence: 1,
        offset: 0,
        position: StorePosition::default(),
        headers: Vec::new(),
        value: vec![7],
        reason: "no".to_owned(),
        parked_at: 5,
    };
    let batch = Batch {
        partition: AT,
        epoch: claimed.epoch,
        from: claimed.checkpoint,
        to: checkpoint(1),
        changes: Vec::new(),
        parked: vec![parked.clone()],
        dead_letters: Resolution::default(),
        live: false,
    };
    store.model().apply(&batch).await.unwrap();
    // What was looked at a few milliseconds ago may be answered once more.
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    let partitions = loop {
        match store.reader.partitions().await {
            Err(error) if error.is_transient() && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            partitions => break partitions.unwrap(),
        }
    };
    assert_eq!(partitions.len(), 3 * PARTITIONS as usize);
    assert_eq!(store.reader.parked_of(AT, "A", None, 9).await.unwrap(), [parked]);
    let id = uuid::Uuid::from_u128(9);
    let (key, action) = ("A".to_owned(), DeadLetterAction::Redrive);
    let request = DeadLetterRequest { id, key, action, by: None, note: None, requested_at: 3 };
    store.reader.request_dead_letter(AT, &request).await.unwrap();
    assert_eq!(store.model().dead_letter_requests(AT).await.unwrap(), [request]);
}
