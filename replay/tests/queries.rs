//! Search answers of two generations, while one of them is behind, and when it really answers otherwise.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::Duration;

use read_models::search::{CONTEXTS, SearchKey, SearchReadModel, SearchReader, SearchRow};
use read_models::{Batch, Checkpoint, Generation, PartitionRef, ReadChoice, ReadModel};
use replay::queries::{QueryBounds, QueryParity, compare};
use schemas::event::Product;
use schemas::{Context, PositionToken, Sku, StorePosition};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);

/// Two generations in one directory, each with its indexer.
struct Fixture {
    models: [Arc<SearchReadModel>; 2],
    readers: [SearchReader; 2],
    over: CancellationToken,
    _folder: tempfile::TempDir,
}

// === impl Fixture ===

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (dir, over) = (folder.path().join("search"), CancellationToken::new());
        let reader = SearchReader::open(&dir).await.unwrap();
        let mut models = Vec::new();
        for number in [1, 2] {
            let model = Arc::new(SearchReadModel::open_generation(&dir, number).await.unwrap());
            let generation = Generation { name: "search".to_owned(), number, fold_version: 1, partitions: 1 };
            model.prepare(&generation).await.unwrap();
            for context in CONTEXTS {
                apply(&model, PartitionRef { context, partition: 0 }, Vec::new()).await;
            }
            let (indexer, over) = (Arc::clone(&model), over.clone());
            tokio::spawn(async move { indexer.run_indexer(over).await.unwrap() });
            models.push(model);
        }
        let readers = [reader.of_generation(1), reader.of_generation(2)];
        Self { models: models.try_into().ok().unwrap(), readers, over, _folder: folder }
    }

    /// Names products in one generation, and waits until they are found.
    async fn name(&self, side: usize, names: &[(&str, &str)]) {
        let partition = PartitionRef { context: Context::Catalogue, partition: 0 };
        let position =
            apply(&self.models[side], partition, names.iter().map(|(sku, name)| named(sku, name)).collect()).await;
        assert!(self.readers[side].wait_for(&position, &ReadChoice::default(), DEADLINE).await.unwrap());
    }

    async fn compare(&self, queries: &[&str], patience: Duration) -> QueryParity {
        let queries: Vec<String> = queries.iter().map(|query| (*query).to_owned()).collect();
        let compared = compare(&self.readers[0], &self.readers[1], &queries, QueryBounds::default(), patience);
        tokio::time::timeout(2 * DEADLINE, compared).await.unwrap().unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

async fn apply(
    model: &SearchReadModel,
    partition: PartitionRef,
    changes: Vec<(SearchKey, SearchRow)>,
) -> PositionToken {
    let claimed = model.claim(partition).await.unwrap();
    let sequence = claimed.checkpoint.sequence + changes.len() as u64;
    let position = StorePosition { xid: 1, position: sequence + 1 };
    let to = Checkpoint { sequence, next_offset: sequence, position, event_time: 1_700_000_000_000 };
    let batch = Batch { to, changes, ..Batch::unmoved(partition, claimed.epoch, claimed.checkpoint, true) };
    model.apply(&batch).await.unwrap();
    partition.token(position)
}

fn named(sku: &str, name: &str) -> (SearchKey, SearchRow) {
    let sku = Sku::new(sku).unwrap();
    let product = Product::named(sku.clone(), name);
    (SearchKey::Product(sku), SearchRow::Product { product: Some(product), version: 1, revised_at: None })
}

const PRODUCTS: [(&str, &str); 3] = [("A", "Red Leek"), ("B", "Leek"), ("C", "Green Onion")];

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_is_behind_for_a_moment_does_not_differ() {
    let both = Fixture::new().await;
    both.name(0, &PRODUCTS).await;
    both.name(1, &PRODUCTS[..1]).await;
    let at_once = both.compare(&["leek", "onion"], Duration::ZERO).await;
    assert_eq!(at_once.below_bound(), 2, "{at_once:?}");
    let (compared, ()) = tokio::join!(both.compare(&["leek", "onion"], DEADLINE), both.name(1, &PRODUCTS[1..]));
    assert!(compared.is_clean(), "{compared:?}");
    assert_eq!(compared.queries.iter().map(|query| query.candidate_total).collect::<Vec<_>>(), [2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_on_one_side_only_differs_and_is_asked_no_longer_than_both_move() {
    let both = Fixture::new().await;
    both.name(0, &PRODUCTS).await;
    both.name(1, &[PRODUCTS[0], ("B", "Leak"), PRODUCTS[2]]).await;
    let an_hour = Duration::from_secs(3_600);
    let compared = both.compare(&["leek", "onion"], an_hour).await;
    assert_eq!(compared.below_bound(), 1, "{compared:?}");
    assert_eq!((compared.queries[0].live_total, compared.queries[0].candidate_total), (2, 1));

    both.name(0, &[("D", "Garlic")]).await;
    let compared = both.compare(&["leek"], Duration::from_millis(300)).await;
    assert_eq!(compared.below_bound(), 1, "{compared:?}");
}
