//! Between the thread that polls a consumer and the task that reads a subscription: signals, and a bounded store of
//! records for each partition.
//!
//! No Kafka here, only the rules:
//! - of a partition nothing is handed out before it is started, below the offset that it was started at, while it is
//!   paused, or after it was revoked;
//! - signals go before records, in their order;
//! - a partition with a full store is named, so that fetching it can stop until it has drained.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use crate::error::EventLogError;
use crate::log::{Record, Signal, TopicPartition};

/// Records handed out at once.
const BATCH_RECORDS: usize = 1_000;
/// A partition's store is full with this many records or bytes.
const STORE_RECORDS: usize = 4_000;
const STORE_BYTES: usize = 4 << 20;

pub(super) struct Inbox {
    state: Mutex<State>,
    /// Wakes the reading task.
    arrived: Notify,
    /// Wakes the polling thread.
    changed: Condvar,
}

/// A request to the polling thread.
pub(super) struct StartRequest {
    pub at: TopicPartition,
    pub offset: u64,
    pub done: oneshot::Sender<Result<(), EventLogError>>,
}

#[derive(Default)]
struct State {
    signals: VecDeque<Result<Signal, EventLogError>>,
    /// The partitions assigned to us.
    stores: BTreeMap<TopicPartition, Store>,
    /// Partition of the last batch handed out: the next comes from one after it.
    served: Option<TopicPartition>,
    start: Option<StartRequest>,
    /// How far the reader is with each partition, where it has gone on since this was last taken.
    progress: BTreeMap<TopicPartition, u64>,
    handover: Handover,
    /// Why nothing will ever come again.
    end: Option<String>,
    is_closed: bool,
}

#[derive(Default)]
struct Store {
    /// Offset of the next record expected from the log; `None` before `start`.
    next: Option<u64>,
    records: VecDeque<Record>,
    bytes: usize,
    /// By the subscriber.
    is_paused: bool,
    /// By the polling thread, because the store was full.
    is_fetch_paused: bool,
}

/// How far the reader is with a revocation.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Handover {
    /// The signal waits in the queue.
    Signalled,
    /// The reader has it and may still be finishing its work on the partitions.
    Taken,
    /// The reader has come back for more.
    #[default]
    Done,
}

// === impl Inbox ===

impl Inbox {
    pub fn new() -> Self {
        Self { state: Mutex::default(), arrived: Notify::new(), changed: Condvar::new() }
    }

    // --- the reading task ---

    /// What comes next, waiting for it. Nothing is lost when the wait is dropped.
    pub async fn next(&self) -> Result<Signal, EventLogError> {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.arrived.notified().await;
        }
    }

    fn take(&self) -> Option<Result<Signal, EventLogError>> {
        let mut state = self.lock();
        if state.handover == Handover::Taken {
            state.handover = Handover::Done;
            self.changed.notify_all();
        }
        if let Some(signal) = state.signals.pop_front() {
            if matches!(signal, Ok(Signal::Revoked(_))) && !state.has_revocation() {
                state.handover = Handover::Taken;
            }
            return Some(signal);
        }
        if let Some(problem) = &state.end {
            return Some(Err(EventLogError::Permanent { problem: problem.clone() }));
        }
        let records = state.take_records()?;
        // The polling thread may be waiting for room.
        self.changed.notify_all();
        Some(Ok(Signal::Records(records)))
    }

    /// Whether the partition is (still) ours.
    pub fn set_paused(&self, at: &TopicPartition, is_paused: bool) -> bool {
        let mut state = self.lock();
        let Some(store) = state.stores.get_mut(at) else { return false };
        store.is_paused = is_paused;
        self.arrived.notify_one();
        self.changed.notify_all();
        true
    }

    pub fn is_assigned(&self, at: &TopicPartition) -> bool {
        self.lock().stores.contains_key(at)
    }

    pub fn request_start(&self, request: StartRequest) {
        let mut state = self.lock();
        if !state.is_closed {
            state.start = Some(request);
            self.changed.notify_all();
        }
    }

    /// Notes how far the reader is, for the polling thread to publish.
    pub fn note_progress(&self, at: &TopicPartition, next_offset: u64) {
        let mut state = self.lock();
        if state.stores.contains_key(at) {
            state.progress.insert(at.clone(), next_offset);
        }
    }

    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.start = None;
        self.changed.notify_all();
    }

    // --- the polling thread ---

    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// What has been noted of the partitions that are still ours.
    pub fn take_progress(&self) -> Vec<(TopicPartition, u64)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let progress = std::mem::take(&mut state.progress);
        progress.into_iter().filter(|(at, _)| state.stores.contains_key(at)).collect()
    }

    pub fn take_start(&self) -> Option<StartRequest> {
        self.lock().start.take()
    }

    pub fn assign(&self, partitions: Vec<TopicPartition>) {
        if partitions.is_empty() {
            return;
        }
        let mut state = self.lock();
        for at in &partitions {
            state.stores.insert(at.clone(), Store::default());
        }
        state.signals.push_back(Ok(Signal::Assigned(partitions)));
        self.arrived.notify_one();
    }

    /// Takes partitions away and says so. Returns those of them that were being fetched.
    pub fn revoke(&self, partitions: Vec<TopicPartition>) -> Vec<TopicPartition> {
        let mut state = self.lock();
        let mut ours = Vec::new();
        let mut fetched = Vec::new();
        for at in partitions {
            let Some(store) = state.stores.remove(&at) else { continue };
            if store.next.is_some() {
                fetched.push(at.clone());
            }
            ours.push(at);
        }
        if !ours.is_empty() {
            state.signals.push_back(Ok(Signal::Revoked(ours)));
            state.handover = Handover::Signalled;
            self.arrived.notify_one();
        }
        fetched
    }

    /// Waits until the reader has taken the last revocation and come back for more, so that its work on those
    /// partitions is over before another member gets them. Not for ever, and not while the reader itself waits.
    pub fn wait_for_handover(&self, longest: Duration) {
        let state = self.lock();
        let _state = self
            .changed
            .wait_timeout_while(state, longest, |state| {
                state.handover != Handover::Done && !state.is_closed && state.start.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Notes that a partition is fetched from `offset` on; what was held of it is gone. Whether it is still ours.
    pub fn started(&self, at: &TopicPartition, offset: u64) -> bool {
        let mut state = self.lock();
        let Some(store) = state.stores.get_mut(at) else { return false };
        *store = Store { next: Some(offset), ..Store::default() };
        true
    }

    /// Notes that a partition is no longer fetched, until it is started again.
    pub fn stopped(&self, at: &TopicPartition) {
        if let Some(store) = self.lock().stores.get_mut(at) {
            store.next = None;
        }
    }

    /// The partitions that are fetched, with the offset expected next.
    pub fn fetched(&self) -> Vec<(TopicPartition, u64)> {
        let state = self.lock();
        state.stores.iter().filter_map(|(at, store)| Some((at.clone(), store.next?))).collect()
    }

    /// Keeps records as they came from the log. Those of partitions that are not ours or not started are dropped, and
    /// so are those below the expected offset.
    pub fn keep(&self, records: Vec<Record>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut records = records.into_iter().peekable();
        while let Some(first) = records.peek() {
            let at = first.at.clone();
            let mut store = state.stores.get_mut(&at);
            while let Some(record) = records.next_if(|record| record.at == at) {
                if let Some(store) = store.as_deref_mut() {
                    store.keep(record);
                }
            }
        }
        self.arrived.notify_one();
    }

    /// Reports a problem. One that may pass is told once, however often it comes before it is read.
    pub fn report(&self, error: EventLogError) {
        let mut state = self.lock();
        let is_repeated = error.is_transient() && state.signals.iter().any(Result::is_err);
        if !is_repeated {
            state.signals.push_back(Err(error));
        }
        self.arrived.notify_one();
    }

    /// Ends the subscription: the reader gets this error from now on.
    pub fn end(&self, problem: String) {
        self.lock().end.get_or_insert(problem);
        self.arrived.notify_one();
    }

    /// Gives the reader a moment to drain the full stores. Returns the partitions whose fetching has to pause.
    pub fn wait_for_room(&self, longest: Duration) -> Vec<TopicPartition> {
        let mut state = self.lock();
        let deadline = Instant::now() + longest;
        // A paused store drains only when it is resumed: waiting for it would hold up the others.
        while state.stores.values().any(|store| store.is_full() && !store.is_paused && !store.is_fetch_paused)
            && !state.is_closed
            && state.start.is_none()
        {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let full = state.stores.iter_mut().filter(|(_, store)| store.is_full() && !store.is_fetch_paused);
        full.map(|(at, store)| {
            store.is_fetch_paused = true;
            at.clone()
        })
        .collect()
    }

    /// The partitions whose fetching was paused and whose stores have drained to a half.
    pub fn drained(&self) -> Vec<TopicPartition> {
        let mut state = self.lock();
        let drained = state.stores.iter_mut().filter(|(_, store)| {
            store.is_fetch_paused
                && !store.is_paused
                && store.records.len() <= STORE_RECORDS / 2
                && store.bytes <= STORE_BYTES / 2
        });
        drained
            .map(|(at, store)| {
                store.is_fetch_paused = false;
                at.clone()
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    fn has_revocation(&self) -> bool {
        self.signals.iter().any(|signal| matches!(signal, Ok(Signal::Revoked(_))))
    }

    fn take_records(&mut self) -> Option<Vec<Record>> {
        let is_ready = |(_, store): &(&TopicPartition, &Store)| !store.is_paused && !store.records.is_empty();
        let after = self.served.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let at = self
            .stores
            .range::<TopicPartition, _>((after, Bound::Unbounded))
            .find(is_ready)
            .or_else(|| self.stores.iter().find(is_ready))
            .map(|(at, _)| at.clone())?;
        let records = self.stores.get_mut(&at).map(Store::take)?;
        self.served = Some(at);
        Some(records)
    }
}

// === impl Store ===

impl Store {
    fn keep(&mut self, record: Record) {
        let is_expected = self.next.is_some_and(|next| record.offset >= next);
        if is_expected {
            self.next = Some(record.offset + 1);
            self.bytes += size_of_record(&record);
            self.records.push_back(record);
        }
    }

    fn take(&mut self) -> Vec<Record> {
        let count = self.records.len().min(BATCH_RECORDS);
        let records: Vec<Record> = self.records.drain(..count).collect();
        self.bytes -= records.iter().map(size_of_record).sum::<usize>();
        records
    }

    fn is_full(&self) -> bool {
        self.records.len() >= STORE_RECORDS || self.bytes >= STORE_BYTES
    }
}

fn size_of_record(record: &Record) -> usize {
    record.key.len() + record.value.len() + record.headers.as_bytes().len()
}

#[cfg(test)]
mod tests;
