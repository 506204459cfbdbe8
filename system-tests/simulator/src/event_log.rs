//! A simulated event log: partitions of records, and groups whose members share them.
//!
//! A record is appended first and seen by readers when its replicas have it; what no replica had is lost with the
//! broker, and its sender is told nothing. Partitions of one call are appended in any order.

mod group;
mod subscription;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use event_log::{EventLog, EventLogError, NewRecord, PartitionEnds, Record, Subscription, TopicPartition, TopicSpec};
use tokio::sync::Notify;

use crate::process::{Call, Lost, Process, deliver};
use crate::world::Fault;
use group::Group;
use subscription::SimulatedSubscription;

/// The cluster: what outlives the processes.
#[derive(Clone, Default)]
pub struct EventLogServer {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// A process's connection to it.
#[derive(Clone)]
pub struct SimulatedEventLog {
    server: EventLogServer,
    process: Process,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<String, Vec<Vec<Record>>>,
    groups: BTreeMap<String, Group>,
    members: u64,
}

// === impl EventLogServer ===

impl EventLogServer {
    pub fn connect(&self, process: Process) -> SimulatedEventLog {
        SimulatedEventLog { server: self.clone(), process }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ends(&self, topic: &str) -> Vec<PartitionEnds> {
        let state = self.state();
        let partitions = state.topics.get(topic).into_iter().flatten();
        (0..).zip(partitions).map(|(partition, records)| ends_of(partition, records)).collect()
    }

    pub fn records(&self, at: &TopicPartition) -> Vec<Record> {
        let state = self.state();
        state.topics.get(&at.topic).and_then(|topic| topic.get(at.partition as usize)).cloned().unwrap_or_default()
    }

    /// A record of somebody outside, who has no faults of ours. `false` while there is no such topic.
    pub fn append(&self, record: NewRecord) -> Option<Record> {
        let appended = self.state().append(record);
        self.changed.notify_waiters();
        appended
    }

    /// Gives every group its partitions anew, in another way.
    pub fn rebalance(&self) {
        for group in self.state().groups.values_mut() {
            group.turn += 1;
        }
        let mut state = self.state();
        let state = &mut *state;
        for group in state.groups.values_mut() {
            group.rebalance(&state.topics);
        }
        self.changed.notify_waiters();
    }
}

fn ends_of(partition: u32, records: &[Record]) -> PartitionEnds {
    PartitionEnds { partition, first: 0, next: records.len() as u64 }
}

// === impl State ===

impl State {
    fn append(&mut self, new: NewRecord) -> Option<Record> {
        let records = self.topics.get_mut(&new.at.topic)?.get_mut(new.at.partition as usize)?;
        let record = Record {
            at: new.at,
            offset: records.len() as u64,
            key: new.key.into(),
            headers: new.headers,
            value: new.value.into(),
            timestamp: new.timestamp,
        };
        records.push(record.clone());
        Some(record)
    }

    fn partition(&self, at: &TopicPartition) -> Result<&Vec<Record>, EventLogError> {
        let topic = self.topics.get(&at.topic).ok_or_else(|| unknown(&at.topic))?;
        topic.get(at.partition as usize).ok_or_else(|| unknown(&at.topic))
    }

    fn check_offset(&self, at: &TopicPartition, asked: u64) -> Result<(), EventLogError> {
        let next = self.partition(at)?.len() as u64;
        if asked <= next {
            return Ok(());
        }
        Err(EventLogError::OffsetOutOfRange { at: at.clone(), asked, first: 0, next })
    }
}

fn unknown(topic: &str) -> EventLogError {
    EventLogError::UnknownTopic { topic: topic.to_owned() }
}

/// A cluster may only not know a topic yet.
fn not_known_yet(topic: &str) -> EventLogError {
    EventLogError::Unavailable {
        address: "simulated".to_owned(),
        problem: format!("topic {topic} or one of its partitions is not known yet"),
    }
}

fn unavailable(lost: Lost) -> EventLogError {
    EventLogError::Unavailable { address: "simulated".to_owned(), problem: lost.0.to_owned() }
}

// === impl SimulatedEventLog ===

impl SimulatedEventLog {
    async fn begin(&self, operation: &'static str) -> Result<Call, EventLogError> {
        self.process.begin(operation).await.map_err(unavailable)
    }

    async fn at_once<T>(
        &self,
        operation: &'static str,
        effect: impl FnOnce(&mut State) -> Result<T, EventLogError>,
    ) -> Result<T, EventLogError> {
        let call = self.begin(operation).await?;
        let result = effect(&mut self.server.state());
        self.process.finish(call).await.map_err(unavailable)?;
        result
    }

    /// Records reach the cluster.
    async fn arrive(self, records: Vec<NewRecord>) -> Result<(), EventLogError> {
        let call = self.begin("publish").await?;
        let world = self.process.world();
        let mut parts: BTreeMap<TopicPartition, Vec<NewRecord>> = BTreeMap::new();
        for record in records {
            parts.entry(record.at.clone()).or_default().push(record);
        }
        for at in parts.keys() {
            self.server.state().partition(at).map_err(|_| not_known_yet(&at.topic))?;
        }
        let mut order: Vec<(u64, Vec<NewRecord>)> =
            (0..).zip(parts.into_values()).map(|(index, part)| (world.dice(call.place, 50 + index), part)).collect();
        order.sort_by_key(|(dice, _)| *dice);
        let count: usize = order.iter().map(|(_, part)| part.len()).sum();
        // A broker that dies takes an end of the call with it, which nobody has seen.
        let kept = match call.fault {
            Some(Fault::AnswerLost | Fault::CrashAfter) => world.dice(call.place, 3) as usize % (count + 1),
            _ => count,
        };
        let mut appended = 0;
        for (dice, part) in order {
            for new in part {
                if appended == kept {
                    break;
                }
                let Some(record) = self.server.state().append(new) else { continue };
                appended += 1;
                world.check(|checker| checker.appended(world, &record));
            }
            world.trace(|| format!("{}: {appended} of {count} records are in the log", call.place));
            self.server.changed.notify_waiters();
            self.process.spend(world.latency(call.place, dice)).await;
        }
        self.process.finish(call).await.map_err(unavailable)
    }
}

#[async_trait]
impl EventLog for SimulatedEventLog {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<(), EventLogError> {
        self.at_once("ensure_topics", |state| {
            for TopicSpec { name, partitions } in topics {
                let held = state.topics.entry(name.clone()).or_insert_with(|| vec![Vec::new(); *partitions as usize]);
                let found = held.len() as u32;
                if found != *partitions {
                    return Err(EventLogError::PartitionCount { topic: name.clone(), found, wanted: *partitions });
                }
            }
            Ok(())
        })
        .await
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), EventLogError> {
        deliver(self.clone().arrive(records)).await
    }

    async fn ends(&self, topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        self.at_once("ends", |state| {
            let partitions = state.topics.get(topic).ok_or_else(|| unknown(topic))?;
            Ok((0..).zip(partitions).map(|(partition, records)| ends_of(partition, records)).collect())
        })
        .await
    }

    async fn read(&self, at: &TopicPartition, from: u64, limit: usize) -> Result<Vec<Record>, EventLogError> {
        self.at_once("read", |state| {
            state.check_offset(at, from)?;
            Ok(state.partition(at)?.iter().skip(from as usize).take(limit).cloned().collect())
        })
        .await
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, EventLogError> {
        self.at_once("subscribe", |state| match topics.iter().find(|topic| !state.topics.contains_key(**topic)) {
            Some(missing) => Err(not_known_yet(missing)),
            None => Ok(()),
        })
        .await?;
        // Only now: a member whose connection broke while it joined is none.
        let member = {
            let mut state = self.server.state();
            let state = &mut *state;
            state.members += 1;
            let member = state.members;
            let held = state.groups.entry(group.to_owned()).or_default();
            held.join(member, self.process.clone(), topics);
            held.rebalance(&state.topics);
            member
        };
        self.server.changed.notify_waiters();
        Ok(Box::new(SimulatedSubscription::new(
            self.server.clone(),
            self.process.clone(),
            group.to_owned(),
            topics.iter().map(|topic| (*topic).to_owned()).collect(),
            member,
        )))
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.at_once("ping", |_| Ok(())).await
    }
}
