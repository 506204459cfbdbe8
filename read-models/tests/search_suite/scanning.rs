//! Scans of rows, and the check of the index against them.

use std::collections::BTreeMap;

use read_models::search::{DocumentFault, DocumentProblem};
use read_models::{ReadModel, RowPage};
use rusqlite::Connection;

use super::*;

fn rows() -> Vec<(SearchKey, SearchRow)> {
    let mut rows = vec![discontinued("GONE")];
    for number in 0..30 {
        let sku = format!("SKU-{number}");
        rows.push(named(&sku, &format!("Leek {number}")));
        rows.push(price(&sku, "eu", number));
        rows.push(stock(&sku, "w-1", "eu", number % 2));
    }
    rows
}

fn take(page: RowPage<SearchKey, SearchRow>, met: &mut BTreeMap<SearchKey, SearchRow>) -> Option<String> {
    assert!(page.foreign.is_empty());
    met.extend(page.rows.into_iter().map(|(key, row)| (key, row.unwrap())));
    page.next
}

#[tokio::test]
async fn a_scan_meets_every_row_of_its_partition_and_no_other() {
    let store = Fixture::live().await;
    let mut rows = rows();
    rows.push(revised(plain("DATED", "Leek"), 2, 1_700_000_000_123));
    store.show(rows.clone()).await;
    for context in CONTEXTS {
        for partition in 0..PARTITIONS {
            let at = PartitionRef { context, partition };
            let expected: BTreeMap<_, _> = rows.iter().filter(|(key, _)| home(key) == at).cloned().collect();
            for limit in [1_000, 4] {
                let (mut written, mut read) = (BTreeMap::new(), BTreeMap::new());
                let mut from: Option<String> = None;
                loop {
                    let page = store.model().rows(at, from.as_deref(), limit).await.unwrap();
                    take(page, &mut written);
                    let page = store.reader.rows(at, from.as_deref(), limit).await.unwrap();
                    from = take(page, &mut read);
                    if from.is_none() {
                        break;
                    }
                }
                assert_eq!(written, expected);
                assert_eq!(read, expected);
            }
        }
    }
}

/// Beside the store, as a hand would.
fn damage(store: &Fixture, sql: &str) {
    let rows = Connection::open(store.build_dir().join("rows.db")).unwrap();
    assert_eq!(rows.execute(sql, []).unwrap(), 1);
}

#[tokio::test]
async fn the_index_is_held_against_its_rows() {
    let mut store = Fixture::live().await;
    store.show(rows()).await;
    let whole = store.reader.check_documents().await.unwrap();
    assert_eq!((whole.documents, whole.shown, whole.newer), (30, 30, 0));
    assert_eq!(whole.faults, []);

    // Nobody mends it meanwhile.
    store.stop().await;
    // A document that the index has and no row shows, one that it lacks, one with another content.
    damage(&store, "UPDATE products SET product = NULL WHERE sku = 'SKU-1'");
    damage(
        &store,
        "UPDATE products SET product = (SELECT product FROM products WHERE sku = 'SKU-3') WHERE sku = 'GONE'",
    );
    damage(&store, "UPDATE prices SET amount_minor = 77 WHERE sku = 'SKU-5'");
    let fault = |what: &str, problem| DocumentFault { what: what.to_owned(), problem };
    let check = store.reader.check_documents().await.unwrap();
    assert_eq!(
        check.faults,
        [
            fault("GONE", DocumentProblem::Missing),
            fault("SKU-1", DocumentProblem::Unexplained),
            fault("SKU-5", DocumentProblem::Altered),
        ]
    );
    assert_eq!((check.documents, check.shown), (30, 30));
}

#[tokio::test]
async fn a_flipped_byte_of_the_index_is_found() {
    let mut store = Fixture::live().await;
    store.show(rows()).await;
    store.stop().await;
    let mut segment = std::fs::read_dir(store.index_dir()).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.find(|path| path.extension().is_some_and(|ext| ext == "store")).unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let faults = store.reader.check_documents().await.unwrap().faults;
    assert_eq!(faults[0].what, segment.file_name().unwrap().to_str().unwrap());
    assert_eq!(faults[0].problem, DocumentProblem::DamagedFile);
}
