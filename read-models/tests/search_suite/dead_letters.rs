//! Invariant P4 on the rows of search: the tests of every read model, and requests that a reader leaves beside the
//! writer.

use read_models::{DeadLetterAction, DeadLetterRequest, DeadLetters, ParkedEvent, Resolution, Resolved};

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
        to: checkpoint(1),
        parked: vec![parked.clone()],
        ..Batch::unmoved(AT, claimed.epoch, claimed.checkpoint, false)
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

fn at(sku: &str, context: Context) -> PartitionRef {
    PartitionRef { context, partition: partition_of(sku.as_bytes(), PARTITIONS) }
}

/// Parks one more event of a SKU, as its worker would, and gives its position.
async fn park(store: &Fixture, sku: &str, context: Context) -> PositionToken {
    let partition = at(sku, context);
    let claimed = store.model().claim(partition).await.unwrap();
    let to = checkpoint(claimed.checkpoint.sequence + 1);
    let parked = ParkedEvent {
        key: sku.to_owned(),
        sequence: to.sequence,
        offset: to.next_offset - 1,
        position: to.position,
        headers: Vec::new(),
        value: vec![7],
        reason: "no".to_owned(),
        parked_at: 5,
    };
    let batch =
        Batch { to, parked: vec![parked], ..Batch::unmoved(partition, claimed.epoch, claimed.checkpoint, false) };
    store.model().apply(&batch).await.unwrap();
    partition.token(to.position)
}

/// Takes the first `count` events of a SKU out, with the rows that come of them.
async fn redrive(store: &Fixture, sku: &str, context: Context, count: usize, changes: Vec<(SearchKey, SearchRow)>) {
    let partition = at(sku, context);
    let claimed = store.model().claim(partition).await.unwrap();
    let leaving = store.model().parked_of(partition, sku, None, count).await.unwrap();
    assert_eq!(leaving.len(), count);
    let redriven = leaving.iter().map(|event| Resolved { key: event.key.clone(), place: event.place() }).collect();
    let batch = Batch {
        changes,
        dead_letters: Resolution { redriven, ..Resolution::default() },
        ..Batch::unmoved(partition, claimed.epoch, claimed.checkpoint, false)
    };
    store.model().apply(&batch).await.unwrap();
}

/// Waits until the hits, all of them, say this of their SKUs.
async fn until_marked(store: &Fixture, expected: &[(&str, bool)]) {
    let mut last = None;
    let marked = async {
        loop {
            match store.reader.search(all(), &unchosen()).await {
                Ok(found) => {
                    let marks: Vec<_> = found.hits.iter().map(|hit| (hit.sku.as_str(), hit.parked)).collect();
                    if marks == expected {
                        return;
                    }
                    last = Some(format!("{marks:?}"));
                }
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    let marked = tokio::time::timeout(DEADLINE, marked).await;
    assert!(marked.is_ok(), "{last:?}, not {expected:?}");
}

async fn is_parked_on_page(store: &Fixture, name: &str) -> bool {
    store.reader.product(&sku(name), &unchosen()).await.unwrap().parked
}

/// How often what documents show has changed.
fn row_version(store: &Fixture) -> i64 {
    let rows = rusqlite::Connection::open(store.build_dir().join("rows.db")).unwrap();
    rows.query_row("SELECT row_version FROM row_versions", [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_says_at_its_own_position_that_events_of_its_sku_wait() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek"), named("B", "Chard"), price("A", "eu", 5)]).await;
    until_marked(&store, &[("A", false), ("B", false)]).await;
    for context in CONTEXTS {
        let parked = park(&store, "A", context).await;
        store.shown(&parked).await;
        // What claims the position says it: it is not a matter of time.
        let hits = store.found(all()).await.hits;
        let marks: Vec<_> = hits.iter().map(|hit| (hit.sku.as_str(), hit.parked)).collect();
        assert_eq!(marks, [("A", true), ("B", false)], "{context}");
        assert!(is_parked_on_page(&store, "A").await && !is_parked_on_page(&store, "B").await);
        // Those behind it change no document, and those that leave only with the last.
        let before = row_version(&store);
        let behind = park(&store, "A", context).await;
        redrive(&store, "A", context, 1, Vec::new()).await;
        store.shown(&behind).await;
        assert_eq!(row_version(&store), before);
        until_marked(&store, &[("A", true), ("B", false)]).await;
        assert!(store.reader.check_documents().await.unwrap().faults.is_empty());
        store.restart().await;
        until_marked(&store, &[("A", true), ("B", false)]).await;
        redrive(&store, "A", context, 1, Vec::new()).await;
        until_marked(&store, &[("A", false), ("B", false)]).await;
        assert!(!is_parked_on_page(&store, "A").await);
    }
    assert!(store.reader.check_documents().await.unwrap().faults.is_empty());
    // Its rows add up.
    store.restart().await;
    until_marked(&store, &[("A", false), ("B", false)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sku_of_which_only_parked_events_are_known_is_shown_once_they_are_folded() {
    let store = Fixture::live().await;
    let parked = park(&store, "A", Context::Catalogue).await;
    store.shown(&parked).await;
    assert!(store.found(all()).await.hits.is_empty());
    let page = store.reader.product(&sku("A"), &unchosen()).await.unwrap();
    assert_eq!((page.product, page.parked, page.position.covers(&parked)), (None, true, true));
    redrive(&store, "A", Context::Catalogue, 1, vec![named("A", "Leek")]).await;
    until_marked(&store, &[("A", false)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_program_parked_is_said_once_the_directory_is_opened() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek"), named("B", "Chard")]).await;
    store.stop().await;
    let rows = rusqlite::Connection::open(store.build_dir().join("rows.db")).unwrap();
    let insert =
        "INSERT INTO parked_events (generation, context, partition, sequence, key, offset, xid, position, headers,
                      value, reason, parked_at)
                  VALUES (1, 'pricing', ?1, 1, 'A', 1, 0, 1, '[]', x'07', 'no', 5)";
    rows.execute(insert, [at("A", Context::Pricing).partition]).unwrap();
    drop(rows);
    store.start().await;
    store.start_indexer();
    until_marked(&store, &[("A", true), ("B", false)]).await;
    let check = store.reader.check_documents().await.unwrap();
    assert_eq!((check.documents, check.faults), (2, Vec::new()));
}
