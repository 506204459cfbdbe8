//! ProductRegistered, version 1 to 2: the category was one text with slashes, and there were no tags.

use serde::{Deserialize, Serialize};

use crate::event::Product;
use crate::id::Sku;

/// Version 1, as the old schema file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProductRegisteredV1 {
    pub(crate) sku: Sku,
    pub(crate) name: String,
    pub(crate) brand: Option<String>,
    pub(crate) category: String,
    pub(crate) description: Option<String>,
    pub(crate) pack_size: Option<String>,
}

impl From<ProductRegisteredV1> for Product {
    fn from(old: ProductRegisteredV1) -> Product {
        let category_path =
            old.category.split('/').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Product {
            sku: old.sku,
            name: old.name,
            brand: old.brand,
            category_path,
            description: old.description,
            pack_size: old.pack_size,
            tags: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slashed_category_becomes_a_path() {
        let old = ProductRegisteredV1 {
            sku: Sku::new("A").unwrap(),
            name: "Onion".to_owned(),
            brand: None,
            category: "Fruits & Vegetables / Onions/".to_owned(),
            description: None,
            pack_size: Some("1 kg".to_owned()),
        };
        let product = Product::from(old);
        assert_eq!(product.category_path, ["Fruits & Vegetables", "Onions"]);
        assert_eq!(product.pack_size.as_deref(), Some("1 kg"));
        assert!(product.tags.is_empty());
    }
}
