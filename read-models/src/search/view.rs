//! One state of the index, and everything that is answered from it: hits, facets, completions.

use std::sync::Arc;

use schemas::{PositionToken, Sku};
use tantivy::aggregation::agg_req::{Aggregation, AggregationVariants, Aggregations};
use tantivy::aggregation::agg_result::{AggregationResult, AggregationResults, BucketResult};
use tantivy::aggregation::bucket::TermsAggregation;
use tantivy::aggregation::{AggContextParams, AggregationCollector, Key};
use tantivy::collector::sort_key::{SortBySimilarityScore, SortByString};
use tantivy::collector::{Count, TopDocs};
use tantivy::query::Query;
use tantivy::schema::Value;
use tantivy::{DocAddress, Order, Searcher, TantivyDocument, TantivyError};

use crate::error::ReadModelError;
use crate::search::index::{Commit, Fields, Shown};
use crate::search::query::{self, Page, Plan};
use crate::search::scores::{Counts, Present};
use crate::search::{FacetCount, NAME, SearchAnswer, SearchFacets, SearchHit, SearchRequest};

/// Values of one facet.
const FACET_VALUES: u32 = 50;
/// Several products may have one name: so many more are looked at for each completion.
const NAMESAKES: usize = 5;

/// One state of the index.
#[derive(Clone)]
pub(super) struct View {
    pub(super) searcher: Searcher,
    pub(super) fields: Fields,
    pub(super) commit: Commit,
    /// At least the commit's.
    pub(super) position: PositionToken,
    pub(super) live: bool,
    pub(super) counts: Arc<Counts>,
}

// === impl View ===

impl View {
    pub(super) fn answer(
        &self,
        plan: &Plan,
        request: &SearchRequest,
    ) -> Result<Result<SearchAnswer, ReadModelError>, TantivyError> {
        let facets = request.facets.then(|| AggregationCollector::from_aggs(facets(), AggContextParams::default()));
        let (total, counted) = self.searcher.search(&plan.query, &(Count, facets))?;
        // One more than the page has, to see whether it is the last.
        let mut found = self.page(plan, request.limit.saturating_add(1))?;
        let has_more = found.len() > request.limit;
        found.truncate(request.limit);
        let mut hits = Vec::with_capacity(found.len());
        for address in found {
            match self.hit(address, request)? {
                Ok(hit) => hits.push(hit),
                Err(error) => return Ok(Err(error)),
            }
        }
        let next = hits.last().filter(|_| has_more).and_then(|last| plan.next(request.limit, &last.sku));
        Ok(Ok(SearchAnswer {
            total: total as u64,
            hits,
            facets: counted.map(|counted| SearchFacets {
                brand: counts(&counted, "brand"),
                category: counts(&counted, "category"),
            }),
            next,
            position: self.position.clone(),
            generation: self.commit.generation,
        }))
    }

    fn page(&self, plan: &Plan, limit: usize) -> Result<Vec<DocAddress>, TantivyError> {
        let query = plan.page_query(&self.fields);
        let by_sku = || (SortByString::for_field("sku"), Order::Asc);
        Ok(match plan.page {
            Page::After(_) => addresses(self.searcher.search(&query, &TopDocs::with_limit(limit).order_by(by_sku()))?),
            Page::Offset(offset) => {
                let present = Present { searcher: &self.searcher, fields: &self.fields, counts: &self.counts };
                let order = ((SortBySimilarityScore, Order::Desc), by_sku());
                let best = TopDocs::with_limit(limit).and_offset(offset).order_by(order);
                addresses(self.searcher.search_with_statistics_provider(&query, &best, &present)?)
            }
        })
    }

    fn hit(
        &self,
        address: DocAddress,
        request: &SearchRequest,
    ) -> Result<Result<SearchHit, ReadModelError>, TantivyError> {
        let document: TantivyDocument = self.searcher.doc(address)?;
        let text = |field| document.get_first(field).and_then(|value| value.as_str()).unwrap_or_default();
        let sku = match Sku::new(text(self.fields.sku)) {
            Ok(sku) => sku,
            Err(error) => return Ok(Err(damaged(error))),
        };
        let shown: Shown = match serde_json::from_str(text(self.fields.shown)) {
            Ok(shown) => shown,
            Err(error) => return Ok(Err(damaged(error))),
        };
        Ok(Ok(SearchHit {
            sku,
            name: shown.name,
            brand: shown.brand,
            category_path: shown.category_path,
            pack_size: shown.pack_size,
            price: shown.prices.into_iter().find(|price| Some(&price.region) == request.region.as_ref()),
            in_stock: shown.in_stock,
            revised_at: shown.revised_at,
            parked: shown.parked,
        }))
    }

    pub(super) fn suggestions(
        &self,
        typed: &str,
        limit: usize,
    ) -> Result<Result<Vec<String>, ReadModelError>, TantivyError> {
        let mut names: Vec<String> = Vec::new();
        let Some(beginning) = query::name_begins(&self.fields, typed).filter(|_| limit > 0) else {
            return Ok(Ok(names));
        };
        let of_any = SearchRequest::default();
        for query in [beginning, query::name_has(&self.fields, typed)] {
            let order =
                ((SortByString::for_field("name_key"), Order::Asc), (SortByString::for_field("sku"), Order::Asc));
            let top = TopDocs::with_limit(limit.saturating_mul(NAMESAKES)).order_by(order);
            for address in addresses(self.searcher.search(&query as &dyn Query, &top)?) {
                if names.len() == limit {
                    return Ok(Ok(names));
                }
                match self.hit(address, &of_any)? {
                    Ok(hit) if !names.contains(&hit.name) => names.push(hit.name),
                    Ok(_) => {}
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
        Ok(Ok(names))
    }
}

fn facets() -> Aggregations {
    let counted = |field: &str| {
        let terms = TermsAggregation {
            field: field.to_owned(),
            size: Some(FACET_VALUES),
            // A segment that keeps some of its values only gives counts that are too low.
            segment_size: Some(u32::MAX),
            ..TermsAggregation::default()
        };
        let agg = AggregationVariants::Terms(terms);
        (field.to_owned(), Aggregation { agg, sub_aggregation: Aggregations::default() })
    };
    ["brand", "category"].into_iter().map(counted).collect()
}

fn counts(counted: &AggregationResults, facet: &str) -> Vec<FacetCount> {
    let Some(AggregationResult::BucketResult(BucketResult::Terms { buckets, .. })) = counted.0.get(facet) else {
        return Vec::new();
    };
    let mut counts: Vec<FacetCount> = buckets
        .iter()
        .filter_map(|bucket| match &bucket.key {
            Key::Str(value) => Some(FacetCount { value: value.clone(), count: bucket.doc_count }),
            _ => None,
        })
        .collect();
    counts.sort_by(|left, right| right.count.cmp(&left.count).then_with(|| left.value.cmp(&right.value)));
    counts
}

fn addresses<K>(found: Vec<(K, DocAddress)>) -> Vec<DocAddress> {
    found.into_iter().map(|(_, address)| address).collect()
}

fn damaged(problem: impl std::fmt::Display) -> ReadModelError {
    ReadModelError::Damaged { name: NAME.to_owned(), problem: problem.to_string() }
}
