//! Which hits come first is a matter of the documents alone, not of what the index went through.

use fastrand::Rng;

use super::*;

const PRODUCTS: usize = 7_000;
/// Of the first commit: more than tantivy looks at in one go, so that it may add scores up in another order than in a
/// smaller segment.
const FIRST: usize = 5_000;
const IN_ONE_GO: u64 = 4_096;
const WORDS: [&str; 24] = [
    "red", "green", "leek", "onion", "apple", "pear", "oat", "milk", "bread", "rye", "salt", "fish", "cod", "tea",
    "mint", "rice", "bean", "plum", "kale", "dill", "beet", "corn", "nut", "jam",
];

/// Many are equally good: their descriptions are those of few others, and their names have the same words.
fn some_product(random: &mut Rng, number: usize) -> Product {
    let mut some = |from: usize, to: usize, of: &[&str]| {
        let count = random.usize(from..to);
        std::iter::repeat_with(|| of[random.usize(0..of.len())]).take(count).collect::<Vec<_>>().join(" ")
    };
    let name = some(1, 7, &WORDS[..8]);
    let description = some(0, 12, &WORDS).repeat(1 + number % 3);
    Product { description: number.is_multiple_of(2).then_some(description), ..plain(&format!("P-{number:04}"), &name) }
}

/// Writes products with one commit of the index.
async fn at_once(store: &mut Fixture, products: impl IntoIterator<Item = Product>) {
    store.stop_indexer().await;
    let position = store.write(products.into_iter().map(product).collect()).await;
    store.start_indexer();
    store.shown(&position).await;
}

/// Documents of the largest segment, and those that were replaced and are counted in a segment still.
fn segments(store: &Fixture) -> (u64, u64) {
    let meta: serde_json::Value = serde_json::from_slice(&store.meta()).unwrap();
    let segments = meta["segments"].as_array().unwrap();
    let largest = segments.iter().filter_map(|segment| segment["max_doc"].as_u64()).max().unwrap();
    (largest, segments.iter().filter_map(|segment| segment["deletes"]["num_deleted_docs"].as_u64()).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_indexes_of_the_same_documents_order_hits_alike_whatever_was_replaced_in_one_of_them() {
    let mut random = Rng::with_seed(7);
    let (mut fresh, mut worn) = (Fixture::live().await, Fixture::live().await);
    let products: Vec<_> = (0..PRODUCTS).map(|number| some_product(&mut random, number)).collect();
    at_once(&mut fresh, products.iter().cloned()).await;

    let mut order: Vec<_> = (0..PRODUCTS).collect();
    random.shuffle(&mut order);
    for some in order.chunks(FIRST) {
        let (replaced, kept) = some.split_at(some.len() / 5);
        let earlier = replaced.iter().map(|number| some_product(&mut random, *number)).collect::<Vec<_>>();
        at_once(&mut worn, kept.iter().map(|number| products[*number].clone()).chain(earlier)).await;
    }
    let replaced = order.chunks(FIRST).flat_map(|some| &some[..some.len() / 5]);
    at_once(&mut worn, replaced.map(|number| products[*number].clone())).await;
    let ((_, of_fresh), (largest, of_worn)) = (segments(&fresh), segments(&worn));
    assert!(largest > IN_ONE_GO && of_fresh == 0 && of_worn > 0, "{largest} {of_fresh} {of_worn}");

    let mut asked = 0;
    while asked < 150 {
        let words: Vec<_> = (0..random.usize(2..6)).map(|_| WORDS[random.usize(0..8)]).collect();
        let request = SearchRequest { limit: 200, ..text(&words.join(" ")) };
        let (of_fresh, of_worn) = (fresh.skus(request.clone()).await, worn.skus(request).await);
        assert_eq!(of_fresh, of_worn, "{words:?}");
        asked += usize::from(of_fresh.len() > 1);
    }
}
