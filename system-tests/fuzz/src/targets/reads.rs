//! The query API over real read models in files: paths, query texts, filters, positions.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use query_api::{QueryApi, QuerySettings, router};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use read_models::search::{self, SearchKey, SearchReadModel, SearchReader, SearchRow};
use read_models::stock::{SqliteStock, StockKey, StockRow};
use read_models::{Batch, Checkpoint, Generation, PartitionRef, ReadChoice, ReadModel};
use schemas::event::Product;
use schemas::{Context, RegionId, Sku, StorePosition, WarehouseId};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::commands::{has_route, well_answered};
use crate::mutation::{number, one_of, text};
use crate::target::Target;

/// What a server takes as the head of a request; longer ones end before any route.
const LARGEST: usize = 60_000;

/// An input is a path with its query, and on the next line a `Millrace-Min-Position`.
pub struct Queries {
    runtime: Runtime,
    routes: Router,
    _folder: tempfile::TempDir,
}

/// The read models of one partition, with as many products as make a search work.
pub async fn filled(folder: &std::path::Path) -> anyhow::Result<(Arc<SqliteStock>, Arc<SearchReader>)> {
    let stock = Arc::new(SqliteStock::open(folder.join("stock.db"))?);
    let search = Arc::new(SearchReadModel::open(&folder.join("search")).await?);
    let region = RegionId::new("north")?;
    let (mut stocked, mut shown) = (Vec::new(), Vec::new());
    for (at, name) in ["Assam Tea", "Red Onion 1 kg", "Crème Fraîche", "Café au lait", "12\" Pizza"]
        .iter()
        .cycle()
        .take(200)
        .enumerate()
    {
        let sku = Sku::new(format!("S-{at}"))?;
        let warehouse = WarehouseId::new("ham-1")?;
        let row = StockRow { region: region.clone(), on_hand: 7, reserved: 2, version: 3, updated_at: None };
        stocked.push((Context::Inventory, StockKey { sku: sku.clone(), warehouse: warehouse.clone() }, row));
        let product = Product {
            sku: sku.clone(),
            name: format!("{name} {at}"),
            brand: Some(format!("Brand {}", at % 9)),
            category_path: vec!["Pantry".to_owned(), format!("C{}", at % 7)],
            description: Some("green black loose".to_owned()),
            pack_size: None,
            tags: vec!["hot".to_owned()],
        };
        let price = SearchRow::Price { currency: "EUR".to_owned(), amount_minor: at as i64, version: 1 };
        shown.push((Context::Pricing, SearchKey::Price(sku.clone(), region.clone()), price));
        let there = SearchRow::Stock { region: region.clone(), available: 5, version: 3 };
        shown.push((Context::Inventory, SearchKey::Stock(sku.clone(), warehouse), there));
        shown.push((
            Context::Catalogue,
            SearchKey::Product(sku),
            SearchRow::Product { product: Some(product), version: 1, revised_at: None },
        ));
    }
    write(stock.as_ref(), "stock", &[Context::Inventory], stocked).await?;
    write(search.as_ref(), "search", &search::CONTEXTS, shown).await?;
    let reader = Arc::new(SearchReader::open(&folder.join("search")).await?);
    let shutdown = CancellationToken::new();
    let (indexed, stopped) = (search.clone(), shutdown.clone());
    let indexer = tokio::spawn(async move { indexed.run_indexer(stopped).await });
    let min = "catalogue-0-0.9".parse()?;
    let is_there = reader.wait_for(&min, &ReadChoice::default(), Duration::from_secs(20)).await?;
    anyhow::ensure!(is_there, "the products are never shown");
    shutdown.cancel();
    indexer.await??;
    Ok((stock, reader))
}

async fn write<K: Clone, R: Clone>(
    model: &impl ReadModel<Key = K, Row = R>,
    name: &str,
    contexts: &[Context],
    rows: Vec<(Context, K, R)>,
) -> anyhow::Result<()> {
    model.prepare(&Generation { name: name.to_owned(), number: 1, fold_version: 1, partitions: 1 }).await?;
    for context in contexts {
        let partition = PartitionRef { context: *context, partition: 0 };
        let claimed = model.claim(partition).await?;
        let changes = rows.iter().filter(|(of, ..)| of == context);
        let position = StorePosition { xid: 0, position: 9 };
        let batch = Batch {
            to: Checkpoint { sequence: 1, next_offset: 1, position, event_time: 1_699_999_999_000 },
            changes: changes.map(|(_, key, row)| (key.clone(), row.clone())).collect(),
            ..Batch::unmoved(partition, claimed.epoch, claimed.checkpoint, true)
        };
        model.apply(&batch).await?;
    }
    Ok(())
}

impl Queries {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        let folder = tempfile::tempdir().expect("a folder is made");
        let (stock, search) = runtime.block_on(filled(folder.path())).expect("the read models are filled");
        // A read for a position that is not there is not to wait.
        let settings = QuerySettings { position_wait: Duration::ZERO, ..QuerySettings::default() };
        let (routes, _) = router(QueryApi { stock, search, settings, now: || 1_700_000_000_000 });
        Self { runtime, routes, _folder: folder }
    }
}

impl Target for Queries {
    fn name(&self) -> &'static str {
        "query-api"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let paths: [&[u8]; 11] = [
            b"/v1/stock/S-7?region=north",
            b"/v1/stock?sku=S-1,S-2&region=north\ninventory-0-0.9",
            b"/v1/products/S-3",
            b"/v1/search?q=red%20onion&region=north&in_stock=true&price_min=1&price_max=900",
            b"/v1/search?brand=Brand%201|Brand%202&category=Pantry/C1&limit=100&facets=false",
            b"/v1/search?q=cr%C3%A8me+fra%C3%AEche",
            b"/v1/search?cursor=0123456789abcdef-20&q=tea\ncatalogue-0-0.9",
            b"/v1/search?limit=5",
            b"/v1/suggest?q=as&limit=20",
            b"/v1/suggest?q=red+on",
            b"/v1/status",
        ];
        paths.map(<[u8]>::to_vec).to_vec()
    }

    fn words(&self) -> &'static [&'static str] {
        &[
            "q=",
            "&brand=",
            "&category=",
            "&region=north",
            "&in_stock=false",
            "&price_min=-1",
            "&price_max=",
            "&limit=",
            "&cursor=",
            "|",
            "%FF",
            "%00",
            "*",
            "~2",
            "(",
            "AND",
            "\"",
            "+",
            "/v1/stock/",
            "/v1/products/",
            "S-1,",
            "a+",
            "e%CC%81",
        ]
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let mut path = one_of(
            random,
            &["/v1/search?facets=true", "/v1/search?region=north", "/v1/suggest?limit=20", "/v1/stock?region=north"],
        )
        .to_owned();
        for _ in 0..random.random_range(1..4_u32) {
            let key = one_of(
                random,
                &["q", "brand", "category", "region", "in_stock", "price_min", "price_max", "cursor", "limit", "sku"],
            );
            let value = match random.random_range(0..5_u32) {
                0 => number(random).to_string(),
                1 => "a".repeat(random.random_range(0..300)),
                2 => encoded(&"b|".repeat(random.random_range(0..300))),
                _ => encoded(&text(random)),
            };
            path.push_str(&format!("&{key}={value}"));
        }
        Some(path.into_bytes())
    }

    fn largest(&self) -> usize {
        LARGEST
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let mut lines = input.splitn(2, |byte| *byte == b'\n');
        let path = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let mut request = Request::get(&path);
        if let Some(position) = lines.next() {
            request = request.header("millrace-min-position", position);
        }
        // What is no HTTP request does not come so far.
        let Ok(request) = request.body(Body::empty()) else { return Ok(()) };
        let known = ["/v1/stock/", "/v1/products/", "/v1/stock", "/v1/search", "/v1/suggest", "/v1/status"];
        let has_route = has_route(request.uri().path(), &known);
        self.runtime.block_on(async {
            let response = self.routes.clone().oneshot(request).await.map_err(|error| error.to_string())?;
            match response.status().as_u16() {
                // A position may be one that never comes.
                404 if !has_route => Ok(()),
                503 if response.headers().contains_key("retry-after") => Ok(()),
                _ => well_answered(response).await,
            }
        })
    }
}
