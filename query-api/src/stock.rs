//! `GET /v1/stock/{sku}` and `GET /v1/stock?sku=a,b`: stock by region and warehouse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use read_models::stock::{StockAnswer, StockRead, StockRow};
use read_models::{ReadChoice, ReadModelError};
use schemas::{PositionToken, RegionId, Sku};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Reads;
use crate::answer::{answer, moment, with_generation, with_position};
use crate::min_position::{is_at, min_position, read_at};
use crate::mirror;
use crate::problem::Problem;
use crate::step_back::never_behind;

/// Most SKUs of one request.
const MAX_SKUS: usize = 200;
/// How long an answer that would step back waits before it is asked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Units {
    /// In the warehouses.
    on_hand: i64,
    /// Of those, promised to reservations.
    reserved: i64,
    /// What may still be reserved.
    available: i64,
}

/// Stock of one SKU.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Stock {
    sku: Sku,
    total: Units,
    pub(crate) regions: Vec<RegionStock>,
    /// True when newer events of this SKU could not be applied: this is the last good state.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    parked: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RegionStock {
    region: RegionId,
    #[serde(flatten)]
    units: Units,
    warehouses: Vec<WarehouseStock>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct WarehouseStock {
    warehouse: String,
    #[serde(flatten)]
    units: Units,
    /// Version of the stock's stream that this is true at.
    version: u64,
    /// When it last changed; absent while the read model does not keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    updated_at: Option<String>,
}

/// Stock of many SKUs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StockList {
    items: Vec<Stock>,
    /// SKUs that have no stock event, or none in the asked region.
    missing: Vec<Sku>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct OneParams {
    /// Only this region.
    region: Option<RegionId>,
    /// Answer from this generation, whatever serves: one that is built, or one of the past.
    generation: Option<u32>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ManyParams {
    /// SKUs, joined by commas; at most 200.
    sku: String,
    /// Only this region.
    region: Option<RegionId>,
    /// Answer from this generation, whatever serves: one that is built, or one of the past.
    generation: Option<u32>,
}

/// Stock of one SKU
#[utoipa::path(
    get, path = "/v1/stock/{sku}", tag = "reads",
    params(("sku" = String, Path), OneParams, ("Millrace-Min-Position" = Option<String>, Header)),
    responses(
        (status = 200, body = Stock),
        (status = 304, description = "As in If-None-Match"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No stock event of this SKU", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Rebuilding, or the position is not reached yet", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn one(
    State(reads): State<Arc<Reads>>,
    headers: HeaderMap,
    sku: Result<Path<String>, PathRejection>,
    params: Result<Query<OneParams>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::bad_request(error.body_text()))?;
    let sku = sku_of(sku)?;
    let choice = ReadChoice { generation: params.generation, key: sku.to_string(), region: params.region.clone() };
    let found = read(&reads, &headers, std::slice::from_ref(&sku), choice).await?;
    let (generation, mut found) = (found.generation, found.answers);
    let unknown = || {
        Problem::new(StatusCode::NOT_FOUND, "Unknown SKU").detail(format!("{sku} has no stock event")).into_response()
    };
    let Some(found) = found.pop() else { return Ok(unknown()) };
    let position = found.position.clone();
    if found.warehouses.is_empty() && !found.parked {
        return Ok(with_generation(with_position(unknown(), &position), &named(generation)));
    }
    let stock = view(found, params.region.as_ref());
    if stock.regions.is_empty() && params.region.is_some() && !stock.parked {
        let problem = Problem::new(StatusCode::NOT_FOUND, "No stock in this region")
            .detail(format!("{sku} has no warehouse there"));
        return Ok(with_generation(with_position(problem.into_response(), &position), &named(generation)));
    }
    Ok(with_generation(answer(&headers, &stock, &position), &named(generation)))
}

/// The SKU of a path, which may be one that is no text.
pub(crate) fn sku_of(sku: Result<Path<String>, PathRejection>) -> Result<Sku, Problem> {
    let Path(sku) = sku.map_err(|error| Problem::bad_request(error.body_text()))?;
    sku.parse().map_err(|error: schemas::IdError| Problem::bad_request(error.to_string()))
}

/// Stock of many SKUs
#[utoipa::path(
    get, path = "/v1/stock", tag = "reads",
    params(ManyParams, ("Millrace-Min-Position" = Option<String>, Header)),
    responses(
        (status = 200, body = StockList),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn many(
    State(reads): State<Arc<Reads>>,
    headers: HeaderMap,
    params: Result<Query<ManyParams>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::bad_request(error.body_text()))?;
    let mut skus: Vec<Sku> = Vec::new();
    for text in params.sku.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let sku: Sku = text.parse().map_err(|error: schemas::IdError| Problem::bad_request(error.to_string()))?;
        if !skus.contains(&sku) {
            skus.push(sku);
        }
        if skus.len() > MAX_SKUS {
            return Err(Problem::bad_request(format!("sku names more than {MAX_SKUS} SKUs")));
        }
    }
    if skus.is_empty() {
        return Err(Problem::bad_request("sku names no SKU; give some, joined by commas"));
    }
    let mut list = StockList { items: Vec::new(), missing: Vec::new() };
    let mut position = PositionToken::default();
    let key = skus.first().map(ToString::to_string).unwrap_or_default();
    let choice = ReadChoice { generation: params.generation, key, region: params.region.clone() };
    let found = read(&reads, &headers, &skus, choice).await?;
    let generation = found.generation;
    for found in found.answers {
        position.merge(&found.position);
        let is_parked = found.parked;
        let stock = view(found, params.region.as_ref());
        if stock.regions.is_empty() && !is_parked {
            list.missing.push(stock.sku);
        } else {
            list.items.push(stock);
        }
    }
    Ok(with_generation(answer(&headers, &list, &position), &named(generation)))
}

pub(crate) fn named(generation: u32) -> String {
    format!("{}@{generation}", read_models::stock::NAME)
}

async fn read(reads: &Arc<Reads>, headers: &HeaderMap, skus: &[Sku], choice: ReadChoice) -> Result<StockRead, Problem> {
    let min = min_position(headers)?;
    read_at(
        min.as_ref(),
        &reads.api.settings,
        |min, left| reads.api.stock.wait_for(min, &choice, left),
        || answers(reads, skus, &choice),
        |read: &StockRead, min| read.answers.iter().all(|answer| is_at(&answer.position, min)),
    )
    .await
}

/// What serves, never behind what another generation told before; mirrored where a stage wants that.
pub(crate) async fn answers(
    reads: &Arc<Reads>,
    skus: &[Sku],
    choice: &ReadChoice,
) -> Result<StockRead, ReadModelError> {
    let (stock, watch) = (&reads.api.stock, &reads.stock_watch);
    let noted = watch.begin(choice, reads.api.settings.deadline);
    // Who asks for a generation by its number gets what it has.
    let take = |found: &StockRead, is_late: bool| {
        choice.generation.is_some() || reads.marks.take(found.generation, &found.answers, is_late)
    };
    let read = never_behind(LOOK_AGAIN, LOOK_AGAIN, || stock.stock(skus, choice), take).await;
    // What the caller waited for, with all of it.
    noted.ended(read.as_ref().map(|read| read.generation));
    let read = read?;
    if choice.generation.is_none() {
        mirror::stock(watch, stock, skus, &read, reads.api.settings.deadline);
    }
    Ok(read)
}

/// Adds warehouses up to regions and a total.
pub(crate) fn view(found: StockAnswer, only: Option<&RegionId>) -> Stock {
    let mut regions: BTreeMap<RegionId, RegionStock> = BTreeMap::new();
    let mut total = Units::default();
    for (warehouse, row) in found.warehouses {
        if only.is_some_and(|only| *only != row.region) {
            continue;
        }
        let units = Units::of(&row);
        total.add(units);
        let region = regions.entry(row.region.clone()).or_insert_with(|| RegionStock {
            region: row.region.clone(),
            units: Units::default(),
            warehouses: Vec::new(),
        });
        region.units.add(units);
        region.warehouses.push(WarehouseStock {
            warehouse: warehouse.to_string(),
            units,
            version: row.version,
            updated_at: row.updated_at.and_then(moment),
        });
    }
    Stock { sku: found.sku, total, regions: regions.into_values().collect(), parked: found.parked }
}

// === impl Units ===

impl Units {
    fn of(row: &StockRow) -> Self {
        Self { on_hand: row.on_hand, reserved: row.reserved, available: row.on_hand - row.reserved }
    }

    fn add(&mut self, other: Units) {
        self.on_hand += other.on_hand;
        self.reserved += other.reserved;
        self.available += other.available;
    }
}

#[cfg(test)]
mod tests {
    use schemas::WarehouseId;

    use super::*;

    fn row(region: &str, on_hand: i64, reserved: i64) -> StockRow {
        StockRow { region: RegionId::new(region).unwrap(), on_hand, reserved, version: 2, updated_at: None }
    }

    fn found() -> StockAnswer {
        let warehouse = |id: &str| WarehouseId::new(id).unwrap();
        StockAnswer {
            sku: Sku::new("A").unwrap(),
            warehouses: vec![
                (warehouse("ams-1"), row("eu", 10, 4)),
                (warehouse("ber-1"), row("eu", 5, 0)),
                (warehouse("nyc-1"), row("us", 7, 7)),
            ],
            position: PositionToken::default(),
            parked: false,
        }
    }

    #[test]
    fn warehouses_add_up_to_regions_and_regions_to_the_total() {
        let json = serde_json::to_value(view(found(), None)).unwrap();
        assert_eq!(json["total"], serde_json::json!({"on_hand": 22, "reserved": 11, "available": 11}));
        assert_eq!(json["regions"][0]["region"], "eu");
        assert_eq!(json["regions"][0]["available"], 11);
        assert_eq!(
            json["regions"][1]["warehouses"],
            serde_json::json!([{"warehouse": "nyc-1", "on_hand": 7, "reserved": 7, "available": 0, "version": 2}])
        );
        assert!(json.get("parked").is_none());
    }

    #[test]
    fn a_warehouse_tells_when_its_stock_changed_if_the_row_does() {
        let mut found = found();
        found.warehouses[1].1.updated_at = Some(1_700_000_000_007);
        let json = serde_json::to_value(view(found, None)).unwrap();
        let warehouses = json["regions"][0]["warehouses"].as_array().unwrap();
        assert!(warehouses[0].get("updated_at").is_none());
        assert_eq!(warehouses[1]["updated_at"], "2023-11-14T22:13:20.007Z");
    }

    #[test]
    fn a_region_alone_has_its_own_total() {
        let us = RegionId::new("us").unwrap();
        let stock = view(found(), Some(&us));
        assert_eq!((stock.total.on_hand, stock.regions.len()), (7, 1));
    }
}
