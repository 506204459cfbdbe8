//! Search: each event touches one row of one part of its SKU's document, so that the three topics need no order
//! between them.

use read_models::search::{FOLD_VERSION, SearchKey, SearchRow};
use schemas::{Context, Event};

use crate::error::FoldError;
use crate::projection::Projection;
use crate::stock::check_stock;

/// `catalogue.events`, `pricing.events` and `inventory.events` to the search read model.
pub struct SearchProjection;

impl Projection for SearchProjection {
    type Key = SearchKey;
    type Row = SearchRow;

    const NAME: &'static str = "search";
    const FOLD_VERSION: u32 = FOLD_VERSION;
    const CONTEXTS: &'static [Context] = &[Context::Catalogue, Context::Pricing, Context::Inventory];

    fn key(event: &Event) -> Option<SearchKey> {
        Some(match event {
            Event::ProductRegistered(product) | Event::ProductRevised(product) => {
                SearchKey::Product(product.sku.clone())
            }
            Event::ProductDiscontinued(event) => SearchKey::Product(event.sku.clone()),
            Event::PriceSet(event) => SearchKey::Price(event.sku.clone(), event.region.clone()),
            Event::StockUpdated(event) => SearchKey::Stock(event.sku.clone(), event.warehouse.clone()),
        })
    }

    fn project(row: Option<&SearchRow>, event: &Event, version: u64) -> Result<Option<SearchRow>, FoldError> {
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
        }))
    }
}

#[cfg(test)]
mod tests {
    use schemas::Sku;
    use schemas::event::{Product, ProductDiscontinued};

    use super::*;

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
        let registered = SearchProjection::project(None, &Event::ProductRegistered(product("Onion")), 1).unwrap();
        let revised =
            SearchProjection::project(registered.as_ref(), &Event::ProductRevised(product("Red onion")), 2).unwrap();
        assert_eq!(revised, Some(SearchRow::Product { product: Some(product("Red onion")), version: 2 }));
        let gone = Event::ProductDiscontinued(ProductDiscontinued { sku: Sku::new("A").unwrap(), reason: None });
        let gone = SearchProjection::project(revised.as_ref(), &gone, 3).unwrap();
        assert_eq!(gone, Some(SearchRow::Product { product: None, version: 3 }));
        let again = SearchProjection::project(gone.as_ref(), &Event::ProductRegistered(product("Onion")), 4).unwrap();
        assert!(matches!(again, Some(SearchRow::Product { product: Some(_), version: 4 })));
    }

    #[test]
    fn an_older_version_changes_nothing() {
        let row = SearchProjection::project(None, &Event::ProductRegistered(product("Onion")), 3).unwrap();
        assert_eq!(SearchProjection::project(row.as_ref(), &Event::ProductRevised(product("x")), 3), Ok(None));
    }
}
