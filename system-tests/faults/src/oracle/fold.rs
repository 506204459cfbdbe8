//! The oracle's own fold of the event table: every state that was ever held, and the last one. Shares no code with the
//! projectors.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use event_store::StoredEvent;
use schemas::event::{Product, StockChange};
use schemas::{Context, Event, PositionToken, WriterSchema, decode_event, partition_of};

use super::table::Table;

/// Stock of a SKU in a warehouse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stock {
    pub region: String,
    pub on_hand: i64,
    pub reserved: i64,
    pub version: u64,
}

/// One version of a stock stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockStep {
    pub on_hand: i64,
    pub reserved: i64,
    pub change: StockChange,
    pub quantity: i64,
}

/// A product as it should be shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProductView {
    pub product: Option<Product>,
    /// Region to currency and minor units.
    pub prices: BTreeMap<String, (String, i64)>,
    /// Regions with something available.
    pub in_stock: BTreeSet<String>,
}

/// What the table comes to.
#[derive(Debug, Default)]
pub struct Expected {
    /// By SKU and warehouse.
    pub stock: BTreeMap<(String, String), Stock>,
    /// By SKU and warehouse: version (from 1) to what it was then.
    pub history: HashMap<(String, String), Vec<StockStep>>,
    pub products: BTreeMap<String, ProductView>,
    /// Every name that a SKU had.
    pub names: HashMap<String, HashSet<String>>,
    /// The same in their order: one for each version of the product.
    pub versions: HashMap<String, Vec<String>>,
    /// Events of each topic and partition, as indices into the table, in their order.
    pub partitions: BTreeMap<(String, u32), Vec<usize>>,
    /// SKUs of which an event could not be folded: the stock stays as it was before.
    pub parked: BTreeSet<String>,
    /// The last position of each partition of each event topic.
    pub head: PositionToken,
}

/// The decoded event, or why it is none.
pub fn decode(event: &StoredEvent) -> Result<Event, String> {
    let writer = WriterSchema::of(event.schema).ok_or("unknown schema")?;
    decode_event(writer, &event.body).map_err(|error| error.to_string())
}

// === impl Expected ===

impl Expected {
    pub fn of(table: &Table) -> Self {
        let mut expected = Self::default();
        let mut parked: HashSet<(String, String)> = HashSet::new();
        for (index, stored) in table.events.iter().enumerate() {
            let partition = partition_of(stored.key.as_bytes(), table.partitions);
            expected.partitions.entry((stored.topic.clone(), partition)).or_default().push(index);
            let context = Context::ALL.into_iter().find(|context| context.events_topic() == stored.topic);
            // No projection reads what the platform says of itself.
            let Some(context) = context.filter(|context| *context != Context::Platform) else { continue };
            expected.head.advance(context, partition, stored.position);
            if table.discarded.contains(&stored.id) {
                continue;
            }
            // Events behind an unreadable one of the same key and topic wait for it.
            let key = (stored.topic.clone(), stored.key.clone());
            let event = decode(stored).ok().filter(is_possible);
            match event {
                Some(event) if !parked.contains(&key) => expected.take(&event, stored.version),
                _ => {
                    expected.parked.insert(stored.key.clone());
                    parked.insert(key);
                }
            }
        }
        expected
    }

    fn take(&mut self, event: &Event, version: u64) {
        match event {
            Event::StockUpdated(event) => {
                let key = (event.sku.to_string(), event.warehouse.to_string());
                let (on_hand, reserved) = (event.on_hand, event.reserved);
                let step = StockStep { on_hand, reserved, change: event.change, quantity: event.quantity };
                self.history.entry(key.clone()).or_default().push(step);
                let stock = Stock { region: event.region.to_string(), on_hand, reserved, version };
                self.stock.insert(key, stock);
                let sku = event.sku.to_string();
                let first = (sku.clone(), String::new());
                let regions = self.stock.range(first..).take_while(|((of, _), _)| *of == sku);
                let available = regions.filter(|(_, stock)| stock.on_hand > stock.reserved);
                let in_stock = available.map(|(_, stock)| stock.region.clone()).collect();
                self.products.entry(sku).or_default().in_stock = in_stock;
            }
            Event::ProductRegistered(product) | Event::ProductRevised(product) => {
                let sku = product.sku.to_string();
                self.names.entry(sku.clone()).or_default().insert(product.name.clone());
                self.versions.entry(sku.clone()).or_default().push(product.name.clone());
                self.products.entry(sku).or_default().product = Some(product.clone());
            }
            Event::ProductDiscontinued(event) => {
                self.products.entry(event.sku.to_string()).or_default().product = None;
            }
            Event::PriceSet(event) => {
                let view = self.products.entry(event.sku.to_string()).or_default();
                view.prices.insert(event.region.to_string(), (event.currency.clone(), event.amount_minor));
            }
            Event::DecisionRecorded(_) => {}
        }
    }
}

/// Invariant W3, which a fold holds against.
fn is_possible(event: &Event) -> bool {
    match event {
        Event::StockUpdated(event) => event.reserved >= 0 && event.on_hand >= event.reserved,
        Event::PriceSet(event) => event.amount_minor >= 0,
        _ => true,
    }
}
