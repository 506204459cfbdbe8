//! A group: its members, and who has which partition. A member that is silent for too long is out, and gets to know when
//! it asks again: until then it works on what it had, beside the new owner.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use event_log::{Record, Signal, TopicPartition};

use crate::process::Process;

#[derive(Default)]
pub(super) struct Group {
    pub(super) members: BTreeMap<u64, Member>,
    /// Shifts who gets what.
    pub(super) turn: usize,
}

pub(super) struct Member {
    pub(super) process: Process,
    topics: BTreeSet<String>,
    pub(super) held: BTreeSet<TopicPartition>,
    pub(super) signals: VecDeque<Signal>,
}

/// How long a silent member stays in.
const SESSION: Duration = Duration::from_secs(3);

// === impl Group ===

impl Group {
    pub(super) fn join(&mut self, member: u64, process: Process, topics: &[&str]) {
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        let joined = Member { process, topics, held: BTreeSet::new(), signals: VecDeque::new() };
        self.members.insert(member, joined);
    }

    /// Puts those out of whom nothing was heard. Whether anybody was.
    pub(super) fn expire(&mut self, asking: u64) -> bool {
        let before = self.members.len();
        self.members.retain(|number, member| *number == asking || member.process.silent_for() < SESSION);
        self.members.len() < before
    }

    /// Shares the partitions among the members, who are told what changes for them.
    pub(super) fn rebalance(&mut self, topics: &BTreeMap<String, Vec<Vec<Record>>>) {
        let mut wanted: BTreeMap<u64, BTreeSet<TopicPartition>> = BTreeMap::new();
        for (topic, partitions) in topics {
            let interested: Vec<u64> = self
                .members
                .iter()
                .filter(|(_, member)| member.topics.contains(topic))
                .map(|(number, _)| *number)
                .collect();
            if interested.is_empty() {
                continue;
            }
            for partition in 0..partitions.len() {
                let member = interested[(partition + self.turn) % interested.len()];
                wanted.entry(member).or_default().insert(TopicPartition::new(topic, partition as u32));
            }
        }
        for (number, member) in &mut self.members {
            let wanted = wanted.remove(number).unwrap_or_default();
            let revoked: Vec<_> = member.held.difference(&wanted).cloned().collect();
            let assigned: Vec<_> = wanted.difference(&member.held).cloned().collect();
            if revoked.is_empty() && assigned.is_empty() {
                continue;
            }
            member.process.world().count(|stats| stats.rebalances += 1);
            member.process.world().trace(|| {
                format!("{} gives up {} and gets {}", member.process.name(), listed(&revoked), listed(&assigned))
            });
            if !revoked.is_empty() {
                member.signals.push_back(Signal::Revoked(revoked));
            }
            if !assigned.is_empty() {
                member.signals.push_back(Signal::Assigned(assigned));
            }
            member.held = wanted;
        }
    }
}

fn listed(partitions: &[TopicPartition]) -> String {
    if partitions.is_empty() {
        return "nothing".to_owned();
    }
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
