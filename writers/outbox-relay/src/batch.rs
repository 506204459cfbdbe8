//! How much goes out in one call: bounded in rows and in bytes, and less of both after a call that did not end in time.
//!
//! A call has a deadline, and after it all of the call goes out again: behind a slow link a batch that is too large
//! would go out for ever, and never be acknowledged.

use std::collections::VecDeque;
use std::time::Duration;

use event_store::StoredEvent;

/// Bytes of bodies in a batch, unless a single one is larger.
const MOST_BYTES: usize = 4 << 20;
/// Batches that are acknowledged within it may grow: twice as much still fits into any log's deadline.
const QUICK: Duration = Duration::from_secs(5);

/// The size of batches, as it is now.
#[derive(Debug)]
pub(crate) struct BatchSize {
    most: usize,
    /// Rows in a batch.
    rows: usize,
    /// Rows that fit into the bytes, as large as those of the batch before.
    fit: usize,
}

// === impl BatchSize ===

impl BatchSize {
    pub fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, rows: most, fit: most }
    }

    /// Rows to read at once, so that about one batch of large ones is held and not thousands.
    pub fn to_read(&self) -> usize {
        self.rows.min(self.fit)
    }

    /// Takes the next batch out of what was read.
    pub fn take(&mut self, read: &mut VecDeque<StoredEvent>) -> Vec<StoredEvent> {
        let (mut rows, mut bytes) = (0, 0);
        for event in read.iter().take(self.rows) {
            if rows > 0 && bytes + event.body.len() > MOST_BYTES {
                break;
            }
            rows += 1;
            bytes += event.body.len();
        }
        if rows > 0 {
            self.fit = (rows * MOST_BYTES / bytes.max(1)).clamp(1, self.most);
        }
        read.drain(..rows).collect()
    }

    /// The log did not acknowledge a batch of so many rows.
    pub fn failed(&mut self, rows: usize) {
        self.rows = (rows / 2).max(1);
    }

    pub fn acknowledged(&mut self, within: Duration) {
        if within < QUICK {
            self.rows = (self.rows * 2).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use event_store::StreamId;
    use schemas::{SchemaRef, StorePosition};
    use uuid::Uuid;

    use super::*;

    fn read(sizes: impl IntoIterator<Item = usize>) -> VecDeque<StoredEvent> {
        let event = |(position, size)| StoredEvent {
            position: StorePosition { xid: 0, position },
            topic: "pricing.events".to_owned(),
            stream: StreamId::from_stored("price-a@eu"),
            version: position,
            key: "a".to_owned(),
            id: Uuid::from_u128(u128::from(position)),
            schema: SchemaRef { name: "millrace.pricing.PriceSet", version: 1 },
            body: vec![0; size],
            time: 0,
            correlation_id: None,
            causation_id: None,
            actor: None,
            traceparent: None,
        };
        (1..).zip(sizes).map(event).collect()
    }

    #[test]
    fn a_batch_ends_by_its_bytes_and_has_at_least_one_row() {
        let mut size = BatchSize::new(2_000);
        let mut rows = read([100, MOST_BYTES - 100, 1, MOST_BYTES * 2, 7, 7]);
        let batches: Vec<usize> = std::iter::from_fn(|| Some(size.take(&mut rows).len())).take(5).collect();
        assert_eq!(batches, [2, 1, 1, 2, 0]);
        assert!(rows.is_empty());
    }

    #[test]
    fn no_more_large_rows_are_read_than_fit_into_a_batch() {
        let mut size = BatchSize::new(2_000);
        size.take(&mut read([MOST_BYTES / 10; 30]));
        assert_eq!(size.to_read(), 10);
        size.take(&mut read([300; 30]));
        assert_eq!(size.to_read(), 2_000);
    }

    #[test]
    fn a_batch_that_fails_comes_again_as_half_down_to_one_row_and_grows_when_it_goes_quickly() {
        let mut size = BatchSize::new(10);
        let mut sizes = Vec::new();
        for _ in 0..5 {
            let rows = size.take(&mut read([1; 10])).len();
            sizes.push(rows);
            size.failed(rows);
        }
        assert_eq!(sizes, [10, 5, 2, 1, 1]);
        size.acknowledged(QUICK);
        assert_eq!(size.to_read(), 1);
        for wanted in [2, 4, 8, 10, 10] {
            size.acknowledged(QUICK / 2);
            assert_eq!(size.to_read(), wanted);
        }
    }
}
