//! What the read models hold: stock rows straight from Redis or SQLite, products as the query API shows them.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail};
use futures::{StreamExt, TryStreamExt};
use redis::aio::MultiplexedConnection;
use schemas::event::Product;
use serde_json::Value;

use super::fold::{ProductView, Stock};
use super::table::read_only;
use crate::system::Deployment;

/// The stock read model, whole.
#[derive(Debug, Default)]
pub struct StockView {
    /// By SKU and warehouse.
    pub rows: BTreeMap<(String, String), Stock>,
    /// Partition of `inventory.events` to the last sequence in it.
    pub checkpoints: HashMap<u32, u64>,
}

/// The generation of stock that serves.
pub async fn serving(deployment: &Deployment) -> anyhow::Result<u32> {
    match deployment {
        Deployment::Roles { redis, .. } => {
            for url in redis {
                let mut connection = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
                let mut look = redis::cmd("HGET");
                look.arg("millrace:{stock}:generations").arg("serving");
                // Another node of a Cluster has it.
                if let Ok(Some(serving)) = look.query_async::<Option<u32>>(&mut connection).await {
                    return Ok(serving);
                }
            }
            Ok(1)
        }
        Deployment::Embedded { data } => {
            let file = read_only(&data.join("stock.db"))?;
            Ok(file.query_row("SELECT number FROM generations WHERE serving", [], |row| row.get(0))?)
        }
    }
}

/// One generation of the stock, whole.
pub async fn stock(deployment: &Deployment, generation: u32) -> anyhow::Result<StockView> {
    let mut view = StockView::default();
    match deployment {
        Deployment::Roles { redis, .. } => {
            for url in redis {
                let mut connection = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
                redis_rows(&mut connection, generation, &mut view).await?;
            }
        }
        Deployment::Embedded { data } => {
            let file = read_only(&data.join("stock.db"))?;
            let mut rows = file.prepare(
                "SELECT sku, warehouse, region, on_hand, reserved, version FROM stock WHERE generation = ?1",
            )?;
            let mut rows = rows.query([generation])?;
            while let Some(row) = rows.next()? {
                let (region, on_hand, reserved) = (row.get(2)?, row.get(3)?, row.get(4)?);
                let stock = Stock { region, on_hand, reserved, version: row.get::<_, i64>(5)? as u64 };
                view.rows.insert((row.get(0)?, row.get(1)?), stock);
            }
            let mut checkpoints = file.prepare(
                "SELECT partition, sequence FROM checkpoints WHERE generation = ?1 AND context = 'inventory'",
            )?;
            let mut checkpoints = checkpoints.query([generation])?;
            while let Some(row) = checkpoints.next()? {
                view.checkpoints.insert(row.get(0)?, row.get::<_, i64>(1)? as u64);
            }
        }
    }
    Ok(view)
}

/// Names of the keys of a generation's SKUs and checkpoints.
pub async fn redis_keys(connection: &mut MultiplexedConnection, generation: u32) -> anyhow::Result<Vec<String>> {
    let mut keys: Vec<String> = Vec::new();
    let mut cursor = 0_u64;
    loop {
        let mut scan = redis::cmd("SCAN");
        let pattern = format!("millrace:{{stock@{generation}:inventory:*");
        scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(5_000);
        let (next, found): (u64, Vec<String>) = scan.query_async(connection).await?;
        keys.extend(found);
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    keys.retain(|key| key.contains(":sku:") || key.ends_with(":state"));
    keys.sort();
    keys.dedup();
    Ok(keys)
}

async fn redis_rows(
    connection: &mut MultiplexedConnection,
    generation: u32,
    view: &mut StockView,
) -> anyhow::Result<()> {
    for keys in redis_keys(connection, generation).await?.chunks(500) {
        let mut asked = redis::pipe();
        for key in keys {
            asked.cmd("HGETALL").arg(key);
        }
        let answers: Vec<HashMap<String, String>> = asked.query_async(connection).await?;
        for (key, fields) in keys.iter().zip(answers) {
            match key.split_once(":sku:") {
                Some((_, sku)) => {
                    for (warehouse, row) in fields {
                        let stock = redis_row(&row).with_context(|| format!("{key} {warehouse}: {row:?}"))?;
                        view.rows.insert((sku.to_owned(), warehouse), stock);
                    }
                }
                None => {
                    let partition = key.split(['{', '}']).nth(1).and_then(|tag| tag.rsplit(':').next());
                    let partition =
                        partition.and_then(|number| number.parse().ok()).context("no partition in a key")?;
                    let sequence = fields.get("sequence").and_then(|text| text.parse().ok()).unwrap_or(0);
                    view.checkpoints.insert(partition, sequence);
                }
            }
        }
    }
    Ok(())
}

/// `region:on_hand:reserved:version`, and from fold 2 on `:updated_at`.
fn redis_row(text: &str) -> Option<Stock> {
    let fields: Vec<&str> = text.split(':').collect();
    let ([region, on_hand, reserved, version] | [region, on_hand, reserved, version, _]) = fields[..] else {
        return None;
    };
    Some(Stock {
        region: region.to_owned(),
        on_hand: on_hand.parse().ok()?,
        reserved: reserved.parse().ok()?,
        version: version.parse().ok()?,
    })
}

/// Every page of every SKU: the product, its prices, and where it is in stock.
pub async fn pages(
    client: &reqwest::Client,
    url: &str,
    skus: &[String],
) -> anyhow::Result<BTreeMap<String, ProductView>> {
    let page = |sku: String| {
        let address = format!("{url}/v1/products/{sku}");
        async move {
            let answer = client.get(&address).send().await?;
            let status = answer.status();
            let page: Value = answer.json().await?;
            if !status.is_success() {
                bail!("{address}: {status}: {page}");
            }
            let mut view = ProductView::default();
            if page["product"].is_object() {
                let mut product = page["product"].clone();
                product["sku"] = Value::String(sku.clone());
                view.product = Some(serde_json::from_value::<Product>(product)?);
            }
            for price in page["price"]["regions"].as_array().into_iter().flatten() {
                let (region, currency) = (text(&price["region"])?, text(&price["currency"])?);
                view.prices.insert(region, (currency, price["amount_minor"].as_i64().context("no amount")?));
            }
            for region in page["stock"]["regions"].as_array().into_iter().flatten() {
                // One warehouse of several may be what makes it available.
                let warehouses = region["warehouses"].as_array().into_iter().flatten();
                if warehouses.filter_map(|warehouse| warehouse["available"].as_i64()).any(|available| available > 0) {
                    view.in_stock.insert(text(&region["region"])?);
                }
            }
            Ok((sku, view))
        }
    };
    futures::stream::iter(skus.iter().cloned()).map(page).buffer_unordered(16).try_collect().await
}

/// Every hit of the search, page by page, with the price of one region.
pub async fn hits(client: &reqwest::Client, url: &str, region: &str) -> anyhow::Result<BTreeMap<String, ProductView>> {
    let mut hits = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let address = format!("{url}/v1/search?limit=100&facets=false&region={region}{cursor}");
        let answer = client.get(&address).send().await?;
        let status = answer.status();
        let page: Value = answer.json().await?;
        if !status.is_success() {
            bail!("{address}: {status}: {page}");
        }
        for hit in page["hits"].as_array().into_iter().flatten() {
            let sku = text(&hit["sku"])?;
            let mut view =
                ProductView { product: Some(serde_json::from_value(hit.clone())?), ..ProductView::default() };
            if let Some(amount) = hit["price"]["amount_minor"].as_i64() {
                view.prices.insert(region.to_owned(), (text(&hit["price"]["currency"])?, amount));
            }
            let regions = hit["in_stock_regions"].as_array().into_iter().flatten();
            view.in_stock = regions.filter_map(|region| region.as_str().map(str::to_owned)).collect();
            if hits.insert(sku.clone(), view).is_some() {
                bail!("the search shows {sku} twice");
            }
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(hits),
        }
    }
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value.as_str().with_context(|| format!("{value} is no text"))?.to_owned())
}
