//! How good a hit is, as a function of the documents that are there and of nothing else.
//!
//! tantivy's statistics count replaced documents until their segment is merged, which no two indexes have alike: two
//! generations of the same rows, or two machines, would put their hits in different orders.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use tantivy::query::Bm25StatisticsProvider;
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{DocSet, Searcher, TERMINATED, TantivyError, Term};

use crate::search::index::Fields;

/// What was counted in one state of the index.
#[derive(Default)]
pub(super) struct Counts {
    name_words: OnceLock<u64>,
    text_words: OnceLock<u64>,
    /// Documents by word, for words that the index has: others are cheap to look up again, and without end.
    documents: Mutex<HashMap<Term, u64>>,
}

/// Statistics of the documents that are there.
pub(super) struct Present<'v> {
    pub(super) searcher: &'v Searcher,
    pub(super) fields: &'v Fields,
    pub(super) counts: &'v Counts,
}

// === impl Present ===

impl Present<'_> {
    /// Lengths are those that scores are made with, which are rounded: exact ones are known of whole segments only.
    fn count_words(&self, field: Field) -> Result<u64, TantivyError> {
        let mut words = 0;
        for segment in self.searcher.segment_readers() {
            let lengths = segment.get_fieldnorms_reader(field)?;
            words += match segment.alive_bitset() {
                None => (0..segment.max_doc()).map(|document| u64::from(lengths.fieldnorm(document))).sum::<u64>(),
                Some(present) => present.iter_alive().map(|document| u64::from(lengths.fieldnorm(document))).sum(),
            };
        }
        Ok(words)
    }

    fn count_documents(&self, term: &Term) -> Result<u64, TantivyError> {
        let mut documents = 0;
        for segment in self.searcher.segment_readers() {
            let words = segment.inverted_index(term.field())?;
            let Some(present) = segment.alive_bitset() else {
                documents += u64::from(words.doc_freq(term)?);
                continue;
            };
            let Some(mut postings) = words.read_postings(term, IndexRecordOption::Basic)? else { continue };
            let mut document = postings.doc();
            while document != TERMINATED {
                documents += u64::from(present.is_alive(document));
                document = postings.advance();
            }
        }
        Ok(documents)
    }
}

impl Bm25StatisticsProvider for Present<'_> {
    fn total_num_tokens(&self, field: Field) -> Result<u64, TantivyError> {
        let known = match field {
            name if name == self.fields.name => &self.counts.name_words,
            text if text == self.fields.text => &self.counts.text_words,
            _ => return self.count_words(field),
        };
        match known.get() {
            Some(words) => Ok(*words),
            None => {
                let words = self.count_words(field)?;
                Ok(*known.get_or_init(|| words))
            }
        }
    }

    fn total_num_docs(&self) -> Result<u64, TantivyError> {
        Ok(self.searcher.num_docs())
    }

    fn doc_freq(&self, term: &Term) -> Result<u64, TantivyError> {
        let known = || self.counts.documents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(documents) = known().get(term) {
            return Ok(*documents);
        }
        let documents = self.count_documents(term)?;
        if self.searcher.doc_freq(term)? > 0 {
            known().insert(term.clone(), documents);
        }
        Ok(documents)
    }
}
