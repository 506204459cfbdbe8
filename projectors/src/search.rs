//! Search: each event touches one row of one part of its SKU's document, so that the three topics need no order
//! between them.
//!
//! Fold 1 makes the three parts. Fold 2 says also when the catalogue last changed a product.

use read_models::search::{SearchKey, SearchRow};
use schemas::{Context, Event};

use crate::error::FoldError;
use crate::projection::{Facts, Projection};
use crate::stock::check_stock;

/// `catalogue.events`, `pricing.events` and `inventory.events` to the search read model.
pub struct SearchProjection;

impl Projection for SearchProjection {
    type Key = SearchKey;
    type Row = SearchRow;

    const NAME: &'static str = read_models::search::NAME;
    const FOLDS: &'static [u32] = &[1, 2];
    const CURRENT_FOLD: u32 = 1;
    const CONTEXTS: &'static [Context] = &[Context::Catalogue, Context::Pricing, Context::Inventory];

    fn key(event: &Event) -> Option<SearchKey> {
        Some(match event {
            Event::ProductRegistered(product) | Event::ProductRevised(product) => {
                SearchKey::Product(product.sku.clone())
            }
            Event::ProductDiscontinued(event) => SearchKey::Product(event.sku.clone()),
            Event::PriceSet(event) => SearchKey::Price(event.sku.clone(), event.region.clone()),
            Event::StockUpdated(event) => SearchKey::Stock(event.sku.clone(), event.warehouse.clone()),
            Event::DecisionRecorded(_) => return None,
        })
    }

    fn project(
        fold: u32,
        row: Option<&SearchRow>,
        event: &Event,
        Facts { version, time }: Facts,
    ) -> Result<Option<SearchRow>, FoldError> {
        let revised_at = match fold {
            1 => None,
            2 => Some(time),
            _ => return Err(FoldError::UnknownFold { fold }),
        };
        if row.is_some_and(|row| row.version() >= version) {
            return Ok(None);
        }
        Ok(Some(match event {
            Event::ProductRegistered(product) | Event::ProductRevised(product) => {
                SearchRow::Product { product: Some(product.clone()), version, revised_at }
            }
            Event::ProductDiscontinued(_) => SearchRow::Product { product: None, version, revised_at },
            Event::PriceSet(event) => {
                if event.amount_minor < 0 {
                    let value = event.amount_minor;
                    return Err(FoldError::Impossible { field: "amount_minor", value, rule: "amount_minor >= 0" });
                }
                SearchRow::Price { currency: event.currency.clone(), amount_minor: event.amount_minor, version }
            }
            Event::StockUpdated(event) => {
                check_stock(event)?;
                SearchRow::Stock { region: event.region.clone(), available: event.on_hand - event.reserved, version }
            }
            Event::DecisionRecorded(_) => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use schemas::Sku;
    use schemas::event::{Product, ProductDiscontinued};

    use super::*;

    fn at(version: u64) -> Facts {
        Facts { version, time: 1_700_000_000_000 + version as i64 }
    }

    fn product(name: &str) -> Product {
        Product::named(Sku::new("A").unwrap(), name)
    }

    #[test]
    fn a_product_is_revised_discontinued_and_comes_back() {
        let registered =
            SearchProjection::project(1, None, &Event::ProductRegistered(product("Onion")), at(1)).unwrap();
        let revised =
            SearchProjection::project(1, registered.as_ref(), &Event::ProductRevised(product("Red onion")), at(2))
                .unwrap();
        assert_eq!(
            revised,
            Some(SearchRow::Product { product: Some(product("Red onion")), version: 2, revised_at: None })
        );
        let gone = Event::ProductDiscontinued(ProductDiscontinued { sku: Sku::new("A").unwrap(), reason: None });
        let gone = SearchProjection::project(1, revised.as_ref(), &gone, at(3)).unwrap();
        assert_eq!(gone, Some(SearchRow::Product { product: None, version: 3, revised_at: None }));
        let again =
            SearchProjection::project(1, gone.as_ref(), &Event::ProductRegistered(product("Onion")), at(4)).unwrap();
        assert!(matches!(again, Some(SearchRow::Product { product: Some(_), version: 4, .. })));
    }

    #[test]
    fn only_fold_2_says_when_and_no_other_is_known() {
        let event = Event::ProductRegistered(product("Onion"));
        let folded = |fold| SearchProjection::project(fold, None, &event, at(1));
        let row = |revised_at| SearchRow::Product { product: Some(product("Onion")), version: 1, revised_at };
        assert_eq!(folded(1), Ok(Some(row(None))));
        assert_eq!(folded(2), Ok(Some(row(Some(1_700_000_000_001)))));
        let stock = crate::fold::tests::stock_updated("A", "w", 10, 4);
        assert_eq!(
            SearchProjection::project(1, None, &stock, at(1)),
            SearchProjection::project(2, None, &stock, at(1)),
            "the other parts are the same in both"
        );
        assert_eq!(SearchProjection::FOLDS, [1, 2]);
        for fold in [0, 3] {
            assert_eq!(folded(fold), Err(FoldError::UnknownFold { fold }));
        }
    }

    #[test]
    fn an_older_version_changes_nothing() {
        let row = SearchProjection::project(1, None, &Event::ProductRegistered(product("Onion")), at(3)).unwrap();
        assert_eq!(SearchProjection::project(1, row.as_ref(), &Event::ProductRevised(product("x")), at(3)), Ok(None));
    }
}
