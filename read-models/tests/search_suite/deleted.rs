//! Files that are deleted under the process that has them open: the writer of a build lets go, a reader and a catalogue
//! look anew, and nothing goes on in a file without a name (fault 17).

use std::fs;

use read_models::Catalogue;
use read_models::generations::{Action, GenerationEntry, Generations, Verdict};
use read_models::search::SearchCatalogue;

use super::*;

/// Long beside a beat of one second: a healthy holder is not left behind.
const FROZEN_AFTER: Duration = Duration::from_secs(20);

/// Removes a directory, or a file. Its writer may make a file meanwhile.
fn delete(path: &Path) {
    let begun = Instant::now();
    while let Err(error) = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        assert!(begun.elapsed() < DEADLINE, "{}: {error}", path.display());
    }
}

fn is_deleted<T>(result: &Result<T, ReadModelError>) -> bool {
    matches!(result, Err(ReadModelError::Damaged { problem, .. }) if problem.contains("deleted under its writer"))
}

/// The writer says that it has lost its build, and its indexer ends.
async fn lets_go(store: &mut Fixture) {
    let ended = tokio::time::timeout(DEADLINE, store.indexer_ended()).await;
    let ended = ended.unwrap_or_else(|_| panic!("the writer of {} goes on without it", store.home().display()));
    assert!(is_deleted(&ended), "{ended:?}");
    assert!(is_deleted(&store.try_write(vec![named("X", "Nowhere")]).await));
    assert!(is_deleted(&store.model().status().await));
    let prepared = store.model().prepare(&Generation { number: store.number, ..generation() }).await;
    assert!(is_deleted(&prepared), "{prepared:?}");
}

/// What whoever watches processes does: the directory is taken again and filled. Readers of before come over.
async fn is_built_anew(store: &mut Fixture) {
    let (reader, number) = (store.reader.clone(), store.number);
    store.stop().await;
    store.start().await;
    store.start_indexer();
    store.make_live().await;
    let written = store.write(vec![named("B", "Chard"), named("C", "Chard")]).await;
    for reader in [reader, store.reader.of_generation(number)] {
        assert!(reader.wait_for(&written, &unchosen(), DEADLINE).await.unwrap(), "{number} is not shown");
        assert_eq!(skus(&reader.search(text("chard"), &unchosen()).await.unwrap()), ["B", "C"]);
        assert!(reader.product(&sku("B"), &unchosen()).await.unwrap().product.is_some());
        assert!(reader.product(&sku("A"), &unchosen()).await.unwrap().product.is_none());
        assert!(reader.check_documents().await.unwrap().faults.is_empty());
    }
}

/// By its path below the generation's own directory.
async fn deleted_under_its_writer(mut store: Fixture, name: &str) {
    store.show(vec![named("A", "Leek")]).await;
    let id = store.model().id().to_owned();
    let gone = store.home().join(name);
    delete(&gone);
    lets_go(&mut store).await;
    assert!(!gone.join("LOCK").exists() && !gone.join("rows.db").exists() && !gone.is_file());
    let index = if name.contains("builds") { gone.join("index") } else { gone.join("builds/1/index") };
    assert!(!index.exists(), "{name}: an index without rows was made again");
    is_built_anew(&mut store).await;
    assert_ne!(store.model().id(), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_deleted_under_its_writer_is_let_go_and_built_anew() {
    deleted_under_its_writer(Fixture::live().await, "builds/1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_builds_that_are_deleted_under_their_writer_are_let_go_and_built_anew() {
    deleted_under_its_writer(Fixture::live().await, "builds").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_deleted_under_its_writer_is_let_go_and_built_anew() {
    deleted_under_its_writer(Fixture::live().await, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_deleted_under_their_writer_are_let_go_and_built_anew() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    delete(&store.build_dir().join("rows.db"));
    lets_go(&mut store).await;
    is_built_anew(&mut store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_deleted_keeps_nobody_out_and_its_holder_goes() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    delete(&store.build_dir().join("LOCK"));
    lets_go(&mut store).await;
    // The rows are what they were.
    store.restart().await;
    store.until_found(all(), &["A"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_generation_that_is_deleted_under_its_writer_is_built_anew_and_the_first_one_is_not_touched() {
    let one = Fixture::live().await;
    one.show(vec![named("A", "Leek")]).await;
    // Also while it is only being built, when nothing of it is answered.
    for is_live in [true, false] {
        let mut two = Fixture { number: 2, ..Fixture::in_dir(one.dir.clone()).await };
        two.reader = one.reader.of_generation(2);
        two.start().await;
        two.start_indexer();
        if is_live {
            two.make_live().await;
        }
        two.write(vec![named("A", "Leek")]).await;
        delete(&two.home());
        lets_go(&mut two).await;
        assert!(!two.home().exists());
        is_built_anew(&mut two).await;
        two.stop().await;
        delete(&two.home());
    }
    assert_eq!(one.skus(all()).await, ["A"]);
    one.show(vec![named("B", "Leek")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_writer_that_nothing_was_written_to_yet_lets_go_too() {
    let mut store = Fixture::empty().await;
    store.adopt(Arc::new(SearchReadModel::open(&store.dir).await.unwrap()));
    store.start_indexer();
    // Nothing shows that it waits now.
    tokio::time::sleep(Duration::from_millis(300)).await;
    delete(&store.dir);
    let ended = tokio::time::timeout(DEADLINE, store.indexer_ended()).await.unwrap();
    assert!(is_deleted(&ended), "{ended:?}");
    assert!(!store.dir.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_indexer_of_a_deleted_build_gives_those_who_feed_the_time_to_bring_the_catalogue_back() {
    /// Six looks at the catalogue.
    const TIME: Duration = Duration::from_millis(1_500);
    let mut store = Fixture::live().await;
    let deleted_at = Instant::now();
    delete(&store.dir);
    assert!(is_deleted(&store.indexer_ended().await));
    assert!(deleted_at.elapsed() >= TIME, "{:?}", deleted_at.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_waits_takes_a_deleted_directory_over_and_the_other_one_writes_nothing_there() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    let dir = store.dir.clone();
    let waits =
        tokio::spawn(
            async move { SearchReadModel::open_when_free(&dir, FROZEN_AFTER, CancellationToken::new()).await },
        );
    // In one step: what the other one makes meanwhile is not deleted with it.
    let gone = store.dir.with_extension("gone");
    fs::rename(&store.dir, &gone).unwrap();
    let model = tokio::time::timeout(DEADLINE, waits).await.unwrap().unwrap().unwrap().unwrap();
    assert_ne!(model.id(), store.model().id());
    model.prepare(&generation()).await.unwrap();
    let mut other = Fixture::in_dir(store.dir.clone()).await;
    other.adopt(Arc::new(model));
    other.make_live().await;
    other.start_indexer();
    lets_go(&mut store).await;
    other.show(vec![named("B", "Chard")]).await;
    store.stop().await;
    let made = other.meta();
    other.until_found(all(), &["B"]).await;
    assert_eq!(other.build_dir(), store.dir.join("builds/1"));
    assert_eq!(other.meta(), made, "two write one index");
    other.show(vec![named("C", "Chard")]).await;
    assert_eq!(other.skus(all()).await, ["B", "C"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_does_not_answer_from_rows_that_were_deleted() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    let reader = store.reader.clone();
    assert!(reader.product(&sku("A"), &unchosen()).await.unwrap().product.is_some());
    store.stop().await;
    // The reader does not look meanwhile.
    delete(&store.dir);
    // Prepared, and nobody indexes it: the rows alone tell the two apart.
    store.start().await;
    store.make_live().await;
    let followed = async {
        while reader.product(&sku("A"), &unchosen()).await.is_ok_and(|page| page.product.is_some()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, followed).await.unwrap();
}

/// Decides that a generation is begun.
async fn begin(catalogue: &SearchCatalogue, number: u32) -> Catalogue {
    let before = catalogue.catalogue().await.unwrap();
    let mut to = before.clone();
    let numbered = Generation { number, ..generation() };
    to.generations.insert(number, GenerationEntry::fed(&numbered));
    let verdict = Verdict {
        at: 1,
        who: "test".to_owned(),
        action: Action::Started,
        generation: numbered,
        reason: "r".to_owned(),
        evidence: serde_json::Value::Null,
    };
    let (to, decisions) = before.decided(to, vec![verdict]);
    catalogue.change(&to, &decisions).await.unwrap();
    to
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_that_is_deleted_is_answered_from_no_more_and_one_in_its_place_is_by_all() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    // One has it open to write, one to read, one through a reader.
    let (writes, reads) =
        (SearchCatalogue::open(&store.dir).await.unwrap(), SearchCatalogue::open(&store.dir).await.unwrap());
    let first = begin(&writes, 2).await;
    for catalogue in [&writes, &reads, store.reader.catalogue()] {
        assert_eq!(catalogue.catalogue().await.unwrap(), first);
    }
    for name in ["catalogue.db", "catalogue.db-wal", "catalogue.db-shm"] {
        let _ = fs::remove_file(store.dir.join(name));
    }
    for catalogue in [&writes, &reads, store.reader.catalogue()] {
        assert_eq!(catalogue.catalogue().await.unwrap().version, 0);
        assert_eq!(catalogue.decisions(0, 10).await.unwrap(), []);
    }
    let second = begin(&writes, 3).await;
    assert_ne!(second.id, first.id);
    for catalogue in [&writes, &reads, store.reader.catalogue()] {
        assert_eq!(catalogue.catalogue().await.unwrap(), second);
    }
    // With all that is beside it: as its feeders bring it back.
    delete(&store.dir);
    begin(&writes, 2).await;
    assert_eq!(reads.catalogue().await.unwrap(), writes.catalogue().await.unwrap());
    lets_go(&mut store).await;
    is_built_anew(&mut store).await;
    assert_eq!(reads.catalogue().await.unwrap().version, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_build_was_made_as_is_told_of_the_build_that_is_there() {
    let mut store = Fixture::live().await;
    let catalogue = SearchCatalogue::open(&store.dir).await.unwrap();
    for partitions in [PARTITIONS, PARTITIONS + 1, PARTITIONS + 2] {
        if partitions > PARTITIONS {
            store.stop().await;
            // Its inodes are free now, and likely to be given to the next one.
            delete(&store.dir);
            let model = SearchReadModel::open(&store.dir).await.unwrap();
            model.prepare(&Generation { partitions, ..generation() }).await.unwrap();
            store.adopt(Arc::new(model));
        }
        assert_eq!(catalogue.catalogue().await.unwrap().generations[&1].partitions, partitions);
    }
}
