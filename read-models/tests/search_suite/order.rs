//! Which hits come first is a matter of the documents alone, not of what the index went through.

use fastrand::Rng;

use super::*;

/// More than tantivy looks at in one go: only then are scores added up in different orders.
const PRODUCTS: usize = 6_000;
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

#[tokio::test(flavor = "multi_thread")]
async fn two_indexes_of_the_same_documents_order_hits_alike_whatever_was_replaced_in_one_of_them() {
    let mut random = Rng::with_seed(7);
    let (fresh, worn) = (Fixture::live().await, Fixture::live().await);
    let products: Vec<_> = (0..PRODUCTS).map(|number| some_product(&mut random, number)).collect();
    fresh.show(products.iter().cloned().map(product).collect()).await;

    let mut order: Vec<_> = (0..PRODUCTS).collect();
    for _ in 0..2 {
        random.shuffle(&mut order);
        let earlier = order[..PRODUCTS / 2].iter().map(|number| product(some_product(&mut random, *number)));
        worn.show(earlier.collect()).await;
    }
    random.shuffle(&mut order);
    for some in order.chunks(PRODUCTS / 3) {
        worn.show(some.iter().map(|number| product(products[*number].clone())).collect()).await;
    }

    let mut asked = 0;
    while asked < 150 {
        let words: Vec<_> = (0..random.usize(2..6)).map(|_| WORDS[random.usize(0..8)]).collect();
        let request = SearchRequest { limit: 200, ..text(&words.join(" ")) };
        let (of_fresh, of_worn) = (fresh.skus(request.clone()).await, worn.skus(request).await);
        assert_eq!(of_fresh, of_worn, "{words:?}");
        asked += usize::from(of_fresh.len() > 1);
    }
}
