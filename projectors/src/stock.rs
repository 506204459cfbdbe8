//! Stock per SKU and warehouse. The event carries the result, so the fold only guards the order.
//!
//! Fold 1 makes the units. Fold 2 says also when they last changed.

use read_models::stock::{StockKey, StockRow};
use schemas::event::StockUpdated;
use schemas::{Context, Event};

use crate::error::FoldError;
use crate::projection::{Facts, Projection};

/// `inventory.events` to the stock read model.
pub struct StockProjection;

impl Projection for StockProjection {
    type Key = StockKey;
    type Row = StockRow;

    const NAME: &'static str = read_models::stock::NAME;
    const FOLDS: &'static [u32] = &[1, 2];
    const CURRENT_FOLD: u32 = 1;
    const CONTEXTS: &'static [Context] = &[Context::Inventory];

    fn key(event: &Event) -> Option<StockKey> {
        match event {
            Event::StockUpdated(event) => Some(StockKey { sku: event.sku.clone(), warehouse: event.warehouse.clone() }),
            _ => None,
        }
    }

    fn project(
        fold: u32,
        row: Option<&StockRow>,
        event: &Event,
        Facts { version, time }: Facts,
    ) -> Result<Option<StockRow>, FoldError> {
        let updated_at = match fold {
            1 => None,
            2 => Some(time),
            _ => return Err(FoldError::UnknownFold { fold }),
        };
        let Event::StockUpdated(event) = event else { return Ok(None) };
        check_stock(event)?;
        if row.is_some_and(|row| row.version >= version) {
            return Ok(None);
        }
        let (on_hand, reserved) = (event.on_hand, event.reserved);
        Ok(Some(StockRow { region: event.region.clone(), on_hand, reserved, version, updated_at }))
    }
}

/// Invariant W3, as an event must show it.
pub(crate) fn check_stock(event: &StockUpdated) -> Result<(), FoldError> {
    if event.reserved < 0 {
        return Err(FoldError::Impossible { field: "reserved", value: event.reserved, rule: "reserved >= 0" });
    }
    if event.on_hand < event.reserved {
        return Err(FoldError::Impossible { field: "on_hand", value: event.on_hand, rule: "on_hand >= reserved" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::tests::stock_updated;

    fn at(version: u64) -> Facts {
        Facts { version, time: 1_700_000_000_000 + version as i64 }
    }

    #[test]
    fn the_row_is_the_event_s_result() {
        let row = StockProjection::project(1, None, &stock_updated("A", "w", 10, 4), at(1)).unwrap().unwrap();
        assert_eq!((row.on_hand, row.reserved, row.version), (10, 4, 1));
    }

    #[test]
    fn only_fold_2_says_when_and_no_other_is_known() {
        let event = stock_updated("A", "w", 10, 4);
        let folded = |fold| StockProjection::project(fold, None, &event, at(3));
        let first = folded(1).unwrap().unwrap();
        assert_eq!(first.updated_at, None);
        let updated_at = Some(1_700_000_000_003);
        assert_eq!(folded(2), Ok(Some(StockRow { updated_at, ..first })));
        assert_eq!(StockProjection::FOLDS, [1, 2]);
        for fold in [0, 3] {
            assert_eq!(folded(fold), Err(FoldError::UnknownFold { fold }));
        }
    }

    #[test]
    fn folding_twice_or_from_behind_changes_nothing() {
        let row = StockProjection::project(1, None, &stock_updated("A", "w", 10, 4), at(5)).unwrap();
        assert_eq!(StockProjection::project(1, row.as_ref(), &stock_updated("A", "w", 10, 4), at(5)), Ok(None));
        assert_eq!(StockProjection::project(1, row.as_ref(), &stock_updated("A", "w", 3, 0), at(4)), Ok(None));
    }

    #[test]
    fn impossible_stock_is_poison() {
        assert!(StockProjection::project(1, None, &stock_updated("A", "w", 3, 4), at(1)).is_err());
        assert!(StockProjection::project(1, None, &stock_updated("A", "w", 3, -1), at(1)).is_err());
    }
}
