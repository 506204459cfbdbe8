//! Search: each event touches one row of one part of its SKU's document, so that the three topics need no order
//! between them.

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

    const NAME: &'static str = "search";
    const FOLDS: &'static [u32] = &[1];
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
        Facts { version, .. }: Facts,
    ) -> Result<Option<SearchRow>, FoldError> {
        if !Self::FOLDS.contains(&fold) {
            return Err(FoldError::UnknownFold { fold });
        }
        if row.is_some_and(|row| row.version() >= version) {
            return Ok(None);
        }
        Ok(Some(match event {
            Event::ProductRegistered(product) | Event::ProductRevised(product) => {
                SearchRow::Product { product: Some(product.clone()), version }
            }
            Event::ProductDiscontinued(_) => SearchRow::Product { product: None, version },
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
        Product {
            sku: Sku::new("A").unwrap(),
            name: name.to_owned(),
            brand: None,
            category_path: Vec::new(),
            description: None,
            pack_size: None,
            tags: Vec::new(),
        }
    }

    #[test]
    fn a_product_is_revised_discontinued_and_comes_back() {
        let registered =
            SearchProjection::project(1, None, &Event::ProductRegistered(product("Onion")), at(1)).unwrap();
        let revised =
            SearchProjection::project(1, registered.as_ref(), &Event::ProductRevised(product("Red onion")), at(2))
                .unwrap();
        assert_eq!(revised, Some(SearchRow::Product { product: Some(product("Red onion")), version: 2 }));
        let gone = Event::ProductDiscontinued(ProductDiscontinued { sku: Sku::new("A").unwrap(), reason: None });
        let gone = SearchProjection::project(1, revised.as_ref(), &gone, at(3)).unwrap();
        assert_eq!(gone, Some(SearchRow::Product { product: None, version: 3 }));
        let again =
            SearchProjection::project(1, gone.as_ref(), &Event::ProductRegistered(product("Onion")), at(4)).unwrap();
        assert!(matches!(again, Some(SearchRow::Product { product: Some(_), version: 4 })));
    }

    #[test]
    fn an_older_version_changes_nothing() {
        let row = SearchProjection::project(1, None, &Event::ProductRegistered(product("Onion")), at(3)).unwrap();
        assert_eq!(SearchProjection::project(1, row.as_ref(), &Event::ProductRevised(product("x")), at(3)), Ok(None));
    }
}
