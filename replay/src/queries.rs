//! Parity of search answers: the same queries to both generations, compared by which hits come and in which order.
//!
//! Overlap is the share of the first hits that both have (Jaccard index of the two sets). Rank is rank-biased overlap
//! (Webber, Moffat and Zobel, "A similarity measure for indefinite rankings", ACM TOIS 28(4), 2010), extrapolated over
//! the hits that were asked for, with p = 0.9: differences at the top weigh most.
//!
//! Two generations of the same rows order their hits alike, but under load they are never asked at the same moment: a
//! query is below its bound only if it still is when it was asked again for a while.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Duration;

use read_models::search::{SearchAnswer, SearchReader, SearchRequest};
use read_models::{ReadChoice, ReadModelError};
use serde::Serialize;
use tokio::time::Instant;

/// Hits that are compared of each query.
const FIRST: usize = 20;
/// How fast a hit's weight falls with its place.
const PERSISTENCE: f64 = 0.9;
/// How long queries are asked again whose answers differ, and how long is waited between: one side may have applied
/// what the other has not shown yet.
pub const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// What a query must reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct QueryBounds {
    pub overlap: f64,
    pub rank: f64,
}

/// All queries.
#[derive(Debug, Clone, Serialize)]
pub struct QueryParity {
    pub bounds: QueryBounds,
    pub queries: Vec<QueryResult>,
}

/// One query.
#[derive(Debug, Clone, Serialize)]
pub struct QueryResult {
    pub query: String,
    pub live_total: u64,
    pub candidate_total: u64,
    /// 0 to 1.
    pub overlap: f64,
    /// 0 to 1.
    pub rank: f64,
}

impl Default for QueryBounds {
    fn default() -> Self {
        Self { overlap: 0.95, rank: 0.9 }
    }
}

// === impl QueryParity ===

impl QueryParity {
    pub fn is_clean(&self) -> bool {
        self.below_bound() == 0
    }

    pub fn below_bound(&self) -> usize {
        self.queries.iter().filter(|query| query.is_below(&self.bounds)).count()
    }

    pub fn worst_overlap(&self) -> f64 {
        self.queries.iter().map(|query| query.overlap).fold(1.0, f64::min)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "  queries   {} asked, {} below overlap {} or rank {}, worst overlap {:.3}\n",
            self.queries.len(),
            self.below_bound(),
            self.bounds.overlap,
            self.bounds.rank,
            self.worst_overlap(),
        );
        for query in self.queries.iter().filter(|query| query.is_below(&self.bounds)).take(20) {
            let _ = writeln!(
                text,
                "  query     {:?}: {} hits in live, {} in candidate, overlap {:.3}, rank {:.3}",
                query.query, query.live_total, query.candidate_total, query.overlap, query.rank
            );
        }
        text
    }
}

// === impl QueryResult ===

impl QueryResult {
    pub(crate) fn is_below(&self, bounds: &QueryBounds) -> bool {
        self.overlap < bounds.overlap || self.rank < bounds.rank
    }
}

/// Asks both generations the same, and again what differs, for `patience`. A query that the read model refuses is an
/// error: it says nothing about either.
pub async fn compare(
    live: &SearchReader,
    candidate: &SearchReader,
    queries: &[String],
    bounds: QueryBounds,
    patience: Duration,
) -> Result<QueryParity, ReadModelError> {
    let mut asked = Vec::with_capacity(queries.len());
    for query in queries {
        asked.push(ask(live, candidate, query).await?);
    }
    let until = Instant::now() + patience;
    let may_change = |one: &Asked| !one.is_of_one_moment && one.result.is_below(&bounds);
    while asked.iter().any(may_change) && Instant::now() < until {
        tokio::time::sleep(PAUSE).await;
        for one in asked.iter_mut().filter(|one| may_change(one)) {
            if Instant::now() >= until {
                break;
            }
            match ask(live, candidate, &one.result.query).await {
                Ok(again) => *one = again,
                // It has been answered before, and may be again.
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(QueryParity { bounds, queries: asked.into_iter().map(|one| one.result).collect() })
}

/// One query, asked of both.
struct Asked {
    result: QueryResult,
    /// Both answers are true at the same position: asking again would change nothing.
    is_of_one_moment: bool,
}

async fn ask(live: &SearchReader, candidate: &SearchReader, query: &str) -> Result<Asked, ReadModelError> {
    let request = SearchRequest { text: Some(query.to_owned()), limit: FIRST, ..SearchRequest::default() };
    let choice = ReadChoice { key: query.to_owned(), ..ReadChoice::default() };
    let (was, is) = tokio::try_join!(live.search(request.clone(), &choice), candidate.search(request, &choice))?;
    Ok(Asked { result: result(query, &was, &is), is_of_one_moment: was.position == is.position })
}

fn result(query: &str, live: &SearchAnswer, candidate: &SearchAnswer) -> QueryResult {
    let skus = |answer: &SearchAnswer| answer.hits.iter().map(|hit| hit.sku.to_string()).collect::<Vec<_>>();
    let (was, is) = (skus(live), skus(candidate));
    QueryResult {
        query: query.to_owned(),
        live_total: live.total,
        candidate_total: candidate.total,
        overlap: overlap(&was, &is),
        rank: rank_biased_overlap(&was, &is),
    }
}

fn overlap(left: &[String], right: &[String]) -> f64 {
    let (left, right): (HashSet<_>, HashSet<_>) = (left.iter().collect(), right.iter().collect());
    let all = left.union(&right).count();
    if all == 0 { 1.0 } else { left.intersection(&right).count() as f64 / all as f64 }
}

/// The extrapolated form, for two lists of about the same length.
fn rank_biased_overlap(left: &[String], right: &[String]) -> f64 {
    let depth = left.len().max(right.len());
    if depth == 0 {
        return 1.0;
    }
    let (mut seen_left, mut seen_right) = (HashSet::new(), HashSet::new());
    let (mut common, mut sum, mut weight) = (0.0, 0.0, 1.0);
    for place in 0..depth {
        let (one, other) = (left.get(place), right.get(place));
        if let (Some(one), Some(other)) = (one, other)
            && one == other
        {
            common += 1.0;
        } else {
            common += one.is_some_and(|one| seen_right.contains(one)) as u32 as f64;
            common += other.is_some_and(|other| seen_left.contains(other)) as u32 as f64;
        }
        seen_left.extend(one);
        seen_right.extend(other);
        weight *= PERSISTENCE;
        sum += common / (place + 1) as f64 * weight;
    }
    let agreement = common / depth as f64;
    agreement * weight + sum * (1.0 - PERSISTENCE) / PERSISTENCE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &str) -> Vec<String> {
        names.chars().map(String::from).collect()
    }

    #[test]
    fn equal_lists_agree_wholly_and_foreign_ones_not_at_all() {
        assert!((rank_biased_overlap(&list("abcde"), &list("abcde")) - 1.0).abs() < 1e-9);
        assert_eq!(rank_biased_overlap(&list("abc"), &list("xyz")), 0.0);
        assert_eq!((overlap(&list("abc"), &list("cba")), overlap(&[], &[])), (1.0, 1.0));
        assert_eq!(rank_biased_overlap(&[], &[]), 1.0);
    }

    #[test]
    fn a_change_at_the_top_weighs_more_than_one_at_the_end() {
        let top = rank_biased_overlap(&list("abcdefgh"), &list("bacdefgh"));
        let end = rank_biased_overlap(&list("abcdefgh"), &list("abcdefhg"));
        assert!(top < end && end < 1.0, "{top} {end}");
        assert_eq!(overlap(&list("abcd"), &list("abce")), 0.6);
    }
}
