//! What the event table says that a read model holds: version and digest of each row, at the checkpoint of its
//! partition.
//!
//! Folded from the table itself by the projector's own fold. An event carries the result of its change, so its row
//! follows from the event and its version alone: a key costs a digest of 16 bytes here, not a row.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;

use async_trait::async_trait;
use event_store::{StoredEvent, StreamId};
use projectors::{Facts, Projection, SearchProjection, StockProjection, fold_event};
use read_models::search::{SearchKey, SearchReader, SearchRow};
use read_models::stock::{SharedStock, StockKey, StockRow};
use read_models::{DeadLetters, Loaded, PartitionRef, ReadModelError, ReadModelStatus, RowPage};
use schemas::Event;

use crate::digest::digest_of;
use crate::report::Place;

/// A projection whose rows can be compared.
pub(crate) trait Audited: Projection {
    const PLACE: Place;

    /// For people.
    fn shown(key: &Self::Key) -> String;
    fn stream(key: &Self::Key) -> StreamId;
    fn version(row: &Self::Row) -> u64;
    /// Of all that the row says.
    fn digest(row: &Self::Row) -> u128;
}

/// A read model as it stands.
#[async_trait]
pub(crate) trait Standing<P: Projection>: Send + Sync {
    async fn status(&self) -> Result<ReadModelStatus, ReadModelError>;
    fn dead_letters(&self) -> &dyn DeadLetters;
    async fn rows(
        &self,
        at: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<P::Key, P::Row>, ReadModelError>;
    /// The rows of some keys, in their order.
    async fn load(&self, at: PartitionRef, keys: &[P::Key]) -> Result<Loaded<P::Row>, ReadModelError>;
}

/// What the table says of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) version: u64,
    pub(crate) digest: u128,
    /// The scan that met it last.
    pub(crate) met_in: u32,
}

/// An event behind the checkpoint that the partition is folded to.
#[derive(Debug, Clone)]
pub(crate) struct Later<K> {
    pub(crate) sequence: u64,
    pub(crate) key: K,
    pub(crate) version: u64,
    pub(crate) digest: u128,
}

/// An event that does not decode or does not fold.
#[derive(Debug, Clone)]
pub(crate) struct Poison {
    pub(crate) sequence: u64,
    pub(crate) stream: StreamId,
    pub(crate) version: u64,
}

/// One partition, folded to a checkpoint.
#[derive(Debug)]
pub(crate) struct FoldedPartition<K> {
    pub(crate) keys: HashMap<K, Wanted>,
    /// Sequence that `keys` is true at.
    pub(crate) at: u64,
    pub(crate) later: VecDeque<Later<K>>,
    /// Events that no row can follow from: each must wait in the dead letters, or be discarded from there.
    pub(crate) poison: Vec<Poison>,
    /// Last sequence that was walked.
    pub(crate) walked: u64,
    /// Number of the newest scan.
    pub(crate) scans: u32,
    /// Too many events wait behind the checkpoint: nothing is kept of it but how far it was walked.
    pub(crate) is_given_up: bool,
}

/// The fold versions that the walk folds with: those that built what serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Folds {
    pub(crate) stock: u32,
    pub(crate) search: u32,
}

/// All partitions of one read model.
#[derive(Debug)]
pub(crate) struct Oracle<P: Projection> {
    fold: u32,
    partitions: HashMap<PartitionRef, FoldedPartition<P::Key>>,
}

// === impl Folds ===

impl Default for Folds {
    fn default() -> Self {
        Self { stock: StockProjection::CURRENT_FOLD, search: SearchProjection::CURRENT_FOLD }
    }
}

// === impl Oracle ===

impl<P: Audited> Oracle<P> {
    pub(crate) fn new(fold: u32) -> Self {
        Self { fold, partitions: HashMap::new() }
    }

    pub(crate) fn fold(&self) -> u32 {
        self.fold
    }

    pub(crate) fn partition(&mut self, at: PartitionRef) -> &mut FoldedPartition<P::Key> {
        self.partitions.entry(at).or_default()
    }

    /// Whether more than `most` events wait behind the checkpoint of a partition.
    pub(crate) fn is_full(&self, most: usize) -> bool {
        self.partitions.values().any(|partition| partition.later.len() > most)
    }

    /// Gives up the partitions behind whose checkpoint more than `most` events wait.
    pub(crate) fn give_up_full(&mut self, most: usize) {
        for partition in self.partitions.values_mut().filter(|partition| partition.later.len() > most) {
            let walked = partition.walked;
            *partition = FoldedPartition { walked, is_given_up: true, ..FoldedPartition::default() };
        }
    }

    /// Partitions that were given up, and the last sequence of each that was walked.
    pub(crate) fn given_up(&self) -> Vec<(PartitionRef, u64)> {
        let given_up = self.partitions.iter().filter(|(_, partition)| partition.is_given_up);
        given_up.map(|(at, partition)| (*at, partition.walked)).collect()
    }

    /// Takes the next event of a partition; `event` is `None` where it does not decode.
    pub(crate) fn take(&mut self, at: PartitionRef, sequence: u64, stored: &StoredEvent, event: Option<&Event>) {
        if !P::CONTEXTS.contains(&at.context) {
            return;
        }
        let fold = self.fold;
        let partition = self.partition(at);
        partition.walked = sequence;
        if partition.is_given_up {
            return;
        }
        let version = stored.version;
        let poison = || Poison { sequence, stream: stored.stream.clone(), version };
        let Some(event) = event else { return partition.poison.push(poison()) };
        let facts = Facts { version, time: stored.time };
        match fold_event::<P>(fold, event, facts, |_| None) {
            Ok(Some((key, row))) => {
                let digest = row_digest::<P>(&key, &row);
                partition.take(Later { sequence, key, version, digest });
            }
            Ok(None) => {}
            Err(_) => partition.poison.push(poison()),
        }
    }
}

/// Of a row with its key.
pub(crate) fn row_digest<P: Audited>(key: &P::Key, row: &P::Row) -> u128 {
    digest_of(&[P::shown(key).as_bytes(), &P::digest(row).to_be_bytes()])
}

// === impl FoldedPartition ===

impl<K> Default for FoldedPartition<K> {
    fn default() -> Self {
        Self {
            keys: HashMap::new(),
            at: 0,
            later: VecDeque::new(),
            poison: Vec::new(),
            walked: 0,
            scans: 0,
            is_given_up: false,
        }
    }
}

impl<K: Eq + Hash + Clone + Debug> FoldedPartition<K> {
    fn take(&mut self, event: Later<K>) {
        if event.sequence > self.at {
            self.later.push_back(event);
        } else {
            self.apply(event);
        }
    }

    fn apply(&mut self, event: Later<K>) {
        let wanted = Wanted { version: event.version, digest: event.digest, met_in: 0 };
        self.keys
            .entry(event.key)
            .and_modify(|known| {
                if known.version < wanted.version {
                    *known = wanted;
                }
            })
            .or_insert(wanted);
    }

    /// Folds up to a checkpoint. `false` when the partition is folded beyond it already.
    pub(crate) fn fold_to(&mut self, sequence: u64) -> bool {
        if sequence < self.at {
            return false;
        }
        self.at = sequence;
        while self.later.front().is_some_and(|event| event.sequence <= sequence) {
            if let Some(event) = self.later.pop_front() {
                self.apply(event);
            }
        }
        true
    }

    /// The same for the same rows, in any order.
    pub(crate) fn digest(&self) -> u128 {
        self.keys.values().fold(0, |sum: u128, wanted| sum.wrapping_add(wanted.digest))
    }
}

// === the two read models ===

impl Audited for StockProjection {
    const PLACE: Place = Place::Stock;

    fn shown(key: &StockKey) -> String {
        format!("{}@{}", key.sku, key.warehouse)
    }

    fn stream(key: &StockKey) -> StreamId {
        StreamId::stock(&key.sku, &key.warehouse)
    }

    fn version(row: &StockRow) -> u64 {
        row.version
    }

    fn digest(row: &StockRow) -> u128 {
        let (on_hand, reserved) = (row.on_hand.to_be_bytes(), row.reserved.to_be_bytes());
        let version = row.version.to_be_bytes();
        let mut parts: Vec<&[u8]> = vec![row.region.as_str().as_bytes(), &on_hand, &reserved, &version];
        let updated_at = row.updated_at.map(i64::to_be_bytes);
        // None in rows of fold 1, whose digest is as it was.
        parts.extend(updated_at.iter().map(|bytes| bytes.as_slice()));
        digest_of(&parts)
    }
}

impl Audited for SearchProjection {
    const PLACE: Place = Place::Search;

    fn shown(key: &SearchKey) -> String {
        match key {
            SearchKey::Product(sku) => format!("product {sku}"),
            SearchKey::Price(sku, region) => format!("price {sku}@{region}"),
            SearchKey::Stock(sku, warehouse) => format!("stock {sku}@{warehouse}"),
        }
    }

    fn stream(key: &SearchKey) -> StreamId {
        match key {
            SearchKey::Product(sku) => StreamId::product(sku),
            SearchKey::Price(sku, region) => StreamId::price(sku, region),
            SearchKey::Stock(sku, warehouse) => StreamId::stock(sku, warehouse),
        }
    }

    fn version(row: &SearchRow) -> u64 {
        row.version()
    }

    fn digest(row: &SearchRow) -> u128 {
        // A row of these fields has no key or number that could not be written.
        let text = serde_json::to_vec(row).unwrap_or_default();
        digest_of(&[&text])
    }
}

#[async_trait]
impl Standing<StockProjection> for SharedStock {
    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        self.as_ref().status().await
    }

    fn dead_letters(&self) -> &dyn DeadLetters {
        self.as_ref()
    }

    async fn rows(
        &self,
        at: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<StockKey, StockRow>, ReadModelError> {
        self.as_ref().rows(at, from, limit).await
    }

    async fn load(&self, at: PartitionRef, keys: &[StockKey]) -> Result<Loaded<StockRow>, ReadModelError> {
        self.as_ref().load(at, keys).await
    }
}

#[async_trait]
impl Standing<SearchProjection> for SearchReader {
    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        SearchReader::status(self).await
    }

    fn dead_letters(&self) -> &dyn DeadLetters {
        self
    }

    async fn rows(
        &self,
        at: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<SearchKey, SearchRow>, ReadModelError> {
        SearchReader::rows(self, at, from, limit).await
    }

    async fn load(&self, at: PartitionRef, keys: &[SearchKey]) -> Result<Loaded<SearchRow>, ReadModelError> {
        SearchReader::load(self, at, keys).await
    }
}
