//! The partition worker: claims its partition, then sequence check, decode, fold, one atomic write, again.
//! Stop 7 of an event's path.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use event_log::{EventDecoder, EventEnvelope, EventLog, Record, TopicPartition};
use futures::FutureExt;
use metrics::{SharedString, counter};
use read_models::{PartitionRef, ReadModel};
use resilience::Policy;
use schemas::partition_of;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::bound::{Bound, Standing};
use crate::claim::{Gap, Owned, check, claim};
use crate::dead_letters;
use crate::error::ProjectorError;
use crate::event_table::{Onward, onward};
use crate::fold::{FOREIGN_KEPT, Fold, Order, Read, order};
use crate::history::check_same;
use crate::metrics::{DIFFERS, GAPS};
use crate::projection::{Projection, panic_message};
use crate::settings::{ProjectorSettings, Role};
use crate::write::{load_rows, write};

/// What a worker asks of the engine, which alone holds the subscription.
#[derive(Debug)]
pub(crate) enum Request {
    /// Deliver the partition from this offset on.
    Start { at: TopicPartition, offset: u64, run: u64 },
    /// The worker goes on by other ways than the topic: from the event table, or standing still at its bound.
    GoesOn { at: TopicPartition, run: u64 },
    /// Records that the worker is done with; `next_offset` is the first not applied.
    Done { at: TopicPartition, records: usize, next_offset: u64, run: u64 },
    /// The worker ended, `Ok` when it was told to; `head` is the log's end before it looked at the log, `None` if it
    /// never came to that.
    Ended { at: TopicPartition, run: u64, head: Option<u64>, result: Result<(), ProjectorError> },
    /// The partition was taken over and is still assigned to this process: claim it again.
    Reclaim { at: TopicPartition, run: u64 },
}

/// What a worker works with.
pub(crate) struct WorkerContext<M: ?Sized> {
    pub(crate) at: TopicPartition,
    pub(crate) partition: PartitionRef,
    /// Tells this worker's requests from those of an earlier owner of the same partition.
    pub(crate) run: u64,
    /// The partition halted before: what follows may stand elsewhere on the log.
    pub(crate) after_halt: bool,
    pub(crate) read_model: Arc<M>,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) decoder: Arc<EventDecoder>,
    pub(crate) settings: ProjectorSettings,
    /// For metrics.
    pub(crate) label: SharedString,
    /// The partitions of a generation that stops at a bound.
    pub(crate) standing: Option<Standing>,
    /// The log's end when the partition was claimed; `None` before.
    pub(crate) head: Option<u64>,
    pub(crate) records: mpsc::UnboundedReceiver<Vec<Record>>,
    pub(crate) requests: mpsc::UnboundedSender<Request>,
    pub(crate) cancelled: CancellationToken,
}

impl<M: ?Sized> WorkerContext<M> {
    /// Tells the engine, which may be gone at shutdown.
    pub(crate) fn goes_on(&self) {
        let _ = self.requests.send(Request::GoesOn { at: self.at.clone(), run: self.run });
    }
}

/// How often an idle worker looks whether its store still is where it left it: one that was emptied or rolled back must
/// be folded again, whether or not another event comes (faults 9 and 10).
const IDLE_CHECK: Duration = Duration::from_secs(2);
/// How often a worker looks for what is asked of its dead letters.
pub(crate) const ATTEND_EVERY: Duration = Duration::from_secs(1);
/// Events that are decoded, or folded, without letting others have the thread: the big batch of a shadow must not hold
/// up those who wait for the live side.
const AT_ONCE: usize = 64;

pub(crate) async fn partition_worker<P, M>(mut context: WorkerContext<M>)
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let cancelled = context.cancelled.clone();
    // Beside the fold, and no longer than it: dropped, it ends.
    let mut mirror = JoinSet::new();
    if let Some(mirroring) = context.settings.dead_letter_mirror.clone() {
        let (mut role, read_model) = (context.settings.role.clone(), Arc::clone(&context.read_model));
        let partition = context.partition;
        mirror.spawn(async move {
            // A side effect: only of the generation that serves.
            while role.wait_for(|role| *role == Role::Serving).await.is_ok() {
                let mut later = role.clone();
                tokio::select! {
                    () = mirroring.clone().run(P::NAME, Arc::clone(&read_model), partition) => {}
                    Ok(_) = later.wait_for(|role| *role != Role::Serving) => {}
                }
            }
        });
    }
    let result = tokio::select! {
        biased;
        result = AssertUnwindSafe(run::<P, M>(&mut context)).catch_unwind() => result,
        () = cancelled.cancelled() => Ok(Ok(())),
    };
    // What it held of the store is not used any more: whoever goes on claims the partition anew.
    let result = result.unwrap_or_else(|panic| Err(ProjectorError::BrokeOff { problem: panic_message(&*panic) }));
    // The engine may be gone at shutdown; then nobody asks.
    let _ = context.requests.send(Request::Ended { at: context.at, run: context.run, head: context.head, result });
}

async fn run<P, M>(context: &mut WorkerContext<M>) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let mut owned = claim::<P, M>(context).await?;
    context.head = Some(owned.head);
    let _held = context.standing.as_ref().map(|standing| standing.hold(context.partition));
    let bound = Bound::of(context.settings.until.as_ref(), context.partition);
    if bound.is_reached(&owned.checkpoint) {
        return stand_still(context, &mut owned).await;
    }
    let onward = onward(context, &mut owned, &bound).await.inspect_err(|error| {
        if matches!(error, ProjectorError::HistoryDiffers { .. }) {
            counter!(DIFFERS, "projection" => context.label.clone()).increment(1);
        }
    })?;
    let Onward::Topic(offset) = onward else { return stand_still(context, &mut owned).await };
    let start = Request::Start { at: context.at.clone(), offset, run: context.run };
    let _ = context.requests.send(start);
    look_whether_whole(context, &mut owned).await?;
    let mut attended = None;
    loop {
        if attended.is_none_or(|at: Instant| at.elapsed() >= ATTEND_EVERY) {
            if owned.may_lack.is_some() {
                look_whether_whole(context, &mut owned).await?;
            }
            dead_letters::attend(context, &mut owned).await?;
            attended = Some(Instant::now());
        }
        let records = match owned.gap {
            Some(gap) => {
                let left = context.settings.gap_patience.saturating_sub(gap.since.elapsed());
                match tokio::time::timeout(left, context.records.recv()).await {
                    Ok(records) => records,
                    Err(_) => return Err(gap.error(context.partition)),
                }
            }
            None => match tokio::time::timeout(IDLE_CHECK, context.records.recv()).await {
                Ok(records) => records,
                Err(_) => {
                    check::<P, M>(context, &owned).await?;
                    continue;
                }
            },
        };
        let Some(mut records) = records else { return Ok(()) };
        let most = context.settings.batch(*context.settings.role.borrow());
        while records.len() < most {
            let Ok(more) = context.records.try_recv() else { break };
            records.extend(more);
        }
        let taken = records.len();
        if work_through(context, &mut owned, &records, &bound).await? == Went::ToTheBound {
            return stand_still(context, &mut owned).await;
        }
        let done = Request::Done {
            at: context.at.clone(),
            records: taken,
            next_offset: owned.checkpoint.next_offset,
            run: context.run,
        };
        let _ = context.requests.send(done);
    }
}

/// Marks an idle partition live, once it holds everything the event table says was published. Without an event table
/// that cannot be checked.
async fn look_whether_whole<P, M>(context: &WorkerContext<M>, owned: &mut Owned<P>) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    if let (Some(lack), Some(table)) = (&mut owned.may_lack, context.settings.event_table.as_ref()) {
        if !lack.is_settled(owned.checkpoint.sequence, table, &context.at).await {
            return Ok(());
        }
        owned.may_lack = None;
    }
    if !owned.live && owned.checkpoint.next_offset >= owned.head {
        // Nothing to fold: without this an idle partition would stay "rebuilding".
        let fold = Fold::<P>::new(context.settings.fold_version, owned.checkpoint);
        write(context, owned, fold).await?;
    }
    Ok(())
}

/// How far a batch was worked off.
#[derive(PartialEq, Eq)]
pub(crate) enum Went {
    Through,
    /// What follows is beyond the bound.
    ToTheBound,
}

/// What of a batch is to be folded.
struct InOrder<'r> {
    /// Events that follow one another, twins between them, and records of nobody where no gap is open.
    reads: Vec<(&'r Record, Read)>,
    went: Went,
}

/// Folds and writes records, in batches as large, and as fast, as the generation may. Each permit ends with its batch:
/// who stands still behind the last one does so for good, and must not keep the place of those who go on.
pub(crate) async fn work_through<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    records: &[Record],
    bound: &Bound,
) -> Result<Went, ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let role = *context.settings.role.borrow();
    let most = context.settings.batch(role);
    let span = tracing::debug_span!("partition_worker", projection = P::NAME, partition = %context.partition, events = records.len());
    let mut rest = records;
    while !rest.is_empty() {
        let wanted = rest.len().min(most);
        let permit = match &context.settings.throttle {
            Some(throttle) if role == Role::Shadow => Some(throttle.permit(wanted).await),
            _ => None,
        };
        let (batch, later) = rest.split_at(permit.as_ref().map_or(wanted, |permit| permit.events));
        rest = later;
        if work_off(context, owned, batch, bound).instrument(span.clone()).await? == Went::ToTheBound {
            return Ok(Went::ToTheBound);
        }
    }
    Ok(Went::Through)
}

/// The generation shows what was then: its rows stay, and are answered from, until the partition is taken away.
async fn stand_still<P, M>(context: &mut WorkerContext<M>, owned: &mut Owned<P>) -> Result<(), ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    owned.is_at_bound = true;
    context.goes_on();
    let fold = Fold::<P>::new(context.settings.fold_version, owned.checkpoint);
    write(context, owned, fold).await?;
    if let Some(standing) = &context.standing {
        standing.stop(context.partition, owned.checkpoint.next_offset);
    }
    loop {
        match tokio::time::timeout(IDLE_CHECK, context.records.recv()).await {
            // Not told to be done with: so the engine does not ask for ever more of them.
            Ok(Some(_beyond)) => {}
            Ok(None) => return Ok(()),
            Err(_) => {
                dead_letters::attend(context, owned).await?;
                check::<P, M>(context, owned).await?;
            }
        }
    }
}

/// Folds and writes one batch.
async fn work_off<P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    records: &[Record],
    bound: &Bound,
) -> Result<Went, ProjectorError>
where
    P: Projection,
    M: ReadModel<Key = P::Key, Row = P::Row> + ?Sized,
{
    let behind_gap = std::mem::take(&mut owned.behind_gap);
    let InOrder { reads, went } = in_order(context, owned, &behind_gap, records, bound).await?;
    load_rows(context, owned, &reads).await?;
    let fold = fold_all(context, owned, reads).await;
    write(context, owned, fold).await?;
    Ok(went)
}

/// Reads records and checks their order, up to the bound. Behind a gap nothing is to be folded: records of nobody are
/// kept back there, and come with the event that closes it.
async fn in_order<'r, P, M>(
    context: &WorkerContext<M>,
    owned: &mut Owned<P>,
    behind_gap: &'r [(Record, String)],
    records: &'r [Record],
    bound: &Bound,
) -> Result<InOrder<'r>, ProjectorError>
where
    P: Projection,
    M: ?Sized,
{
    let mut next = owned.checkpoint.sequence;
    let mut reads = Vec::with_capacity(records.len());
    let mut went = Went::Through;
    let mut kept_back: Vec<(&Record, String)> = behind_gap.iter().map(|(record, why)| (record, why.clone())).collect();
    for (index, record) in records.iter().enumerate() {
        if index % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        let read = read(context, record).await?;
        if let Read::Event { envelope, .. } = &read {
            match order(next, envelope.sequence) {
                Order::Next if bound.is_passed_by(envelope) => {
                    went = Went::ToTheBound;
                    break;
                }
                Order::Next => {
                    check_partition(context, envelope)?;
                    next = envelope.sequence;
                    owned.gap = None;
                    reads.extend(kept_back.drain(..).map(|(record, why)| (record, Read::Foreign { why })));
                    owned.recent.note(envelope.sequence, envelope.id);
                }
                // A twin, or the record of another history.
                Order::Duplicate => check_twin(context, owned, envelope)?,
                Order::Gap { last, found } => {
                    // Not applied and not skipped past: a relay that starts again publishes the missing ones, and
                    // this one once more behind them.
                    counter!(GAPS, "projection" => context.label.clone()).increment(1);
                    if owned.gap.is_none() {
                        tracing::error!(partition = %context.partition, last, found, offset = record.offset, "sequence gap");
                        owned.gap = Some(Gap { since: Instant::now(), last, found, offset: record.offset });
                    }
                    continue;
                }
            }
        }
        // Behind an open gap the offset must not move, or a restart would begin past the missing events.
        match read {
            read if owned.gap.is_none() => reads.push((record, read)),
            Read::Foreign { why } if kept_back.len() < FOREIGN_KEPT as usize => kept_back.push((record, why)),
            _ => {}
        }
    }
    owned.behind_gap = kept_back.into_iter().map(|(record, why)| (record.clone(), why)).collect();
    Ok(InOrder { reads, went })
}

/// Folds what was found in order, on the rows that were loaded for it.
async fn fold_all<P, M>(context: &WorkerContext<M>, owned: &Owned<P>, reads: Vec<(&Record, Read)>) -> Fold<P>
where
    P: Projection,
    M: ?Sized,
{
    let mut fold = Fold::<P>::new(context.settings.fold_version, owned.checkpoint);
    fold.foreign_room = FOREIGN_KEPT.saturating_sub(owned.foreign_records);
    let now = now();
    for (index, (record, read)) in reads.into_iter().enumerate() {
        if index % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        fold.take(record, read, &owned.parked_keys, |key| owned.rows.get(key), now);
    }
    fold
}

/// Nobody would find the row of an event that lies elsewhere: a generation that was begun on an empty store takes the
/// count that the topic has then.
fn check_partition<M: ?Sized>(context: &WorkerContext<M>, envelope: &EventEnvelope) -> Result<(), ProjectorError> {
    let (at, partitions) = (&context.at, context.settings.partitions);
    let expected = partition_of(envelope.partition_key.as_bytes(), partitions);
    if expected == at.partition {
        return Ok(());
    }
    let key = envelope.partition_key.clone();
    Err(ProjectorError::OtherPartition { at: at.clone(), key, expected, partitions })
}

fn check_twin<P: Projection, M: ?Sized>(
    context: &WorkerContext<M>,
    owned: &Owned<P>,
    envelope: &EventEnvelope,
) -> Result<(), ProjectorError> {
    let at = &context.at;
    let (sequence, id) = (envelope.sequence, envelope.id);
    let mut same = Ok(());
    if owned.recent.contradicts(sequence, id) {
        same = Err(ProjectorError::HistoryDiffers { at: at.clone(), sequence, id });
    } else if sequence == owned.checkpoint.sequence {
        same = check_same(at, envelope, &owned.checkpoint);
    }
    same.inspect_err(|_| counter!(DIFFERS, "projection" => context.label.clone()).increment(1))
}

async fn read<M: ?Sized>(context: &WorkerContext<M>, record: &Record) -> Result<Read, ProjectorError> {
    let envelope = match EventEnvelope::from_headers(&record.headers) {
        Ok(envelope) => envelope,
        Err(error) => {
            tracing::warn!(at = %record.at, offset = record.offset, %error, "record is no event of ours");
            return Ok(Read::Foreign { why: error.to_string() });
        }
    };
    let mut delays = Policy::STORE.backoff();
    loop {
        match context.decoder.decode_body(&envelope, &record.value).await {
            Ok(event) => return Ok(Read::Event { envelope, event: Ok(event) }),
            // A registry that is down says nothing about the event: wait, never park (fault 13).
            Err(error) if error.is_transient() => {
                tracing::warn!(at = %record.at, offset = record.offset, %error, "decoding waits");
                delays.wait().await;
            }
            Err(error) => return Ok(Read::Event { envelope, event: Err(error.to_string()) }),
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
