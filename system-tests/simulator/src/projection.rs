//! What the checker holds the read models against: each projection told a second time, in the plainest way, and a
//! projection of another version that must never feed them.

use std::fmt;
use std::hash::Hash;

use projectors::{Facts, FoldError, Projection, StockProjection};
use read_models::search::{self, SearchKey, SearchRow};
use read_models::stock::{StockKey, StockRow};
use schemas::{Context, Event};

/// A read model as the checker knows it.
pub trait Modelled: Send + Sync + 'static {
    type Key: Clone + Eq + Hash + fmt::Debug + Send + Sync;
    type Row: Clone + PartialEq + fmt::Debug + Send + Sync;

    const NAME: &'static str;
    const CONTEXTS: &'static [Context];

    /// The row that an event alone leads to; `None` for an event of no use.
    fn row(event: &Event, version: u64) -> Option<(Self::Key, Self::Row)>;
}

/// Stock.
pub struct Stock;

/// Search.
pub struct Search;

impl Modelled for Stock {
    type Key = StockKey;
    type Row = StockRow;

    const NAME: &'static str = "stock";
    const CONTEXTS: &'static [Context] = &[Context::Inventory];

    fn row(event: &Event, version: u64) -> Option<(StockKey, StockRow)> {
        let Event::StockUpdated(event) = event else { return None };
        let key = StockKey { sku: event.sku.clone(), warehouse: event.warehouse.clone() };
        let (on_hand, reserved) = (event.on_hand, event.reserved);
        let row = StockRow { region: event.region.clone(), on_hand, reserved, version, updated_at: None };
        Some((key, row))
    }
}

impl Modelled for Search {
    type Key = SearchKey;
    type Row = SearchRow;

    const NAME: &'static str = "search";
    const CONTEXTS: &'static [Context] = &search::CONTEXTS;

    fn row(event: &Event, version: u64) -> Option<(SearchKey, SearchRow)> {
        Some(match event {
            Event::ProductRegistered(product) | Event::ProductRevised(product) => (
                SearchKey::Product(product.sku.clone()),
                SearchRow::Product { product: Some(product.clone()), version, revised_at: None },
            ),
            Event::ProductDiscontinued(event) => {
                (SearchKey::Product(event.sku.clone()), SearchRow::Product { product: None, version, revised_at: None })
            }
            Event::PriceSet(event) => {
                let row =
                    SearchRow::Price { currency: event.currency.clone(), amount_minor: event.amount_minor, version };
                (SearchKey::Price(event.sku.clone(), event.region.clone()), row)
            }
            Event::StockUpdated(event) => {
                let available = event.on_hand - event.reserved;
                let row = SearchRow::Stock { region: event.region.clone(), available, version };
                (SearchKey::Stock(event.sku.clone(), event.warehouse.clone()), row)
            }
            Event::DecisionRecorded(_) => return None,
        })
    }
}

/// Stock as another version of the program folds it: it counts available units where this one counts units on hand.
pub struct OtherStock;

impl Projection for OtherStock {
    type Key = StockKey;
    type Row = StockRow;

    const NAME: &'static str = StockProjection::NAME;
    const FOLDS: &'static [u32] = &[Self::CURRENT_FOLD];
    /// One that the program under test does not have.
    const CURRENT_FOLD: u32 = 1_000;
    const CONTEXTS: &'static [Context] = StockProjection::CONTEXTS;

    fn key(event: &Event) -> Option<StockKey> {
        StockProjection::key(event)
    }

    fn project(_fold: u32, row: Option<&StockRow>, event: &Event, facts: Facts) -> Result<Option<StockRow>, FoldError> {
        let folded = StockProjection::project(StockProjection::CURRENT_FOLD, row, event, facts)?;
        Ok(folded.map(|row| StockRow { on_hand: row.on_hand - row.reserved, reserved: 0, ..row }))
    }
}
