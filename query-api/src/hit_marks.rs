//! Keeps products from stepping back when another generation of search answers, as [`crate::marks`] does for stock.
//!
//! A hit has no version. So the last answer of each SKU leaves what it said and the position that it is true at; an
//! answer of another generation that says something else, and is not true at that position yet, may be older: it is
//! asked for again, until that generation is there too, for a while.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use read_models::search::{RegionPrice, SearchHit};
use schemas::event::Product;
use schemas::{PositionToken, Sku};

/// A generation of search commits ten times a second.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Marks before the older half of what is known is forgotten.
const MOST: usize = 100_000;

/// What an answer says of one SKU, or of its price in one region.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Said {
    /// SKU and region; no region for what is the same in all.
    about: (Sku, String),
    said: u64,
}

struct Mark {
    generation: u32,
    said: u64,
    position: Arc<PositionToken>,
}

/// The last answer of each SKU, of those asked for lately.
#[derive(Default)]
pub(crate) struct HitMarks {
    marks: Mutex<Halves>,
}

#[derive(Default)]
struct Halves {
    /// Of the last mark: answers of one commit share it.
    position: Arc<PositionToken>,
    newer: HashMap<(Sku, String), Mark>,
    older: HashMap<(Sku, String), Mark>,
}

// === impl Said ===

impl Said {
    pub(crate) fn by_hits(hits: &[SearchHit]) -> Vec<Self> {
        let mut said = Vec::with_capacity(hits.len() * 2);
        for hit in hits {
            let SearchHit { sku, name, brand, category_path, pack_size, price, in_stock, .. } = hit;
            said.push(Self::of(sku, "", &(name, brand, category_path, pack_size, in_stock)));
            said.extend(price.iter().map(|price| Self::price(sku, price)));
        }
        said
    }

    pub(crate) fn by_page(sku: &Sku, product: Option<&Product>, prices: &[RegionPrice]) -> Vec<Self> {
        let described = product.map(|product| {
            let Product { name, brand, category_path, description, pack_size, tags, .. } = product;
            (name, brand, category_path, description, pack_size, tags)
        });
        let mut said = vec![Self::of(sku, "", &described)];
        said.extend(prices.iter().map(|price| Self::price(sku, price)));
        said
    }

    fn price(sku: &Sku, price: &RegionPrice) -> Self {
        Self::of(sku, price.region.as_str(), &(&price.currency, price.amount_minor))
    }

    fn of(sku: &Sku, region: &str, what: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self { about: (sku.clone(), region.to_owned()), said: hasher.finish() }
    }
}

// === impl HitMarks ===

impl HitMarks {
    /// Takes what one answer says. `false` when it may be behind what another generation has told; then none is noted.
    /// An answer that `is_late` has waited long enough, and is taken as it is.
    pub(crate) fn take(&self, generation: u32, said: &[Said], position: &PositionToken, is_late: bool) -> bool {
        let mut halves = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_behind =
            said.iter().any(|said| halves.of(said).is_some_and(|mark| mark.is_ahead(generation, said, position)));
        if is_behind && !is_late {
            return false;
        }
        if is_behind {
            tracing::warn!(generation, "a generation of search is behind what another one has told");
        }
        halves.note(generation, said, position);
        true
    }
}

// === impl Mark ===

impl Mark {
    fn is_ahead(&self, generation: u32, said: &Said, position: &PositionToken) -> bool {
        self.generation != generation && self.said != said.said && !position.covers(&self.position)
    }
}

// === impl Halves ===

impl Halves {
    fn of(&self, said: &Said) -> Option<&Mark> {
        self.newer.get(&said.about).or_else(|| self.older.get(&said.about))
    }

    fn note(&mut self, generation: u32, said: &[Said], position: &PositionToken) {
        if *self.position != *position {
            self.position = Arc::new(position.clone());
        }
        let position = Arc::clone(&self.position);
        for said in said {
            // A slower read of the same generation, which was asked for earlier, takes no mark back.
            let is_newer =
                self.of(said).is_none_or(|held| held.generation != generation || position.covers(&held.position));
            if !is_newer {
                continue;
            }
            if self.newer.len() >= MOST / 2 {
                self.older = std::mem::take(&mut self.newer);
            }
            let mark = Mark { generation, said: said.said, position: Arc::clone(&position) };
            self.newer.insert(said.about.clone(), mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::{Context, StorePosition};

    use super::*;

    fn at(position: u64) -> PositionToken {
        PositionToken::of(Context::Catalogue, 0, StorePosition { xid: 0, position })
    }

    fn said(sku: &str, what: &str) -> [Said; 1] {
        [Said::of(&Sku::new(sku).unwrap(), "", &what)]
    }

    #[test]
    fn another_generation_that_says_something_else_waits_until_it_is_as_far() {
        let marks = HitMarks::default();
        assert!(marks.take(1, &said("A", "new"), &at(5), false));
        assert!(!marks.take(2, &said("A", "old"), &at(4), false));
        assert!(marks.take(2, &said("B", "old"), &at(4), false), "of another product nothing was told");
        assert!(marks.take(2, &said("A", "new"), &at(4), false), "what is the same cannot be a step back");
        assert!(marks.take(1, &said("A", "newer"), &at(6), false));
        assert!(!marks.take(2, &said("A", "new"), &at(5), false));
        assert!(marks.take(2, &said("A", "newest"), &at(7), false));
        assert!(marks.take(1, &said("A", "older"), &at(2), true), "it has waited long enough");
    }

    #[test]
    fn the_same_generation_is_never_held_back_and_a_slower_read_takes_no_mark_back() {
        let marks = HitMarks::default();
        assert!(marks.take(1, &said("A", "new"), &at(5), false));
        assert!(marks.take(1, &said("A", "old"), &at(4), false));
        assert!(!marks.take(2, &said("A", "old"), &at(4), false));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let marks = HitMarks::default();
        for number in 0..3 * MOST {
            assert!(marks.take(1, &said(&number.to_string(), "x"), &at(1), false));
        }
        let halves = marks.marks.lock().unwrap();
        assert!(halves.newer.len() + halves.older.len() <= MOST);
    }
}
