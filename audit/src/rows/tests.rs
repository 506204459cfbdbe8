use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use projectors::StockProjection;
use read_models::stock::{SharedStock, StockKey, StockRow};
use read_models::{DeadLetters, Loaded, ReadModelError, ReadModelStatus, RowPage};

use crate::oracle::Folds;
use crate::report::Place;
use crate::world::{Fold, TOPOLOGY, World, home, sku_in};

use super::*;

/// What an audit says of the stock.
async fn told(world: &World) -> Vec<Kind> {
    let report = world.auditor().await.audit_once().await.unwrap();
    assert!(report.counts.iter().all(|count| count.place == Place::Stock), "{report:?}");
    report.differences.iter().map(|difference| difference.kind).collect()
}

/// A world in which a SKU has so many versions.
async fn of(versions: u64) -> (World, String) {
    let (world, sku) = (World::new().await, sku_in(0));
    world.prepare(1).await;
    world.append(&sku, 1..=versions).await;
    (world, sku)
}

#[tokio::test]
async fn the_last_good_state_of_a_parked_key_is_right() {
    let (world, sku) = of(3).await;
    world.fold(Fold::of(&sku, 3).row(&sku, 1).park(&sku, 2).park(&sku, 3)).await;
    assert_eq!(told(&world).await, []);
    // The first of them is taken out, the other one waits.
    world.fold(Fold::of(&sku, 3).discard(&sku, 2)).await;
    assert_eq!(told(&world).await, []);
    world.fold(Fold::of(&sku, 3).discard(&sku, 3)).await;
    assert_eq!(told(&world).await, []);
}

#[tokio::test]
async fn a_row_behind_a_discarded_event_is_held_against_what_was_folded_since() {
    let (world, sku) = of(3).await;
    world.fold(Fold::of(&sku, 2).row(&sku, 1).park(&sku, 2)).await;
    world.fold(Fold::of(&sku, 3).discard(&sku, 2).row(&sku, 3)).await;
    assert_eq!(told(&world).await, []);
    world.fold(Fold::of(&sku, 3).row(&sku, 1)).await;
    assert_eq!(told(&world).await, [Kind::Stale]);
}

#[tokio::test]
async fn a_row_that_is_gone_is_missed_though_its_first_event_was_discarded() {
    let (world, sku) = of(2).await;
    world.fold(Fold::of(&sku, 1).park(&sku, 1)).await;
    world.fold(Fold::of(&sku, 1).discard(&sku, 1)).await;
    assert_eq!(told(&world).await, []);
    world.fold(Fold::of(&sku, 2)).await;
    assert_eq!(told(&world).await, [Kind::Missing]);
}

/// A stock in which something is written at a moment that matters.
struct Moving<'a> {
    stock: SharedStock,
    world: &'a World,
    scans: AtomicU32,
    /// Just behind the second scan of rows.
    behind_scans: Mutex<Option<Fold>>,
    /// Just behind the first look at the checkpoint.
    behind_look: Mutex<Option<Fold>>,
}

impl<'a> Moving<'a> {
    async fn of(world: &'a World) -> Self {
        let (behind_scans, behind_look) = (Mutex::default(), Mutex::default());
        Self { stock: world.reader().await, world, scans: AtomicU32::new(0), behind_scans, behind_look }
    }

    /// What its only partition comes to.
    async fn compared(&self, most_later: usize) -> (ReadModelReport, Findings) {
        let auditor = self.world.auditor().await;
        let mut walk = TableWalk::from_beginning(TOPOLOGY, Folds::default(), most_later);
        let comparison = Comparison::<StockProjection> {
            sources: auditor.sources(),
            model: self,
            oracle: |walk| &mut walk.stock,
            at: home(&sku_in(0)),
            pace: Pace::of(1.0),
            progress: &Progress::default(),
        };
        comparison.compare(&mut walk).await.unwrap()
    }

    async fn write(&self, fold: &Mutex<Option<Fold>>) {
        let fold = fold.lock().unwrap().take();
        if let Some(fold) = fold {
            self.world.fold(fold).await;
        }
    }
}

#[async_trait]
impl Standing<StockProjection> for Moving<'_> {
    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        let status = Standing::status(&self.stock).await;
        self.write(&self.behind_look).await;
        status
    }

    fn dead_letters(&self) -> &dyn DeadLetters {
        Standing::dead_letters(&self.stock)
    }

    async fn rows(
        &self,
        at: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<StockKey, StockRow>, ReadModelError> {
        let page = Standing::rows(&self.stock, at, from, limit).await;
        if self.scans.fetch_add(1, Ordering::Relaxed) == 1 {
            self.write(&self.behind_scans).await;
        }
        page
    }

    async fn load(&self, at: PartitionRef, keys: &[StockKey]) -> Result<Loaded<StockRow>, ReadModelError> {
        Standing::load(&self.stock, at, keys).await
    }
}

#[tokio::test]
async fn a_key_that_is_redriven_before_its_dead_letters_are_read_is_not_stale() {
    let (world, sku) = of(2).await;
    world.fold(Fold::of(&sku, 2).row(&sku, 1).park(&sku, 2)).await;
    let model = Moving::of(&world).await;
    *model.behind_scans.lock().unwrap() = Some(Fold::of(&sku, 2).redrive(&sku, 2).row(&sku, 2));
    let (report, findings) = model.compared(usize::MAX).await;
    assert_eq!(model.scans.load(Ordering::Relaxed), 2);
    assert_eq!((report.skipped, findings.total()), (None, 0), "{:?}", findings.kept());
}

#[tokio::test]
async fn a_checkpoint_that_went_on_during_a_long_walk_did_not_go_back() {
    let (world, sku) = of(30).await;
    world.fold(Fold::of(&sku, 1).row(&sku, 1)).await;
    let model = Moving::of(&world).await;
    // The walk comes to more events than may wait, and folds on to here.
    *model.behind_look.lock().unwrap() = Some(Fold::of(&sku, 30).row(&sku, 30));
    let (report, findings) = model.compared(10).await;
    assert_eq!((report.skipped, report.checkpoint, findings.total()), (None, 30, 0), "{:?}", findings.kept());
}
