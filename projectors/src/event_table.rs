//! A generation that is built from the event table: what retention took from the topic is folded from there, by the
//! same path as records, then the topic goes on.
//!
//! The table gives a partition the same sequences as the topic, so that a checkpoint's sequence and position are all
//! that is needed to go on in either. The last event that comes from the table is the first one that the topic still
//! has: who looks for the place on the topic then compares the two, and a table of another history is found out (fault
//! 22).

use event_log::{EventLog, EventTable, NewRecord, Record, TablePlace, TopicPartition};
use read_models::generations::Source;
use read_models::{Checkpoint, PartitionRef, ReadModel};
use resilience::Policy;
use tokio::time::Instant;

use crate::bound::Bound;
use crate::claim::Owned;
use crate::dead_letters;
use crate::error::ProjectorError;
use crate::fold::Fold;
use crate::history::{ends_of, first_sequence, place_of};
use crate::projection::Projection;
use crate::settings::{ProjectorSettings, Role};
use crate::worker::{ATTEND_EVERY, Went, WorkerContext, work_through};
use crate::write::{retrying, write};

/// What a topic partition begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Beginning {
    /// Oldest offset that is kept.
    first: u64,
    /// Sequence of the first event from there on; `None` where there is no event.
    sequence: Option<u64>,
}

/// Where a worker goes on.
pub(crate) enum Onward {
    /// On the topic, from this offset.
    Topic(u64),
    /// Nowhere: what follows is beyond the bound.
    Bound,
}

/// Where the partition is gone on with, after all that the topic does not have any more was folded from the event
/// table.
pub(crate) async fn onward<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    bound: &Bound,
) -> Result<Onward, ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let place = |checkpoint| {
        let (log, at, after_halt) = (&context.log, &context.at, context.after_halt);
        async move { retrying(|| place_of(&**log, at, &checkpoint, after_halt)).await.map(Onward::Topic) }
    };
    if context.settings.source == Source::Log {
        return place(owned.checkpoint).await;
    }
    let head = owned.head;
    // Retention may go on meanwhile: then there is more to fold from the table.
    loop {
        let begins = retrying(|| Beginning::of(&*context.log, &context.at)).await?;
        let Some(table) = context.settings.event_table.clone() else {
            begins.check(&owned.checkpoint, &context.settings, context.partition)?;
            return place(owned.checkpoint).await;
        };
        if !begins.may_lack(&owned.checkpoint) {
            return place(owned.checkpoint).await;
        }
        // It is level with nothing before it has all that the table has for it.
        owned.head = u64::MAX;
        let went = fold_rows(context, owned, bound, table.as_ref(), begins).await?;
        owned.head = head;
        if went == Went::ToTheBound {
            return Ok(Onward::Bound);
        }
        let begins = retrying(|| Beginning::of(&*context.log, &context.at)).await?;
        if !begins.may_lack(&owned.checkpoint) {
            let onward = place(owned.checkpoint).await?;
            if let Onward::Topic(offset) = onward {
                note_offset(context, owned, offset).await?;
            }
            return Ok(onward);
        }
        if begins.sequence.is_none() {
            // All that was ever published is applied, and none of it is on the topic any more.
            let offset = owned.checkpoint.next_offset.max(begins.first);
            note_offset(context, owned, offset).await?;
            return Ok(Onward::Topic(offset));
        }
    }
}

/// Refuses a generation that is built, and of which the topics do not have enough, in a process that has no event
/// table. What callers rest on is fed as far as it can be: only the partitions halt that lack something.
pub(crate) async fn check_reach<P, M>(
    read_model: &M,
    log: &dyn EventLog,
    settings: &ProjectorSettings,
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    if settings.source == Source::Log || settings.event_table.is_some() || *settings.role.borrow() != Role::Shadow {
        return Ok(());
    }
    let status = read_model.status().await?;
    for context in P::CONTEXTS {
        for partition in 0..settings.partitions {
            let partition = PartitionRef { context: *context, partition };
            let known = status.partitions.iter().find(|known| known.partition == partition);
            let checkpoint = known.map(|known| known.checkpoint).unwrap_or_default();
            let at = TopicPartition::new(context.events_topic(), partition.partition);
            Beginning::of(log, &at).await?.check(&checkpoint, settings, partition)?;
        }
    }
    Ok(())
}

/// Folds from the table up to the first event that the topic has, or all that was published where it has none.
async fn fold_rows<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    bound: &Bound,
    table: &dyn EventTable,
    begins: Beginning,
) -> Result<Went, ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let Checkpoint { sequence, position, .. } = owned.checkpoint;
    tracing::info!(partition = %context.partition, sequence, until = begins.sequence, "events come from the event table");
    let mut walk = table.walk(context.at.clone(), TablePlace { position, sequence });
    let mut attended: Option<Instant> = None;
    let mut delays = Policy::STORE.backoff();
    let mut has_gone_on = false;
    loop {
        if attended.is_none_or(|at| at.elapsed() >= ATTEND_EVERY) {
            dead_letters::attend(context, owned).await?;
            attended = Some(Instant::now());
        }
        let last = owned.checkpoint.sequence;
        let left = begins.sequence.map_or(u64::MAX, |first| first.saturating_sub(last));
        if left == 0 {
            return Ok(Went::Through);
        }
        let most = context.settings.batch(*context.settings.role.borrow());
        let rows = match walk.next(most.min(usize::try_from(left).unwrap_or(most))).await {
            Ok(rows) => rows,
            Err(error) if error.is_transient() => {
                tracing::warn!(partition = %context.partition, %error, "the event table is waited for");
                delays.wait().await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if rows.is_empty() {
            return match begins.sequence {
                None => Ok(Went::Through),
                Some(lowest) => {
                    let (at, wanted) = (context.at.clone(), last + 1);
                    Err(ProjectorError::NotInTable { at, wanted, lowest })
                }
            };
        }
        delays = Policy::STORE.backoff();
        let records: Vec<Record> = (last + 1..).zip(rows).map(|(sequence, row)| begins.placed(row, sequence)).collect();
        if work_through(context, owned, &records, bound).await? == Went::ToTheBound {
            return Ok(Went::ToTheBound);
        }
        if !has_gone_on {
            context.goes_on();
            has_gone_on = true;
        }
    }
}

/// Writes where the topic goes on: so far the checkpoint had an offset that only says that it is before the topic.
async fn note_offset<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    next_offset: u64,
) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let checkpoint = Checkpoint { next_offset, ..owned.checkpoint };
    write(context, owned, Fold::<P>::new(context.settings.fold_version, checkpoint)).await
}

// === impl Beginning ===

impl Beginning {
    async fn of(log: &dyn EventLog, at: &TopicPartition) -> Result<Self, ProjectorError> {
        let ends = ends_of(log, at).await?;
        Ok(Self { first: ends.first, sequence: first_sequence(log, at, ends).await? })
    }

    /// Whether events may be missing between a checkpoint and this. What retention emptied tells no sequence: a
    /// checkpoint that was written from what is removed by now may lack some of it.
    fn may_lack(self, checkpoint: &Checkpoint) -> bool {
        match self.sequence {
            Some(first) => checkpoint.sequence + 1 < first,
            None => checkpoint.next_offset < self.first,
        }
    }

    /// An error when events must come from the event table.
    fn check(
        self,
        checkpoint: &Checkpoint,
        settings: &ProjectorSettings,
        partition: PartitionRef,
    ) -> Result<(), ProjectorError> {
        if !self.may_lack(checkpoint) {
            return Ok(());
        }
        let (generation, wanted) = (settings.generation, checkpoint.sequence + 1);
        Err(ProjectorError::NoEventTable { partition, generation, wanted })
    }

    /// A row as a record. Its offset was one before what the topic has now, and is not known: one that counts up with
    /// the sequences tells how far a generation is, and stays below the topic, where nothing is taken for level.
    fn placed(self, row: NewRecord, sequence: u64) -> Record {
        let offset = (sequence - 1).min(self.first.saturating_sub(2));
        let NewRecord { at, key, headers, value, timestamp } = row;
        Record { at, offset, key: key.into(), headers, value: value.into(), timestamp }
    }
}
