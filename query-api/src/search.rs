//! `GET /v1/search` and `GET /v1/suggest`: products by text, facet and filter.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use read_models::search::{SearchAnswer, SearchRequest};
use read_models::{ReadChoice, ReadModelError};
use schemas::RegionId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Reads;
use crate::answer::{answer, moment, with_generation};
use crate::hit_marks::{LOOK_AGAIN, Said};
use crate::min_position::{is_at, min_position, read_at};
use crate::mirror;
use crate::problem::Problem;
use crate::step_back::never_behind;

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 100;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct SearchParams {
    /// Words of name, brand, category, description or tags; every word must match, the last one as a prefix too.
    q: Option<String>,
    /// Brands, joined by `|`; any of them.
    brand: Option<String>,
    /// Category paths such as `Vegetables/Onions`, joined by `|`; any of them, with all below it.
    category: Option<String>,
    /// Region for price, availability and the filters on them.
    region: Option<RegionId>,
    /// Only what is, or is not, in stock: in the region, or in any when none is given.
    in_stock: Option<bool>,
    /// Lowest price in minor units; needs a region.
    price_min: Option<i64>,
    /// Highest price in minor units; needs a region.
    price_max: Option<i64>,
    /// Hits on one page, 1 to 100; 20 unless given.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Whether to count facets; true unless given.
    facets: Option<bool>,
    /// Answer from this generation, whatever serves.
    generation: Option<u32>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct SuggestParams {
    /// Beginning of a product name.
    q: String,
    /// Suggestions, 1 to 20; 10 unless given.
    limit: Option<usize>,
}

/// Found products.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Found {
    /// All that match, on this page or not.
    total: u64,
    hits: Vec<Hit>,
    /// Counts by `brand` and by `category`, the most frequent first.
    facets: BTreeMap<&'static str, Vec<FacetCount>>,
    /// Give it as `cursor` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Hit {
    sku: String,
    name: String,
    brand: Option<String>,
    category_path: Vec<String>,
    pack_size: Option<String>,
    /// In the asked region.
    price: Option<Price>,
    /// Regions that have it in stock.
    in_stock_regions: Vec<String>,
    /// When the catalogue last changed it; absent while the read model does not keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    revised_at: Option<String>,
    /// True when newer events of this SKU could not be applied: this is the last good state.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    parked: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Price {
    /// ISO 4217.
    currency: String,
    /// Minor units.
    amount_minor: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FacetCount {
    value: String,
    count: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Suggestions {
    suggestions: Vec<String>,
}

/// Search products
#[utoipa::path(
    get, path = "/v1/search", tag = "reads",
    params(SearchParams, ("Millrace-Min-Position" = Option<String>, Header)),
    responses(
        (status = 200, body = Found),
        (status = 304, description = "As in If-None-Match"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn search(
    State(reads): State<Arc<Reads>>,
    headers: HeaderMap,
    params: Result<Query<SearchParams>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::bad_request(error.body_text()))?;
    let generation = params.generation;
    let request = request(params)?;
    let key = request.text.clone().unwrap_or_default();
    let choice = ReadChoice { generation, key, region: request.region.clone() };
    let min = min_position(&headers)?;
    let found = read_at(
        min.as_ref(),
        &reads.api.settings,
        |min, left| reads.api.search.wait_for(min, &choice, left),
        || hits(&reads, &request, &choice),
        |found: &SearchAnswer, min| is_at(&found.position, min),
    )
    .await?;
    let (position, named) = (found.position.clone(), named(found.generation));
    Ok(with_generation(answer(&headers, &Found::from(found), &position), &named))
}

/// What serves, never behind what another generation told before; mirrored where a stage wants that.
async fn hits(reads: &Reads, request: &SearchRequest, choice: &ReadChoice) -> Result<SearchAnswer, ReadModelError> {
    let api = &reads.api;
    let noted = reads.search_watch.begin(choice, api.settings.deadline);
    // Who asks for a generation by its number gets what it has.
    let take = |found: &SearchAnswer, is_late: bool| {
        choice.generation.is_some()
            || reads.search_marks.take(found.generation, &Said::by_hits(&found.hits), &found.position, is_late)
    };
    let search = || api.search.search(request.clone(), choice);
    let found = never_behind(LOOK_AGAIN, 8 * LOOK_AGAIN, search, take).await;
    // What the caller waited for, with all of it.
    noted.ended(found.as_ref().map(|found| found.generation));
    let found = found?;
    if choice.generation.is_none() {
        mirror::search(&reads.search_watch, &api.search, request, &found, api.settings.deadline);
    }
    Ok(found)
}

/// Complete a product name
#[utoipa::path(
    get, path = "/v1/suggest", tag = "reads",
    params(SuggestParams),
    responses((status = 200, body = Suggestions), (status = 400, body = Problem, content_type = "application/problem+json"))
)]
pub(crate) async fn suggest(
    State(reads): State<Arc<Reads>>,
    headers: HeaderMap,
    params: Result<Query<SuggestParams>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::bad_request(error.body_text()))?;
    let limit = params.limit.unwrap_or(10);
    if !(1..=20).contains(&limit) {
        return Err(Problem::bad_request(format!("limit {limit} is not between 1 and 20")));
    }
    let choice = ReadChoice { key: params.q.clone(), ..ReadChoice::default() };
    let found = reads.api.search.suggest(&params.q, limit, &choice).await?;
    let named = named(found.generation);
    Ok(with_generation(answer(&headers, &Suggestions { suggestions: found.names }, &found.position), &named))
}

pub(crate) fn named(generation: u32) -> String {
    format!("{}@{generation}", read_models::search::NAME)
}

fn request(params: SearchParams) -> Result<SearchRequest, Problem> {
    let limit = params.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Problem::bad_request(format!("limit {limit} is not between 1 and {MAX_LIMIT}")));
    }
    if (params.price_min.is_some() || params.price_max.is_some()) && params.region.is_none() {
        return Err(Problem::bad_request("price_min and price_max need a region: a price without one has no currency"));
    }
    Ok(SearchRequest {
        text: params.q,
        brand: list(params.brand),
        category: list(params.category),
        region: params.region,
        in_stock: params.in_stock,
        price_min: params.price_min,
        price_max: params.price_max,
        limit,
        cursor: params.cursor,
        facets: params.facets.unwrap_or(true),
    })
}

fn list(joined: Option<String>) -> Vec<String> {
    let joined = joined.unwrap_or_default();
    joined.split('|').map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned).collect()
}

impl From<SearchAnswer> for Found {
    fn from(found: SearchAnswer) -> Self {
        let counts = |facet: Vec<read_models::search::FacetCount>| {
            facet.into_iter().map(|count| FacetCount { value: count.value, count: count.count }).collect::<Vec<_>>()
        };
        let mut facets = BTreeMap::new();
        if let Some(found) = found.facets {
            facets.insert("brand", counts(found.brand));
            facets.insert("category", counts(found.category));
        }
        Self {
            total: found.total,
            hits: found
                .hits
                .into_iter()
                .map(|hit| Hit {
                    sku: hit.sku.to_string(),
                    name: hit.name,
                    brand: hit.brand,
                    category_path: hit.category_path,
                    pack_size: hit.pack_size,
                    price: hit.price.map(|price| Price { currency: price.currency, amount_minor: price.amount_minor }),
                    in_stock_regions: hit.in_stock.into_iter().map(|region| region.to_string()).collect(),
                    revised_at: hit.revised_at.and_then(moment),
                    parked: hit.parked,
                })
                .collect(),
            facets,
            next: found.next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> SearchParams {
        SearchParams {
            q: None,
            brand: None,
            category: None,
            region: None,
            in_stock: None,
            price_min: None,
            price_max: None,
            limit: None,
            cursor: None,
            facets: None,
            generation: None,
        }
    }

    #[test]
    fn a_price_filter_needs_a_region_and_the_limit_is_bounded() {
        assert!(request(SearchParams { price_min: Some(1), ..params() }).is_err());
        assert!(request(SearchParams { limit: Some(0), ..params() }).is_err());
        assert!(request(SearchParams { limit: Some(101), ..params() }).is_err());
        assert_eq!(request(params()).unwrap().limit, 20);
    }

    #[test]
    fn values_are_joined_by_a_bar() {
        let request = request(SearchParams { brand: Some("A, Inc| B|".to_owned()), ..params() }).unwrap();
        assert_eq!(request.brand, ["A, Inc", "B"]);
    }
}
