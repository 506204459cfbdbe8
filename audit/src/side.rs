//! One side of a topic partition in blocks: a count and a sum of digests for every 4,096 sequences. Blocks that agree
//! are done with; those that differ are looked at event by event.
//!
//! The sum of 128-bit digests does not depend on the order in which events were met.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// Sequences of one block.
pub(crate) const BLOCK: u64 = 4_096;
/// Sequences whose digests a topic's side remembers, so that a record that repeats one is known at once: more than a
/// relay repeats after a crash.
const REMEMBERED: usize = 8_192;

/// What one side has of a block. `P` is where the side keeps its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block<P> {
    pub(crate) count: u64,
    pub(crate) sum: u128,
    pub(crate) first: P,
    pub(crate) last: P,
}

/// Blocks of one side, up to a sequence; what is above waits.
#[derive(Debug)]
pub(crate) struct Side<P> {
    blocks: BTreeMap<u64, Block<P>>,
    /// Highest sequence that goes into blocks.
    limit: u64,
    /// Above the limit: sequence, digest, place.
    waiting: Vec<(u64, u128, P)>,
}

/// Which sequences of a topic partition were met, and how.
#[derive(Debug, Default)]
pub(crate) struct Met {
    /// One bit for each sequence, from `base` on.
    bits: Vec<u64>,
    base: u64,
    /// What a consumer comes to that takes exactly the next sequence.
    pub(crate) in_order: u64,
    pub(crate) duplicates: u64,
    recent: HashMap<u64, u128>,
    recent_order: VecDeque<u64>,
}

/// How a record stands to those before it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meeting {
    First,
    /// It repeats an event, with the same content.
    Duplicate,
    /// It repeats a sequence: with another content, or too far behind to tell.
    Twin,
}

// === impl Side ===

impl<P: Copy + Ord> Default for Side<P> {
    fn default() -> Self {
        Self { blocks: BTreeMap::new(), limit: 0, waiting: Vec::new() }
    }
}

pub(crate) fn block_of(sequence: u64) -> u64 {
    sequence.saturating_sub(1) / BLOCK
}

impl<P: Copy + Ord> Side<P> {
    pub(crate) fn take(&mut self, sequence: u64, digest: u128, place: P) {
        if sequence > self.limit {
            self.waiting.push((sequence, digest, place));
            return;
        }
        self.add(block_of(sequence), Some(digest), place);
    }

    /// Widens a block to a record that is counted elsewhere: whoever looks at the block must meet it.
    pub(crate) fn widen(&mut self, sequence: u64, place: P) {
        if sequence <= self.limit {
            self.add(block_of(sequence), None, place);
        }
    }

    fn add(&mut self, block: u64, digest: Option<u128>, place: P) {
        let block = self.blocks.entry(block).or_insert(Block { count: 0, sum: 0, first: place, last: place });
        block.count += u64::from(digest.is_some());
        block.sum = block.sum.wrapping_add(digest.unwrap_or(0));
        block.first = block.first.min(place);
        block.last = block.last.max(place);
    }

    /// Lets blocks go up to a higher sequence.
    pub(crate) fn raise(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
        for (sequence, digest, place) in std::mem::take(&mut self.waiting) {
            self.take(sequence, digest, place);
        }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn blocks(&self) -> &BTreeMap<u64, Block<P>> {
        &self.blocks
    }

    pub(crate) fn waiting(&self) -> &[(u64, u128, P)] {
        &self.waiting
    }

    pub(crate) fn count(&self) -> u64 {
        self.blocks.values().map(|block| block.count).sum()
    }
}

// === impl Met ===

impl Met {
    /// Nothing below `first` is expected.
    pub(crate) fn from(first: u64) -> Self {
        Self { base: first, in_order: first.saturating_sub(1), ..Self::default() }
    }

    /// Takes a sequence that the table has: another one could be of any size.
    pub(crate) fn take(&mut self, sequence: u64, digest: u128) -> Meeting {
        if sequence == self.in_order + 1 {
            self.in_order = sequence;
        }
        if self.has(sequence) {
            return match self.recent.get(&sequence) {
                Some(known) if *known == digest => {
                    self.duplicates += 1;
                    Meeting::Duplicate
                }
                Some(_) => Meeting::Twin,
                None => {
                    self.duplicates += 1;
                    Meeting::Twin
                }
            };
        }
        self.set(sequence);
        self.recent.insert(sequence, digest);
        self.recent_order.push_back(sequence);
        if self.recent_order.len() > REMEMBERED
            && let Some(oldest) = self.recent_order.pop_front()
        {
            self.recent.remove(&oldest);
        }
        Meeting::First
    }

    pub(crate) fn has(&self, sequence: u64) -> bool {
        let Some(bit) = sequence.checked_sub(self.base) else { return false };
        self.bits.get((bit / 64) as usize).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    fn set(&mut self, sequence: u64) {
        let Some(bit) = sequence.checked_sub(self.base) else { return };
        let word = (bit / 64) as usize;
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (bit % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_depend_on_the_order_and_wait_for_their_limit() {
        let (mut left, mut right) = (Side::default(), Side::default());
        left.raise(5_000);
        for sequence in 1..=6_000_u64 {
            left.take(sequence, u128::from(sequence) << 64, sequence);
        }
        for sequence in (1..=6_000_u64).rev() {
            right.take(sequence, u128::from(sequence) << 64, sequence);
        }
        assert_eq!((left.count(), left.waiting().len(), right.count()), (5_000, 1_000, 0));
        left.raise(6_000);
        right.raise(6_000);
        assert_eq!(left.blocks(), right.blocks());
        assert_eq!(left.blocks()[&1].count, 6_000 - BLOCK);
        let mut other = Side::default();
        other.raise(6_000);
        for sequence in 1..=6_000_u64 {
            other.take(sequence, u128::from(sequence + u64::from(sequence == 7)) << 64, sequence);
        }
        assert_ne!(left.blocks()[&0], other.blocks()[&0]);
        assert_eq!(left.blocks()[&1], other.blocks()[&1]);
    }

    #[test]
    fn twins_duplicates_and_order_are_told_apart() {
        let mut met = Met::from(1);
        let taken: Vec<Meeting> = [(1, 10), (2, 20), (4, 40), (2, 20), (2, 21), (3, 30)]
            .into_iter()
            .map(|(sequence, digest)| met.take(sequence, digest))
            .collect();
        use Meeting::{Duplicate, First, Twin};
        assert_eq!(taken, [First, First, First, Duplicate, Twin, First]);
        assert_eq!((met.in_order, met.duplicates), (3, 1), "4 came before 3");
        assert!(met.has(4) && !met.has(5) && !met.has(0));
    }
}
