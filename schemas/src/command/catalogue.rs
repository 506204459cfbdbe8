//! Commands of the catalogue.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::CommandError;
use super::check::{Check, MAX_DESCRIPTION, MAX_TEXT};
use crate::id::Sku;

data!(
    /// Enter a product into the catalogue.
    RegisterProduct {
        sku: Sku,
        name: String,
        #[serde(default)] brand: Option<String>,
        /// From the widest to the narrowest.
        #[serde(default)] category_path: Vec<String>,
        #[serde(default)] description: Option<String>,
        /// As printed on the pack, such as `500 g`.
        #[serde(default)] pack_size: Option<String>,
        #[serde(default)] tags: Vec<String>,
    }
);
data!(
    /// Change a product; what is absent or null stays as it is.
    ReviseProduct {
        sku: Sku,
        #[serde(default)] name: Option<String>,
        #[serde(default)] brand: Option<String>,
        #[serde(default)] category_path: Option<Vec<String>>,
        #[serde(default)] description: Option<String>,
        #[serde(default)] pack_size: Option<String>,
        #[serde(default)] tags: Option<Vec<String>>,
    }
);
data!(
    /// Take a product out of the catalogue.
    DiscontinueProduct {
        sku: Sku,
        #[serde(default)] reason: Option<String>,
    }
);

// === impl RegisterProduct ===

impl RegisterProduct {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.text("name", &self.name, MAX_TEXT)?;
        check.optional("brand", self.brand.as_deref(), MAX_TEXT)?;
        check.list("category_path", &self.category_path)?;
        check.optional("description", self.description.as_deref(), MAX_DESCRIPTION)?;
        check.optional("pack_size", self.pack_size.as_deref(), MAX_TEXT)?;
        check.list("tags", &self.tags)
    }
}

// === impl ReviseProduct ===

impl ReviseProduct {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.optional("name", self.name.as_deref(), MAX_TEXT)?;
        check.optional("brand", self.brand.as_deref(), MAX_TEXT)?;
        check.list("category_path", self.category_path.as_deref().unwrap_or_default())?;
        check.optional("description", self.description.as_deref(), MAX_DESCRIPTION)?;
        check.optional("pack_size", self.pack_size.as_deref(), MAX_TEXT)?;
        check.list("tags", self.tags.as_deref().unwrap_or_default())
    }
}

// === impl DiscontinueProduct ===

impl DiscontinueProduct {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.optional("reason", self.reason.as_deref(), MAX_TEXT)
    }
}
