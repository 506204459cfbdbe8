//! Builds side by side: a writer that was frozen is left behind, readers follow to what is whole (fault 8).

use std::fs::File;

use super::*;

/// Short for a holder that is not there, long beside its beat of one second.
const FROZEN_AFTER: Duration = Duration::from_secs(3);

/// Holds a build as a frozen process does: the lock, and no sign of life.
fn freeze(build: &Path) -> File {
    let lock = File::options().write(true).open(build.join("LOCK")).unwrap();
    // As at a start: another test's child may hold it for a moment.
    let begun = Instant::now();
    while lock.try_lock().is_err() {
        assert!(begun.elapsed() < DEADLINE, "it is not free");
        std::thread::sleep(Duration::from_millis(5));
    }
    lock
}

async fn opened_when_free(dir: &Path) -> SearchReadModel {
    let opened = SearchReadModel::open_when_free(dir, FROZEN_AFTER, CancellationToken::new());
    tokio::time::timeout(DEADLINE, opened).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_directories_have_two_names_and_one_keeps_its_own() {
    let (mut one, mut other) = (Fixture::empty().await, Fixture::empty().await);
    one.start().await;
    other.start().await;
    let id = one.model().id().to_owned();
    assert_ne!(id, other.model().id());
    one.stop().await;
    one.start().await;
    assert_eq!(one.model().id(), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_holder_is_left_behind_and_readers_come_over_once_the_new_build_is_whole() {
    let mut store = Fixture::live().await;
    let before = store.show(vec![named("A", "Leek")]).await;
    store.stop_indexer().await;
    store.stop().await;
    let old = store.build_dir();
    let frozen = freeze(&old);
    assert!(store.reader.wait_for(&before, &unchosen(), DEADLINE).await.unwrap());

    let model = Arc::new(opened_when_free(&store.dir).await);
    model.prepare(&generation()).await.unwrap();
    store.adopt(model);
    store.start_indexer();
    // Not all of the log is in it: everyone still reads the build of before.
    let again = store.write(vec![named("A", "Leek"), named("B", "Chard")]).await;
    store.indexed().await;
    assert_eq!(store.build_dir(), old);
    assert_eq!(store.skus(all()).await, ["A"]);
    store.make_live().await;
    store.until_found(all(), &["A", "B"]).await;
    assert_ne!(store.build_dir(), old);
    assert!(store.found(all()).await.position.get(Context::Catalogue, 0) >= again.get(Context::Catalogue, 0));
    assert!(store.reader.product(&sku("B"), &unchosen()).await.unwrap().product.is_some());

    // The frozen one is gone: what it left is removed by the next one that looks.
    assert!(old.exists());
    drop(frozen);
    store.restart().await;
    tokio::time::timeout(DEADLINE, async {
        while old.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    store.until_found(all(), &["A", "B"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_holder_is_waited_for_however_long() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    let waits = tokio::time::timeout(
        2 * FROZEN_AFTER,
        SearchReadModel::open_when_free(&store.dir, FROZEN_AFTER, CancellationToken::new()),
    );
    assert!(waits.await.is_err(), "a holder that beats was left behind");
    assert!(!store.dir.join("builds/2").exists());
    store.stop().await;
    // Its end is the other's beginning, on the same build.
    let id = opened_when_free(&store.dir).await.id().to_owned();
    store.start().await;
    assert_eq!(store.model().id(), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_waiter_waits_for_the_first() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    store.stop().await;
    let _frozen = freeze(&store.build_dir());
    let shutdown = CancellationToken::new();
    let open = || {
        let (dir, shutdown) = (store.dir.clone(), shutdown.clone());
        tokio::spawn(async move { SearchReadModel::open_when_free(&dir, FROZEN_AFTER, shutdown).await.unwrap() })
    };
    let waiting = futures::future::select(open(), open());
    let (first, other) = tokio::time::timeout(DEADLINE, waiting).await.unwrap().factor_first();
    let first = first.unwrap().unwrap();
    let mut other = other;
    assert!(tokio::time::timeout(2 * FROZEN_AFTER, &mut other).await.is_err(), "two hold the directory");
    drop(first);
    // The first one's end is the other's beginning.
    assert!(tokio::time::timeout(DEADLINE, other).await.unwrap().unwrap().is_some());
    assert!(store.dir.join("builds/2").exists() && !store.dir.join("builds/3").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pointer_that_says_nothing_is_set_again() {
    let mut store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    for pointer in ["", "7", "x", "\u{0}1", "0", "99999999999999999999999"] {
        store.stop().await;
        std::fs::write(store.dir.join("CURRENT"), pointer).unwrap();
        assert!(is_rebuilding(&store.reader.search(all(), &unchosen()).await), "{pointer:?}");
        store.start().await;
        store.start_indexer();
        store.until_found(all(), &["A"]).await;
    }
    // And under a writer that runs.
    std::fs::remove_file(store.dir.join("CURRENT")).unwrap();
    store.until_found(all(), &["A"]).await;
}
