//! Names of streams: `product-<sku>`, `stock-<sku>@<warehouse>`, `price-<sku>@<region>`,
//! `decisions-<projection>-<catalogue id>`; and `outcome-<command id>`, of no aggregate.
//!
//! Ids cannot hold `@`, and a catalogue's id always is of 36 characters: so a name splits in one way only.

use std::fmt;

use schemas::{Command, Context, RegionId, Sku, WarehouseId};
use serde::{Deserialize, Serialize};

/// A stream of events of one aggregate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(String);

// === impl StreamId ===

impl StreamId {
    /// The stream that decides a command.
    pub fn of(command: &Command) -> Self {
        match command {
            Command::RegisterProduct(data) => Self::product(&data.sku),
            Command::ReviseProduct(data) => Self::product(&data.sku),
            Command::DiscontinueProduct(data) => Self::product(&data.sku),
            Command::ReceiveStock(data) => Self::stock(&data.sku, &data.warehouse),
            Command::AdjustStock(data) => Self::stock(&data.sku, &data.warehouse),
            Command::CountStock(data) => Self::stock(&data.sku, &data.warehouse),
            Command::ReserveStock(data) => Self::stock(&data.sku, &data.warehouse),
            Command::ReleaseReservation(data) => Self::stock(&data.sku, &data.warehouse),
            Command::ShipReservation(data) => Self::stock(&data.sku, &data.warehouse),
            Command::SetPrice(data) => Self::price(&data.sku, &data.region),
            Command::RecordDecision(data) => Self(format!("decisions-{}-{}", data.projection, data.catalogue_id)),
        }
    }

    pub fn product(sku: &Sku) -> Self {
        Self(format!("product-{sku}"))
    }

    pub fn stock(sku: &Sku, warehouse: &WarehouseId) -> Self {
        Self(format!("stock-{sku}@{warehouse}"))
    }

    pub fn price(sku: &Sku, region: &RegionId) -> Self {
        Self(format!("price-{sku}@{region}"))
    }

    /// Stream of the row that publishes a command's outcome; its only version is 1.
    pub fn outcome(command_id: impl fmt::Display) -> Self {
        Self(format!("outcome-{command_id}"))
    }

    /// A name read back from the event table.
    pub fn from_stored(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The context whose aggregate the stream belongs to; `None` for a stream of no aggregate, such as outcomes.
    pub fn context(&self) -> Option<Context> {
        match self.0.split_once('-')?.0 {
            "product" => Some(Context::Catalogue),
            "stock" => Some(Context::Inventory),
            "price" => Some(Context::Pricing),
            "decisions" => Some(Context::Platform),
            _ => None,
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
