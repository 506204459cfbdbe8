//! Where an assigned partition begins: at the offset that the event store says. A topic that does not have it, or that
//! was made anew, sets it back.

use std::collections::{BTreeSet, HashMap};
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use event_log::{EventLog, EventLogError, PartitionEnds, Subscription, TopicPartition};
use event_store::{AppendBatch, OffsetAdvance, RecordIdentity, StoredOffset};
use futures::{StreamExt, TryStreamExt, stream};
use metrics::counter;

use super::Intake;
use super::reading::identity_of;
use crate::error::HandlerError;
use crate::metrics::SET_BACK;

/// How long a topic is without the offset to go on from before that counts: a broker that has just come to lead may not
/// know its end yet.
const MISSED_FOR: Duration = Duration::from_secs(3);
/// Partitions that are looked at side by side at a start.
const READ_AT_ONCE: usize = 4;
/// Records read at once.
const PAGE: usize = 1_000;

// === impl Intake ===

impl Intake {
    /// Begins where the event store says; at the oldest record where it says nothing yet.
    pub(super) async fn start(
        &mut self,
        subscription: &mut dyn Subscription,
        partitions: Vec<TopicPartition>,
    ) -> Result<(), HandlerError> {
        let mut stored = self.stored(&partitions).await?;
        let others = self.others(&stored).await?;
        for (at, next) in &others {
            self.set_back(at, *next, true).await?;
        }
        if !others.is_empty() {
            stored = self.stored(&partitions).await?;
        }
        let mut missing = Vec::new();
        for at in partitions {
            // What was held of it is read again.
            self.waiting.remove(&at);
            if !self.start_one(subscription, &at, stored.get(&at)).await? {
                missing.push(at);
            }
        }
        self.tell();
        if missing.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(MISSED_FOR).await;
        for at in missing {
            let stored = self.stored(slice::from_ref(&at)).await?;
            if self.start_one(subscription, &at, stored.get(&at)).await? {
                continue;
            }
            if let Some(stored) = stored.get(&at) {
                self.set_back(&at, stored.next, false).await?;
            }
            let stored = self.stored(slice::from_ref(&at)).await?;
            if !self.start_one(subscription, &at, stored.get(&at)).await? {
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
        stored: Option<&StoredOffset>,
    ) -> Result<bool, HandlerError> {
        let offset = match stored {
            Some(stored) => stored.next,
            None => self.ends(at).await?.first,
        };
        if stored.is_none() && offset > 0 {
            // Where nothing is stored, nothing but the very first record may be taken.
            let (topic, partition) = (at.topic.clone(), at.partition);
            let begun = OffsetAdvance { topic, partition, expected: offset, next: offset, last: None };
            self.store.append(&AppendBatch { offsets: vec![begun], ..AppendBatch::default() }).await?;
        }
        match subscription.start(at, offset).await {
            Err(EventLogError::OffsetOutOfRange { .. }) => return Ok(false),
            started => started?,
        }
        self.next.insert(at.clone(), offset);
        Ok(true)
    }

    /// Of those of `partitions` of which something was taken.
    async fn stored(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<HashMap<TopicPartition, StoredOffset>, HandlerError> {
        let mut stored = HashMap::new();
        for topic in partitions.iter().map(|at| &at.topic).collect::<BTreeSet<_>>() {
            let offsets = self.store.command_offsets(topic).await?;
            stored
                .extend(offsets.into_iter().map(|(partition, offset)| (TopicPartition::new(topic, partition), offset)));
        }
        stored.retain(|at, _| partitions.contains(at));
        Ok(stored)
    }

    /// Those that were made anew and have grown past what was taken, with their stored offsets.
    async fn others(
        &mut self,
        stored: &HashMap<TopicPartition, StoredOffset>,
    ) -> Result<Vec<(TopicPartition, u64)>, HandlerError> {
        let mut looks = Vec::new();
        for (at, &StoredOffset { next, last }) in stored {
            let Some(last) = last else { continue };
            let (log, at) = (Arc::clone(&self.log), at.clone());
            looks.push(async move { Ok::<_, HandlerError>(is_another(&*log, &at, last).await?.then_some((at, next))) });
        }
        let found: Vec<_> = stream::iter(looks).buffered(READ_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Sets the stored offset to where the rest of the topic begins, which does not have it: retention was faster than
    /// the intake, or the topic lost its records or was made anew. Then records may come that were taken before; they
    /// are known by their ids for as long as outcomes are kept, and what is older is passed over. At once, and in the
    /// event store: once the topic has grown past the stored offset, only a record tells that it is another one, and
    /// retention may have removed that by then.
    async fn set_back(&mut self, at: &TopicPartition, stored: u64, is_another: bool) -> Result<(), HandlerError> {
        let ends = self.ends(at).await?;
        if ends.holds(stored) && !is_another {
            return Ok(());
        }
        let is_expired = stored < ends.first;
        let (to, last) = if is_expired { (ends.first, None) } else { self.behind_the_old(at, ends).await? };
        let (topic, partition) = (at.topic.clone(), at.partition);
        let back = OffsetAdvance { topic, partition, expected: stored, next: to, last };
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

    /// The first offset whose record came when outcomes that are still kept were decided, and may be known, and the last
    /// record that is passed over. With a margin: outcomes go on being forgotten until it is taken.
    async fn behind_the_old(
        &mut self,
        at: &TopicPartition,
        ends: PartitionEnds,
    ) -> Result<(u64, Option<RecordIdentity>), HandlerError> {
        let retention = self.settings.outcome_retention;
        let known_since = (self.now)() - (retention - retention / 8).as_millis() as i64;
        let (mut next, mut passed) = (ends.first, None);
        while next < ends.next {
            let records = self.log.read(at, next, PAGE).await?;
            let Some(end) = records.last() else { break };
            if let Some(young) = records.iter().position(|record| record.timestamp >= known_since) {
                let before = records[..young].last().map(identity_of);
                return Ok((records[young].offset, before.or(passed)));
            }
            (next, passed) = (end.offset + 1, Some(identity_of(end)));
        }
        Ok((next, passed))
    }

    async fn ends(&mut self, at: &TopicPartition) -> Result<PartitionEnds, HandlerError> {
        let ends = self.log.ends_of(at).await?;
        Ok(ends.ok_or_else(|| EventLogError::UnknownTopic { topic: at.topic.clone() })?)
    }
}

/// Whether another record stands where the last one did that was taken.
async fn is_another(log: &dyn EventLog, at: &TopicPartition, last: RecordIdentity) -> Result<bool, HandlerError> {
    match log.read(at, last.offset, 1).await {
        Ok(records) => match records.first().map(identity_of) {
            Some(found) => Ok(found != last),
            // No record from there on. Where the topic ends before, it is shorter, which `start` tells in time.
            None => Ok(log.ends_of(at).await?.is_some_and(|ends| ends.next > last.offset)),
        },
        Err(error) if error.is_transient() => Err(error.into()),
        // Nobody needs that record any more.
        Err(_) => Ok(false),
    }
}
