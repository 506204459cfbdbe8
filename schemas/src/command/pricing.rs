//! Commands of pricing.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::CommandError;
use super::check::Check;
use crate::id::{RegionId, Sku};

data!(
    /// Set the price of a SKU in a region.
    SetPrice {
        sku: Sku,
        region: RegionId,
        /// ISO 4217 code, three capital letters.
        currency: String,
        /// Price of one pack in minor units.
        amount_minor: i64,
    }
);

// === impl SetPrice ===

impl SetPrice {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.number("amount_minor", self.amount_minor, 0)?;
        let is_code = self.currency.len() == 3 && self.currency.bytes().all(|byte| byte.is_ascii_uppercase());
        if is_code {
            Ok(())
        } else {
            let problem = format!("{:?} is not three capital letters (ISO 4217)", self.currency);
            Err(check.refused("currency", problem))
        }
    }
}
