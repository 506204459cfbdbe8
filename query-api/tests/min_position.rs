//! Reads that wait for a position while what answers them changes: none is behind it (invariant Q2).
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use query_api::{QueryApi, QuerySettings, router};
use read_models::generations::{Candidate, GenerationEntry, GenerationState, Share};
use read_models::search::{CONTEXTS, SearchCatalogue, SearchKey, SearchReadModel, SearchReader, SearchRow};
use read_models::stock::{SharedStock, StockKey, StockRow, connect_stock};
use read_models::{Batch, Catalogue, Checkpoint, Generation, Generations, PartitionRef, ReadChoice, ReadModel};
use schemas::event::Product;
use schemas::{Context, PositionToken, RegionId, Sku, StorePosition, WarehouseId};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Longest time that anything in these tests may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// By when a read that has nothing to wait for is answered.
const A_WHILE: Duration = Duration::from_millis(200);
/// An answer that may step back is held for a second.
const HELD: Duration = Duration::from_secs(2);

struct Fixture {
    stock: SharedStock,
    dir: PathBuf,
    catalogue: SearchCatalogue,
    routes: Router,
    folder: tempfile::TempDir,
}

/// A generation of search, written and indexed.
struct Search {
    model: Arc<SearchReadModel>,
    indexer: JoinHandle<()>,
    shutdown: CancellationToken,
}

#[derive(Debug)]
struct Told {
    status: u16,
    /// The generations that are named.
    by: String,
    position: PositionToken,
    body: Value,
}

fn generation(name: &str, number: u32) -> Generation {
    Generation { name: name.to_owned(), number, fold_version: 1, partitions: 1 }
}

fn token(text: &str) -> PositionToken {
    text.parse().unwrap()
}

fn tea() -> Sku {
    Sku::new("TEA").unwrap()
}

/// Brings the only partition of a topic to a position.
async fn apply<K, R>(
    model: &(impl ReadModel<Key = K, Row = R> + ?Sized),
    context: Context,
    position: u64,
    changes: Vec<(K, R)>,
) {
    let partition = PartitionRef { context, partition: 0 };
    let claimed = model.claim(partition).await.unwrap();
    let to = Checkpoint {
        sequence: position,
        next_offset: position,
        position: StorePosition { xid: 0, position },
        event_time: position as i64,
    };
    let batch = Batch { to, changes, ..Batch::unmoved(partition, claimed.epoch, claimed.checkpoint, true) };
    model.apply(&batch).await.unwrap();
}

/// As many of TEA as the position says.
async fn stock_at(stock: &SharedStock, position: u64) {
    let key = StockKey { sku: tea(), warehouse: WarehouseId::new("w").unwrap() };
    let region = RegionId::new("eu").unwrap();
    let row = StockRow { region, on_hand: position as i64, reserved: 0, version: position, updated_at: None };
    apply(stock.as_ref(), Context::Inventory, position, vec![(key, row)]).await;
}

/// Decides on a catalogue as it stands.
async fn decide(generations: &(impl Generations + ?Sized), change: impl FnOnce(&mut Catalogue)) {
    let before = generations.catalogue().await.unwrap();
    let mut to = before.clone();
    change(&mut to);
    let (to, decisions) = before.decided(to, Vec::new());
    generations.change(&to, &decisions).await.unwrap();
}

// === impl Fixture ===

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
        let dir = folder.path().join("search");
        let search = Arc::new(SearchReader::open(&dir).await.unwrap());
        let catalogue = SearchCatalogue::open(&dir).await.unwrap();
        let settings = QuerySettings { position_wait: 2 * DEADLINE / 3, deadline: DEADLINE };
        let (routes, _) = router(QueryApi { stock: stock.clone(), search, settings, now: || 1_700_000_000_000 });
        Self { stock, dir, catalogue, routes, folder }
    }

    /// A generation of stock, to write.
    async fn stock(&self, number: u32) -> SharedStock {
        let stock = self.stock.of_generation(number);
        stock.prepare(&generation("stock", number)).await.unwrap();
        stock
    }

    /// Asks for what is at `min` or later.
    fn ask(&self, path: &str, min: &str) -> JoinHandle<Told> {
        let request = Request::get(path).header("millrace-min-position", min).body(Body::empty()).unwrap();
        let routes = self.routes.clone();
        tokio::spawn(async move {
            let (answer, body) = routes.oneshot(request).await.unwrap().into_parts();
            let header = |name: &str| answer.headers.get(name).map_or("", |value| value.to_str().unwrap());
            let (by, position) = (header("millrace-generation").to_owned(), header("millrace-position").parse());
            let body = serde_json::from_slice(&to_bytes(body, usize::MAX).await.unwrap()).unwrap();
            let status = answer.status.as_u16();
            Told { status, by, position: position.unwrap_or_default(), body }
        })
    }
}

/// Nothing is answered yet.
async fn waits(asked: &mut JoinHandle<Told>) {
    let early = tokio::time::timeout(A_WHILE, asked).await;
    assert!(early.is_err(), "answered at once: {early:?}");
}

// === impl Search ===

impl Search {
    async fn of(dir: &Path, number: u32) -> Self {
        let model = Arc::new(SearchReadModel::open_generation(dir, number).await.unwrap());
        model.prepare(&generation("search", number)).await.unwrap();
        let shutdown = CancellationToken::new();
        let (indexed, stopped) = (Arc::clone(&model), shutdown.clone());
        // One whose generation is retired ends by itself.
        let indexer = tokio::spawn(async move { drop(indexed.run_indexer(stopped).await) });
        Self { model, indexer, shutdown }
    }

    /// What TEA is called at a position of the catalogue; the other topics are live.
    async fn write(&self, name: &str, position: u64) {
        let product = Product::named(tea(), name);
        let row = SearchRow::Product { product: Some(product), version: position, revised_at: None };
        for context in CONTEXTS {
            match context {
                Context::Catalogue => {
                    let changes = vec![(SearchKey::Product(tea()), row.clone())];
                    apply(self.model.as_ref(), context, position, changes).await;
                }
                other => apply(self.model.as_ref(), other, 1, Vec::new()).await,
            }
        }
    }

    /// Waits until a search of the directory is answered at a position.
    async fn shown(&self, dir: &Path, number: u32, position: &str) {
        let reader = SearchReader::open(dir).await.unwrap().of_generation(number);
        assert!(reader.wait_for(&token(position), &ReadChoice::default(), DEADLINE).await.unwrap());
    }

    /// Lets the build go.
    async fn stop(self) {
        self.shutdown.cancel();
        self.indexer.await.unwrap();
    }
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let copy = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &copy);
        } else {
            std::fs::copy(entry.path(), copy).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_is_not_of_a_stock_that_was_switched_to_while_its_product_was_waited_for() {
    let fixture = Fixture::new().await;
    let (first, second) = (fixture.stock(1).await, fixture.stock(2).await);
    stock_at(&first, 5).await;
    stock_at(&second, 4).await;
    let search = Search::of(&fixture.dir, 1).await;
    search.write("Assam", 3).await;
    let min = "catalogue-0-0.9,inventory-0-0.5";
    let mut asked = fixture.ask("/v1/products/TEA", min);
    waits(&mut asked).await;

    decide(fixture.stock.as_ref(), |to| {
        to.generations.entry(2).or_insert_with(|| GenerationEntry::fed(&generation("stock", 2)));
        to.serving = 2;
    })
    .await;
    search.write("Assam", 9).await;
    waits(&mut asked).await;
    stock_at(&second, 5).await;
    let told = asked.await.unwrap();
    assert_eq!((told.status, told.by.as_str()), (200, "stock@2, search@1"));
    assert!(told.position.covers(&token(min)), "{told:?}");
    assert_eq!(told.body["stock"]["total"]["on_hand"], 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_is_given_up_while_a_read_waits_for_it_is_left_for_what_serves() {
    for path in ["/v1/search", "/v1/products/TEA"] {
        let fixture = Fixture::new().await;
        stock_at(&fixture.stock(1).await, 5).await;
        let first = Search::of(&fixture.dir, 1).await;
        first.write("Assam", 9).await;
        decide(&fixture.catalogue, |to| {
            to.generations.insert(2, GenerationEntry::fed(&generation("search", 2)));
            to.candidate = Some(Candidate {
                generation: 2,
                share: Share::Percent(100),
                mirror_percent: 0,
                meant: Vec::new(),
                since: 0,
            });
        })
        .await;
        let second = Search::of(&fixture.dir, 2).await;
        second.write("Assam", 4).await;
        let mut asked = fixture.ask(path, "catalogue-0-0.9");
        waits(&mut asked).await;

        decide(&fixture.catalogue, |to| {
            to.candidate = None;
            to.generations.get_mut(&2).unwrap().state = GenerationState::Retired;
        })
        .await;
        let told = asked.await.unwrap();
        assert_eq!(told.status, 200, "{told:?}");
        assert!(told.by.ends_with("search@1") && told.position.covers(&token("catalogue-0-0.9")), "{told:?}");
        // Who asks for it by its number is told that it is gone.
        assert_eq!(fixture.ask("/v1/search?generation=2", "catalogue-0-0.9").await.unwrap().status, 404);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_is_not_of_a_build_that_is_behind_the_one_that_was_waited_for() {
    let fixture = Fixture::new().await;
    let first = Search::of(&fixture.dir, 1).await;
    first.write("Assam", 9).await;
    decide(&fixture.catalogue, |to| {
        to.generations.insert(2, GenerationEntry::fed(&generation("search", 2)));
    })
    .await;
    // Build 1 is at 7, build 2 at 3. Nobody writes them any more, and so nobody sets the pointer.
    let elsewhere = fixture.folder.path().join("elsewhere");
    for (dir, position) in [(&fixture.dir, 7), (&elsewhere, 3)] {
        let second = Search::of(dir, 2).await;
        second.write("Ceylon", position).await;
        second.shown(dir, 2, &format!("catalogue-0-0.{position}")).await;
        second.stop().await;
    }
    let home = fixture.dir.join("generations/2");
    copy_all(&elsewhere.join("generations/2/builds/1"), &home.join("builds/2"));
    let point_to = |build: &str| {
        std::fs::write(home.join("CURRENT.test"), build).unwrap();
        std::fs::rename(home.join("CURRENT.test"), home.join("CURRENT")).unwrap();
    };

    // What the other generation has told holds the answer back, long enough for the build to change behind the wait.
    assert_eq!(fixture.ask("/v1/search", "catalogue-0-0.9").await.unwrap().by, "search@1");
    decide(&fixture.catalogue, |to| to.serving = 2).await;
    while fixture.ask("/v1/suggest?q=c", "-").await.unwrap().by != "search@2" {}
    let asked = fixture.ask("/v1/search", "catalogue-0-0.5");
    let switches = async {
        for (after, build) in [(A_WHILE, "2"), (HELD, "1")] {
            tokio::time::sleep(after).await;
            point_to(build);
        }
    };
    let (told, ()) = tokio::join!(asked, switches);
    let told = told.unwrap();
    assert_eq!((told.status, told.by.as_str()), (200, "search@2"), "{told:?}");
    assert!(told.position.covers(&token("catalogue-0-0.5")), "{told:?}");
}
