//! The search read model: one document per SKU from three topics that have no order between them.
//!
//! A document has three independent parts (product, prices, availability), each a set of rows of its own, so that
//! workers of different topics never write the same row. It is shown once its product part is there.

use schemas::event::Product;
use schemas::{RegionId, Sku, WarehouseId};
use serde::{Deserialize, Serialize};

/// Version of the fold whose rows this program writes.
pub const FOLD_VERSION: u32 = 1;

/// Names one row of one part of a document.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SearchKey {
    Product(Sku),
    Price(Sku, RegionId),
    Stock(Sku, WarehouseId),
}

/// One row of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SearchRow {
    /// `product` is `None` once the product is discontinued.
    Product {
        product: Option<Product>,
        version: u64,
    },
    Price {
        currency: String,
        amount_minor: i64,
        version: u64,
    },
    Stock {
        region: RegionId,
        available: i64,
        version: u64,
    },
}

// === impl SearchKey ===

impl SearchKey {
    pub fn sku(&self) -> &Sku {
        match self {
            SearchKey::Product(sku) | SearchKey::Price(sku, _) | SearchKey::Stock(sku, _) => sku,
        }
    }
}
