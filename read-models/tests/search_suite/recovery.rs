//! The index is true at the position that it names, whatever was lost between it and the rows: P2, Q1.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use read_models::ReadModelError;
use read_models::search::{SearchReadModel, SearchReader};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_held_by_one_writer() {
    let mut store = Fixture::empty().await;
    store.start().await;
    match SearchReadModel::open(&store.dir).await.err().unwrap() {
        ReadModelError::Locked { path } => assert_eq!(Path::new(&path), store.dir),
        other => panic!("{other}"),
    }
    store.stop().await;
    store.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_there_first_answers_once_everything_is_live() {
    let mut store = Fixture::empty().await;
    for answer in [
        store.reader.search(all(), &unchosen()).await.map(drop),
        store.reader.suggest("a", 1, &unchosen()).await.map(drop),
    ] {
        assert!(is_rebuilding(&answer));
    }
    assert!(is_rebuilding(&store.reader.status().await));
    store.start().await;
    store.start_indexer();
    let written = store.write(vec![named("A", "Leek")]).await;
    // The commit is there, and yet not all that the log holds.
    store.shown(&written).await;
    assert!(is_rebuilding(&store.reader.search(all(), &unchosen()).await));
    assert!(store.reader.status().await.unwrap().partitions.iter().all(|partition| !partition.live));
    store.make_live().await;
    store.until_found(all(), &["A"]).await;
    let status = store.reader.status().await.unwrap();
    assert_eq!(status.partitions.len(), 3 * PARTITIONS as usize);
    assert!(status.partitions.iter().all(|partition| partition.live));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_store_without_products_answers_that_nothing_is_found() {
    let store = Fixture::live().await;
    store.until_found(all(), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_no_pass_took_are_indexed_after_a_restart() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    store.stop_indexer().await;
    let late = store.write(vec![named("A", "Chard"), named("B", "Leek")]).await;
    assert!(!store.reader.wait_for(&late, &unchosen(), std::time::Duration::from_millis(30)).await.unwrap());
    store.restart().await;
    store.shown(&late).await;
    assert_eq!((store.skus(text("leek")).await, store.skus(text("chard")).await), (vec!["B".into()], vec!["A".into()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_not_seen_to_end_is_done_again() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    store.stop().await;
    let earlier = store.dir.with_extension("earlier");
    copy(&store.index_dir(), &earlier);
    store.start().await;
    store.start_indexer();
    let late = store.show(vec![named("A", "Chard"), named("B", "Leek"), discontinued("C")]).await;
    store.stop().await;
    // The index of before: as if the machine had stopped within the commit.
    std::fs::remove_dir_all(store.index_dir()).unwrap();
    copy(&earlier, &store.index_dir());
    store.start().await;
    store.start_indexer();
    store.shown(&late).await;
    let found = store.found(all()).await;
    assert_eq!((found.total, skus(&found)), (2, vec!["A".to_owned(), "B".to_owned()]));
    assert!(store.skus(text("leek")).await == ["B"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_ahead_of_its_rows_is_made_again() {
    let mut store = Fixture::live().await;
    let first = store.show(vec![named("A", "Leek")]).await;
    store.stop().await;
    let earlier = store.dir.with_extension("earlier");
    let (rows, log) = (store.build_dir().join("rows.db"), store.build_dir().join("rows.db-wal"));
    copy(&store.build_dir(), &earlier);
    store.start().await;
    store.start_indexer();
    store.show(vec![named("B", "Leek")]).await;
    store.show(vec![named("C", "Leek")]).await;
    store.stop().await;
    // The rows of before: a power cut took the last transactions back.
    for file in [&rows, &log] {
        std::fs::remove_file(file).ok();
        std::fs::copy(earlier.join(file.file_name().unwrap()), file).ok();
    }
    store.start().await;
    assert_eq!(store.model().load(home(&named("B", "").0), &[named("B", "").0]).await.unwrap().rows, [None]);
    // The log gives them again, in other batches, before the indexer looks.
    let again = store.write(vec![named("B", "Leek"), named("C", "Leek"), named("D", "Leek")]).await;
    store.write(vec![named("E", "Leek")]).await;
    store.start_indexer();
    store.shown(&first).await;
    store.shown(&again).await;
    store.until_found(all(), &["A", "B", "C", "D", "E"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_deleted_comes_back_from_the_rows() {
    let mut store = Fixture::live().await;
    store.show((0..50).map(|number| named(&format!("S-{number}"), "Leek")).collect()).await;
    store.stop().await;
    std::fs::remove_dir_all(store.index_dir()).unwrap();
    assert!(is_rebuilding(&store.reader.search(all(), &unchosen()).await));
    assert!(store.reader.status().await.unwrap().partitions.iter().all(|partition| !partition.live));
    store.start().await;
    store.start_indexer();
    let position = store.write(vec![named("T", "Chard")]).await;
    store.shown(&position).await;
    assert_eq!(store.found(all()).await.total, 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_deleted_under_its_writer_comes_back_though_nothing_is_written() {
    let store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    // Its writer may make a file meanwhile.
    let begun = Instant::now();
    while std::fs::remove_dir_all(store.index_dir()).is_err() {
        assert!(begun.elapsed() < DEADLINE);
    }
    store.until_found(all(), &["A"]).await;
    store.show(vec![named("B", "Leek")]).await;
    assert_eq!(store.skus(all()).await, ["A", "B"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_file_is_noticed_and_the_index_made_again() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    store.stop().await;
    let mut damaged = 0;
    for entry in std::fs::read_dir(store.index_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "term" || extension == "store") {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[0] ^= 0xff;
            std::fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    store.start().await;
    store.start_indexer();
    let position = store.write(vec![named("B", "Leek")]).await;
    store.shown(&position).await;
    assert_eq!(store.skus(text("leek")).await, ["A", "B"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_a_directory_that_was_made_again() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    let reader = SearchReader::open(&store.dir).await.unwrap();
    assert_eq!(reader.search(all(), &unchosen()).await.unwrap().total, 1);
    store.stop().await;
    std::fs::remove_dir_all(&store.dir).unwrap();
    store.start().await;
    store.make_live().await;
    store.start_indexer();
    let written = store.write(vec![named("B", "Chard"), named("C", "Chard"), named("D", "Chard")]).await;
    assert!(reader.wait_for(&written, &unchosen(), DEADLINE).await.unwrap());
    store.shown(&written).await;
    assert_eq!(skus(&reader.search(all(), &unchosen()).await.unwrap()), store.skus(all()).await);
    assert!(reader.product(&sku("A"), &unchosen()).await.unwrap().product.is_none());
}

/// One step of a run.
#[derive(Debug, Clone)]
enum Step {
    Write(Vec<(SearchKey, SearchRow)>),
    Restart,
    DeleteIndex,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let row = prop_oneof![
        (0..6_u32, 0..4_u32).prop_map(|(sku, name)| named(&format!("S-{sku}"), &format!("Name {name}"))),
        (0..6_u32).prop_map(|sku| discontinued(&format!("S-{sku}"))),
        (0..6_u32, 0..2_u32, 0..100_i64).prop_map(|(sku, at, amount)| price(
            &format!("S-{sku}"),
            &format!("r{at}"),
            amount
        )),
        (0..6_u32, 0..3_u32, 0..2_u32, 0..3_i64).prop_map(|(sku, house, at, units)| stock(
            &format!("S-{sku}"),
            &format!("w{house}"),
            &format!("r{at}"),
            units
        )),
    ];
    let step = prop_oneof![
        8 => prop::collection::vec(row, 1..8).prop_map(Step::Write),
        1 => Just(Step::Restart),
        1 => Just(Step::DeleteIndex),
    ];
    prop::collection::vec(step, 1..12)
}

#[test]
fn what_is_found_is_the_fold_of_what_was_written() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let config = Config { cases: 12, max_shrink_iters: 50, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    runner.run(&steps(), |steps| runtime.block_on(run(steps))).unwrap();
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut store = Fixture::live().await;
    let mut rows: BTreeMap<SearchKey, SearchRow> = BTreeMap::new();
    let mut position = PositionToken::default();
    for step in steps {
        match step {
            Step::Write(changes) => {
                // One row per key, as a batch has it.
                let changes: BTreeMap<_, _> = changes.into_iter().collect();
                rows.extend(changes.clone());
                position.merge(&store.write(changes.into_iter().collect()).await);
            }
            Step::Restart => store.restart().await,
            Step::DeleteIndex => {
                store.stop().await;
                std::fs::remove_dir_all(store.index_dir()).ok();
                store.start().await;
                store.start_indexer();
            }
        }
    }
    store.shown(&position).await;
    let shown: Vec<&str> = rows
        .iter()
        .filter_map(|(key, row)| match row {
            SearchRow::Product { product: Some(_), .. } => Some(key.sku().as_str()),
            _ => None,
        })
        .collect();
    store.until_found(all(), &shown).await;
    for hit in store.found(SearchRequest { region: Some(region("r0")), ..all() }).await.hits {
        let amount = rows.iter().find_map(|(key, row)| match (key, row) {
            (SearchKey::Price(sku, at), SearchRow::Price { amount_minor, .. })
                if *sku == hit.sku && at.as_str() == "r0" =>
            {
                Some(*amount_minor)
            }
            _ => None,
        });
        prop_assert_eq!(hit.price.map(|price| price.amount_minor), amount);
        let in_stock: std::collections::BTreeSet<_> = rows
            .iter()
            .filter_map(|(key, row)| match (key, row) {
                (SearchKey::Stock(sku, _), SearchRow::Stock { region, available: 1.., .. }) if *sku == hit.sku => {
                    Some(region.clone())
                }
                _ => None,
            })
            .collect();
        prop_assert_eq!(hit.in_stock, in_stock.into_iter().collect::<Vec<_>>());
        let name = match &rows[&SearchKey::Product(hit.sku)] {
            SearchRow::Product { product: Some(product), .. } => product.name.clone(),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(hit.name, name);
    }
    store.stop_indexer().await;
    Ok(())
}

/// Writes one document of the index a second time, under the commit's own payload.
fn double_a_document(index_dir: &Path) {
    let index = tantivy::Index::open_in_dir(index_dir).unwrap();
    let words = tantivy::tokenizer::TextAnalyzer::builder(tantivy::tokenizer::SimpleTokenizer::default()).build();
    index.tokenizers().register("words", words);
    let searcher = index.reader().unwrap().searcher();
    let document: tantivy::TantivyDocument = searcher.doc(tantivy::DocAddress::new(0, 0)).unwrap();
    let payload = index.load_metas().unwrap().payload.unwrap();
    let mut writer: tantivy::IndexWriter = index.writer(20_000_000).unwrap();
    writer.add_document(document).unwrap();
    let mut prepared = writer.prepare_commit().unwrap();
    prepared.set_payload(&payload);
    prepared.commit().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_shows_a_document_twice_is_made_again() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek"), named("B", "Chard")]).await;
    store.until_found(all(), &["A", "B"]).await;
    store.stop_indexer().await;
    double_a_document(&store.index_dir());
    assert_eq!(store.reader.search(all(), &unchosen()).await.unwrap().total, 3);
    store.restart().await;
    for _ in 0..1_000 {
        if store.reader.search(all(), &unchosen()).await.is_ok_and(|found| found.total == 2) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the document stays doubled");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opens_an_index_is_never_told_that_it_is_gone_though_commits_remove_its_files() {
    let store = Fixture::live().await;
    store.show((0..2_000).map(|number| named(&format!("S-{number}"), &format!("Leek {number}"))).collect()).await;
    let opened = async {
        for _ in 0..200 {
            let reader = SearchReader::open(&store.dir).await.unwrap();
            reader.search(all(), &unchosen()).await.unwrap();
        }
    };
    let written = async {
        for number in 0.. {
            store.show(vec![named(&format!("S-{}", number % 2_000), "Chard")]).await;
        }
    };
    tokio::select! {
        () = opened => {}
        () = written => {}
    }
}
