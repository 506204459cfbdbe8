//! A member's view of its group: signals first, then records of the partitions that it has started.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use event_log::{EventLogError, Record, Signal, Subscription, TopicPartition};
use tokio::time::{Instant, timeout_at};

use super::{EventLogServer, unavailable};
use crate::process::Process;
use crate::world::Place;

pub(super) struct SimulatedSubscription {
    server: EventLogServer,
    process: Process,
    group: String,
    topics: Vec<String>,
    member: u64,
    cursors: BTreeMap<TopicPartition, Cursor>,
    /// A fetch that is under way, and when it is there: kept here, so that a dropped wait goes on with it.
    fetch: Option<Fetch>,
}

#[derive(Clone, Copy)]
struct Cursor {
    next: u64,
    is_paused: bool,
}

struct Fetch {
    ready_at: Instant,
    place: Place,
    fails: bool,
}

/// How often a member looks for what only time changes.
const LOOK: Duration = Duration::from_millis(500);
/// Most records in one signal of a world with faults.
const FEW: u64 = 6;
const MANY: usize = 5_000;

// === impl SimulatedSubscription ===

impl SimulatedSubscription {
    pub(super) fn new(
        server: EventLogServer,
        process: Process,
        group: String,
        topics: Vec<String>,
        member: u64,
    ) -> Self {
        Self { server, process, group, topics, member, cursors: BTreeMap::new(), fetch: None }
    }

    /// A signal of the group, if there is one; joins again when this member was put out.
    fn signal(&mut self) -> Option<Signal> {
        let mut state = self.server.state();
        let state = &mut *state;
        let group = state.groups.entry(self.group.clone()).or_default();
        let mut has_changed = group.expire(self.member);
        if !group.members.contains_key(&self.member) {
            let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
            group.join(self.member, self.process.clone(), &topics);
            // What it had is gone; of that it is told first.
            let had: Vec<TopicPartition> = self.cursors.keys().cloned().collect();
            if let Some(member) = group.members.get_mut(&self.member)
                && !had.is_empty()
            {
                member.signals.push_back(Signal::Revoked(had));
            }
            has_changed = true;
        }
        if has_changed {
            group.rebalance(&state.topics);
            self.server.changed.notify_waiters();
        }
        let signal = group.members.get_mut(&self.member)?.signals.pop_front()?;
        if let Signal::Revoked(partitions) = &signal {
            for at in partitions {
                self.cursors.remove(at);
            }
        }
        Some(signal)
    }

    /// The partitions that have something to deliver.
    fn waiting(&self) -> Vec<TopicPartition> {
        let state = self.server.state();
        let has_more = |at: &TopicPartition, cursor: &Cursor| {
            !cursor.is_paused && state.partition(at).is_ok_and(|records| records.len() as u64 > cursor.next)
        };
        self.cursors.iter().filter(|(at, cursor)| has_more(at, cursor)).map(|(at, _)| at.clone()).collect()
    }

    fn deliver(&mut self, place: Place, waiting: &[TopicPartition]) -> Option<Vec<Record>> {
        let world = self.process.world();
        let at = waiting.get(world.dice(place, 20) as usize % waiting.len().max(1))?;
        let most = if world.is_quiet() { MANY } else { 1 + (world.dice(place, 21) % FEW) as usize };
        let cursor = self.cursors.get_mut(at)?;
        let state = self.server.state();
        let records: Vec<Record> =
            state.partition(at).ok()?.iter().skip(cursor.next as usize).take(most).cloned().collect();
        cursor.next = records.last()?.offset + 1;
        world.trace(|| format!("{place}: {at} gives {} records up to {}", records.len(), cursor.next));
        Some(records)
    }
}

#[async_trait]
impl Subscription for SimulatedSubscription {
    async fn next(&mut self) -> Result<Signal, EventLogError> {
        let server = self.server.clone();
        loop {
            self.process.awake().await;
            // Before anything is looked at: what changes after that wakes the wait below.
            let changed = server.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(signal) = self.signal() {
                return Ok(signal);
            }
            let now = Instant::now();
            let waiting = self.waiting();
            if self.fetch.is_none() && !waiting.is_empty() {
                let world = self.process.world();
                let (place, fault) = world.next_call(self.process.name(), "fetch", true);
                let ready_at = now + world.latency(place, 0);
                self.fetch = Some(Fetch { ready_at, place, fails: fault.is_some() });
            }
            let until = match &self.fetch {
                Some(fetch) if fetch.ready_at <= now => {
                    let (place, fails) = (fetch.place, fetch.fails);
                    self.fetch = None;
                    if fails {
                        self.process.world().trace(|| format!("{place}: fails"));
                        return Err(unavailable(crate::process::Lost("the broker went away")));
                    }
                    if let Some(records) = self.deliver(place, &waiting) {
                        return Ok(Signal::Records(records));
                    }
                    continue;
                }
                Some(fetch) => fetch.ready_at,
                None => now + LOOK,
            };
            let _ = timeout_at(until, changed).await;
        }
    }

    async fn start(&mut self, at: &TopicPartition, offset: u64) -> Result<(), EventLogError> {
        let call = self.process.begin_as("start", false).await.map_err(unavailable)?;
        self.server.state().check_offset(at, offset)?;
        self.cursors.insert(at.clone(), Cursor { next: offset, is_paused: false });
        self.process.world().trace(|| format!("{}: {at} from {offset}", call.place));
        Ok(())
    }

    async fn pause(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        self.process.awake().await;
        if let Some(cursor) = self.cursors.get_mut(at) {
            cursor.is_paused = true;
        }
        Ok(())
    }

    async fn resume(&mut self, at: &TopicPartition) -> Result<(), EventLogError> {
        self.process.awake().await;
        if let Some(cursor) = self.cursors.get_mut(at) {
            cursor.is_paused = false;
        }
        Ok(())
    }

    async fn commit(&mut self, _at: &TopicPartition, _next_offset: u64) -> Result<(), EventLogError> {
        self.process.awake().await;
        Ok(())
    }

    async fn close(&mut self) {
        self.process.awake().await;
        self.leave();
    }
}

impl SimulatedSubscription {
    fn leave(&self) {
        let mut state = self.server.state();
        let state = &mut *state;
        if let Some(group) = state.groups.get_mut(&self.group)
            && group.members.remove(&self.member).is_some()
        {
            group.rebalance(&state.topics);
            self.server.changed.notify_waiters();
        }
    }
}

impl Drop for SimulatedSubscription {
    fn drop(&mut self) {
        // A process that died says goodbye to nobody: its session must expire.
        if !self.process.is_dead() && self.process.silent_for().is_zero() {
            self.leave();
        }
    }
}
