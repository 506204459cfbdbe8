//! The check is shown what right readers see, which it must pass, and then one thing wrong at a time.

use super::*;
use crate::oracle::answers::{Answered, Shown};

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Of one SKU by one generation, at a time, taking 10 ms.
fn stock(at: f64, generation: u32, version: u64) -> Answer {
    let is_new = usize::from(generation == 2);
    let row = Answered { sku: "A".to_owned(), warehouse: "w".to_owned(), version, on_hand: 1, reserved: 0 };
    Answer {
        begun: seconds(at),
        at: seconds(at + 0.01),
        asked: "/v1/stock/A".to_owned(),
        status: 200,
        generations: vec![format!("stock@{generation}")],
        folds: vec![Shown { model: "stock", with_new_field: is_new, without: 1 - is_new }],
        stock: vec![row],
        ..Answer::default()
    }
}

fn product(at: f64, asked: &str, generation: u32, name: &str) -> Answer {
    Answer {
        asked: asked.to_owned(),
        generations: vec![format!("search@{generation}")],
        folds: Vec::new(),
        stock: Vec::new(),
        names: vec![("A".to_owned(), name.to_owned())],
        ..stock(at, 1, 1)
    }
}

/// A flip to the second generation between 5 s and 5.1 s.
fn noted() -> Noted {
    let span = |from, to, routing| Span { from: seconds(from), to: seconds(to), routing };
    Noted {
        model: "stock",
        folds: BTreeMap::from([(1, 1), (2, 2)]),
        spans: vec![span(0.0, 5.0, Routing::All(1)), span(5.1, 9.0, Routing::All(2))],
        flips: vec![Flip { what: "cutover".to_owned(), from: 1, asked: seconds(5.0), answered: seconds(5.1) }],
        down: vec![(seconds(7.0), seconds(7.5))],
        unfed: vec![(seconds(8.0), seconds(8.5))],
        follow: seconds(0.1),
    }
}

fn seen(answers: &[Answer]) -> Seen {
    let (violations, seen) = check(&Expected::default(), answers, &noted());
    let counted = seen.errors + seen.mixed + seen.steps_back;
    assert_eq!(violations.is_empty(), counted == 0, "{violations:?}");
    seen
}

#[test]
fn readers_who_follow_a_flip_are_right_and_it_is_timed() {
    let seen = seen(&[stock(1.0, 1, 1), stock(4.9, 1, 2), stock(5.05, 1, 3), stock(5.15, 2, 3), stock(6.0, 2, 9)]);
    assert_eq!((seen.reads, seen.errors, seen.mixed, seen.steps_back), (5, 0, 0, 0));
    assert_eq!(seen.flips[0].old_after_ms, 0.0);
    assert!((seen.flips[0].old_since_asked_ms - 50.0).abs() < 1.0, "{:?}", seen.flips);
}

#[test]
fn an_answer_of_the_old_generation_after_a_flip_is_found_and_timed() {
    let seen = seen(&[stock(1.0, 1, 1), stock(5.4, 1, 1), stock(6.0, 2, 1)]);
    assert_eq!(seen.mixed, 1);
    assert!((seen.flips[0].old_after_ms - 300.0).abs() < 1.0, "{:?}", seen.flips);
}

#[test]
fn an_answer_of_two_generations_of_none_or_with_rows_of_another_fold_is_found() {
    let named = |generations: &[&str]| {
        let generations = generations.iter().map(|name| (*name).to_owned()).collect();
        seen(&[Answer { generations, ..stock(1.0, 1, 1) }]).mixed
    };
    assert_eq!(named(&["stock@1"]), 0);
    assert!(named(&["stock@1", "stock@2"]) > 0);
    assert!(named(&["stock@1", "search@1"]) > 0);
    assert!(named(&[]) > 0);
    assert!(named(&["stock@3"]) > 0);
    let new = Shown { model: "stock", with_new_field: 1, without: 1 };
    assert_eq!(seen(&[Answer { folds: vec![new.clone()], ..stock(1.0, 1, 1) }]).mixed, 1);
    assert_eq!(seen(&[Answer { folds: vec![new], ..stock(6.0, 2, 1) }]).mixed, 1);
}

#[test]
fn an_error_counts_unless_something_is_down() {
    let failed = |at, status| Answer { status, ..stock(at, 1, 1) };
    let page = Answer { lacks: vec!["stock".to_owned()], ..stock(1.0, 1, 1) };
    let all = seen(&[failed(1.0, 503), failed(1.0, 0), page.clone(), failed(7.2, 503)]);
    assert_eq!((all.errors, all.errors_while_down), (3, 1));
}

#[test]
fn a_version_below_one_that_was_told_before_is_found_across_generations_and_readers() {
    assert_eq!(seen(&[stock(1.0, 1, 5), stock(2.0, 1, 4)]).steps_back, 1);
    assert_eq!(seen(&[stock(4.0, 1, 5), stock(6.0, 2, 4)]).steps_back, 1);
    // Both were under way at once: none of them came first.
    assert_eq!(seen(&[stock(1.0, 1, 5), stock(1.005, 1, 4)]).steps_back, 0);
    // What was told earlier counts, not what came last.
    assert_eq!(seen(&[stock(1.0, 1, 5), stock(1.002, 1, 3), stock(2.0, 1, 4)]).steps_back, 1);
}

#[test]
fn only_a_switch_to_what_is_not_fed_may_show_an_older_version_and_is_counted() {
    let across = seen(&[stock(4.0, 1, 5), stock(8.2, 2, 4)]);
    assert_eq!((across.steps_back, across.steps_back_while_unfed), (0, 1));
    assert_eq!(seen(&[stock(4.0, 1, 5), stock(8.6, 2, 4)]).steps_back, 1);
    assert_eq!(seen(&[stock(6.0, 2, 5), stock(8.2, 2, 4)]).steps_back, 1);
    // Nor does a switch hide what the generation itself does.
    assert_eq!(seen(&[stock(4.0, 1, 9), stock(8.1, 2, 5), stock(8.2, 2, 4)]).steps_back, 1);
}

#[test]
fn products_step_back_by_the_order_of_their_names_and_pages_are_not_searches() {
    let mut expected = Expected::default();
    expected.versions.insert("A".to_owned(), ["a", "b", "c", "b"].map(str::to_owned).to_vec());
    let steps = |answers: &[Answer]| steps_back(&expected, answers).len();
    let search = |at, name: &str| product(at, "/v1/search?limit=5", 1, name);
    let page = |at, name: &str| product(at, "/v1/products/A", 1, name);
    assert_eq!(steps(&[search(1.0, "a"), search(2.0, "c"), page(3.0, "a")]), 0);
    assert_eq!(steps(&[search(1.0, "c"), search(2.0, "a")]), 1);
    assert_eq!(steps(&[page(1.0, "c"), page(2.0, "a")]), 1);
    // It was called so before and after.
    assert_eq!(steps(&[search(1.0, "c"), search(2.0, "b")]), 0);
}

#[test]
fn a_share_is_always_of_the_same_keys_and_a_region_of_its_own_requests() {
    let span = |routing| Noted { spans: vec![Span { from: seconds(0.0), to: seconds(9.0), routing }], ..noted() };
    let wrong = |noted: &Noted, answers: &[Answer]| elsewhere(&noted.spans[0], answers, noted).count();
    let of = |asked: &str, generation| Answer { asked: asked.to_owned(), ..stock(1.0, generation, 1) };
    let share = span(Routing::Share { serving: 1, candidate: 2 });
    assert_eq!(wrong(&share, &[of("/v1/stock/A", 2), of("/v1/stock/B", 1), of("/v1/stock?sku=A,B", 2)]), 0);
    assert_eq!(wrong(&share, &[of("/v1/stock/A", 2), of("/v1/stock/A?region=north", 1)]), 1);
    assert_eq!(wrong(&share, &[of("/v1/stock/A", 3)]), 1);
    let region = span(Routing::Region { region: "north".to_owned(), serving: 1, candidate: 2 });
    assert_eq!(wrong(&region, &[of("/v1/stock/A?region=north", 2), of("/v1/stock/A?region=south", 1)]), 0);
    assert_eq!(wrong(&region, &[of("/v1/stock/A?region=north", 1), of("/v1/stock/A", 2)]), 2);
}

#[test]
fn the_key_of_a_path_is_what_the_hash_is_of() {
    assert_eq!(key("/v1/stock/A?region=north").1, "A");
    assert_eq!(key("/v1/stock?sku=A,B").1, "A");
    assert_eq!(key("/v1/products/A").1, "A");
    assert_eq!(key("/v1/search?q=7+product&limit=5").1, "7+product");
    assert_eq!(key("/v1/search?brand=Brand%207&limit=5").1, "");
    assert_eq!(key("/v1/search?limit=5&facets=false").1, "");
}
