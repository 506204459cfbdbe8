//! Holds the index against its rows: one document for each product that is shown, with the content that its rows give,
//! and files whose checksums are right.
//!
//! The index is a commit that names the row version it has, and the rows go on meanwhile: what changed since is left
//! to the next check.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use schemas::Sku;
use serde::Serialize;
use tantivy::schema::Value;
use tantivy::{Index, TantivyDocument, TantivyError};

use crate::error::ReadModelError;
use crate::search::index::{self, Shown};
use crate::search::view::View;
use crate::search::{NAME, rows};
use crate::sqlite::{Abort, SqliteFile, ledger};

/// What a check of the index found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentCheck {
    /// Documents of the index.
    pub documents: u64,
    /// Products that the rows show.
    pub shown: u64,
    /// Of those, how many changed since the index's commit: not compared.
    pub newer: u64,
    pub faults: Vec<DocumentFault>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentFault {
    /// SKU of the document; the file where one is damaged.
    pub what: String,
    pub problem: DocumentProblem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentProblem {
    /// A product that should be shown has no document.
    Missing,
    /// It has several.
    Twin { documents: u32 },
    /// Its content is not what the rows give, or does not read.
    Altered,
    /// No shown product has this document.
    Unexplained,
    /// A file is not what its checksum says.
    DamagedFile,
}

/// A document as the index has it.
struct Found {
    documents: u32,
    /// `None`: does not read.
    shown: Option<Shown>,
}

pub(super) fn check(file: &SqliteFile, view: &View) -> Result<DocumentCheck, ReadModelError> {
    let mut faults = damaged_files(view.searcher.index())?;
    if !faults.is_empty() {
        let (documents, shown) = (view.searcher.num_docs(), 0);
        return Ok(DocumentCheck { documents, shown, newer: 0, faults });
    }
    let mut found = documents(view).map_err(failed)?;
    let documents = found.values().map(|found| u64::from(found.documents)).sum();
    let commit = &view.commit;
    let (mut shown, mut newer) = (0, 0);
    file.read(|transaction| -> Result<(), Abort> {
        let generation = ledger::serving(transaction, NAME)?;
        rows::for_each_shown(transaction, commit.generation, |text, changed_at| {
            shown += 1;
            let document = found.remove(text);
            if changed_at > commit.row_version {
                newer += 1;
                return Ok(());
            }
            let Ok(sku) = Sku::new(text) else { return Ok(()) };
            let wanted = rows::parts(transaction, &generation, &sku).map(Shown::of);
            let problem = match (&document, wanted) {
                (None, _) => Some(DocumentProblem::Missing),
                (Some(found), _) if found.documents > 1 => Some(DocumentProblem::Twin { documents: found.documents }),
                (Some(found), Ok(wanted)) if found.shown == wanted => None,
                (Some(_), _) => Some(DocumentProblem::Altered),
            };
            faults.extend(problem.map(|problem| DocumentFault { what: text.to_owned(), problem }));
            Ok(())
        })?;
        for sku in found.keys() {
            // Discontinued since the commit, its document goes with the next one.
            if rows::document_version(transaction, commit.generation, sku)? <= commit.row_version {
                faults.push(DocumentFault { what: sku.clone(), problem: DocumentProblem::Unexplained });
            }
        }
        Ok(())
    })?;
    faults.sort_by(|left, right| left.what.cmp(&right.what));
    Ok(DocumentCheck { documents, shown, newer, faults })
}

/// What can be said of an index that nobody is answered from: its damaged files. `None` when it has none.
pub(super) fn check_files(dir: &Path) -> Result<Option<DocumentCheck>, ReadModelError> {
    let Ok((index, _)) = index::open(dir) else { return Ok(None) };
    let faults = damaged_files(&index)?;
    Ok((!faults.is_empty()).then_some(DocumentCheck { documents: 0, shown: 0, newer: 0, faults }))
}

fn damaged_files(index: &Index) -> Result<Vec<DocumentFault>, ReadModelError> {
    let damaged = index.validate_checksum().map_err(failed)?;
    let fault =
        |path: &PathBuf| DocumentFault { what: path.display().to_string(), problem: DocumentProblem::DamagedFile };
    Ok(damaged.iter().map(fault).collect())
}

fn documents(view: &View) -> Result<HashMap<String, Found>, TantivyError> {
    let mut found: HashMap<String, Found> = HashMap::new();
    for segment in view.searcher.segment_readers() {
        // A store of the documents last read: they come in order, several in one compressed block.
        let store = segment.get_store_reader(1)?;
        for document in segment.doc_ids_alive() {
            let document: TantivyDocument = store.get(document)?;
            let text = |field| document.get_first(field).and_then(|value| value.as_str()).unwrap_or_default();
            let shown = serde_json::from_str(text(view.fields.shown)).ok();
            found
                .entry(text(view.fields.sku).to_owned())
                .and_modify(|found| found.documents += 1)
                .or_insert(Found { documents: 1, shown });
        }
    }
    Ok(found)
}

fn failed(error: TantivyError) -> ReadModelError {
    ReadModelError::Unavailable { name: NAME.to_owned(), address: "its index".to_owned(), problem: error.to_string() }
}
