//! Keeps a SKU's answers from stepping back when another generation answers.
//!
//! Two generations follow the same log, one a little behind the other. Who asks twice around a switch could first be
//! told of a newer row than then. So the last answer of each SKU leaves a mark: its generation, and its stream versions
//! added up, which only grow. An answer of another generation below the mark is asked for again, until that generation
//! is there too, for a while. The same generation may step back: its store lost its last second, and says so by its
//! position.
//!
//! One process knows its own answers only: a reader of several processes brings a position token where it matters.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use read_models::stock::StockAnswer;
use schemas::Sku;

/// Marks of one shard before it forgets the older half of what it knows.
const SHARD: usize = 16_384;
const SHARDS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    generation: u32,
    versions: u64,
}

/// The last answer of each SKU, of those asked for lately.
pub(crate) struct Marks {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    newer: HashMap<Sku, Mark>,
    older: HashMap<Sku, Mark>,
}

// === impl Marks ===

impl Default for Marks {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }
}

impl Marks {
    /// Takes the answers of one request. `false` when one of them is behind what another generation has told of its
    /// SKU; then none is noted. Answers that are late (`is_late`) have waited long enough, and are taken as they are.
    pub(crate) fn take(&self, generation: u32, answers: &[StockAnswer], is_late: bool) -> bool {
        let is_behind = answers.iter().any(|answer| self.is_behind(generation, answer));
        if is_behind && !is_late {
            return false;
        }
        if is_behind {
            tracing::warn!(generation, "a generation is behind what another one has told");
        }
        for answer in answers {
            let mark = Mark { generation, versions: versions(answer) };
            let mut shard = self.shard(&answer.sku).lock().unwrap_or_else(PoisonError::into_inner);
            // A slower read that was asked for earlier takes no mark back; one that waited in vain does.
            if is_behind || shard.of(&answer.sku).is_none_or(|held| held.versions <= mark.versions) {
                shard.note(answer.sku.clone(), mark);
            }
        }
        true
    }

    fn is_behind(&self, generation: u32, answer: &StockAnswer) -> bool {
        let shard = self.shard(&answer.sku).lock().unwrap_or_else(PoisonError::into_inner);
        shard.of(&answer.sku).is_some_and(|mark| mark.generation != generation && versions(answer) < mark.versions)
    }

    fn shard(&self, sku: &Sku) -> &Mutex<Shard> {
        &self.shards[(self.hasher.hash_one(sku) % SHARDS as u64) as usize]
    }
}

// === impl Shard ===

impl Shard {
    fn of(&self, sku: &Sku) -> Option<Mark> {
        self.newer.get(sku).or_else(|| self.older.get(sku)).copied()
    }

    fn note(&mut self, sku: Sku, mark: Mark) {
        if self.newer.len() >= SHARD {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(sku, mark);
    }
}

fn versions(answer: &StockAnswer) -> u64 {
    answer.warehouses.iter().map(|(_, row)| row.version).sum()
}

#[cfg(test)]
mod tests {
    use read_models::stock::StockRow;
    use schemas::{PositionToken, RegionId, WarehouseId};

    use super::*;

    fn answer(sku: &str, versions: &[u64]) -> StockAnswer {
        let row = |version| StockRow {
            region: RegionId::new("eu").unwrap(),
            on_hand: 1,
            reserved: 0,
            version,
            updated_at: None,
        };
        let warehouse = |number: usize| WarehouseId::new(format!("w-{number}")).unwrap();
        StockAnswer {
            sku: Sku::new(sku).unwrap(),
            warehouses: versions
                .iter()
                .enumerate()
                .map(|(number, &version)| (warehouse(number), row(version)))
                .collect(),
            position: PositionToken::default(),
            parked: false,
        }
    }

    #[test]
    fn another_generation_waits_until_it_is_as_far() {
        let marks = Marks::default();
        assert!(marks.take(1, &[answer("A", &[5, 3])], false));
        assert!(!marks.take(2, &[answer("A", &[5, 2])], false));
        assert!(!marks.take(2, &[answer("B", &[1]), answer("A", &[5])], false), "one of many holds all");
        assert!(marks.take(2, &[answer("A", &[5, 3])], false));
        assert!(!marks.take(1, &[answer("A", &[4, 3])], false), "and back the same");
        assert!(marks.take(1, &[answer("A", &[5, 4])], false));
    }

    #[test]
    fn the_same_generation_may_step_back() {
        let marks = Marks::default();
        assert!(marks.take(1, &[answer("A", &[5])], false));
        assert!(marks.take(1, &[answer("A", &[4])], false));
        assert!(!marks.take(2, &[answer("A", &[4])], false), "a read that was slow is no step back");
        assert!(marks.take(2, &[answer("A", &[4])], true), "it has waited long enough");
        assert!(marks.take(1, &[answer("A", &[4])], false), "what was told after waiting counts");
    }

    #[test]
    fn what_was_asked_for_lately_is_remembered_and_memory_is_bounded() {
        let marks = Marks::default();
        for number in 0..3 * SHARD * SHARDS {
            marks.take(1, &[answer(&number.to_string(), &[7])], false);
        }
        let held: usize = marks
            .shards
            .iter()
            .map(|shard| {
                let shard = shard.lock().unwrap();
                shard.newer.len() + shard.older.len()
            })
            .sum();
        assert!(held <= 2 * SHARD * SHARDS, "{held}");
        let last = (3 * SHARD * SHARDS - 1).to_string();
        assert!(!marks.take(2, &[answer(&last, &[6])], false));
    }
}
