//! Which keys differ, and how: the kind of each, and both rows of the first so many.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::report::{DifferenceKind, KeyDifference};

/// How many more differing keys may be kept with their rows: where every key differs, they would not fit into memory.
pub(crate) struct Room(AtomicUsize);

/// The differing keys of one partition.
pub(super) struct Listed<'a, K> {
    room: &'a Room,
    kinds: HashMap<K, DifferenceKind>,
    whole: HashMap<K, KeyDifference>,
}

// === impl Room ===

impl Room {
    pub(crate) fn new(most: usize) -> Self {
        Self(AtomicUsize::new(most))
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Listed ===

impl<'a, K: Clone + Eq + Hash> Listed<'a, K> {
    pub(super) fn new(room: &'a Room) -> Self {
        Self { room, kinds: HashMap::new(), whole: HashMap::new() }
    }

    pub(super) fn note(&mut self, key: &K, kind: DifferenceKind, difference: impl FnOnce() -> KeyDifference) {
        self.forget(key);
        self.kinds.insert(key.clone(), kind);
        if self.room.take() {
            self.whole.insert(key.clone(), difference());
        }
    }

    /// It does not differ any more, or is looked at again.
    pub(super) fn forget(&mut self, key: &K) {
        self.kinds.remove(key);
        if self.whole.remove(key).is_some() {
            self.room.give_back();
        }
    }

    /// How many differ in which way, and those that are kept with their rows.
    pub(super) fn into_parts(self) -> (BTreeMap<DifferenceKind, u64>, Vec<KeyDifference>) {
        let mut kinds = BTreeMap::new();
        for kind in self.kinds.into_values() {
            *kinds.entry(kind).or_insert(0) += 1;
        }
        (kinds, self.whole.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(key: u32) -> KeyDifference {
        KeyDifference {
            key: key.to_string(),
            sku: None,
            partition: String::new(),
            kind: DifferenceKind::Differs,
            fields: Vec::new(),
            live: None,
            candidate: None,
            problem: None,
        }
    }

    #[test]
    fn all_are_counted_and_only_so_many_are_kept_with_their_rows() {
        let room = Room::new(2);
        let (mut first, mut second) = (Listed::new(&room), Listed::new(&room));
        for key in 0..3 {
            first.note(&key, DifferenceKind::Differs, || difference(key));
            second.note(&key, DifferenceKind::Missing, || difference(key));
        }
        // Looked at again it takes no further place, and one that differs no more leaves its place to another.
        let kept = first.whole.keys().copied().next().unwrap();
        first.note(&kept, DifferenceKind::Differs, || difference(kept));
        first.forget(&kept);
        second.note(&9, DifferenceKind::Missing, || difference(9));
        let ((of_first, few), (of_second, others)) = (first.into_parts(), second.into_parts());
        assert_eq!(
            (of_first, of_second),
            ([(DifferenceKind::Differs, 2)].into(), [(DifferenceKind::Missing, 4)].into())
        );
        assert_eq!(few.len() + others.len(), 2);
    }
}
