//! The routes over real read models in files: what is answered before, while and after they are filled.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response};
use query_api::{QueryApi, QuerySettings, router};
use read_models::process_report::{Halted, ProcessReport};
use read_models::search::{self, SearchKey, SearchReadModel, SearchReader, SearchRow};
use read_models::stock::{SharedStock, StockKey, StockRow, connect_stock};
use read_models::{Batch, Checkpoint, Generation, Head, ParkedEvent, PartitionRef, ReadModel};
use schemas::event::Product;
use schemas::{Context, RegionId, Sku, StorePosition, WarehouseId};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

struct Fixture {
    stock: SharedStock,
    search: Arc<SearchReadModel>,
    routes: Router,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("stock.db").display());
        let stock = connect_stock(&url).await.unwrap();
        let dir = folder.path().join("search");
        let search = Arc::new(SearchReadModel::open(&dir).await.unwrap());
        let reader = Arc::new(SearchReader::open(&dir).await.unwrap());
        let settings = QuerySettings { position_wait: Duration::from_millis(300), ..QuerySettings::default() };
        let (routes, _) =
            router(QueryApi { stock: stock.clone(), search: reader, settings, now: || 1_700_000_000_000 });
        let shutdown = CancellationToken::new();
        let (indexed, stopped) = (search.clone(), shutdown.clone());
        tokio::spawn(async move { indexed.run_indexer(stopped).await });
        Self { stock, search, routes, shutdown, _folder: folder }
    }

    /// One SKU with product, price and stock, at position 9 of its partition.
    async fn fill(&self) {
        self.fill_as(None).await;
    }

    /// By fold 2 where there is a time, by fold 1 where there is none.
    async fn fill_as(&self, changed_at: Option<i64>) {
        let fold = if changed_at.is_some() { 2 } else { 1 };
        let [sku, region] = ["TEA", "north"].map(str::to_owned);
        let (sku, region) = (Sku::new(sku).unwrap(), RegionId::new(region).unwrap());
        let warehouse = WarehouseId::new("ham-1").unwrap();
        let row = StockRow { region: region.clone(), on_hand: 7, reserved: 2, version: 3, updated_at: changed_at };
        let key = StockKey { sku: sku.clone(), warehouse: warehouse.clone() };
        write(self.stock.as_ref(), "stock", fold, &[Context::Inventory], vec![(Context::Inventory, key, row)]).await;
        let product = Product {
            brand: Some("Bergamot".to_owned()),
            category_path: vec!["Pantry".to_owned(), "Tea".to_owned()],
            ..Product::named(sku.clone(), "Assam Tea")
        };
        let rows = vec![
            (
                Context::Catalogue,
                SearchKey::Product(sku.clone()),
                SearchRow::Product { product: Some(product), version: 1, revised_at: changed_at },
            ),
            (
                Context::Pricing,
                SearchKey::Price(sku.clone(), region.clone()),
                SearchRow::Price { currency: "EUR".to_owned(), amount_minor: 349, version: 1 },
            ),
            (
                Context::Inventory,
                SearchKey::Stock(sku, warehouse),
                SearchRow::Stock { region, available: 5, version: 3 },
            ),
        ];
        write(self.search.as_ref(), "search", fold, &search::CONTEXTS, rows).await;
    }

    async fn ask(&self, request: axum::http::request::Builder) -> (u16, Response<Body>) {
        let response = self.routes.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        (response.status().as_u16(), response)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, response) = self.ask(Request::get(path)).await;
        (status, body(response).await)
    }

    /// Waits for what the indexer makes visible.
    async fn get_when_ok(&self, path: &str) -> Value {
        for _ in 0..1_000 {
            let (status, value) = self.get(path).await;
            if status == 200 && value["total"] != 0 {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{path} is never answered");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn body(response: Response<Body>) -> Value {
    serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap_or_default()
}

/// Makes a read model of one partition live with some rows, as its projector would.
async fn write<K: Clone, R: Clone>(
    model: &(impl ReadModel<Key = K, Row = R> + ?Sized),
    name: &str,
    fold_version: u32,
    contexts: &[Context],
    rows: Vec<(Context, K, R)>,
) {
    model.prepare(&Generation { name: name.to_owned(), number: 1, fold_version, partitions: 1 }).await.unwrap();
    for context in contexts {
        let partition = PartitionRef { context: *context, partition: 0 };
        let claimed = model.claim(partition).await.unwrap();
        let changes = rows.iter().filter(|(of, ..)| of == context);
        let batch = Batch {
            to: Checkpoint {
                sequence: 1,
                next_offset: 1,
                position: StorePosition { xid: 0, position: 9 },
                event_time: 1_699_999_999_000,
            },
            changes: changes.map(|(_, key, row)| (key.clone(), row.clone())).collect(),
            ..Batch::unmoved(partition, claimed.epoch, claimed.checkpoint, true)
        };
        model.apply(&batch).await.unwrap();
    }
}

/// Parks an event at position 10, as a projector does that cannot fold it.
async fn park<K, R>(model: &(impl ReadModel<Key = K, Row = R> + ?Sized), context: Context, key: &str) {
    let partition = PartitionRef { context, partition: 0 };
    let claimed = model.claim(partition).await.unwrap();
    let position = StorePosition { xid: 0, position: 10 };
    let (sequence, offset) = (claimed.checkpoint.sequence + 1, claimed.checkpoint.next_offset);
    let event = ParkedEvent {
        key: key.to_owned(),
        sequence,
        offset,
        position,
        headers: Vec::new(),
        value: vec![7],
        reason: "no".to_owned(),
        parked_at: 5,
    };
    let batch = Batch {
        to: Checkpoint { sequence, next_offset: offset + 1, position, ..claimed.checkpoint },
        parked: vec![event],
        ..Batch::unmoved(partition, claimed.epoch, claimed.checkpoint, true)
    };
    model.apply(&batch).await.unwrap();
}

#[tokio::test]
async fn nothing_is_answered_from_an_empty_store_as_if_it_were_zero() {
    let fixture = Fixture::new().await;
    for path in ["/v1/stock/TEA", "/v1/stock?sku=TEA", "/v1/search", "/v1/suggest?q=t", "/v1/products/TEA"] {
        let (status, response) = fixture.ask(Request::get(path)).await;
        assert_eq!(status, 503, "{path}");
        assert!(response.headers().contains_key("retry-after"), "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
    }
    let (status, standing) = fixture.get("/v1/status").await;
    assert_eq!(status, 200);
    assert!(standing["projections"].as_array().unwrap().iter().all(|one| one["state"] == "rebuilding"), "{standing}");
}

#[tokio::test]
async fn a_partition_that_is_ahead_of_its_topic_is_not_called_level_once_it_is_halted() {
    let fixture = Fixture::new().await;
    fixture.fill().await;
    let partition = PartitionRef { context: Context::Inventory, partition: 0 };
    fixture.stock.observe(&[(partition, Head { next_offset: 0, seen_at: 1_699_999_999_500 })]).await.unwrap();
    let (_, standing) = fixture.get("/v1/status").await;
    let stock = &standing["projections"][0];
    assert_eq!((&stock["lag_events"], &stock["halted"]), (&json!(0), &json!([])), "{standing}");

    let halted = Halted::from([(partition.to_string(), "the topic was made anew".to_owned())]);
    let report = ProcessReport {
        process: "projector".to_owned(),
        at: 1_700_000_000_000,
        halted: [(1, halted)].into(),
        ..ProcessReport::default()
    };
    fixture.stock.note_report(&report).await.unwrap();
    let (_, standing) = fixture.get("/v1/status").await;
    let stock = &standing["projections"][0];
    assert_eq!((&stock["lag_events"], &stock["freshness_seconds"]), (&Value::Null, &Value::Null), "{standing}");
    let told = json!([{ "partition": "inventory.events/0", "why": "the topic was made anew" }]);
    assert_eq!((&stock["halted"], &stock["state"]), (&told, &json!("live")), "readers get the last good state");
    assert_eq!(standing["projections"][1]["halted"], json!([]), "{standing}");
}

#[tokio::test]
async fn a_page_has_every_part_and_comes_without_one_that_is_missing() {
    let fixture = Fixture::new().await;
    fixture.fill().await;
    let (status, page) = fixture.get("/v1/products/TEA?region=north").await;
    assert_eq!((status, &page["missing"]), (200, &json!([])), "{page}");
    assert_eq!((&page["price"]["amount_minor"], &page["stock"]["total"]["available"]), (&json!(349), &json!(5)));
    let (_, elsewhere) = fixture.get("/v1/products/TEA?region=south").await;
    assert_eq!(elsewhere["missing"], json!(["price", "stock"]), "{elsewhere}");
    let (status, response) = fixture.ask(Request::get("/v1/products/MILK")).await;
    assert_eq!(status, 404);
    assert!(response.headers().contains_key("millrace-position"));
}

#[tokio::test]
async fn page_and_hit_say_that_events_of_their_sku_wait() {
    let fixture = Fixture::new().await;
    fixture.fill().await;
    let found = fixture.get_when_ok("/v1/search?q=assam").await;
    let (_, page) = fixture.get("/v1/products/TEA").await;
    for part in [&found["hits"][0], &page] {
        assert!(part.is_object() && part.get("parked").is_none(), "{part}");
    }
    park(fixture.search.as_ref(), Context::Pricing, "TEA").await;
    let (_, page) = fixture.get("/v1/products/TEA").await;
    assert_eq!((&page["parked"], &page["price"]["regions"][0]["amount_minor"]), (&json!(true), &json!(349)), "{page}");
    assert!(page["stock"].get("parked").is_none(), "the stock has everything: {page}");
    // An answer that claims the event's position says what became of it.
    let found = loop {
        let asked = Request::get("/v1/search?q=assam").header("millrace-min-position", "pricing-0-0.10");
        let (status, response) = fixture.ask(asked).await;
        if status == 200 {
            break body(response).await;
        }
        assert_eq!(status, 503);
    };
    assert_eq!(found["hits"][0]["parked"], true, "{found}");
}

#[tokio::test]
async fn a_sku_of_which_only_parked_events_are_known_is_not_unknown() {
    let fixture = Fixture::new().await;
    fixture.fill().await;
    park(fixture.search.as_ref(), Context::Catalogue, "MILK").await;
    park(fixture.stock.as_ref(), Context::Inventory, "OATS").await;
    for sku in ["MILK", "OATS"] {
        let (status, page) = fixture.get(&format!("/v1/products/{sku}")).await;
        assert_eq!((status, &page["parked"]), (200, &json!(true)), "{page}");
        assert_eq!(page["missing"], json!(["product", "price", "stock"]), "{page}");
    }
    for path in ["/v1/stock/OATS", "/v1/stock/OATS?region=north"] {
        let (status, stock) = fixture.get(path).await;
        assert_eq!((status, &stock["parked"]), (200, &json!(true)), "{path}: {stock}");
    }
    assert_eq!(fixture.get("/v1/products/RICE").await.0, 404);
}

#[tokio::test]
async fn answers_say_when_a_thing_changed_once_the_fold_that_serves_does() {
    for (changed_at, told) in [(None, Value::Null), (Some(1_700_000_000_007), json!("2023-11-14T22:13:20.007Z"))] {
        let fixture = Fixture::new().await;
        fixture.fill_as(changed_at).await;
        let found = fixture.get_when_ok("/v1/search?q=assam").await;
        let (_, page) = fixture.get("/v1/products/TEA").await;
        let (_, stock) = fixture.get("/v1/stock/TEA").await;
        let (_, many) = fixture.get("/v1/stock?sku=TEA").await;
        let warehouse = |stock: &Value| stock["regions"][0]["warehouses"][0].clone();
        for (part, name) in [
            (found["hits"][0].clone(), "revised_at"),
            (page["product"].clone(), "revised_at"),
            (warehouse(&page["stock"]), "updated_at"),
            (warehouse(&stock), "updated_at"),
            (warehouse(&many["items"][0]), "updated_at"),
        ] {
            assert_eq!(part[name], told, "{part}");
            assert_eq!(part.as_object().unwrap().contains_key(name), changed_at.is_some(), "absent, not null: {part}");
        }
    }
}

#[tokio::test]
async fn stock_is_found_by_sku_and_region() {
    let fixture = Fixture::new().await;
    fixture.fill().await;
    let (status, stock) = fixture.get("/v1/stock/TEA").await;
    assert_eq!((status, &stock["total"]), (200, &json!({"on_hand": 7, "reserved": 2, "available": 5})));
    assert_eq!(fixture.get("/v1/stock/TEA?region=south").await.0, 404);
    let (_, many) = fixture.get("/v1/stock?sku=TEA,MILK,TEA").await;
    assert_eq!((many["items"].as_array().unwrap().len(), &many["missing"]), (1, &json!(["MILK"])));
    let (_, none) = fixture.get("/v1/stock?sku=TEA&region=south").await;
    assert_eq!(none["missing"], json!(["TEA"]));
}

#[tokio::test]
async fn search_finds_filters_counts_and_completes() {
    let fixture = Fixture::new().await;
    fixture.fill().await;
    let found = fixture.get_when_ok("/v1/search?q=assam%20te&region=north&in_stock=true&price_max=400").await;
    assert_eq!((&found["total"], &found["hits"][0]["sku"]), (&json!(1), &json!("TEA")));
    assert_eq!(found["facets"]["brand"], json!([{"value": "Bergamot", "count": 1}]));
    assert_eq!(fixture.get("/v1/search?q=coffee").await.1["total"], 0);
    assert_eq!(fixture.get("/v1/search?category=Pantry").await.1["total"], 1);
    assert_eq!(fixture.get("/v1/suggest?q=ass").await.1["suggestions"], json!(["Assam Tea"]));
}

#[tokio::test]
async fn a_read_waits_for_its_position_or_says_that_it_cannot_see_it_yet() {
    let fixture = Fixture::new().await;
    fixture.fill().await;
    let at = |position: &str| Request::get("/v1/stock/TEA").header("millrace-min-position", position);
    let (status, response) = fixture.ask(at("inventory-0-0.9")).await;
    assert_eq!((status, response.headers()["millrace-position"].to_str().unwrap()), (200, "inventory-0-0.9"));
    let (status, response) = fixture.ask(at("inventory-0-0.10")).await;
    assert_eq!(status, 503);
    assert!(body(response).await["detail"].as_str().unwrap().contains("inventory-0-0.10"));
    assert_eq!(fixture.ask(at("tomorrow")).await.0, 400);
}

#[tokio::test]
async fn an_unchanged_answer_is_not_sent_again() {
    let fixture = Fixture::new().await;
    fixture.fill().await;
    let (_, first) = fixture.ask(Request::get("/v1/stock/TEA")).await;
    let tag = first.headers()["etag"].clone();
    let (status, second) = fixture.ask(Request::get("/v1/stock/TEA").header("if-none-match", tag)).await;
    assert_eq!(status, 304);
    assert!(second.headers().contains_key("millrace-position"));
}

#[tokio::test]
async fn a_question_that_is_not_understood_is_refused_with_the_place() {
    let fixture = Fixture::new().await;
    fixture.fill().await;
    fixture.get_when_ok("/v1/search").await;
    let cases = [
        ("/v1/stock?sku=", "SKU"),
        ("/v1/stock?skus=TEA", "skus"),
        ("/v1/stock/a%20b", "a b"),
        ("/v1/search?limit=0", "limit 0"),
        ("/v1/search?price_min=1", "region"),
        ("/v1/search?colour=red", "colour"),
        ("/v1/search?cursor=zzz", "cursor"),
        ("/v1/suggest?q=a&limit=99", "limit 99"),
    ];
    for (path, said) in cases {
        let (status, problem) = fixture.get(path).await;
        assert_eq!(status, 400, "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(said), "{path}: {problem}");
    }
}
