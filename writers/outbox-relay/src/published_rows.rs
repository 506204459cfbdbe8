//! The event table as a source of records: what the relay published, for whoever the topics no longer give it.
//!
//! Sequences follow from the stored order alone, so a walk that begins behind an event whose place and sequence are
//! known counts on from there. It gives nothing beyond the relay's saved cursor: a row that is not relayed yet is not
//! published.
//!
//! The table is not split by partition, so a walk over one of them reads the rows of all. Walks that are open at once
//! share the pages that were read last: as long as they go on at about the same pace, the table is read once for all of
//! them. Once the last one ends, nothing is kept.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use event_log::{EventLogError, EventTable, NewRecord, SchemaRegistry, TablePlace, TableWalk, TopicPartition};
use event_store::{EventStore, EventStoreError, StoredEvent, Topology};
use futures::future::BoxFuture;
use schemas::{SchemaRef, StorePosition};
use tokio::sync::OnceCell;

use crate::error::RelayError;
use crate::stamp::record_of;

/// Connects to the event store.
pub type ConnectStore = Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn EventStore>, EventStoreError>> + Send + Sync>;

/// The published rows of an event store, which is connected to when they are first asked for: who never needs them does
/// not depend on it.
pub struct PublishedRows {
    store: Arc<Store>,
    registry: Arc<dyn SchemaRegistry>,
    /// Of the walks that are open.
    pages: Mutex<Weak<Pages>>,
}

/// Rows of one page.
const PAGE: usize = 2_000;
/// Bytes of pages kept for the walks that come behind; the newest page is kept whatever it takes.
const KEPT: usize = 64 << 20;
/// About what a row takes beside its body.
const ROW: usize = 500;
/// Most records given at once: the less a walk takes at once, the closer together they all go on.
const AT_ONCE: usize = 1_000;

struct Store {
    connect: ConnectStore,
    connected: OnceCell<(Arc<dyn EventStore>, Topology)>,
}

/// The rows after a place, without a gap.
struct Page {
    after: StorePosition,
    last: StorePosition,
    /// With their partitions.
    events: Vec<(u32, StoredEvent)>,
    /// About what it takes in memory.
    bytes: usize,
}

/// The pages that were read last. One is read at a time: who wants the same one waits for it.
#[derive(Default)]
struct Pages {
    kept: tokio::sync::Mutex<VecDeque<Arc<Page>>>,
}

struct Walk {
    store: Arc<Store>,
    registry: Arc<dyn SchemaRegistry>,
    pages: Arc<Pages>,
    at: TopicPartition,
    place: TablePlace,
    /// Registry ids of schemas on the topic: they never change.
    schema_ids: HashMap<SchemaRef, u32>,
}

// === impl PublishedRows ===

impl PublishedRows {
    pub fn new(connect: ConnectStore, registry: Arc<dyn SchemaRegistry>) -> Self {
        let store = Arc::new(Store { connect, connected: OnceCell::new() });
        Self { store, registry, pages: Mutex::default() }
    }
}

#[async_trait]
impl EventTable for PublishedRows {
    fn walk(&self, at: TopicPartition, after: TablePlace) -> Box<dyn TableWalk> {
        let mut shared = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = shared.upgrade().unwrap_or_default();
        *shared = Arc::downgrade(&pages);
        let (store, registry) = (Arc::clone(&self.store), Arc::clone(&self.registry));
        Box::new(Walk { store, registry, pages, at, place: after, schema_ids: HashMap::new() })
    }

    async fn published(&self, at: &TopicPartition) -> Result<Option<u64>, EventLogError> {
        self.store.published(at).await.map_err(as_log_error)
    }
}

impl fmt::Debug for PublishedRows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PublishedRows").finish_non_exhaustive()
    }
}

// === impl Walk ===

#[async_trait]
impl TableWalk for Walk {
    async fn next(&mut self, limit: usize) -> Result<Vec<NewRecord>, EventLogError> {
        self.read(limit.min(AT_ONCE)).await.map_err(as_log_error)
    }
}

fn as_log_error(error: RelayError) -> EventLogError {
    match error {
        RelayError::Log(error) => error,
        error => EventLogError::EventTable { is_transient: error.is_transient(), source: Box::new(error) },
    }
}

impl Walk {
    async fn read(&mut self, limit: usize) -> Result<Vec<NewRecord>, RelayError> {
        let (store, topology) = self.store.get().await?.clone();
        let cursor = store.relay_cursor().await?;
        let published = cursor.sequence_of(&(self.at.topic.clone(), self.at.partition));
        // Rows were removed from it, or it is not the one that the sequence was counted in.
        let at = self.at.clone();
        let short = |found| RelayError::TableIsShort { at: at.clone(), published, found };
        let mut place = self.place;
        let mut records = Vec::new();
        while place.sequence < published && records.len() < limit {
            let Some(page) = self.pages.after(place.position, store.as_ref(), topology).await? else {
                return Err(short(place.sequence));
            };
            for (partition, event) in page.behind(place.position) {
                if event.position > cursor.position {
                    return Err(short(place.sequence));
                }
                place.position = event.position;
                if *partition == self.at.partition && event.topic == self.at.topic {
                    place.sequence += 1;
                    let schema_id = self.schema_id(event.schema).await?;
                    records.push(record_of(event, *partition, place.sequence, schema_id));
                }
                if place.sequence == published || records.len() == limit {
                    break;
                }
            }
        }
        self.place = place;
        Ok(records)
    }

    async fn schema_id(&mut self, schema: SchemaRef) -> Result<u32, RelayError> {
        if let Some(id) = self.schema_ids.get(&schema) {
            return Ok(*id);
        }
        let id = self.registry.id_of(&self.at.topic, schema).await?;
        self.schema_ids.insert(schema, id);
        Ok(id)
    }
}

// === impl Store ===

impl Store {
    async fn get(&self) -> Result<&(Arc<dyn EventStore>, Topology), RelayError> {
        let connecting = async {
            let store = (self.connect)().await?;
            let topology = store.topology().await?.ok_or_else(|| EventStoreError::Setting {
                key: "event-store",
                problem: "nothing was ever written to it, so it published nothing; check the address".to_owned(),
            })?;
            Ok::<_, EventStoreError>((store, topology))
        };
        Ok(self.connected.get_or_try_init(|| connecting).await?)
    }

    /// Asked before and after: a cursor that was read on its way back to where it was is too low.
    async fn published(&self, at: &TopicPartition) -> Result<Option<u64>, RelayError> {
        let (store, _) = self.get().await?;
        if store.is_published_again().await? {
            return Ok(None);
        }
        let cursor = store.relay_cursor().await?;
        if store.is_published_again().await? {
            return Ok(None);
        }
        Ok(Some(cursor.sequence_of(&(at.topic.clone(), at.partition))))
    }
}

// === impl Pages ===

impl Pages {
    /// The page that holds the row behind a place; `None` at the end of the table.
    async fn after(
        &self,
        position: StorePosition,
        store: &dyn EventStore,
        topology: Topology,
    ) -> Result<Option<Arc<Page>>, RelayError> {
        let mut kept = self.kept.lock().await;
        if let Some(page) = kept.iter().find(|page| page.after <= position && position < page.last) {
            return Ok(Some(Arc::clone(page)));
        }
        let events = store.read_committed(position, PAGE).await?;
        let Some(last) = events.last().map(|event| event.position) else { return Ok(None) };
        let bytes = events.iter().map(|event| ROW + event.body.len()).sum();
        let events = events.into_iter().map(|event| (topology.partition_of(&event.key), event));
        let page = Arc::new(Page { after: position, last, events: events.collect(), bytes });
        kept.push_back(Arc::clone(&page));
        let mut all: usize = kept.iter().map(|page| page.bytes).sum();
        while all > KEPT
            && kept.len() > 1
            && let Some(oldest) = kept.pop_front()
        {
            all -= oldest.bytes;
        }
        Ok(Some(page))
    }
}

// === impl Page ===

impl Page {
    fn behind(&self, position: StorePosition) -> &[(u32, StoredEvent)] {
        let first = self.events.partition_point(|(_, event)| event.position <= position);
        &self.events[first..]
    }
}
