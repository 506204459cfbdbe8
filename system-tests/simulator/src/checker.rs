//! The checker: sees every commit, every record, every claim and every write as they happen, and holds them against the
//! invariants by id. What it knows it works out for itself, never from what the system under test says of itself.

mod read_side;
mod write_side;

use std::collections::{BTreeMap, HashMap};

use event_log::TopicPartition;
use event_store::{StoredOutcome, StreamId};
use read_models::PartitionRef;
use schemas::{Event, Outcome, StorePosition};
use uuid::Uuid;

/// What has happened so far.
pub struct Checker {
    partitions: u32,
    // The write side.
    committed: HashMap<Uuid, Committed>,
    order: BTreeMap<StorePosition, Uuid>,
    versions: HashMap<StreamId, u64>,
    stock: HashMap<StreamId, (i64, i64)>,
    /// Ids of the events of each command.
    caused: HashMap<Uuid, Vec<Uuid>>,
    stored: HashMap<Uuid, StoredOutcome>,
    answered: HashMap<(Uuid, [u8; 32]), Outcome>,
    // The log.
    log: BTreeMap<TopicPartition, Vec<Seen>>,
    /// Offsets of records that are no events of ours, and the largest sequence up to each offset.
    records: BTreeMap<TopicPartition, Vec<Told>>,
    // The read models.
    epochs: HashMap<(&'static str, PartitionRef), u64>,
}

/// A committed event.
struct Committed {
    position: StorePosition,
    topic: String,
    key: String,
    stream: StreamId,
    version: u64,
    is_published: bool,
}

/// The first occurrence of an event in its partition: the entry at index n has sequence n + 1.
struct Seen {
    id: Uuid,
    key: String,
    version: u64,
    position: StorePosition,
    time: i64,
    /// `None`: poison.
    event: Option<Event>,
}

/// A record of a partition, by its offset.
enum Told {
    Event { sequence: u64 },
    Foreign,
}

// === impl Checker ===

impl Checker {
    pub fn new(partitions: u32) -> Self {
        Self {
            partitions,
            committed: HashMap::new(),
            order: BTreeMap::new(),
            versions: HashMap::new(),
            stock: HashMap::new(),
            caused: HashMap::new(),
            stored: HashMap::new(),
            answered: HashMap::new(),
            log: BTreeMap::new(),
            records: BTreeMap::new(),
            epochs: HashMap::new(),
        }
    }
}
