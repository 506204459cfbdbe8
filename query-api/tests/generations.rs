//! Reads while a read model has two generations: which one answers is named, may be asked for, and never takes a SKU
//! back.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use query_api::{QueryApi, QuerySettings, router};
use read_models::generations::GenerationEntry;
use read_models::process_report::ReadFigures;
use read_models::search::SearchReader;
use read_models::stock::{SharedStock, StockKey, StockRow, connect_stock};
use read_models::{Batch, Checkpoint, Claimed, Generation, PartitionRef};
use schemas::{Context, RegionId, Sku, StorePosition, WarehouseId};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const AT: PartitionRef = PartitionRef { context: Context::Inventory, partition: 0 };

struct Fixture {
    stock: SharedStock,
    routes: Router,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

fn generation(number: u32) -> Generation {
    Generation { name: "stock".to_owned(), number, fold_version: 1, partitions: 1 }
}

async fn claim(stock: &SharedStock, number: u32) -> Claimed {
    stock.prepare(&generation(number)).await.unwrap();
    stock.claim(AT).await.unwrap()
}

/// TEA at a version, which is its stock too.
async fn apply(stock: &SharedStock, held: &Claimed, from: u64, version: u64) {
    let checkpoint = |sequence: u64| Checkpoint {
        sequence,
        next_offset: sequence,
        position: StorePosition { xid: 0, position: sequence },
        event_time: sequence as i64,
    };
    let key = StockKey { sku: Sku::new("TEA").unwrap(), warehouse: WarehouseId::new("w").unwrap() };
    let row = StockRow {
        region: RegionId::new("eu").unwrap(),
        on_hand: version as i64,
        reserved: 0,
        version,
        updated_at: None,
    };
    let from = if from == 0 { Checkpoint::default() } else { checkpoint(from) };
    let to = checkpoint(version);
    let batch = Batch { to, changes: vec![(key, row)], ..Batch::unmoved(AT, held.epoch, from, true) };
    stock.apply(&batch).await.unwrap();
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
        let search = Arc::new(SearchReader::open(folder.path().join("search")).await.unwrap());
        let settings = QuerySettings::default();
        let (routes, watch) = router(QueryApi { stock: stock.clone(), search, settings, now: || 1_700_000_000_000 });
        let shutdown = CancellationToken::new();
        tokio::spawn(watch.run(shutdown.clone()));
        Self { stock, routes, shutdown, _folder: folder }
    }

    async fn serve(&self, number: u32) {
        let held = self.stock.catalogue().await.unwrap();
        let mut to = held.clone();
        to.generations.entry(2).or_insert_with(|| GenerationEntry::fed(&generation(2)));
        to.serving = number;
        let (to, decisions) = held.decided(to, Vec::new());
        self.stock.change(&to, &decisions).await.unwrap();
    }

    /// Figures of reads that a generation answered, once they are told.
    async fn reported(&self, generation: u32) -> ReadFigures {
        let begun = Instant::now();
        loop {
            let reports = self.stock.reports(1_700_000_000_000, 60_000).await.unwrap();
            if let Some(lately) = reports.iter().find_map(|report| report.reads.get(&generation)) {
                return lately.minute;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{reports:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Status, the generation that is named, and what was answered.
    async fn get(&self, path: &str) -> (u16, String, Value) {
        let response = self.routes.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let named = response.headers().get("millrace-generation").map_or("", |named| named.to_str().unwrap());
        let (status, named) = (response.status().as_u16(), named.to_owned());
        (status, named, serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_switch_an_answer_waits_until_its_generation_is_as_far_as_what_was_told_before() {
    let fixture = Fixture::new().await;
    let (first, second) = (fixture.stock.of_generation(1), fixture.stock.of_generation(2));
    let (held, beside) = (claim(&first, 1).await, claim(&second, 2).await);
    apply(&first, &held, 0, 5).await;
    apply(&second, &beside, 0, 4).await;
    let (status, named, told) = fixture.get("/v1/stock/TEA").await;
    assert_eq!((status, named.as_str(), &told["total"]["on_hand"]), (200, "stock@1", &5.into()));

    fixture.serve(2).await;
    let begun = Instant::now();
    let mut asked = std::pin::pin!(fixture.get("/v1/stock?sku=TEA"));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut asked).await;
    assert!(early.is_err(), "answered from what was behind: {early:?}");
    apply(&second, &beside, 4, 5).await;
    let (status, named, told) = asked.await;
    assert_eq!((status, named.as_str()), (200, "stock@2"));
    assert_eq!(told["items"][0]["total"]["on_hand"], 5, "not 4, which it was behind with");
    assert!(begun.elapsed() < Duration::from_millis(900));
    let figures = fixture.reported(2).await;
    assert_eq!((figures.requests, figures.errors), (1, 0));
    assert!(figures.p99_ms > 200.0, "the wait is part of what a caller has: {figures:?}");
    fixture.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_may_be_asked_for_whatever_serves() {
    let fixture = Fixture::new().await;
    let (first, second) = (fixture.stock.of_generation(1), fixture.stock.of_generation(2));
    let (held, beside) = (claim(&first, 1).await, claim(&second, 2).await);
    apply(&first, &held, 0, 5).await;
    apply(&second, &beside, 0, 4).await;
    fixture.serve(1).await;
    let (status, named, told) = fixture.get("/v1/stock/TEA?generation=2").await;
    assert_eq!((status, named.as_str(), &told["total"]["on_hand"]), (200, "stock@2", &4.into()));
    let (status, _, told) = fixture.get("/v1/stock/TEA?generation=3").await;
    assert_eq!(status, 404);
    assert_eq!(told["detail"], "there is no stock@3; there is stock@1, stock@2");
    // What somebody looked at is no mark for others.
    assert_eq!(fixture.get("/v1/stock/TEA").await.1, "stock@1");
}
