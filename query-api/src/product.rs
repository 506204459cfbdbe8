//! `GET /v1/products/{sku}`: catalogue, price and stock on one page. A part that is missing is marked; the page still
//! comes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use read_models::search::ProductAnswer;
use read_models::stock::StockRead;
use read_models::{ReadChoice, ReadModelError};
use schemas::event::Product;
use schemas::{PositionToken, RegionId, Sku};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::answer::{answer, moment, with_generation, with_position};
use crate::hit_marks::{LOOK_AGAIN, Said};
use crate::min_position::{is_at, min_position, read_at};
use crate::problem::Problem;
use crate::search::named as search_named;
use crate::step_back::never_behind;
use crate::stock::{Stock, answers, named as stock_named, sku_of, view};
use crate::{QueryApi, Reads};

/// A product page.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProductPage {
    sku: Sku,
    /// Null while the catalogue part is missing.
    product: Option<ProductPart>,
    /// Null while no price is set.
    price: Option<PricePart>,
    /// Null while no stock is known, in the asked region where one is asked for.
    stock: Option<Stock>,
    /// Parts that are null: `product`, `price`, `stock`.
    missing: Vec<&'static str>,
    /// True when newer events of this SKU could not be applied, to whichever part: this is the last good state.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    parked: bool,
}

/// What a page is made of: product and prices, and the stock.
struct Halves {
    described: Result<ProductAnswer, ReadModelError>,
    stock: Result<StockRead, ReadModelError>,
}

/// What the catalogue says.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProductPart {
    name: String,
    brand: Option<String>,
    category_path: Vec<String>,
    description: Option<String>,
    pack_size: Option<String>,
    tags: Vec<String>,
    /// When the catalogue last changed it; absent while the read model does not keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    revised_at: Option<String>,
}

/// The price in the region asked for, and in all others.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PricePart {
    /// In the asked region; absent when none was asked for, or none is set there.
    #[serde(flatten)]
    asked: Option<RegionPrice>,
    regions: Vec<RegionPrice>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct RegionPrice {
    region: RegionId,
    /// ISO 4217.
    currency: String,
    /// Minor units.
    amount_minor: i64,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageParams {
    /// Price and stock of this region.
    region: Option<RegionId>,
}

/// Product page
#[utoipa::path(
    get, path = "/v1/products/{sku}", tag = "reads",
    params(("sku" = String, Path), PageParams, ("Millrace-Min-Position" = Option<String>, Header)),
    responses(
        (status = 200, body = ProductPage),
        (status = 304, description = "As in If-None-Match"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is known of this SKU", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The position is not reached yet, or no part could be read", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn page(
    State(reads): State<Arc<Reads>>,
    headers: HeaderMap,
    sku: Result<Path<String>, PathRejection>,
    params: Result<Query<PageParams>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::bad_request(error.body_text()))?;
    let sku = sku_of(sku)?;
    let choice = ReadChoice { generation: None, key: sku.to_string(), region: params.region.clone() };
    let min = min_position(&headers)?;
    let Halves { described, stock } = read_at(
        min.as_ref(),
        &reads.api.settings,
        |min, left| wait_for(&reads.api, min, &choice, left),
        || halves(&reads, &sku, &choice),
        Halves::are_at,
    )
    .await?;
    // The part that is missing is marked, whatever it is missing for.
    if let (Err(_), Err(error)) = (&described, &stock) {
        return Err(refused(error));
    }
    let mut position = PositionToken::default();
    let mut page =
        ProductPage { sku: sku.clone(), product: None, price: None, stock: None, missing: Vec::new(), parked: false };
    let is_whole = described.is_ok() && stock.is_ok();
    let mut generations: Vec<String> = stock.iter().map(|found| stock_named(found.generation)).collect();
    generations.extend(described.iter().map(|found| search_named(found.generation)));
    let generations = generations.join(", ");
    match described {
        Ok(found) => {
            position.merge(&found.position);
            let revised_at = found.revised_at;
            page.product = found.product.map(|product| ProductPart::of(product, revised_at));
            page.price = prices(found.prices, params.region.as_ref());
            page.parked |= found.parked;
        }
        Err(error) => tracing::warn!(%sku, %error, "page comes without product and price"),
    }
    match stock {
        Ok(mut found) => {
            if let Some(found) = found.answers.pop() {
                position.merge(&found.position);
                page.parked |= found.parked;
                let stock = view(found, params.region.as_ref());
                if !stock.regions.is_empty() {
                    page.stock = Some(stock);
                }
            }
        }
        Err(error) => tracing::warn!(%sku, %error, "page comes without stock"),
    }
    let parts = [("product", page.product.is_none()), ("price", page.price.is_none()), ("stock", page.stock.is_none())];
    page.missing = parts.into_iter().filter_map(|(part, is_missing)| is_missing.then_some(part)).collect();
    if page.missing.len() == parts.len() && is_whole && !page.parked {
        let problem = Problem::new(StatusCode::NOT_FOUND, "Unknown SKU").detail(format!("nothing is known of {sku}"));
        return Ok(with_generation(with_position(problem.into_response(), &position), &generations));
    }
    Ok(with_generation(answer(&headers, &page, &position), &generations))
}

/// Waits until both halves are true at `min` or later.
async fn wait_for(
    api: &QueryApi,
    min: &PositionToken,
    choice: &ReadChoice,
    timeout: Duration,
) -> Result<bool, ReadModelError> {
    let (stock, described) =
        tokio::try_join!(api.stock.wait_for(min, choice, timeout), api.search.wait_for_rows(min, choice, timeout))?;
    Ok(stock && described)
}

async fn halves(reads: &Arc<Reads>, sku: &Sku, choice: &ReadChoice) -> Result<Halves, ReadModelError> {
    let skus = std::slice::from_ref(sku);
    let (described, stock) = tokio::join!(described(reads, sku, choice), answers(reads, skus, choice));
    Ok(Halves { described, stock })
}

/// Product and prices, never behind what another generation told before.
async fn described(reads: &Reads, sku: &Sku, choice: &ReadChoice) -> Result<ProductAnswer, ReadModelError> {
    let take = |found: &ProductAnswer, is_late: bool| {
        let said = Said::by_page(sku, found.product.as_ref(), &found.prices);
        reads.page_marks.take(found.generation, &said, &found.position, is_late)
    };
    never_behind(LOOK_AGAIN, LOOK_AGAIN, || reads.api.search.product(sku, choice), take).await
}

fn refused(error: &ReadModelError) -> Problem {
    tracing::warn!(%error, "no part of the page can be read");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "No part of the page can be read").retry_after(2)
}

fn prices(found: Vec<read_models::search::RegionPrice>, region: Option<&RegionId>) -> Option<PricePart> {
    let regions: Vec<RegionPrice> = found
        .into_iter()
        .map(|price| RegionPrice { region: price.region, currency: price.currency, amount_minor: price.amount_minor })
        .collect();
    let asked = region.and_then(|region| regions.iter().find(|price| price.region == *region).cloned());
    match region {
        Some(_) if asked.is_none() => None,
        _ if regions.is_empty() => None,
        _ => Some(PricePart { asked, regions }),
    }
}

// === impl Halves ===

impl Halves {
    /// A half that could not be read says nothing, and stands on the page as missing.
    fn are_at(&self, min: &PositionToken) -> bool {
        let described = self.described.iter().all(|found| is_at(&found.position, min));
        described && self.stock.iter().flat_map(|found| &found.answers).all(|found| is_at(&found.position, min))
    }
}

// === impl ProductPart ===

impl ProductPart {
    fn of(product: Product, revised_at: Option<i64>) -> Self {
        Self {
            name: product.name,
            brand: product.brand,
            category_path: product.category_path,
            description: product.description,
            pack_size: product.pack_size,
            tags: product.tags,
            revised_at: revised_at.and_then(moment),
        }
    }
}
