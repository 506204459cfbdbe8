//! Searches that a candidate is asked too: a wrong field shows, and what is only of another moment does not.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use query_api::{QueryApi, QuerySettings, router};
use read_models::generations::meant::{Kind, MeantDifference};
use read_models::generations::{Candidate, GenerationEntry, Share};
use read_models::process_report::MirrorReport;
use read_models::search::{CONTEXTS, SearchCatalogue, SearchKey, SearchReadModel, SearchReader, SearchRow};
use read_models::stock::connect_stock;
use read_models::{Batch, Checkpoint, Claimed, Generation, Generations, PartitionRef, ReadModel};
use schemas::event::Product;
use schemas::{Context, RegionId, Sku, StorePosition};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const DEADLINE: Duration = Duration::from_secs(30);
const NOW: i64 = 1_700_000_000_000;
/// Changes of one price, and how many of them the candidate is ahead.
const EVENTS: i64 = 600;
const AHEAD: i64 = 20;

struct Fixture {
    dir: PathBuf,
    catalogue: SearchCatalogue,
    routes: Router,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

/// A generation, written and indexed.
struct Written {
    model: Arc<SearchReadModel>,
    claimed: Vec<Claimed>,
}

fn generation(number: u32) -> Generation {
    Generation { name: "search".to_owned(), number, fold_version: 1, partitions: 1 }
}

fn tea() -> Sku {
    Sku::new("TEA").unwrap()
}

// === impl Fixture ===

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
        let dir = folder.path().join("search");
        let search = Arc::new(SearchReader::open(&dir).await.unwrap());
        let catalogue = SearchCatalogue::open(&dir).await.unwrap();
        let (routes, watch) = router(QueryApi { stock, search, settings: QuerySettings::default(), now: || NOW });
        let shutdown = CancellationToken::new();
        tokio::spawn(watch.run(shutdown.clone()));
        Self { dir, catalogue, routes, shutdown, _folder: folder }
    }

    async fn generation(&self, number: u32) -> Written {
        let model = Arc::new(SearchReadModel::open_generation(&self.dir, number).await.unwrap());
        model.prepare(&generation(number)).await.unwrap();
        let (indexed, stopped) = (Arc::clone(&model), self.shutdown.clone());
        tokio::spawn(async move { indexed.run_indexer(stopped).await });
        let mut claimed = Vec::new();
        for context in CONTEXTS {
            claimed.push(model.claim(PartitionRef { context, partition: 0 }).await.unwrap());
        }
        Written { model, claimed }
    }

    /// Begins a stage that mirrors all.
    async fn mirror(&self, stage: u64, meant: Vec<MeantDifference>) {
        let before = self.catalogue.catalogue().await.unwrap();
        let mut to = before.clone();
        to.generations.insert(2, GenerationEntry::fed(&generation(2)));
        to.candidate = Some(Candidate { generation: 2, share: Share::None, mirror_percent: 100, meant, since: stage });
        let (to, decisions) = before.decided(to, Vec::new());
        self.catalogue.change(&to, &decisions).await.unwrap();
    }

    /// Asks for prices of a region until `enough` of the mirrored reads of a stage.
    async fn mirrored(&self, stage: u64, region: &str, enough: impl Fn(&MirrorReport) -> bool) -> MirrorReport {
        let begun = Instant::now();
        loop {
            self.ask(region).await;
            let reports = self.catalogue.reports(NOW, 60_000).await.unwrap();
            let mirrors = reports.into_iter().filter_map(|report| report.mirror);
            let found = mirrors.filter(|mirror| mirror.stage == stage).find(&enough);
            if let Some(found) = found {
                return found;
            }
            assert!(begun.elapsed() < DEADLINE, "{:?}", self.catalogue.reports(NOW, 60_000).await);
        }
    }

    /// Asks for prices of a region, not faster than a caller would.
    async fn ask(&self, region: &str) {
        let path = format!("/v1/search?region={region}");
        let request = Request::get(&path).body(Body::empty()).unwrap();
        drop(self.routes.clone().oneshot(request).await.unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

// === impl Written ===

impl Written {
    async fn apply(&mut self, context: Context, changes: Vec<(SearchKey, SearchRow)>) {
        let place = CONTEXTS.iter().position(|other| *other == context).unwrap();
        let claimed = &mut self.claimed[place];
        let next = claimed.checkpoint.sequence + 1;
        let to = Checkpoint {
            sequence: next,
            next_offset: next,
            position: StorePosition { xid: 0, position: next },
            event_time: NOW,
        };
        let partition = PartitionRef { context, partition: 0 };
        let batch = Batch { to, changes, ..Batch::unmoved(partition, claimed.epoch, claimed.checkpoint, true) };
        self.model.apply(&batch).await.unwrap();
        claimed.checkpoint = to;
    }

    async fn register(&mut self) {
        let product = Product::named(tea(), "Assam");
        let row = SearchRow::Product { product: Some(product), version: 1, revised_at: None };
        self.apply(Context::Catalogue, vec![(SearchKey::Product(tea()), row)]).await;
        self.apply(Context::Inventory, Vec::new()).await;
    }

    async fn price(&mut self, region: &str, amount_minor: i64) {
        let row = SearchRow::Price { currency: "EUR".to_owned(), amount_minor, version: amount_minor as u64 };
        let key = SearchKey::Price(tea(), RegionId::new(region).unwrap());
        self.apply(Context::Pricing, vec![(key, row)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_price_in_one_region_differs_there_and_a_meant_one_does_not() {
    let fixture = Fixture::new().await;
    let (mut live, mut candidate) = (fixture.generation(1).await, fixture.generation(2).await);
    for (written, amount) in [(&mut live, 100), (&mut candidate, 101)] {
        written.register().await;
        written.price("us", 100).await;
        written.price("eu", amount).await;
    }
    fixture.mirror(1, Vec::new()).await;
    let of_us = fixture.mirrored(1, "us", |mirror| mirror.whole.requests > 20).await;
    assert_eq!(of_us.whole.differing, 0, "{of_us:?}");
    let of_eu = fixture.mirrored(1, "eu", |mirror| mirror.whole.differing > 0).await;
    assert_eq!(of_eu.samples, ["TEA"]);

    let regions = vec![RegionId::new("eu").unwrap()];
    let rounded = MeantDifference { field: "amount_minor".to_owned(), kind: Kind::Within(1.0), regions };
    fixture.mirror(2, vec![rounded]).await;
    let meant = fixture.mirrored(2, "eu", |mirror| mirror.whole.requests > 20).await;
    assert_eq!(meant.whole.differing, 0, "{meant:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_price_that_changes_all_the_time_does_not_differ() {
    let fixture = Fixture::new().await;
    let (mut live, mut candidate) = (fixture.generation(1).await, fixture.generation(2).await);
    live.register().await;
    candidate.register().await;
    live.price("eu", 1).await;
    candidate.price("eu", 1).await;
    fixture.mirror(1, Vec::new()).await;
    let load = tokio::spawn(async move {
        for next in 2..=EVENTS + AHEAD {
            candidate.price("eu", next).await;
            if next > AHEAD {
                live.price("eu", next - AHEAD).await;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        for last in EVENTS + 1..=EVENTS + AHEAD {
            live.price("eu", last).await;
        }
    });
    while !load.is_finished() {
        fixture.ask("eu").await;
    }
    load.await.unwrap();
    let quiet = fixture.mirrored(1, "eu", |mirror| mirror.whole.requests > 20).await;
    assert_eq!(quiet.whole.differing, 0, "{quiet:?}");
}
