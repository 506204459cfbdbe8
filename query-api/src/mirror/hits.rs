//! What the hits of two generations say of one SKU, and when a difference between them is one.
//!
//! Answers of two generations are of different moments nearly always. A hit of the candidate is only held against the
//! live one where what it may have been is known: between two live answers that say the same of its SKU.

use std::collections::{BTreeMap, BTreeSet};

use read_models::generations::fields::{Fields, of_json};
use read_models::generations::meant::{MeantDifference, unmeant};
use read_models::search::{SearchAnswer, SearchHit};
use schemas::{RegionId, Sku};
use serde_json::json;

/// How often a SKU must have been found to differ, and never to agree: what changed to and fro between two answers of
/// the live generation is seen in the middle once, not time after time.
const SURE: u32 = 3;

/// What several readings showed of the SKUs that both generations found.
#[derive(Debug, Default)]
pub(super) struct Compared {
    agreed: BTreeSet<Sku>,
    differed: BTreeMap<Sku, u32>,
}

// === impl Compared ===

impl Compared {
    /// Compares an answer of the candidate with the live ones that were read before and after it.
    pub(super) fn note(
        &mut self,
        before: &SearchAnswer,
        candidate: &SearchAnswer,
        after: &SearchAnswer,
        meant: &[MeantDifference],
    ) {
        let is_between = candidate.position.covers(&before.position) && after.position.covers(&candidate.position);
        for hit in &candidate.hits {
            let (was, is) = (of(before, &hit.sku), of(after, &hit.sku));
            if was.into_iter().chain(is).any(|live| agree(live, hit, meant)) {
                self.agreed.insert(hit.sku.clone());
            } else if is_between && was == is && was.is_some_and(|was| !was.parked && !hit.parked) {
                // A redrive moves no position, and each generation makes its own: of a parked SKU nothing is certain.
                *self.differed.entry(hit.sku.clone()).or_default() += 1;
            }
        }
    }

    /// Whether each SKU that both answers have agreed once.
    pub(super) fn all_agreed(&self, live: &SearchAnswer, candidate: &SearchAnswer) -> bool {
        candidate.hits.iter().all(|hit| self.agreed.contains(&hit.sku) || of(live, &hit.sku).is_none())
    }

    /// A SKU that differs for certain.
    pub(super) fn differing(&self) -> Option<&Sku> {
        let mut differing = self.differed.iter().filter(|(sku, times)| **times >= SURE && !self.agreed.contains(*sku));
        differing.next().map(|(sku, _)| sku)
    }
}

fn of<'a>(answer: &'a SearchAnswer, sku: &Sku) -> Option<&'a SearchHit> {
    answer.hits.iter().find(|hit| hit.sku == *sku)
}

/// Whether two hits of one SKU differ in nothing but what is meant.
fn agree(live: &SearchHit, candidate: &SearchHit, meant: &[MeantDifference]) -> bool {
    if live == candidate {
        return true;
    }
    let is_meant = |region: Option<&RegionId>, live: &Fields, candidate: &Fields| {
        unmeant(live, candidate, |field, was, is| meant.iter().any(|meant| meant.covers(field, region, was, is)))
            .is_empty()
    };
    let prices_agree = match (&live.price, &candidate.price) {
        (None, None) => true,
        (Some(live), Some(candidate)) => {
            is_meant(Some(&live.region), &of_json(json!(live)), &of_json(json!(candidate)))
        }
        // A row that is missing is excused by no rule.
        _ => false,
    };
    // A hit tells of the stock whether there is any: whatever a rule lets become of it may be what shows.
    let mut stocked = live
        .in_stock
        .iter()
        .filter(|region| !candidate.in_stock.contains(region))
        .chain(candidate.in_stock.iter().filter(|region| !live.in_stock.contains(region)));
    let stock_agrees = stocked.all(|region| meant.iter().any(|meant| meant.is_of("available", Some(region))));
    live.parked == candidate.parked
        && is_meant(None, &product(live), &product(candidate))
        && prices_agree
        && stock_agrees
}

/// The product's part of a hit, named as its row is: rules are of rows.
fn product(hit: &SearchHit) -> Fields {
    // Taken apart, so that no new field is left out unseen.
    let SearchHit { sku: _, name, brand, category_path, pack_size, price: _, in_stock: _, revised_at, parked: _ } = hit;
    of_json(json!({
        "product": { "name": name, "brand": brand, "category_path": category_path, "pack_size": pack_size },
        "revised_at": revised_at,
    }))
}

#[cfg(test)]
mod tests {
    use read_models::generations::meant::Kind;
    use read_models::search::RegionPrice;
    use schemas::{Context, PositionToken, StorePosition};

    use super::*;

    fn region(name: &str) -> RegionId {
        RegionId::new(name).unwrap()
    }

    fn hit(amount_minor: i64) -> SearchHit {
        SearchHit {
            sku: Sku::new("A").unwrap(),
            name: "Leek".to_owned(),
            brand: None,
            category_path: vec!["food".to_owned()],
            pack_size: None,
            price: Some(RegionPrice { region: region("eu"), currency: "EUR".to_owned(), amount_minor }),
            in_stock: vec![region("eu")],
            revised_at: None,
            parked: false,
        }
    }

    fn at(position: u64, hit: SearchHit) -> SearchAnswer {
        SearchAnswer {
            total: 1,
            hits: vec![hit],
            facets: None,
            next: None,
            position: PositionToken::of(Context::Pricing, 0, StorePosition { xid: 0, position }),
            generation: 1,
        }
    }

    fn rule(field: &str, kind: Kind, regions: &[&str]) -> MeantDifference {
        let regions = regions.iter().map(|name| region(name)).collect();
        MeantDifference { field: field.to_owned(), kind, regions }
    }

    /// The SKU that differs after readings of the live generation, the candidate, the live generation again.
    fn differing(readings: &[[SearchAnswer; 3]]) -> Option<String> {
        let mut compared = Compared::default();
        for [before, candidate, after] in readings {
            compared.note(before, candidate, after, &[]);
        }
        compared.differing().map(ToString::to_string)
    }

    #[test]
    fn each_field_of_a_hit_is_compared() {
        let wrong: [fn(&mut SearchHit); 8] = [
            |hit| hit.name.push('s'),
            |hit| hit.brand = Some("B".to_owned()),
            |hit| hit.category_path.clear(),
            |hit| hit.pack_size = Some("1 kg".to_owned()),
            |hit| hit.price.as_mut().unwrap().amount_minor += 1,
            |hit| hit.price = None,
            |hit| hit.in_stock.clear(),
            |hit| hit.parked = true,
        ];
        for (number, change) in wrong.iter().enumerate() {
            let mut candidate = hit(100);
            change(&mut candidate);
            assert!(!agree(&hit(100), &candidate, &[]), "change {number}");
        }
        let reordered = |regions: [&str; 2]| SearchHit { in_stock: regions.map(region).to_vec(), ..hit(100) };
        assert!(agree(&reordered(["eu", "us"]), &reordered(["us", "eu"]), &[]));
    }

    #[test]
    fn what_rules_of_the_rows_let_pass_is_no_difference() {
        let newer = SearchHit { revised_at: Some(7), ..hit(100) };
        assert!(!agree(&hit(100), &newer, &[]));
        assert!(agree(&hit(100), &newer, &[rule("revised_at", Kind::New, &[])]));
        assert!(!agree(&newer, &hit(100), &[rule("revised_at", Kind::New, &[])]));
        let named = SearchHit { name: "leek".to_owned(), ..hit(100) };
        assert!(agree(&hit(100), &named, &[rule("product.name", Kind::Any, &[])]));

        let rounded = rule("amount_minor", Kind::Within(1.0), &["eu"]);
        assert!(agree(&hit(100), &hit(101), std::slice::from_ref(&rounded)));
        assert!(!agree(&hit(100), &hit(102), &[rounded]));
        assert!(!agree(&hit(100), &hit(101), &[rule("amount_minor", Kind::Within(1.0), &["us"])]));

        let sold_out = SearchHit { in_stock: Vec::new(), ..hit(100) };
        assert!(agree(&hit(100), &sold_out, &[rule("available", Kind::Within(3.0), &["eu"])]));
        assert!(!agree(&hit(100), &sold_out, &[rule("available", Kind::Within(3.0), &["us"])]));
    }

    #[test]
    fn a_wrong_field_differs_once_it_is_certain() {
        let wrong = |position| [at(position, hit(100)), at(position, hit(1)), at(position + 1, hit(100))];
        assert_eq!(differing(&[wrong(5), wrong(6), wrong(7)]).as_deref(), Some("A"));
        assert_eq!(differing(&[wrong(5), wrong(6)]), None, "it may have gone there and back");
        let right = [at(9, hit(100)), at(9, hit(100)), at(9, hit(100))];
        assert_eq!(differing(&[wrong(5), wrong(6), wrong(7), right]), None, "it agreed once");
    }

    #[test]
    fn only_what_is_known_of_a_moment_is_held_against_it() {
        let ahead = || [at(5, hit(100)), at(8, hit(101)), at(7, hit(100))];
        assert_eq!(differing(&[ahead(), ahead(), ahead()]), None);
        let behind = || [at(5, hit(100)), at(4, hit(99)), at(7, hit(100))];
        assert_eq!(differing(&[behind(), behind(), behind()]), None);
        let changes = |price| [at(5, hit(price)), at(6, hit(price + 1)), at(7, hit(price + 2))];
        assert_eq!(differing(&[changes(1), changes(2), changes(3)]), None);
    }

    #[test]
    fn only_hits_of_both_answers_must_have_agreed() {
        let mut compared = Compared::default();
        let (live, wrong) = (at(5, hit(100)), at(5, hit(1)));
        compared.note(&live, &wrong, &live, &[]);
        assert!(!compared.all_agreed(&live, &wrong));
        let other = at(5, SearchHit { sku: Sku::new("B").unwrap(), ..hit(100) });
        assert!(compared.all_agreed(&live, &other));
        compared.note(&live, &live, &live, &[]);
        assert!(compared.all_agreed(&live, &wrong), "as of another moment");
    }
}
