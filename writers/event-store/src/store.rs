//! The port: what Millrace needs of an event store, whatever keeps it.
//!
//! Every adapter passes the same contract suite. The order that matters: [`EventStore::load`] ends before
//! [`EventStore::append`] makes its first write, so commit order and version order agree, and the relay's order is
//! right (faults 2 and 3).

use std::collections::HashMap;

use async_trait::async_trait;
use domain::{State, StreamId};
use resilience::Open;
use schemas::{Context, Outcome, PositionToken, RegionId, SchemaRef, StorePosition, WarehouseId, partition_of};
use uuid::Uuid;

use crate::error::EventStoreError;

/// What is fixed when an event store is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Partitions of every topic.
    pub partitions: u32,
}

/// What a batch of commands needs to be decided.
#[derive(Debug, Clone, Default)]
pub struct LoadRequest {
    pub streams: Vec<StreamId>,
    pub command_ids: Vec<Uuid>,
    pub warehouses: Vec<WarehouseId>,
}

/// One run of the store's server. All that is committed in it stays for as long as it lasts; in another run it may be
/// gone: after a failover, or from an older backup. A file has no server, and one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerRun(pub i64);

/// The answer to a [`LoadRequest`]: one consistent view, all of it from before the append's first write.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// What this is true of, and all that was loaded in it before.
    pub run: ServerRun,
    /// Every asked stream of an aggregate, also those without events.
    pub streams: HashMap<StreamId, LoadedStream>,
    /// Commands that were decided before.
    pub outcomes: HashMap<Uuid, StoredOutcome>,
    /// Region of each asked warehouse that has one.
    pub regions: HashMap<WarehouseId, RegionId>,
}

/// A stream folded to its newest version.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedStream {
    pub state: State,
    /// 0 before the first event.
    pub version: u64,
    /// Place of the newest event in the event table.
    pub position: Option<StorePosition>,
    /// Version that the newest usable snapshot holds; 0 without one.
    pub snapshot_version: u64,
}

/// The first outcome of a command id, and the digest of the body that it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredOutcome {
    /// `None` for an outcome that came back from the log, which tells no bodies: whatever is given under its id counts
    /// as a repeat. Such a row holds a digest of no bytes.
    pub digest: Option<[u8; 32]>,
    pub outcome: Outcome,
}

/// Commands to commit together: one transaction, all or nothing.
#[derive(Debug, Clone, Default)]
pub struct AppendBatch {
    /// What the commands were decided in; `None` where nothing that was loaded went into them.
    pub run: Option<ServerRun>,
    pub commands: Vec<DecidedCommand>,
    /// Offsets of command topics that this batch consumed.
    pub offsets: Vec<OffsetAdvance>,
    /// Changes that no command of the batch makes: made after those of its commands.
    pub timers: Vec<TimerChange>,
}

/// One decided command with all that it changes.
#[derive(Debug, Clone)]
pub struct DecidedCommand {
    pub id: Uuid,
    pub digest: [u8; 32],
    /// Milliseconds since 1970.
    pub received_at: i64,
    pub stream: StreamId,
    /// Version of the stream before this command's first event, earlier commands of the same batch included.
    pub expected_version: u64,
    /// Outcome as decided; `position` is filled in by the store from the last event, where there are events.
    pub outcome: Outcome,
    pub events: Vec<NewEvent>,
    /// Regions of warehouses that this command is the first to name.
    pub claims: Vec<Claim>,
    pub timers: Vec<TimerChange>,
    pub snapshot: Option<NewSnapshot>,
    /// Context on whose outcome topic the outcome goes out: for a command that came by a command topic.
    pub publish_outcome_on: Option<Context>,
    /// Partition key of the published outcome: the SKU, or the record key where no SKU could be read.
    pub outcome_key: String,
    /// Short command type, for the published outcome.
    pub command_type: Option<String>,
}

/// An event to append.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub id: Uuid,
    pub context: Context,
    /// Partition key: the SKU.
    pub key: String,
    pub schema: SchemaRef,
    /// Avro data, no header.
    pub body: Vec<u8>,
    /// Milliseconds since 1970.
    pub time: i64,
    pub correlation_id: Option<String>,
    pub causation_id: Option<String>,
    pub actor: Option<String>,
    pub traceparent: Option<String>,
}

/// A warehouse lies in one region for good: the first claim holds, another one is a [`EventStoreError::Conflict`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub warehouse: WarehouseId,
    pub region: RegionId,
}

/// A serialized [`domain::State`] at a version.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSnapshot {
    pub stream: StreamId,
    pub version: u64,
    /// Serialized state (JSON), of [`domain::STATE_VERSION`].
    pub body: Vec<u8>,
}

/// A consumed offset of a command topic: set to `next` only if it is `expected` now, in the same transaction as the
/// events, so that two handlers after a rebalance cannot both take a command. A partition that has no offset yet takes
/// any expected one: an old topic does not begin at 0. The intake stores the first offset before it consumes, so that a
/// lost row is noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetAdvance {
    pub topic: String,
    pub partition: u32,
    pub expected: u64,
    pub next: u64,
    /// The last record that was taken, or passed over; `None` where none was.
    pub last: Option<RecordIdentity>,
}

/// Where a record of a command topic stands, and a digest of what it is: another one in its place tells of another
/// topic. Its offset is not always the one before `next`: a log may leave offsets out, and an older program that still
/// runs moves `next` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordIdentity {
    pub offset: u64,
    /// The same from every build.
    pub digest: [u8; 32],
}

/// How far a partition of a command topic was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredOffset {
    pub next: u64,
    /// As the newest advance told it; `None` also in a row of before there was this.
    pub last: Option<RecordIdentity>,
}

/// Something that the command side does by itself at a time: release an expired reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// Unique: `<stream>/<reservation>`.
    pub key: String,
    /// Milliseconds since 1970.
    pub due_at: i64,
    /// The command to give then, in its JSON form; its id is derived, so that giving it twice has one effect.
    pub command: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimerChange {
    Set(Timer),
    Clear {
        key: String,
    },
    /// Clears the timer only while it holds this command: a newer reservation may have set another under its key.
    ClearGiven {
        key: String,
        command: String,
    },
}

/// What an append came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Appended {
    /// Per command, in the batch's order: place of its last event; `None` for a command without events.
    pub positions: Vec<Option<StorePosition>>,
}

/// A committed row of the event table, as the relay reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    pub position: StorePosition,
    /// Topic it goes to: an event topic or an outcome topic.
    pub topic: String,
    pub stream: StreamId,
    pub version: u64,
    /// Partition key.
    pub key: String,
    pub id: Uuid,
    pub schema: SchemaRef,
    pub body: Vec<u8>,
    /// Milliseconds since 1970.
    pub time: i64,
    pub correlation_id: Option<String>,
    pub causation_id: Option<String>,
    pub actor: Option<String>,
    pub traceparent: Option<String>,
}

/// How far the relay has published, and the last sequence of every topic partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelayCursor {
    pub position: StorePosition,
    pub sequences: HashMap<(String, u32), u64>,
}

/// Where [`EventStore::relay_lag`] and [`EventStore::unpublished`] stop counting.
pub const MOST_COUNTED: u64 = 100_001;

/// The right to relay, until another takes a higher epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayLease {
    pub epoch: u64,
    pub cursor: RelayCursor,
}

/// Rows that come back from the log, and what else they stand for.
#[derive(Debug, Clone, Default)]
pub struct RestoredRows {
    pub events: Vec<StoredEvent>,
    /// Place of the table's last row when the rows were looked for: with a row behind it, nothing is restored.
    pub behind: Option<StorePosition>,
    pub claims: Vec<Claim>,
    pub timers: Vec<TimerChange>,
    pub outcomes: Vec<RestoredOutcome>,
}

/// The outcome of a command as the log tells it: complete, but for the body that it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoredOutcome {
    /// Id that the row is found by.
    pub id: Uuid,
    /// Milliseconds since 1970.
    pub received_at: i64,
    pub outcome: Outcome,
}

/// An append-only store of streams of events.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// The topology, once it is fixed.
    async fn topology(&self) -> Result<Option<Topology>, EventStoreError>;

    /// Fixes the topology at the first start; later ones must ask for the same ([`EventStoreError::Topology`]).
    /// Comes before the first append.
    async fn fix_topology(&self, asked: Topology) -> Result<Topology, EventStoreError>;

    /// Loads what a batch needs: one consistent view.
    async fn load(&self, request: &LoadRequest) -> Result<Loaded, EventStoreError>;

    /// Commits decided commands in one transaction. [`EventStoreError::Conflict`] when a stream has moved on, a
    /// command id is known, a claim is taken, an offset is not the expected one, or the server runs anew; then nothing
    /// is written.
    async fn append(&self, batch: &AppendBatch) -> Result<Appended, EventStoreError>;

    /// What is stored of each partition of a command topic.
    async fn command_offsets(&self, topic: &str) -> Result<HashMap<u32, StoredOffset>, EventStoreError>;

    /// Timers that are due, oldest first.
    async fn due_timers(&self, now: i64, limit: usize) -> Result<Vec<Timer>, EventStoreError>;

    /// The outcome of a command id, for whoever lost its answer.
    async fn outcome(&self, id: Uuid) -> Result<Option<StoredOutcome>, EventStoreError>;

    /// Forgets outcomes older than `before` (milliseconds since 1970), at most `limit`; returns how many.
    async fn forget_outcomes(&self, before: i64, limit: usize) -> Result<u64, EventStoreError>;

    /// Takes the relay over: a higher epoch, and the saved cursor. Waits while another relay holds the lock, so
    /// that a standby can simply call it.
    async fn lease_relay(&self) -> Result<RelayLease, EventStoreError>;

    /// Gives the relay's lock up, so that another may lead while this process goes on: a relay that halts does that.
    async fn release_relay(&self) -> Result<(), EventStoreError>;

    /// Replaces the cursor and every sequence, also by lower ones: what goes out again is for consumers to recognise.
    /// How far the cursor was once is kept for [`Self::unpublished`].
    /// [`EventStoreError::RelaySuperseded`] when another holds a higher epoch.
    async fn reset_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError>;

    /// Puts rows back that were in this table before and are in the log: with their places, all of them or none.
    /// [`EventStoreError::Conflict`] when a place or a version is taken. The next append comes behind them. An outcome
    /// is stored without a digest ([`StoredOutcome::digest`]); one that is known stays as it is.
    async fn restore(&self, rows: &RestoredRows) -> Result<(), EventStoreError>;

    /// Committed rows after `cursor`, in (xid, position) order, never at or above the snapshot horizon.
    async fn read_committed(&self, cursor: StorePosition, limit: usize) -> Result<Vec<StoredEvent>, EventStoreError>;

    /// The saved cursor, for whoever compares and does not relay: takes no lease and waits for nobody.
    async fn relay_cursor(&self) -> Result<RelayCursor, EventStoreError>;

    /// Saves how far the relay has published. [`EventStoreError::RelaySuperseded`] when another holds a higher epoch.
    async fn save_cursor(&self, epoch: u64, cursor: &RelayCursor) -> Result<(), EventStoreError>;

    /// Waits until something may have been appended by this process, or `timeout` passes: spares an idle relay from
    /// polling hard without a NOTIFY in the command transaction.
    async fn wait_for_appends(&self, timeout: std::time::Duration);

    /// Events of a stream from a version on, decoded nowhere: for audit and `tail`.
    async fn read_stream(
        &self,
        stream: &StreamId,
        from_version: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, EventStoreError>;

    /// Rows after the relay's cursor, and the age in milliseconds of the oldest of them: the relay's lag. The count
    /// ends at [`MOST_COUNTED`], which stands for that many or more: a lag of millions must not cost a scan of them.
    async fn relay_lag(&self, now: i64) -> Result<(u64, Option<i64>), EventStoreError>;

    /// Rows after the highest place that the cursor ever was at, [`MOST_COUNTED`] at most: those that go out for the
    /// first time. After the cursor was set back that is less than the lag. Where the table no longer reaches that
    /// place, and in stores that do not keep it, it is the lag.
    async fn unpublished(&self) -> Result<u64, EventStoreError> {
        Ok(self.relay_lag(0).await?.0)
    }

    /// Whether rows go out once more: the cursor was set back behind the highest place that it ever was at, and has not
    /// come there again. False where the table no longer reaches that place, and in stores that do not keep it.
    async fn is_published_again(&self) -> Result<bool, EventStoreError> {
        Ok(false)
    }

    /// What a command would be refused with now without being asked for, because the store did not answer others;
    /// `None` where the store is asked.
    fn refusal(&self) -> Option<Open> {
        None
    }

    /// Whether the store answers; for readiness.
    async fn ping(&self) -> Result<(), EventStoreError>;
}

// === impl Topology ===

impl Topology {
    /// Partition of a key, in every topic alike.
    pub fn partition_of(&self, key: &str) -> u32 {
        partition_of(key.as_bytes(), self.partitions)
    }

    /// Token of a key's event at `position`: a read that covers it shows the event.
    pub fn token(&self, context: Context, key: &str, position: StorePosition) -> PositionToken {
        PositionToken::of(context, self.partition_of(key), position)
    }
}

// === impl RelayCursor ===

impl RelayCursor {
    /// Goes on to the next row in relay order: the partition of its topic and its sequence there. They follow from the
    /// stored order alone, so that whoever walks the table from its beginning, or from a saved cursor, finds the same.
    pub fn advance(&mut self, event: &StoredEvent, topology: Topology) -> (u32, u64) {
        let (at, sequence) = self.peek(event, topology);
        let (_, partition) = at;
        self.sequences.insert(at, sequence);
        self.position = event.position;
        (partition, sequence)
    }

    /// Topic and partition of the next row, and the sequence that [`Self::advance`] will give it.
    pub fn peek(&self, event: &StoredEvent, topology: Topology) -> ((String, u32), u64) {
        let at = (event.topic.clone(), topology.partition_of(&event.key));
        let sequence = self.sequence_of(&at) + 1;
        (at, sequence)
    }

    /// Last published sequence of a topic's partition; 0 before the first.
    pub fn sequence_of(&self, at: &(String, u32)) -> u64 {
        self.sequences.get(at).copied().unwrap_or(0)
    }

    /// The lowest partition of a topic that was published to, and its last sequence.
    pub fn published_to(&self, topic: &str) -> Option<(u32, u64)> {
        let published = self.sequences.iter().filter(|((of, _), sequence)| of == topic && **sequence > 0);
        published.map(|((_, partition), sequence)| (*partition, *sequence)).min()
    }
}
