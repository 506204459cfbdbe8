//! The tantivy index: its fields, a document from a SKU's parts, and what a commit says about itself.
//!
//! The index is derived: whatever is wrong with it, it is deleted and made again from the rows.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemas::event::Product;
use schemas::{PositionToken, RegionId, Sku};
use serde::{Deserialize, Serialize};
use tantivy::index::SegmentComponent;
use tantivy::schema::{FAST, Field, IndexRecordOption, STORED, STRING, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{AsciiFoldingFilter, LowerCaser, RemoveLongFilter, SimpleTokenizer, TextAnalyzer};
use tantivy::{Index, IndexReader, ReloadPolicy, SegmentMeta, TantivyDocument, TantivyError, Term};

use crate::search::RegionPrice;
use crate::search::rows::{Parts, RowsState};
use crate::search::sums::sum_of;

/// Raised whenever fields, analysis or what is stored change: an index of another layout is made again.
/// A field of [`Shown`] that older documents go without needs no other layout.
const LAYOUT: u32 = 2;
const WORDS: &str = "words";
/// Longer words are left out, in documents and queries alike.
const MAX_WORD_BYTES: usize = 64;
/// In the field of regions that have stock: any region has. No region is called so, `*` is not of the id grammar.
pub(super) const ANY_REGION: &str = "*";
pub(super) const META_FILE: &str = "meta.json";

/// How often a directory is emptied that is not empty afterwards, and how long is waited between.
const REMOVALS: usize = 20;
const BETWEEN_REMOVALS: Duration = Duration::from_millis(25);

/// The fields of a document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields {
    /// The key, and the order of hits that are equally good.
    pub(super) sku: Field,
    /// Words of the name.
    pub(super) name: Field,
    /// Words of everything else that is searched.
    pub(super) text: Field,
    /// The whole name in lower case, for completion.
    pub(super) name_key: Field,
    pub(super) brand: Field,
    /// Each path from the widest category to the narrowest: `Vegetables`, `Vegetables/Onions`.
    pub(super) category: Field,
    /// Regions that have stock.
    pub(super) in_stock: Field,
    /// Region and amount, see [`price_term`].
    pub(super) price: Field,
    /// A [`Shown`] as JSON.
    pub(super) shown: Field,
}

/// What a hit shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) brand: Option<String>,
    pub(super) category_path: Vec<String>,
    pub(super) pack_size: Option<String>,
    pub(super) prices: Vec<RegionPrice>,
    pub(super) in_stock: Vec<RegionId>,
    /// Milliseconds since 1970; `None` in documents of fold 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revised_at: Option<i64>,
    /// Whether events of the SKU were parked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) parked: bool,
}

/// What an index commit holds, in its payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Commit {
    layout: u32,
    /// Tells this index from one that was made again at its path.
    pub(super) index: String,
    /// The rows that it was made from.
    pub(super) store: String,
    pub(super) generation: u32,
    /// Every document change up to this row version is in it, and none after.
    pub(super) row_version: u64,
    pub(super) live: bool,
    /// The checkpoints that it is true at.
    pub(super) position: PositionToken,
    /// Over everything else here; 0 but in the payload.
    sum: u64,
}

// === impl Fields ===

impl Fields {
    pub(super) fn schema() -> (Schema, Self) {
        let words = TextFieldIndexing::default().set_tokenizer(WORDS).set_index_option(IndexRecordOption::WithFreqs);
        let words = TextOptions::default().set_indexing_options(words);
        let mut schema = Schema::builder();
        let fields = Self {
            sku: schema.add_text_field("sku", STRING | STORED | FAST),
            name: schema.add_text_field("name", words.clone()),
            text: schema.add_text_field("text", words),
            name_key: schema.add_text_field("name_key", STRING | FAST),
            brand: schema.add_text_field("brand", STRING | FAST),
            category: schema.add_text_field("category", STRING | FAST),
            in_stock: schema.add_text_field("in_stock", STRING),
            price: schema.add_text_field("price", STRING),
            shown: schema.add_text_field("shown", STORED),
        };
        (schema.build(), fields)
    }

    pub(super) fn key(&self, sku: &Sku) -> Term {
        Term::from_field_text(self.sku, sku.as_str())
    }

    /// `None` while there is nothing to show: the product part is missing.
    pub(super) fn document(&self, sku: &Sku, parts: Parts) -> Result<Option<TantivyDocument>, serde_json::Error> {
        let Some(product) = parts.product else { return Ok(None) };
        let mut document = TantivyDocument::default();
        document.add_text(self.sku, sku.as_str());
        document.add_text(self.name, &product.name);
        document.add_text(self.name_key, folded(&product.name));
        for text in product.brand.iter().chain(&product.description).chain(&product.category_path).chain(&product.tags)
        {
            document.add_text(self.text, text);
        }
        if let Some(brand) = &product.brand {
            document.add_text(self.brand, brand);
        }
        for depth in 1..=product.category_path.len() {
            document.add_text(self.category, product.category_path[..depth].join("/"));
        }
        if !parts.in_stock.is_empty() {
            document.add_text(self.in_stock, ANY_REGION);
        }
        for region in &parts.in_stock {
            document.add_text(self.in_stock, region.as_str());
        }
        for price in &parts.prices {
            document.add_text(self.price, price_term(&price.region, price.amount_minor));
        }
        let shown = Shown::with(product, parts.revised_at, parts.prices, parts.in_stock, parts.parked);
        document.add_text(self.shown, serde_json::to_string(&shown)?);
        Ok(Some(document))
    }
}

// === impl Shown ===

impl Shown {
    /// `None` while there is nothing to show.
    pub(super) fn of(parts: Parts) -> Option<Self> {
        Some(Self::with(parts.product?, parts.revised_at, parts.prices, parts.in_stock, parts.parked))
    }

    fn with(
        product: Product,
        revised_at: Option<i64>,
        prices: Vec<RegionPrice>,
        in_stock: Vec<RegionId>,
        parked: bool,
    ) -> Self {
        Self {
            name: product.name,
            brand: product.brand,
            category_path: product.category_path,
            pack_size: product.pack_size,
            prices,
            in_stock,
            revised_at,
            parked,
        }
    }
}

// === impl Commit ===

impl Commit {
    pub(super) fn of(index: &str, rows: RowsState) -> Self {
        Self {
            layout: LAYOUT,
            index: index.to_owned(),
            store: rows.store,
            generation: rows.generation,
            row_version: rows.row_version,
            live: rows.live,
            position: rows.position,
            sum: 0,
        }
    }

    /// `None` before the first commit, for one that this program does not read, and for one whose bytes went bad.
    pub(super) fn of_payload(payload: Option<&str>) -> Option<Self> {
        let mut commit: Self = serde_json::from_str(payload?).ok()?;
        let sum = std::mem::take(&mut commit.sum);
        (commit.layout == LAYOUT && commit.sum().ok()? == sum).then_some(commit)
    }

    /// From the bytes of the index's meta file.
    pub(super) fn of_meta(meta: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Meta {
            payload: Option<String>,
        }
        Self::of_payload(serde_json::from_slice::<Meta>(meta).ok()?.payload.as_deref())
    }

    pub(super) fn payload(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Self { sum: self.sum()?, ..self.clone() })
    }

    fn sum(&self) -> Result<u64, serde_json::Error> {
        Ok(sum_of(&serde_json::to_vec(self)?))
    }
}

/// Opens an index; one with other fields is an error.
pub(super) fn open(dir: &Path) -> Result<(Index, Fields), TantivyError> {
    let (schema, fields) = Fields::schema();
    let index = Index::open_in_dir(dir)?;
    if index.schema() != schema {
        return Err(TantivyError::SchemaError("the index has other fields".to_owned()));
    }
    index.tokenizers().register(WORDS, words());
    Ok((index, fields))
}

/// An index that opens and whose files are what their checksums say. A file on which tantivy panics, such as one that
/// is shorter than the footer that it should end with, is damaged like any other. What was looked at is noted in
/// `checked`, and not looked at again: a file of a segment never changes, so that who is overtaken by a commit gets
/// through in the end.
pub(super) fn open_whole(dir: &Path, checked: &mut HashSet<PathBuf>) -> Result<(Index, Fields), TantivyError> {
    std::panic::catch_unwind(AssertUnwindSafe(|| open_checked(dir, checked))).unwrap_or_else(|_| {
        Err(TantivyError::SystemError(format!("a file of {} is damaged: reading it panics", dir.display())))
    })
}

fn open_checked(dir: &Path, checked: &mut HashSet<PathBuf>) -> Result<(Index, Fields), TantivyError> {
    let (index, fields) = open(dir)?;
    let listed = index.directory().list_managed_files();
    let segments = index.searchable_segment_metas()?;
    let damaged = |path: &Path, problem| Err(TantivyError::SystemError(format!("{} is {problem}", path.display())));
    for entry in std::fs::read_dir(dir)? {
        let path = PathBuf::from(entry?.file_name());
        // Deletes of another commit may be there, of one before or of one that is on its way.
        let is_of = |segment: &SegmentMeta| {
            let is_deletes = path.extension().is_some_and(|extension| extension == "del");
            let is_named = path.to_str().is_some_and(|name| name.starts_with(segment.id().uuid_string().as_str()));
            is_named && (!is_deletes || path == segment.relative_path(SegmentComponent::Delete))
        };
        if checked.contains(&path) || !segments.iter().any(is_of) {
            continue;
        }
        if !listed.contains(&path) {
            return damaged(&path, "not in the list of files");
        }
        if !index.directory().validate_checksum(&path)? {
            return damaged(&path, "damaged");
        }
        checked.insert(path);
    }
    // Opens every segment: a missing file shows here.
    let _: IndexReader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
    Ok((index, fields))
}

/// Removes an index, if there is one. A writer that was just dropped may finish a file meanwhile: then once more.
pub(super) fn remove(dir: &Path) -> std::io::Result<()> {
    for _ in 0..REMOVALS {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => std::thread::sleep(BETWEEN_REMOVALS),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
    std::fs::remove_dir_all(dir)
}

/// Makes an empty index in place of whatever is there, in a build that is there.
pub(super) fn make(dir: &Path) -> Result<(Index, Fields), TantivyError> {
    remove(dir)?;
    // Not what is above it: a build that was deleted would be there again, without rows.
    std::fs::create_dir(dir)?;
    Index::create_in_dir(dir, Fields::schema().0)?;
    open(dir)
}

/// How words are taken from text, in documents and queries alike.
pub(super) fn words() -> TextAnalyzer {
    TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(MAX_WORD_BYTES))
        .filter(LowerCaser)
        .filter(AsciiFoldingFilter)
        .build()
}

/// The words of a text, joined by one blank.
pub(super) fn folded(text: &str) -> String {
    words_of(text).join(" ")
}

pub(super) fn words_of(text: &str) -> Vec<String> {
    let mut analyzer = words();
    let mut tokens = analyzer.token_stream(text);
    let mut found = Vec::new();
    while tokens.advance() {
        found.push(tokens.token().text.clone());
    }
    found
}

/// Terms of one region sort as their amounts do: the sign bit is flipped, the width fixed. `/` is in no region's name.
pub(super) fn price_term(region: &RegionId, amount_minor: i64) -> String {
    let ordered = (amount_minor as u64) ^ (1 << 63);
    format!("{region}/{ordered:020}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn price_terms_sort_as_amounts(left in any::<i64>(), right in any::<i64>()) {
            let region = RegionId::new("eu.west-1").unwrap();
            prop_assert_eq!(price_term(&region, left).cmp(&price_term(&region, right)), left.cmp(&right));
        }
    }

    #[test]
    fn words_are_lower_case_and_without_accents() {
        assert_eq!(words_of("Crème-Fraîche 200 G"), ["creme", "fraiche", "200", "g"]);
        assert_eq!(folded("  Red   Onion! "), "red onion");
        assert!(words_of("!?\u{0} \"").is_empty());
    }
}
