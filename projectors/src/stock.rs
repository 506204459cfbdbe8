//! Stock per SKU and warehouse. The event carries the result, so the fold only guards the order.

use read_models::stock::{FOLD_VERSION, StockKey, StockRow};
use schemas::event::StockUpdated;
use schemas::{Context, Event};

use crate::error::FoldError;
use crate::projection::Projection;

/// `inventory.events` to the stock read model.
pub struct StockProjection;

impl Projection for StockProjection {
    type Key = StockKey;
    type Row = StockRow;

    const NAME: &'static str = "stock";
    const FOLD_VERSION: u32 = FOLD_VERSION;
    const CONTEXTS: &'static [Context] = &[Context::Inventory];

    fn key(event: &Event) -> Option<StockKey> {
        match event {
            Event::StockUpdated(event) => Some(StockKey { sku: event.sku.clone(), warehouse: event.warehouse.clone() }),
            _ => None,
        }
    }

    fn project(row: Option<&StockRow>, event: &Event, version: u64) -> Result<Option<StockRow>, FoldError> {
        let Event::StockUpdated(event) = event else { return Ok(None) };
        check_stock(event)?;
        if row.is_some_and(|row| row.version >= version) {
            return Ok(None);
        }
        Ok(Some(StockRow { region: event.region.clone(), on_hand: event.on_hand, reserved: event.reserved, version }))
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

    #[test]
    fn the_row_is_the_event_s_result() {
        let row = StockProjection::project(None, &stock_updated("A", "w", 10, 4), 1).unwrap().unwrap();
        assert_eq!((row.on_hand, row.reserved, row.version), (10, 4, 1));
    }

    #[test]
    fn folding_twice_or_from_behind_changes_nothing() {
        let row = StockProjection::project(None, &stock_updated("A", "w", 10, 4), 5).unwrap();
        assert_eq!(StockProjection::project(row.as_ref(), &stock_updated("A", "w", 10, 4), 5), Ok(None));
        assert_eq!(StockProjection::project(row.as_ref(), &stock_updated("A", "w", 3, 0), 4), Ok(None));
    }

    #[test]
    fn impossible_stock_is_poison() {
        assert!(StockProjection::project(None, &stock_updated("A", "w", 3, 4), 1).is_err());
        assert!(StockProjection::project(None, &stock_updated("A", "w", 3, -1), 1).is_err());
    }
}
