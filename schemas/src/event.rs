//! The events, in the shape of their newest schema version. Older stored versions become these by upcasting.
//!
//! Every event carries the **result** of its change, so that folding it twice, or from the middle, gives the same.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::context::Context;
use crate::contract::SchemaRef;
use crate::id::{ProjectionId, RegionId, ReservationId, Sku, WarehouseId, uuid_text};

/// Any event of any context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A product entered the catalogue.
    ProductRegistered(Product),
    /// A product's description changed; the product is the result, not the difference.
    ProductRevised(Product),
    ProductDiscontinued(ProductDiscontinued),
    StockUpdated(StockUpdated),
    PriceSet(PriceSet),
    DecisionRecorded(DecisionRecorded),
}

/// A product as the catalogue describes it: what registering and revising both result in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    pub sku: Sku,
    pub name: String,
    #[serde(default)]
    pub brand: Option<String>,
    /// Category names from the widest to the narrowest.
    #[serde(default)]
    pub category_path: Vec<String>,
    #[serde(default)]
    pub description: Option<String>,
    /// As printed on the pack, such as `500 g`.
    #[serde(default)]
    pub pack_size: Option<String>,
    #[serde(default)]
    pub tags: Vec<String>,
}

/// A product left the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductDiscontinued {
    pub sku: Sku,
    #[serde(default)]
    pub reason: Option<String>,
}

/// The stock of one SKU in one warehouse changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockUpdated {
    pub sku: Sku,
    pub warehouse: WarehouseId,
    pub region: RegionId,
    pub change: StockChange,
    /// Units: the signed difference for `adjusted`, the counted total for `counted`, else a positive amount.
    pub quantity: i64,
    /// Units in the warehouse after the change.
    pub on_hand: i64,
    /// Units of `on_hand` promised to reservations after the change.
    pub reserved: i64,
    #[serde(default)]
    pub reservation_id: Option<ReservationId>,
    /// Milliseconds since 1970 (UTC); only for `reserved`.
    #[serde(default)]
    pub expires_at: Option<i64>,
    #[serde(default)]
    pub reason: Option<String>,
}

/// What happened to the stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StockChange {
    Received,
    Adjusted,
    Reserved,
    Released,
    Shipped,
    Counted,
}

/// The price of a SKU in a region was set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceSet {
    pub sku: Sku,
    pub region: RegionId,
    /// ISO 4217 code.
    pub currency: String,
    /// Price of one pack in minor units of the currency.
    pub amount_minor: i64,
}

/// A decision on the generations of a read model was recorded, at its place in the chain of its catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecorded {
    pub projection: ProjectionId,
    /// Which store of that read model: each has a catalogue, and a chain of decisions, of its own.
    #[serde(with = "uuid_text")]
    pub catalogue_id: Uuid,
    /// 1, 2, 3 … in that catalogue.
    pub number: i64,
    /// Milliseconds since 1970 (UTC).
    pub at: i64,
    pub who: String,
    /// Such as `started`, `approved`, `cut_over`, `rolled_back`.
    pub action: String,
    /// What it was decided on, such as `stock@2`.
    pub generation: String,
    /// May be empty.
    pub reason: String,
    /// What it rests on, as JSON text.
    pub evidence: String,
    /// SHA-256 of the decision before, 64 hex digits; empty for the first.
    pub previous: String,
    /// SHA-256 of this decision, 64 hex digits.
    pub hash: String,
}

// === impl Event ===

impl Event {
    pub fn context(&self) -> Context {
        match self {
            Event::ProductRegistered(_) | Event::ProductRevised(_) | Event::ProductDiscontinued(_) => {
                Context::Catalogue
            }
            Event::StockUpdated(_) => Context::Inventory,
            Event::PriceSet(_) => Context::Pricing,
            Event::DecisionRecorded(_) => Context::Platform,
        }
    }

    /// The partition key: the SKU that the event is about, or the projection.
    pub fn key(&self) -> &str {
        match self {
            Event::ProductRegistered(event) => event.sku.as_str(),
            Event::ProductRevised(event) => event.sku.as_str(),
            Event::ProductDiscontinued(event) => event.sku.as_str(),
            Event::StockUpdated(event) => event.sku.as_str(),
            Event::PriceSet(event) => event.sku.as_str(),
            Event::DecisionRecorded(event) => event.projection.as_str(),
        }
    }

    /// The schema that the event is written with: the newest version of its name.
    pub fn schema(&self) -> SchemaRef {
        let (name, version) = match self {
            Event::ProductRegistered(_) => ("millrace.catalogue.ProductRegistered", 2),
            Event::ProductRevised(_) => ("millrace.catalogue.ProductRevised", 1),
            Event::ProductDiscontinued(_) => ("millrace.catalogue.ProductDiscontinued", 1),
            Event::StockUpdated(_) => ("millrace.inventory.StockUpdated", 1),
            Event::PriceSet(_) => ("millrace.pricing.PriceSet", 1),
            Event::DecisionRecorded(_) => ("millrace.platform.DecisionRecorded", 1),
        };
        SchemaRef { name, version }
    }

    /// The event as JSON for people and tools: its fields, without the envelope.
    pub fn to_json(&self) -> serde_json::Value {
        let json = match self {
            Event::ProductRegistered(event) => serde_json::to_value(event),
            Event::ProductRevised(event) => serde_json::to_value(event),
            Event::ProductDiscontinued(event) => serde_json::to_value(event),
            Event::StockUpdated(event) => serde_json::to_value(event),
            Event::PriceSet(event) => serde_json::to_value(event),
            Event::DecisionRecorded(event) => serde_json::to_value(event),
        };
        json.unwrap_or(serde_json::Value::Null)
    }
}

// === impl Product ===

impl Product {
    /// A product of which only the name is known.
    pub fn named(sku: Sku, name: impl Into<String>) -> Self {
        Self {
            sku,
            name: name.into(),
            brand: None,
            category_path: Vec::new(),
            description: None,
            pack_size: None,
            tags: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_written_with_the_newest_version() {
        for event in crate::codec::samples() {
            assert_eq!(SchemaRef::newest(event.schema().name), Some(event.schema()));
        }
    }
}
