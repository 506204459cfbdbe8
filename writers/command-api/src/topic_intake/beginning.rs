//! Where an assigned partition begins: at the offset that the event store says. A topic that does not have it, or that
//! was made anew, sets it back.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use event_log::{EventLogError, PartitionEnds, Record, Subscription, TopicPartition};
use event_store::{AppendBatch, OffsetAdvance};
use metrics::counter;

use super::Intake;
use crate::error::HandlerError;
use crate::metrics::SET_BACK;

/// How long a topic is without the offset to go on from before that counts: a broker that has just come to lead may not
/// know its end yet.
const MISSED_FOR: Duration = Duration::from_secs(3);
/// Records read at once.
const PAGE: usize = 1_000;

#[derive(Debug, Clone, Copy)]
pub(super) struct LastTaken {
    pub(super) offset: u64,
    pub(super) hash: u64,
}

// === impl Intake ===

impl Intake {
    /// Begins where the event store says; at the oldest record where it says nothing yet.
    pub(super) async fn start(
        &mut self,
        subscription: &mut dyn Subscription,
        partitions: Vec<TopicPartition>,
    ) -> Result<(), HandlerError> {
        let mut missing = Vec::new();
        for at in partitions {
            // What was held of it is read again.
            self.waiting.remove(&at);
            if !self.start_one(subscription, &at).await? {
                missing.push(at);
            }
        }
        self.tell();
        if missing.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(MISSED_FOR).await;
        for at in missing {
            if self.start_one(subscription, &at).await? {
                continue;
            }
            self.set_back(&at, false).await?;
            if !self.start_one(subscription, &at).await? {
                let problem = "it goes on losing records".to_owned();
                return Err(EventLogError::Unavailable { address: at.to_string(), problem }.into());
            }
        }
        Ok(())
    }

    /// False where the topic does not have the offset.
    async fn start_one(
        &mut self,
        subscription: &mut dyn Subscription,
        at: &TopicPartition,
    ) -> Result<bool, HandlerError> {
        if self.is_another(at).await? {
            self.set_back(at, true).await?;
        }
        let stored = self.stored(at).await?;
        let offset = match stored {
            Some(stored) => stored,
            None => self.ends(at).await?.first,
        };
        if stored.is_none() && offset > 0 {
            // Where nothing is stored, nothing but the very first record may be taken.
            let begun =
                OffsetAdvance { topic: at.topic.clone(), partition: at.partition, expected: offset, next: offset };
            self.store.append(&AppendBatch { offsets: vec![begun], ..AppendBatch::default() }).await?;
        }
        match subscription.start(at, offset).await {
            Err(EventLogError::OffsetOutOfRange { .. }) => return Ok(false),
            started => started?,
        }
        self.next.insert(at.clone(), offset);
        Ok(true)
    }

    async fn stored(&mut self, at: &TopicPartition) -> Result<Option<u64>, HandlerError> {
        Ok(self.store.command_offsets(&at.topic).await?.get(&at.partition).copied())
    }

    /// Whether the topic was made anew and has grown past the stored offset meanwhile: the record before it is not the
    /// one that was taken there. Nobody knows what was taken before this process started.
    async fn is_another(&mut self, at: &TopicPartition) -> Result<bool, HandlerError> {
        let Some(last) = self.last.get(at).copied() else { return Ok(false) };
        if self.stored(at).await? != Some(last.offset + 1) {
            return Ok(false);
        }
        match self.log.read(at, last.offset, 1).await {
            // Where compaction took it, the next one is found.
            Ok(records) => {
                Ok(records.first().is_some_and(|found| found.offset == last.offset && hash(found) != last.hash))
            }
            Err(error) if error.is_transient() => Err(error.into()),
            // Nobody needs that record any more.
            Err(_) => Ok(false),
        }
    }

    /// Sets the stored offset to where the rest of the topic begins, which does not have it: retention was faster than
    /// the intake, or the topic lost its records or was made anew. Then records may come that were taken before; they
    /// are known by their ids for as long as outcomes are kept, and what is older is passed over. At once, and in the
    /// event store: once the topic has grown past the stored offset, a process that is started then could not tell that
    /// it is another one.
    async fn set_back(&mut self, at: &TopicPartition, is_another: bool) -> Result<(), HandlerError> {
        let (Some(stored), ends) = (self.stored(at).await?, self.ends(at).await?) else { return Ok(()) };
        if ends.holds(stored) && !is_another {
            return Ok(());
        }
        self.last.remove(at);
        let is_expired = stored < ends.first;
        let to = if is_expired { ends.first } else { self.behind_the_old(at, ends).await? };
        let back = OffsetAdvance { topic: at.topic.clone(), partition: at.partition, expected: stored, next: to };
        self.store.append(&AppendBatch { offsets: vec![back], ..AppendBatch::default() }).await?;
        counter!(SET_BACK, "topic" => at.topic.clone()).increment(1);
        let PartitionEnds { first, next, .. } = ends;
        let why = match is_expired {
            true => "retention removed commands that were not taken yet",
            false => "the command topic lost records or was made anew",
        };
        tracing::error!(%at, stored, first, next, to, "{why}; the rest is taken, from `to` on");
        Ok(())
    }

    /// The first offset whose record came when outcomes that are still kept were decided, and may be known. With a
    /// margin: outcomes go on being forgotten until it is taken.
    async fn behind_the_old(&mut self, at: &TopicPartition, ends: PartitionEnds) -> Result<u64, HandlerError> {
        let retention = self.settings.outcome_retention;
        let known_since = (self.now)() - (retention - retention / 8).as_millis() as i64;
        let mut next = ends.first;
        while next < ends.next {
            let records = self.log.read(at, next, PAGE).await?;
            let Some(last) = records.last() else { break };
            if let Some(young) = records.iter().find(|record| record.timestamp >= known_since) {
                return Ok(young.offset);
            }
            next = last.offset + 1;
        }
        Ok(next)
    }

    async fn ends(&mut self, at: &TopicPartition) -> Result<PartitionEnds, HandlerError> {
        let ends = self.log.ends_of(at).await?;
        Ok(ends.ok_or_else(|| EventLogError::UnknownTopic { topic: at.topic.clone() })?)
    }
}

pub(super) fn hash(record: &Record) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&record.key, &record.headers, &record.value, record.timestamp).hash(&mut hasher);
    hasher.finish()
}
