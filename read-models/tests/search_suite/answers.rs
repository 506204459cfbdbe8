//! What the search read model answers.

use std::collections::BTreeSet;
use std::time::Duration;

use read_models::ReadModelError;
use read_models::search::{FacetCount, RegionPrice, SearchRequest};
use schemas::event::Product;

use super::*;

fn onions() -> Product {
    Product {
        brand: Some("Grønt & Co".to_owned()),
        category_path: vec!["Vegetables".to_owned(), "Onions".to_owned()],
        description: Some("Crisp, for the pan".to_owned()),
        pack_size: Some("500 g".to_owned()),
        tags: vec!["organic".to_owned()],
        ..plain("A-1", "Red Onions")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_word_must_match_and_the_last_may_be_a_beginning() {
    let store = Fixture::live().await;
    store.show(vec![product(onions()), named("B-2", "Red Cabbage"), named("C-3", "Crème Fraîche")]).await;
    for (typed, expected) in [
        ("red", vec!["A-1", "B-2"]),
        ("RED oni", vec!["A-1"]),
        ("oni red", vec![]),
        ("onions red", vec!["A-1"]),
        ("red leek", vec![]),
        ("grønt", vec!["A-1"]),
        ("gront vegetab", vec!["A-1"]),
        ("organic crisp pan", vec!["A-1"]),
        ("500", vec![]),
        ("CREME fraiche", vec!["C-3"]),
        ("crème", vec!["C-3"]),
        ("cr", vec!["C-3", "A-1"]),
        ("  ?! ", vec!["A-1", "B-2", "C-3"]),
        ("name:red OR (\"", vec![]),
        ("red\u{0}*~^[", vec!["A-1", "B-2"]),
    ] {
        let mut found = store.skus(text(typed)).await;
        let mut expected = expected;
        if typed != "cr" {
            found.sort();
            expected.sort();
        }
        assert_eq!(found, expected, "{typed:?}");
    }
    let many = "word ".repeat(33);
    assert!(matches!(store.reader.search(text(&many), &unchosen()).await, Err(ReadModelError::Query { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_in_the_name_comes_before_one_elsewhere_and_equals_by_sku() {
    let store = Fixture::live().await;
    let elsewhere = Product { description: Some("goes with leek".to_owned()), ..plain("A", "Potatoes") };
    store.show(vec![product(elsewhere), named("C", "Leek"), named("B", "Leek")]).await;
    assert_eq!(store.skus(text("leek")).await, ["B", "C", "A"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_shows_all_parts_with_the_price_of_the_region() {
    let store = Fixture::live().await;
    store
        .show(vec![
            product(onions()),
            price("A-1", "eu-north", 120),
            price("A-1", "eu-south", 130),
            stock("A-1", "w1", "eu-south", 4),
            stock("A-1", "w2", "eu-north", 0),
        ])
        .await;
    let hit = store.found(SearchRequest { region: Some(region("eu-south")), ..all() }).await.hits.remove(0);
    assert_eq!((hit.name.as_str(), hit.pack_size.as_deref()), ("Red Onions", Some("500 g")));
    assert_eq!((hit.brand, hit.category_path), (onions().brand, onions().category_path));
    let expected = RegionPrice { region: region("eu-south"), currency: "EUR".to_owned(), amount_minor: 130 };
    assert_eq!((hit.price, hit.in_stock), (Some(expected), vec![region("eu-south")]));
    assert_eq!(store.found(all()).await.hits.remove(0).price, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_joined_by_and_their_values_by_or() {
    let store = Fixture::live().await;
    let made = |sku: &str, brand: &str, path: &[&str]| {
        let category_path = path.iter().map(|name| (*name).to_owned()).collect();
        product(Product { brand: Some(brand.to_owned()), category_path, ..plain(sku, "Thing") })
    };
    store
        .show(vec![
            made("A", "Acme", &["Food", "Fruit"]),
            made("B", "Acme", &["Food"]),
            made("C", "Best", &["Food", "Fruit", "Apples"]),
            made("D", "Best Foods", &["Foodstuff"]),
            price("A", "eu", 99),
            price("B", "eu", 100),
            price("C", "eu", 1_000),
            price("C", "us", 100),
            price("D", "e", 100),
            stock("A", "w1", "eu", 1),
            stock("B", "w1", "eu", 0),
            stock("C", "w2", "us", 7),
        ])
        .await;
    let brand = |brands: &[&str]| brands.iter().map(|brand| (*brand).to_owned()).collect::<Vec<_>>();
    let eu = || Some(region("eu"));
    for (request, expected) in [
        (SearchRequest { brand: brand(&["Acme"]), ..all() }, vec!["A", "B"]),
        (SearchRequest { brand: brand(&["Acme", "Best"]), ..all() }, vec!["A", "B", "C"]),
        (SearchRequest { brand: brand(&["acme"]), ..all() }, vec![]),
        (SearchRequest { category: brand(&["Food"]), ..all() }, vec!["A", "B", "C"]),
        (SearchRequest { category: brand(&["Food/Fruit"]), ..all() }, vec!["A", "C"]),
        (SearchRequest { category: brand(&["/Food/Fruit/Apples/", "Foodstuff"]), ..all() }, vec!["C", "D"]),
        (SearchRequest { category: brand(&["Fruit"]), ..all() }, vec![]),
        (SearchRequest { category: brand(&["Food"]), brand: brand(&["Best"]), ..all() }, vec!["C"]),
        (SearchRequest { in_stock: Some(true), ..all() }, vec!["A", "C"]),
        (SearchRequest { in_stock: Some(false), ..all() }, vec!["B", "D"]),
        (SearchRequest { in_stock: Some(true), region: eu(), ..all() }, vec!["A"]),
        (SearchRequest { in_stock: Some(false), region: eu(), ..all() }, vec!["B", "C", "D"]),
        (SearchRequest { price_min: Some(100), region: eu(), ..all() }, vec!["B", "C"]),
        (SearchRequest { price_max: Some(100), region: eu(), ..all() }, vec!["A", "B"]),
        (SearchRequest { price_min: Some(99), price_max: Some(99), region: eu(), ..all() }, vec!["A"]),
        (SearchRequest { price_min: Some(1_001), region: eu(), ..all() }, vec![]),
        (SearchRequest { price_max: Some(100), region: eu(), in_stock: Some(true), ..text("thing") }, vec!["A"]),
    ] {
        assert_eq!(store.skus(request.clone()).await, expected, "{request:?}");
    }
    let priced = SearchRequest { price_min: Some(1), ..all() };
    assert!(matches!(store.reader.search(priced, &unchosen()).await, Err(ReadModelError::Query { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn facets_count_all_that_match_not_the_page() {
    let store = Fixture::live().await;
    let made = |number: usize| {
        let brand = if number.is_multiple_of(3) { None } else { Some(format!("Brand {}", number % 3)) };
        let last = if number.is_multiple_of(2) { "Pears" } else { "Apples" };
        product(Product {
            brand,
            category_path: vec!["Fruit".into(), last.into()],
            ..plain(&format!("S-{number}"), "x")
        })
    };
    store.show((0..10).map(made).collect()).await;
    let found = store.found(SearchRequest { limit: 1, facets: true, ..all() }).await;
    let counted = |counts: Vec<FacetCount>| counts.into_iter().map(|one| (one.value, one.count)).collect::<Vec<_>>();
    let facets = found.facets.unwrap();
    assert_eq!((found.total, found.hits.len()), (10, 1));
    assert_eq!(counted(facets.brand), [("Brand 1".to_owned(), 3), ("Brand 2".to_owned(), 3)]);
    let categories = [("Fruit".to_owned(), 10), ("Fruit/Apples".to_owned(), 5), ("Fruit/Pears".to_owned(), 5)];
    assert_eq!(counted(facets.category), categories);
    let filtered = SearchRequest { category: vec!["Fruit/Pears".into()], facets: true, ..all() };
    let filtered = store.found(filtered).await.facets.unwrap();
    assert_eq!(counted(filtered.category)[0], ("Fruit".to_owned(), 5));
    assert_eq!(store.found(all()).await.facets, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_without_text_neither_repeat_nor_skip_whatever_is_written_between() {
    let store = Fixture::live().await;
    store.show((10..30).map(|number| named(&format!("S-{number}"), "Leek")).collect()).await;
    let mut seen = Vec::new();
    let mut cursor = None;
    for round in 0.. {
        let page = store.found(SearchRequest { limit: 7, cursor, ..all() }).await;
        seen.extend(skus(&page));
        cursor = page.next.clone();
        if cursor.is_none() {
            break;
        }
        assert_eq!(page.hits.len(), 7);
        // Before the cursor, where an offset would shift, and one that was seen goes.
        store.show(vec![named(&format!("A-{round}"), "Leek"), discontinued(&format!("S-1{round}"))]).await;
    }
    assert_eq!(seen, (10..30).map(|number| format!("S-{number}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_text_give_every_hit_once_and_know_the_last() {
    let store = Fixture::live().await;
    store.show((10..31).map(|number| named(&format!("S-{number}"), "Leek")).collect()).await;
    let request = SearchRequest { limit: 7, ..text("leek") };
    let mut seen = Vec::new();
    let mut pages = 0;
    let mut next = None;
    loop {
        let page = store.found(SearchRequest { cursor: next, ..request.clone() }).await;
        assert_eq!(page.total, 21);
        seen.extend(skus(&page));
        pages += 1;
        next = page.next;
        if next.is_none() {
            break;
        }
        let other = SearchRequest { cursor: next.clone(), ..text("lee") };
        assert!(matches!(store.reader.search(other, &unchosen()).await, Err(ReadModelError::Query { .. })));
    }
    assert_eq!((pages, seen.len()), (3, 21));
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), 21);
    for cursor in ["", "-", "nonsense", "0000000000000000-7", "é-1"] {
        let forged = SearchRequest { cursor: Some(cursor.to_owned()), ..request.clone() };
        assert!(
            matches!(store.reader.search(forged, &unchosen()).await, Err(ReadModelError::Query { .. })),
            "{cursor:?}"
        );
    }
    let none = SearchRequest { limit: 0, ..all() };
    assert!(matches!(store.reader.search(none, &unchosen()).await, Err(ReadModelError::Query { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_shown_once_its_product_is_there_whatever_came_first() {
    let store = Fixture::live().await;
    store.show(vec![price("A", "eu", 5), stock("A", "w1", "eu", 3)]).await;
    assert_eq!(store.found(all()).await.total, 0);
    store.show(vec![named("A", "Leek")]).await;
    let priced = SearchRequest { region: Some(region("eu")), in_stock: Some(true), price_max: Some(5), ..text("leek") };
    assert_eq!(store.skus(priced.clone()).await, ["A"]);
    store.show(vec![discontinued("A")]).await;
    assert_eq!(store.found(all()).await.total, 0);
    store.show(vec![named("A", "Leeks")]).await;
    assert_eq!(store.skus(priced).await, ["A"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revised_product_is_found_by_its_new_words_alone() {
    let store = Fixture::live().await;
    store.show(vec![named("A", "Leek")]).await;
    store.show(vec![named("A", "Chard")]).await;
    assert!(store.skus(text("leek")).await.is_empty());
    assert_eq!(store.skus(text("chard")).await, ["A"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_in_stock_while_any_of_its_warehouses_is() {
    let store = Fixture::live().await;
    let has = SearchRequest { in_stock: Some(true), region: Some(region("eu")), ..all() };
    store.show(vec![named("A", "Leek"), stock("A", "w1", "eu", 1), stock("A", "w2", "eu", 1)]).await;
    store.show(vec![stock("A", "w1", "eu", 0)]).await;
    assert_eq!(store.skus(has.clone()).await, ["A"]);
    store.show(vec![stock("A", "w2", "eu", 0)]).await;
    assert!(store.skus(has.clone()).await.is_empty());
    // A warehouse may move to another region.
    store.show(vec![stock("A", "w2", "us", 2)]).await;
    assert!(store.skus(has.clone()).await.is_empty());
    store.show(vec![stock("A", "w2", "eu", 2)]).await;
    assert_eq!(store.skus(has).await, ["A"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_that_change_nothing_shown_reach_the_position_without_a_commit() {
    let store = Fixture::live().await;
    store.show(vec![named("A", "Leek"), stock("A", "w1", "eu", 10)]).await;
    let before = store.meta();
    let mut last = store.found(all()).await.position;
    for available in (1..10).rev() {
        let position = store.show(vec![stock("A", "w1", "eu", available)]).await;
        let answered = store.found(all()).await.position;
        assert!(answered.covers(&position) && answered.covers(&last), "{answered} after {position} and {last}");
        last = answered;
    }
    assert_eq!(store.meta(), before);
    // A position that was answered stays covered when a commit of an earlier one is all there is.
    store.write(vec![named("A", "Chard")]).await;
    assert!(store.found(all()).await.position.covers(&last));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_its_time_when_the_position_does_not_come() {
    let store = Fixture::live().await;
    let reached = store.show(vec![named("A", "Leek")]).await;
    let part = reached.iter().next().unwrap();
    let mut later = part.position;
    later.position += 1;
    let later = schemas::PositionToken::of(part.context, part.partition, later);
    let short = Duration::from_millis(30);
    assert!(!store.reader.wait_for(&later, &unchosen(), short).await.unwrap());
    assert!(!store.reader.wait_for_rows(&later, &unchosen(), short).await.unwrap());
    assert!(store.reader.wait_for_rows(&reached, &unchosen(), short).await.unwrap());
    assert!(store.reader.wait_for(&schemas::PositionToken::default(), &unchosen(), short).await.unwrap());
    // Positions of topics that are not read here do not count.
    let foreign =
        schemas::PositionToken::of(Context::Platform, part.partition, later.get(part.context, part.partition).unwrap());
    assert!(store.reader.wait_for(&foreign, &unchosen(), short).await.unwrap());
    assert!(store.reader.wait_for_rows(&foreign, &unchosen(), short).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_completed_beginnings_first_and_none_twice() {
    let store = Fixture::live().await;
    let names = ["Red Onions", "Red onions!", "Onion Rings", "Onions", "Spring Onions", "Crème Fraîche", "Leek"];
    let mut rows: Vec<_> = names.iter().enumerate().map(|(number, name)| named(&format!("S-{number}"), name)).collect();
    rows.extend((0..3).map(|number| named(&format!("T-{number}"), "Onions")));
    let shown = store.show(rows).await;
    let complete = async |typed: &str, limit| store.reader.suggest(typed, limit, &unchosen()).await.unwrap().names;
    assert_eq!(complete("oni", 10).await, ["Onion Rings", "Onions", "Red Onions", "Red onions!", "Spring Onions"]);
    assert_eq!(complete("ONI", 2).await, ["Onion Rings", "Onions"]);
    assert_eq!(complete("red o", 10).await, ["Red Onions", "Red onions!"]);
    assert_eq!(complete("creme", 10).await, ["Crème Fraîche"]);
    assert!(complete("nothing", 10).await.is_empty());
    assert!(complete(" ?", 10).await.is_empty() && complete("oni", 0).await.is_empty());
    assert!(store.reader.suggest("oni", 1, &unchosen()).await.unwrap().position.covers(&shown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_page_comes_from_the_rows_without_an_index() {
    let mut store = Fixture::empty().await;
    assert!(is_rebuilding(&store.reader.product(&sku("A-1"), &unchosen()).await));
    store.start().await;
    let written = store.write(vec![product(onions()), price("A-1", "us", 7), price("A-1", "eu", 5)]).await;
    assert!(is_rebuilding(&store.reader.product(&sku("A-1"), &unchosen()).await), "not live");
    store.make_live().await;
    assert!(store.reader.wait_for_rows(&written, &unchosen(), DEADLINE).await.unwrap());
    let found = store.reader.product(&sku("A-1"), &unchosen()).await.unwrap();
    assert_eq!((found.product, found.position), (Some(onions()), written));
    let prices: Vec<_> = found.prices.iter().map(|price| (price.region.as_str(), price.amount_minor)).collect();
    assert_eq!(prices, [("eu", 5), ("us", 7)]);
    let unknown = store.reader.product(&sku("Z"), &unchosen()).await.unwrap();
    assert!(unknown.product.is_none() && unknown.prices.is_empty());
    assert!(is_rebuilding(&store.reader.search(all(), &unchosen()).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_tells_when_it_was_revised_once_a_fold_says_so() {
    let mut store = Fixture::live().await;
    let revised_at = async |store: &Fixture| {
        let hits = store.found(all()).await.hits;
        let page = store.reader.product(&sku("A"), &ReadChoice::default()).await.unwrap();
        assert_eq!(hits[0].revised_at, page.revised_at);
        page.revised_at
    };
    store.show(vec![named("A", "Leek")]).await;
    assert_eq!(revised_at(&store).await, None);
    // Nothing else that is shown changes.
    for time in [1_700_000_000_123, -1] {
        store.show(vec![revised(plain("A", "Leek"), 2, time)]).await;
        assert_eq!(revised_at(&store).await, Some(time));
    }
    assert!(store.reader.check_documents().await.unwrap().faults.is_empty());
    // The sums of the rows hold, the index is that of the rows.
    store.restart().await;
    store.until_found(all(), &["A"]).await;
    assert_eq!(revised_at(&store).await, Some(-1));
    store.show(vec![named("A", "Leek")]).await;
    assert_eq!(revised_at(&store).await, None);
}
