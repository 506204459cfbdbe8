//! From a request to tantivy queries, and to pages.
//!
//! What a user types is words, never syntax, so that no text is malformed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Bound;

use schemas::Sku;
use tantivy::Term;
use tantivy::query::{
    AllQuery, BooleanQuery, BoostQuery, ConstScoreQuery, EmptyQuery, Occur, Query, RangeQuery, TermQuery,
};
use tantivy::schema::{Field, IndexRecordOption};

use crate::error::ReadModelError;
use crate::search::SearchRequest;
use crate::search::index::{ANY_REGION, Fields, folded, price_term, words_of};

/// Bounds what one request can cost.
const MAX_WORDS: usize = 32;
/// Deepest hit of a text query: each page costs as much as all before it.
const MAX_WINDOW: usize = 10_000;
/// How much more a word in the name says than one elsewhere.
const NAME_BOOST: f32 = 4.0;
/// A word that only begins so says less than the word itself.
const BEGINNING_BOOST: f32 = 0.5;

/// A checked request.
#[derive(Debug)]
pub(super) struct Plan {
    /// All that matches.
    pub(super) query: Box<dyn Query>,
    pub(super) page: Page,
    /// Of everything in the request but limit and cursor.
    fingerprint: u64,
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Page {
    /// By SKU, after this one.
    After(Option<Sku>),
    /// By score, after so many.
    Offset(usize),
}

// === impl Plan ===

impl Plan {
    pub(super) fn new(fields: &Fields, request: &SearchRequest) -> Result<Self, ReadModelError> {
        if request.limit == 0 {
            return Err(refused("limit 0 asks for nothing"));
        }
        let words = words_of(request.text.as_deref().unwrap_or_default());
        if words.len() > MAX_WORDS {
            return Err(refused(format!("{} words are more than {MAX_WORDS}", words.len())));
        }
        let fingerprint = fingerprint(request, &words);
        let first = if words.is_empty() { Page::After(None) } else { Page::Offset(0) };
        let page = match &request.cursor {
            Some(cursor) => page_of(cursor, fingerprint, &first)
                .ok_or_else(|| refused("the cursor is not one of this search: begin again without it"))?,
            None => first,
        };
        Ok(Self { query: query(fields, request, &words)?, page, fingerprint })
    }

    /// What is on the page and behind it.
    pub(super) fn page_query(&self, fields: &Fields) -> Box<dyn Query> {
        let Page::After(Some(sku)) = &self.page else { return self.query.box_clone() };
        let behind = RangeQuery::new(Bound::Excluded(fields.key(sku)), Bound::Unbounded);
        Box::new(BooleanQuery::new(vec![(Occur::Must, self.query.box_clone()), (Occur::Must, Box::new(behind))]))
    }

    /// The cursor behind a full page whose last hit is `last`.
    pub(super) fn next(&self, limit: usize, last: &Sku) -> Option<String> {
        let place = match self.page {
            Page::After(_) => last.to_string(),
            Page::Offset(offset) if offset + limit < MAX_WINDOW => (offset + limit).to_string(),
            Page::Offset(_) => return None,
        };
        Some(format!("{:016x}-{place}", self.fingerprint))
    }
}

fn fingerprint(request: &SearchRequest, words: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    words.hash(&mut hasher);
    request.brand.hash(&mut hasher);
    request.category.hash(&mut hasher);
    request.region.hash(&mut hasher);
    request.in_stock.hash(&mut hasher);
    request.price_min.hash(&mut hasher);
    request.price_max.hash(&mut hasher);
    hasher.finish()
}

fn page_of(cursor: &str, fingerprint: u64, first: &Page) -> Option<Page> {
    let (found, place) = cursor.split_once('-')?;
    if found != format!("{fingerprint:016x}") {
        return None;
    }
    match first {
        Page::After(_) => Some(Page::After(Some(Sku::new(place).ok()?))),
        Page::Offset(_) => place.parse().ok().filter(|offset| *offset < MAX_WINDOW).map(Page::Offset),
    }
}

fn query(fields: &Fields, request: &SearchRequest, words: &[String]) -> Result<Box<dyn Query>, ReadModelError> {
    let matching =
        all_of(words, &[(fields.name, NAME_BOOST), (fields.text, 1.0)]).unwrap_or_else(|| Box::new(AllQuery));
    let mut clauses = vec![(Occur::Must, matching)];
    let mut filter = |occur, query| clauses.push((occur, Box::new(ConstScoreQuery::new(query, 0.0)) as Box<dyn Query>));
    if !request.brand.is_empty() {
        filter(Occur::Must, any_of(fields.brand, request.brand.iter().map(String::as_str)));
    }
    if !request.category.is_empty() {
        let paths = request.category.iter().map(|path| path.trim_matches('/'));
        filter(Occur::Must, any_of(fields.category, paths));
    }
    if let Some(in_stock) = request.in_stock {
        let region = request.region.as_ref().map_or(ANY_REGION, |region| region.as_str());
        let occur = if in_stock { Occur::Must } else { Occur::MustNot };
        filter(occur, any_of(fields.in_stock, [region]));
    }
    if request.price_min.is_some() || request.price_max.is_some() {
        let Some(region) = &request.region else {
            return Err(refused("a price filter needs a region: a price without one has no currency"));
        };
        let bound = |amount| Term::from_field_text(fields.price, &price_term(region, amount));
        let lowest = request.price_min.unwrap_or(i64::MIN);
        let highest = request.price_max.unwrap_or(i64::MAX);
        if lowest > highest {
            return Err(refused(format!("no price is at least {lowest} and at most {highest}")));
        }
        let prices = RangeQuery::new(Bound::Included(bound(lowest)), Bound::Included(bound(highest)));
        filter(Occur::Must, Box::new(prices));
    }
    Ok(Box::new(BooleanQuery::new(clauses)))
}

/// Names that begin as typed.
pub(super) fn name_begins(fields: &Fields, typed: &str) -> Option<Box<dyn Query>> {
    let beginning = folded(typed);
    (!beginning.is_empty()).then(|| begins(fields.name_key, &beginning))
}

/// Names that have every typed word, the last one as a beginning.
pub(super) fn name_has(fields: &Fields, typed: &str) -> Box<dyn Query> {
    let mut words = words_of(typed);
    words.truncate(MAX_WORDS);
    all_of(&words, &[(fields.name, 1.0)]).unwrap_or_else(|| Box::new(EmptyQuery))
}

/// What has every word; `None` without words.
///
/// Of two words at a time: tantivy adds up the scores of several in an order that differs between segments, and so
/// differ the last bits of their sum. The sum of two has one order, and the places of one word keep theirs.
fn all_of(words: &[String], fields: &[(Field, f32)]) -> Option<Box<dyn Query>> {
    let queries = words.iter().enumerate().map(|(index, word)| word_query(word, index + 1 == words.len(), fields));
    queries.reduce(|before, word| Box::new(BooleanQuery::new(vec![(Occur::Must, before), (Occur::Must, word)])))
}

/// The last word may be a beginning.
fn word_query(word: &str, is_last: bool, fields: &[(Field, f32)]) -> Box<dyn Query> {
    let mut places: Vec<(Occur, Box<dyn Query>)> = Vec::new();
    for &(field, boost) in fields {
        let whole = TermQuery::new(Term::from_field_text(field, word), IndexRecordOption::WithFreqs);
        places.push((Occur::Should, Box::new(BoostQuery::new(Box::new(whole), boost))));
        if is_last {
            let beginning = ConstScoreQuery::new(begins(field, word), boost * BEGINNING_BOOST);
            places.push((Occur::Should, Box::new(beginning)));
        }
    }
    Box::new(BooleanQuery::new(places))
}

fn begins(field: Field, beginning: &str) -> Box<dyn Query> {
    let last = format!("{beginning}{}", char::MAX);
    Box::new(RangeQuery::new(
        Bound::Included(Term::from_field_text(field, beginning)),
        Bound::Excluded(Term::from_field_text(field, &last)),
    ))
}

fn any_of<'a>(field: Field, values: impl IntoIterator<Item = &'a str>) -> Box<dyn Query> {
    let clauses = values.into_iter().map(|value| {
        let term = TermQuery::new(Term::from_field_text(field, value), IndexRecordOption::Basic);
        (Occur::Should, Box::new(term) as Box<dyn Query>)
    });
    Box::new(BooleanQuery::new(clauses.collect()))
}

fn refused(problem: impl Into<String>) -> ReadModelError {
    ReadModelError::Query { problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(text: &str) -> SearchRequest {
        SearchRequest { text: Some(text.to_owned()), limit: 10, ..SearchRequest::default() }
    }

    proptest! {
        #[test]
        fn any_text_and_any_cursor_is_a_plan_or_a_clear_error(text in ".{0,200}", cursor in ".{0,40}") {
            let (_, fields) = Fields::schema();
            let _ = Plan::new(&fields, &request(&text));
            let with_cursor = SearchRequest { cursor: Some(cursor), ..request(&text) };
            let refused = matches!(Plan::new(&fields, &with_cursor), Err(ReadModelError::Query { .. }));
            prop_assert!(refused);
        }
    }

    #[test]
    fn a_cursor_belongs_to_its_search() {
        let (_, fields) = Fields::schema();
        let sku = Sku::new("A-1").unwrap();
        let onions = Plan::new(&fields, &request("onion")).unwrap().next(10, &sku);
        let again = Plan::new(&fields, &SearchRequest { cursor: onions.clone(), ..request("onion") }).unwrap();
        assert_eq!(again.page, Page::Offset(10));
        assert!(Plan::new(&fields, &SearchRequest { cursor: onions, ..request("leek") }).is_err());

        let all = Plan::new(&fields, &request("")).unwrap().next(10, &sku);
        let behind = Plan::new(&fields, &SearchRequest { cursor: all, ..request("") }).unwrap();
        assert_eq!(behind.page, Page::After(Some(sku)));
    }

    #[test]
    fn pages_of_text_end() {
        let (_, fields) = Fields::schema();
        let mut plan = Plan::new(&fields, &request("onion")).unwrap();
        plan.page = Page::Offset(MAX_WINDOW - 10);
        assert_eq!(plan.next(10, &Sku::new("A").unwrap()), None);
    }

    #[test]
    fn a_price_needs_a_region_and_a_range_that_is_one() {
        let (_, fields) = Fields::schema();
        let priced = SearchRequest { price_min: Some(5), ..request("") };
        assert!(matches!(Plan::new(&fields, &priced), Err(ReadModelError::Query { .. })));
        let region = schemas::RegionId::new("eu").ok();
        let crossed = SearchRequest { price_max: Some(4), region, ..priced };
        assert!(matches!(Plan::new(&fields, &crossed), Err(ReadModelError::Query { .. })));
    }
}
