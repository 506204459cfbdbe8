//! Several generations in one directory: the pointer, what follows it, and how a generation ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use read_models::generations::{
    Action, Candidate, GenerationEntry, GenerationState, Generations, Share, Verdict, check_chain,
};
use read_models::process_report::ProcessReport;
use read_models::search::SearchCatalogue;
use read_models::{Catalogue, ReadChoice};

use super::killed::{signal, writer_of};
use super::*;

const ALL: usize = 1_000;
/// By when a pointer that moved is followed.
const FOLLOWED: Duration = Duration::from_millis(100);
const FROZEN_AFTER: Duration = Duration::from_secs(3);

fn numbered(number: u32) -> Generation {
    Generation { number, ..generation() }
}

fn verdict(action: Action, number: u32) -> Verdict {
    let (generation, evidence) = (numbered(number), serde_json::Value::Null);
    Verdict { at: 1, who: "test".to_owned(), action, generation, reason: "r".to_owned(), evidence }
}

/// Decides on the catalogue as it stands.
async fn decide(catalogue: &SearchCatalogue, action: Action, number: u32, change: impl FnOnce(&mut Catalogue)) {
    let before = catalogue.catalogue().await.unwrap();
    let mut to = before.clone();
    change(&mut to);
    let (to, decisions) = before.decided(to, vec![verdict(action, number)]);
    catalogue.change(&to, &decisions).await.unwrap();
}

async fn begin(catalogue: &SearchCatalogue, number: u32) {
    decide(catalogue, Action::Started, number, |to| {
        to.generations.insert(number, GenerationEntry::fed(&numbered(number)));
    })
    .await;
}

async fn cut_over(catalogue: &SearchCatalogue, number: u32) {
    decide(catalogue, Action::CutOver, number, |to| {
        to.previous = Some(to.serving);
        to.serving = number;
    })
    .await;
}

async fn retire(catalogue: &SearchCatalogue, number: u32) {
    decide(catalogue, Action::Retired, number, |to| {
        to.previous = None;
        to.generations.get_mut(&number).unwrap().state = GenerationState::Retired;
    })
    .await;
}

/// Until nothing is left of it.
async fn remove(catalogue: &SearchCatalogue, number: u32) {
    let removed = async {
        while catalogue.remove_some(number, ALL).await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, removed).await.unwrap();
}

/// Generation 1 serves `Old …`, generation 2 is there with `New …`, and the catalogue knows both.
async fn two() -> (Fixture, Fixture, SearchCatalogue) {
    let one = Fixture::live().await;
    one.show(vec![named("A", "Old leek"), named("B", "Old chard")]).await;
    let catalogue = SearchCatalogue::open(&one.dir).await.unwrap();
    begin(&catalogue, 2).await;
    let two = one.beside(2).await;
    two.show(vec![named("A", "New leek"), named("B", "New chard"), named("C", "New onion")]).await;
    (one, two, catalogue)
}

fn of(number: u32) -> ReadChoice {
    ReadChoice { generation: Some(number), ..ReadChoice::default() }
}

fn is_retired<T>(result: Result<T, ReadModelError>) -> bool {
    matches!(result, Err(ReadModelError::Retired { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_a_catalogue_serves_generation_1_and_looking_makes_no_file() {
    let store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    let catalogue = SearchCatalogue::open(&store.dir).await.unwrap();
    let found = catalogue.catalogue().await.unwrap();
    assert_eq!((found.version, found.serving), (0, 1));
    assert_eq!(found.generations, BTreeMap::from([(1, GenerationEntry::fed(&generation()))]));
    assert_eq!(store.found(all()).await.generation, 1);
    assert_eq!(store.reader.search(all(), &of(1)).await.unwrap().generation, 1);
    assert!(catalogue.decisions(0, ALL).await.unwrap().is_empty());
    assert!(catalogue.reports(0, ALL as i64).await.unwrap().is_empty());
    assert_eq!(catalogue.published_decisions().await.unwrap(), 0);
    let files: Vec<_> = std::fs::read_dir(&store.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.iter().all(|name| name == "CURRENT" || name == "builds"), "{files:?}");

    // What serving processes tell is no catalogue yet.
    let report = ProcessReport { process: "p".to_owned(), at: 5, ..ProcessReport::default() };
    catalogue.note_report(&report).await.unwrap();
    catalogue.note_published(3).await.unwrap();
    assert_eq!(store.reader.catalogue().reports(6, 1).await.unwrap(), [report]);
    assert_eq!(store.reader.catalogue().published_decisions().await.unwrap(), 3);
    assert_eq!(catalogue.catalogue().await.unwrap(), found);
    assert_eq!(store.found(all()).await.generation, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_changes_made_at_once_one_is_written_and_the_others_are_told() {
    const HANDLES: u32 = 8;
    let folder = tempfile::tempdir().unwrap();
    let deciding = (0..HANDLES).map(|number| {
        let dir = folder.path().join("search");
        tokio::spawn(async move {
            let catalogue = SearchCatalogue::open(&dir).await.unwrap();
            let mut refused = 0;
            loop {
                let before = catalogue.catalogue().await.unwrap();
                let mut to = before.clone();
                to.generations.insert(to.next_number(), GenerationEntry::fed(&numbered(to.next_number())));
                let (to, decisions) = before.decided(to, vec![verdict(Action::Started, number)]);
                match catalogue.change(&to, &decisions).await {
                    Ok(()) => return refused,
                    Err(ReadModelError::CatalogueMoved { .. }) => refused += 1,
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
            }
        })
    });
    let deciding: Vec<_> = deciding.collect();
    for one in deciding {
        tokio::time::timeout(DEADLINE, one).await.unwrap().unwrap();
    }
    let catalogue = SearchCatalogue::open(folder.path().join("search")).await.unwrap();
    let found = catalogue.catalogue().await.unwrap();
    assert_eq!((found.version, found.generations.len(), found.decisions), (8, 8, 8));
    let decisions = catalogue.decisions(0, ALL).await.unwrap();
    check_chain(&decisions).unwrap();
    assert_eq!(decisions.last().unwrap().hash, found.last_hash);
    // A change that was decided on what stood before is refused, whoever writes it.
    let late = catalogue.change(&found, &[]).await;
    assert!(matches!(late, Err(ReadModelError::CatalogueMoved { expected: 7, found: 8, .. })), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pointer_that_moves_is_followed_at_once_and_no_answer_is_of_two_generations() {
    let (one, _two, catalogue) = two().await;
    let reader = &one.reader;
    assert_eq!(one.found(all()).await.generation, 1);
    let (is_over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let asking: Vec<_> = (0..3)
        .map(|_| {
            let (reader, is_over, answers) = (reader.clone(), Arc::clone(&is_over), Arc::clone(&answers));
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let found = reader.search(SearchRequest { facets: true, ..all() }, &unchosen()).await.unwrap();
                    let begins = if found.generation == 1 { "Old" } else { "New" };
                    let mixed = found.hits.iter().any(|hit| !hit.name.starts_with(begins));
                    let expected = if found.generation == 1 { 2 } else { 3 };
                    assert!(!mixed && found.total == expected, "{found:?}");
                    let page = reader.product(&sku("A"), &unchosen()).await.unwrap();
                    let name = page.product.unwrap().name;
                    assert_eq!(name.starts_with("Old"), page.generation == 1, "{name}");
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut took = Vec::new();
    for flip in 0..10 {
        let to = if flip % 2 == 0 { 2 } else { 1 };
        cut_over(&catalogue, to).await;
        let moved = Instant::now();
        while one.found(all()).await.generation != to {
            assert!(moved.elapsed() < DEADLINE, "generation {to} never answers");
        }
        took.push(moved.elapsed());
        // The others have answered since, too.
        let before = answers.load(Ordering::Relaxed);
        while answers.load(Ordering::Relaxed) < before + 3 {
            tokio::task::yield_now().await;
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for one in asking {
        one.await.unwrap();
    }
    // One of them may have met a machine that was busy with other things.
    took.sort_unstable();
    assert!(took[took.len() / 2] < FOLLOWED, "{took:?}");
    assert_eq!(one.reader.status().await.unwrap().generation, 1);
    assert_eq!(one.reader.of_generation(2).status().await.unwrap().generation, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_is_answered_by_key_and_a_number_by_itself() {
    let (one, _two, catalogue) = two().await;
    decide(&catalogue, Action::StageEntered, 2, |to| {
        to.candidate = Some(Candidate {
            generation: 2,
            share: Share::Percent(40),
            mirror_percent: 0,
            meant: Vec::new(),
            since: 0,
        });
    })
    .await;
    let stored = catalogue.catalogue().await.unwrap();
    let mut seen = [0, 0];
    for key in (0..40).map(|key| format!("SKU-{key}")) {
        let choice = ReadChoice { key, ..ReadChoice::default() };
        let expected = stored.choose("search", &choice).unwrap();
        assert_eq!(one.reader.search(all(), &choice).await.unwrap().generation, expected);
        assert_eq!(one.reader.suggest("n", 1, &choice).await.unwrap().generation, expected);
        assert_eq!(one.reader.product(&sku("A"), &choice).await.unwrap().generation, expected);
        seen[expected as usize - 1] += 1;
    }
    assert!(seen[0] > 5 && seen[1] > 5, "{seen:?}");
    // Checks are of what serves, whatever share the stage has.
    assert_eq!(one.reader.status().await.unwrap().generation, 1);
    assert_eq!(one.reader.check_documents().await.unwrap().documents, 2);
    assert_eq!(one.reader.of_generation(2).check_documents().await.unwrap().documents, 3);
    assert_eq!(one.reader.search(all(), &of(2)).await.unwrap().total, 3);
    let unknown = one.reader.search(all(), &of(3)).await;
    assert!(matches!(unknown, Err(ReadModelError::UnknownGeneration { wanted: 3, .. })));
    // Decided on, and not begun.
    begin(&catalogue, 3).await;
    let followed = async {
        while !is_rebuilding(&one.reader.search(all(), &of(3)).await) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, followed).await.unwrap();
    assert!(!one.dir.join("generations/3").exists(), "reading made a directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_are_written_apart_and_a_directory_holds_what_its_number_says() {
    let (one, two, _) = two().await;
    assert_ne!(one.model().id(), two.model().id(), "two generations in one consumer group");
    assert!(matches!(two.model().prepare(&numbered(1)).await, Err(ReadModelError::Permanent { .. })));
    let later = two.write(vec![named("D", "New kale")]).await;
    assert!(two.reader.wait_for(&later, &unchosen(), DEADLINE).await.unwrap());
    assert_eq!(one.skus(all()).await, ["A", "B"]);
    assert!(matches!(SearchReadModel::open_generation(&one.dir, 0).await, Err(ReadModelError::Permanent { .. })));
    // Rows of another generation are nobody's.
    copy_all(&one.home().join("builds"), &one.dir.join("generations/3/builds"));
    std::fs::copy(one.dir.join("CURRENT"), one.dir.join("generations/3/CURRENT")).unwrap();
    assert!(is_rebuilding(&one.reader.of_generation(3).search(all(), &unchosen()).await));
    assert!(is_rebuilding(&one.reader.of_generation(3).product(&sku("A"), &unchosen()).await));
}

fn copy_all(from: &Path, to: &Path) {
    copy(from, to);
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            copy_all(&entry.path(), &to.join(entry.file_name()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_generation_is_removed_and_does_not_come_back() {
    for retired in [1, 2] {
        let (mut one, mut two, catalogue) = two().await;
        let kept = 3 - retired;
        cut_over(&catalogue, kept).await;
        let refused = catalogue.remove_some(retired, ALL).await;
        assert!(matches!(refused, Err(ReadModelError::Permanent { .. })), "rows of one that is fed");
        retire(&catalogue, retired).await;
        let (gone, home) = if retired == 1 { (&mut one, two.home()) } else { (&mut two, one.home()) };
        // Before anything is removed.
        assert!(is_retired(gone.model().prepare(&numbered(retired)).await));
        // Whoever holds it is not taken away from under.
        assert!(catalogue.remove_some(retired, ALL).await.unwrap());
        assert!(catalogue.remove_some(retired, ALL).await.unwrap());
        assert!(gone.home().join("builds/1/rows.db").exists());
        let ended = tokio::time::timeout(DEADLINE, gone.indexer_ended()).await.unwrap();
        assert!(is_retired(ended), "the writer of a retired generation goes on");
        assert!(is_retired(gone.try_write(vec![named("E", "Late")]).await));
        let (dir, gone_home) = (gone.dir.clone(), gone.home());
        gone.stop().await;
        remove(&catalogue, retired).await;
        assert!(!gone_home.join("builds").exists() && !gone_home.join("CURRENT").exists());
        assert!(retired == 1 || !gone_home.exists());
        assert!(home.join("CURRENT").exists());

        assert!(is_retired(SearchReadModel::open_generation(&dir, retired).await));
        let waited = SearchReadModel::open_generation_when_free(&dir, retired, FROZEN_AFTER, CancellationToken::new());
        assert!(is_retired(waited.await));
        // Nor without the catalogue, or with one that is older.
        for name in ["catalogue.db", "catalogue.db-wal", "catalogue.db-shm"] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        assert!(is_retired(SearchReadModel::open_generation(&dir, retired).await));
        assert!(!gone_home.join("builds").exists());
        let reader = SearchReader::open(&dir).await.unwrap();
        assert_eq!(reader.search(all(), &unchosen()).await.unwrap().generation, kept);
        let found = SearchCatalogue::open(&dir).await.unwrap().catalogue().await.unwrap();
        assert_eq!((found.version, found.serving, found.next_number()), (0, kept, 3));
        assert_eq!(found.fed().collect::<Vec<_>>(), [kept]);
        assert_eq!(found.generations[&retired].state, GenerationState::Removed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_frozen_while_its_generation_was_retired_ends_and_brings_nothing_back() {
    let store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    let catalogue = store.reader.catalogue();
    begin(catalogue, 2).await;
    let home = store.dir.join("generations/2");
    let mut child = writer_of(&store.dir, 2, 7);
    let writes = async {
        while store.reader.of_generation(2).search(all(), &unchosen()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, writes).await.unwrap();
    signal(&child, "-STOP");
    retire(catalogue, 2).await;
    assert!(catalogue.remove_some(2, ALL).await.unwrap());
    assert!(catalogue.remove_some(2, ALL).await.unwrap(), "removed from under a frozen writer");
    assert!(home.join("builds/1/rows.db").exists());
    // Nobody takes it over.
    let waited = SearchReadModel::open_generation_when_free(&store.dir, 2, FROZEN_AFTER, CancellationToken::new());
    assert!(is_retired(waited.await));
    signal(&child, "-CONT");
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    assert!(!tokio::time::timeout(DEADLINE, ended).await.unwrap().unwrap().success());
    remove(catalogue, 2).await;
    assert!(!home.exists());
    assert_eq!(store.skus(all()).await, ["A"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_writer_of_a_later_generation_is_left_behind_and_the_first_one_is_not_touched() {
    let store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    begin(store.reader.catalogue(), 2).await;
    let mut child = writer_of(&store.dir, 2, 11);
    let shadow = store.reader.of_generation(2);
    let writes = async {
        while shadow.search(all(), &unchosen()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, writes).await.unwrap();
    signal(&child, "-STOP");
    let opened = SearchReadModel::open_generation_when_free(&store.dir, 2, FROZEN_AFTER, CancellationToken::new());
    let model = Arc::new(tokio::time::timeout(DEADLINE, opened).await.unwrap().unwrap().unwrap());
    model.prepare(&numbered(2)).await.unwrap();
    let mut two = Fixture { number: 2, reader: shadow, ..Fixture::in_dir(store.dir.clone()).await };
    two.adopt(model);
    two.make_live().await;
    two.start_indexer();
    two.write(vec![named("T", "Taken over")]).await;
    two.until_found(all(), &["T"]).await;
    assert_eq!(two.build_dir(), store.dir.join("generations/2/builds/2"));
    assert_eq!(store.build_dir(), store.dir.join("builds/1"));
    signal(&child, "-CONT");
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    assert!(!tokio::time::timeout(DEADLINE, ended).await.unwrap().unwrap().success());
    assert_eq!(two.skus(all()).await, ["T"]);
    assert_eq!(store.skus(all()).await, ["A"]);
}
