//! Commands of the inventory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check::{Check, MAX_NUMBER, MAX_TEXT};
use super::{CommandError, instant};
use crate::id::{RegionId, ReservationId, Sku, WarehouseId};

data!(
    /// Add delivered units.
    ReceiveStock {
        sku: Sku,
        warehouse: WarehouseId,
        /// Needed the first time a warehouse is named.
        #[serde(default)] region: Option<RegionId>,
        quantity: i64,
    }
);
data!(
    /// Correct the stock by a signed difference.
    AdjustStock {
        sku: Sku,
        warehouse: WarehouseId,
        delta: i64,
        reason: String,
    }
);
data!(
    /// Set the stock to what was counted.
    CountStock {
        sku: Sku,
        warehouse: WarehouseId,
        /// Needed the first time a warehouse is named.
        #[serde(default)] region: Option<RegionId>,
        counted: i64,
    }
);
data!(
    /// Promise units to a reservation.
    ReserveStock {
        sku: Sku,
        warehouse: WarehouseId,
        reservation_id: ReservationId,
        quantity: i64,
        /// Milliseconds since 1970, or RFC 3339 in JSON; the reservation is released then by itself.
        #[serde(deserialize_with = "instant::deserialize")] expires_at: i64,
    }
);
data!(
    /// Give reserved units back.
    ReleaseReservation {
        sku: Sku,
        warehouse: WarehouseId,
        reservation_id: ReservationId,
        #[serde(default)] reason: Option<String>,
    }
);
data!(
    /// Ship reserved units.
    ShipReservation {
        sku: Sku,
        warehouse: WarehouseId,
        reservation_id: ReservationId,
    }
);

// === impl ReceiveStock ===

impl ReceiveStock {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.number("quantity", self.quantity, 1)
    }
}

// === impl AdjustStock ===

impl AdjustStock {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.text("reason", &self.reason, MAX_TEXT)?;
        if self.delta == 0 {
            return Err(check.refused("delta", "0 changes nothing".to_owned()));
        }
        check.number("delta", self.delta, -MAX_NUMBER)
    }
}

// === impl CountStock ===

impl CountStock {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.number("counted", self.counted, 0)
    }
}

// === impl ReserveStock ===

impl ReserveStock {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.number("quantity", self.quantity, 1)
    }
}

// === impl ReleaseReservation ===

impl ReleaseReservation {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.optional("reason", self.reason.as_deref(), MAX_TEXT)
    }
}
