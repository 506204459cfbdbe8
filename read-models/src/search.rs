//! The search read model: one document per SKU from three topics that have no order between them.
//!
//! A document has three independent parts (product, prices, availability), each a set of rows of its own, so that
//! workers of different topics never write the same row. It is shown once its product part is there.

mod builds;
mod catalogue;
mod documents;
mod index;
mod indexer;
mod loaded;
mod parked;
mod query;
mod read_model;
mod reader;
mod removal;
mod rows;
mod scan;
mod scores;
mod sums;
mod view;

use schemas::event::Product;
use schemas::{Context, PositionToken, RegionId, Sku, WarehouseId};
use serde::{Deserialize, Serialize};

pub use catalogue::SearchCatalogue;
pub use documents::{DocumentCheck, DocumentFault, DocumentProblem};
pub use read_model::SearchReadModel;
pub use reader::SearchReader;

/// The contexts whose events make a document.
pub const CONTEXTS: [Context; 3] = [Context::Catalogue, Context::Inventory, Context::Pricing];

/// Name of this read model and of its projection.
pub const NAME: &str = "search";

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
        /// When the event of that version was decided, in milliseconds since 1970; `None` in rows of fold 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revised_at: Option<i64>,
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

/// What to look for. Filters are joined by "and", the values of one filter by "or".
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SearchRequest {
    /// Plain words, no syntax: every one must match, the last one also as the beginning of a word. Text without a word
    /// is no text.
    pub text: Option<String>,
    /// Brands, as facets name them.
    pub brand: Vec<String>,
    /// Category paths joined by `/`, as facets name them; each with everything below it.
    pub category: Vec<String>,
    /// Region of prices and of `in_stock`.
    pub region: Option<RegionId>,
    /// Only what is, or is not, in stock: in `region`, or anywhere when there is none.
    pub in_stock: Option<bool>,
    /// Lowest price in minor units, itself included; needs a region.
    pub price_min: Option<i64>,
    /// Highest price in minor units, itself included; needs a region.
    pub price_max: Option<i64>,
    /// Hits on one page, at least 1.
    pub limit: usize,
    /// `next` of the page before.
    pub cursor: Option<String>,
    /// Whether to count facets.
    pub facets: bool,
}

/// A page of hits, all of one state of the read model.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchAnswer {
    /// All that match, on this page or not.
    pub total: u64,
    /// The best first, and by SKU where they are equally good; by SKU alone without text.
    pub hits: Vec<SearchHit>,
    /// `None` unless asked for.
    pub facets: Option<SearchFacets>,
    /// Where the next page begins; `None` on the last one. Without text, pages neither repeat nor skip a product
    /// whatever is written between them; with text they may, since hits change places. Text hits end at 10,000.
    pub next: Option<String>,
    /// What the answer is true at.
    pub position: PositionToken,
    /// Which generation gave it, the whole of it.
    pub generation: u32,
}

/// Completions, all of one state of the read model.
#[derive(Debug, Clone, PartialEq)]
pub struct SuggestAnswer {
    /// Product names that begin as typed, then those that have the typed words; none twice.
    pub names: Vec<String>,
    pub position: PositionToken,
    pub generation: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchHit {
    pub sku: Sku,
    pub name: String,
    pub brand: Option<String>,
    pub category_path: Vec<String>,
    pub pack_size: Option<String>,
    /// In the asked region.
    pub price: Option<RegionPrice>,
    /// Regions that have it in stock.
    pub in_stock: Vec<RegionId>,
    /// When the catalogue last changed it, in milliseconds since 1970; `None` in a generation of fold 1.
    pub revised_at: Option<i64>,
    /// Whether events of this SKU are parked: the hit is the last good state.
    pub parked: bool,
}

/// Counts over all that match, the most frequent first; the 50 most frequent of each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SearchFacets {
    pub brand: Vec<FacetCount>,
    /// Every path and every beginning of one, joined by `/`.
    pub category: Vec<FacetCount>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FacetCount {
    pub value: String,
    pub count: u64,
}

/// A price in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionPrice {
    pub region: RegionId,
    /// ISO 4217.
    pub currency: String,
    /// Minor units.
    pub amount_minor: i64,
}

/// What the rows say of one SKU's product and prices, and the position that it is true at.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductAnswer {
    /// `None` before it is registered and after it is discontinued.
    pub product: Option<Product>,
    /// When the catalogue last changed it, in milliseconds since 1970; `None` in a generation of fold 1.
    pub revised_at: Option<i64>,
    /// Sorted by region.
    pub prices: Vec<RegionPrice>,
    /// Whether events of this SKU are parked, of any part: the rows are the last good state.
    pub parked: bool,
    pub position: PositionToken,
    pub generation: u32,
}

/// Whether the meta file of an index names a commit that this program reads. For hostile input.
#[doc(hidden)]
pub fn reads_commit(meta: &[u8]) -> bool {
    index::Commit::of_meta(meta).is_some()
}

// === impl SearchKey ===

impl SearchKey {
    pub fn sku(&self) -> &Sku {
        match self {
            SearchKey::Product(sku) | SearchKey::Price(sku, _) | SearchKey::Stock(sku, _) => sku,
        }
    }
}

// === impl SearchRow ===

impl SearchRow {
    /// Version of the stream that the row is true at.
    pub fn version(&self) -> u64 {
        match self {
            SearchRow::Product { version, .. }
            | SearchRow::Price { version, .. }
            | SearchRow::Stock { version, .. } => *version,
        }
    }
}
