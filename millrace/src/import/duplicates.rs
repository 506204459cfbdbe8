//! Which row of a SKU counts: the last good one of the file.
//!
//! Decided in a reading before anything is sent. Sending each row and revising afterwards would end at the same
//! products the first time, but a second import would replay the steps in between.

use std::collections::HashMap;

use schemas::Sku;
use sha2::{Digest, Sha256};

/// The last good row of each SKU; 32 bytes a SKU.
#[derive(Debug, Default)]
pub struct LastRows {
    last: HashMap<[u8; 16], LastRow>,
}

#[derive(Debug, Clone, Copy)]
struct LastRow {
    row: u64,
    content: u64,
}

/// What a good row is among those of its SKU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It goes in.
    Last,
    /// A later row says the same.
    Repeated,
    /// A later row says something else.
    Overruled,
}

// === impl LastRows ===

impl LastRows {
    /// Notes a good row; rows are noted in their order.
    pub fn note(&mut self, sku: &Sku, row: u64, content: u64) {
        self.last.insert(key(sku), LastRow { row, content });
    }

    pub fn standing(&self, sku: &Sku, row: u64, content: u64) -> Standing {
        match self.last.get(&key(sku)) {
            Some(last) if last.row == row => Standing::Last,
            Some(last) if last.content == content => Standing::Repeated,
            Some(_) => Standing::Overruled,
            None => Standing::Last,
        }
    }
}

fn key(sku: &Sku) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(sku.as_str().as_bytes()).into();
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_counts_and_the_others_are_told_apart() {
        let (a, b) = (Sku::new("A").unwrap(), Sku::new("B").unwrap());
        let mut rows = LastRows::default();
        for (sku, row, content) in [(&a, 0, 7), (&b, 1, 7), (&a, 2, 8), (&a, 3, 7)] {
            rows.note(sku, row, content);
        }
        assert_eq!(rows.standing(&a, 0, 7), Standing::Repeated);
        assert_eq!(rows.standing(&a, 2, 8), Standing::Overruled);
        assert_eq!(rows.standing(&a, 3, 7), Standing::Last);
        assert_eq!(rows.standing(&b, 1, 7), Standing::Last);
    }
}
