//! A simulated read model store: one unit of rows, checkpoint and parked events per partition, fenced by epoch. It can
//! lose its last second, a partition at a time, or everything.

mod dead_letters;
mod generations;
mod stock;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use read_models::{
    Batch, Checkpoint, Claimed, FOREIGN_KEY, Generation, Head, Loaded, ParkedEvent, ParkedPlace, PartitionRef,
    PartitionStatus, ReadModel, ReadModelError, ReadModelStatus, RowPage,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::guard::Guard;
use crate::process::{Call, Lost, Process, deliver};
use crate::projection::Modelled;
use dead_letters::Letters;
use generations::Kept;

/// The server: what outlives the processes.
pub struct ReadModelServer<M: Modelled> {
    state: Arc<Mutex<State<M>>>,
    written: Arc<Notify>,
}

/// A process's connection to it.
pub struct SimulatedReadModel<M: Modelled> {
    server: ReadModelServer<M>,
    process: Process,
    prepared: Arc<Mutex<Option<Generation>>>,
    /// The only generation that this handle tells of.
    bound: Option<u32>,
}

struct State<M: Modelled> {
    generations: BTreeMap<u32, Generation>,
    serving: Option<u32>,
    kept: Kept,
    parts: BTreeMap<(u32, PartitionRef), Part<M>>,
    /// How parts were before each write of the last second.
    history: Vec<Earlier<M>>,
}

/// How a part was before a write.
struct Earlier<M: Modelled> {
    time: Instant,
    at: (u32, PartitionRef),
    part: Option<Part<M>>,
}

/// One partition of a generation.
pub(crate) struct Part<M: Modelled> {
    pub(crate) epoch: u64,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) live: bool,
    pub(crate) is_claimed: bool,
    pub(crate) rows: HashMap<M::Key, M::Row>,
    pub(crate) parked: BTreeMap<ParkedPlace, ParkedEvent>,
    letters: Letters,
    head: Option<Head>,
}

/// What a store may lose: the time between two syncs.
const UNSYNCED: Duration = Duration::from_secs(1);

// === impl Part ===

impl<M: Modelled> Default for Part<M> {
    fn default() -> Self {
        Self {
            epoch: 0,
            checkpoint: Checkpoint::default(),
            live: false,
            is_claimed: false,
            rows: HashMap::new(),
            parked: BTreeMap::new(),
            letters: Letters::default(),
            head: None,
        }
    }
}

impl<M: Modelled> Clone for Part<M> {
    fn clone(&self) -> Self {
        Self {
            epoch: self.epoch,
            checkpoint: self.checkpoint,
            live: self.live,
            is_claimed: self.is_claimed,
            rows: self.rows.clone(),
            parked: self.parked.clone(),
            letters: self.letters.clone(),
            head: self.head,
        }
    }
}

impl<M: Modelled> Part<M> {
    fn parked_keys(&self) -> HashSet<String> {
        self.parked.values().map(|event| event.key.clone()).collect()
    }

    fn foreign_records(&self) -> u64 {
        self.parked.values().filter(|event| event.key == FOREIGN_KEY).count() as u64
    }
}

// === impl ReadModelServer ===

impl<M: Modelled> Clone for ReadModelServer<M> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), written: Arc::clone(&self.written) }
    }
}

impl<M: Modelled> Default for ReadModelServer<M> {
    fn default() -> Self {
        let state = State {
            generations: BTreeMap::new(),
            serving: None,
            kept: Kept::default(),
            parts: BTreeMap::new(),
            history: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), written: Arc::default() }
    }
}

impl<M: Modelled> ReadModelServer<M> {
    pub fn connect(&self, process: Process) -> SimulatedReadModel<M> {
        SimulatedReadModel { server: self.clone(), process, prepared: Arc::default(), bound: None }
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loses everything, the generations too.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.generations.clear();
        state.serving = None;
        state.kept = Kept::default();
        state.parts.clear();
        state.history.clear();
    }

    /// Loses what was written in the last `lost` (a second at most), of some partitions: rows, checkpoint, claim and
    /// parked events together.
    pub fn roll_back(&self, lost: Duration, is_hit: impl Fn(PartitionRef) -> bool) {
        let since = Instant::now() - lost.min(UNSYNCED);
        let mut state = self.state();
        let state = &mut *state;
        let is_lost = |earlier: &Earlier<M>| earlier.time >= since && is_hit(earlier.at.1);
        for Earlier { at, part, .. } in state.history.drain(..).rev().filter(is_lost) {
            match part {
                Some(part) => state.parts.insert(at, part),
                None => state.parts.remove(&at),
            };
        }
    }

    /// Every partition as it is.
    pub(crate) fn parts(&self) -> Vec<(PartitionRef, Part<M>)> {
        self.state().parts.iter().map(|((_, at), part)| (*at, part.clone())).collect()
    }
}

// === impl State ===

impl<M: Modelled> State<M> {
    fn serving(&self) -> Result<&Generation, ReadModelError> {
        let number = self.serving.ok_or_else(|| rebuilding::<M>())?;
        self.generations.get(&number).ok_or_else(|| rebuilding::<M>())
    }

    fn remember(&mut self, at: (u32, PartitionRef)) {
        let now = Instant::now();
        self.history.retain(|earlier| now.duration_since(earlier.time) <= UNSYNCED);
        let part = self.parts.get(&at).cloned();
        self.history.push(Earlier { time: now, at, part });
    }

    /// The position of a partition that reads may be answered from.
    fn live_part(&self, number: u32, partition: PartitionRef) -> Result<&Part<M>, ReadModelError> {
        self.parts.get(&(number, partition)).filter(|part| part.live).ok_or_else(|| rebuilding::<M>())
    }
}

fn rebuilding<M: Modelled>() -> ReadModelError {
    ReadModelError::Rebuilding { name: M::NAME.to_owned() }
}

fn unavailable<M: Modelled>(lost: Lost) -> ReadModelError {
    ReadModelError::Unavailable {
        name: M::NAME.to_owned(),
        address: "simulated".to_owned(),
        problem: lost.0.to_owned(),
    }
}

// === impl SimulatedReadModel ===

impl<M: Modelled> SimulatedReadModel<M> {
    fn prepared(&self) -> Result<Generation, ReadModelError> {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        prepared.ok_or_else(|| ReadModelError::Permanent {
            name: M::NAME.to_owned(),
            problem: "no generation was prepared in this process".to_owned(),
        })
    }

    /// What this handle writes or is bound to, or else what serves.
    fn told_of(&self, state: &State<M>) -> Result<Generation, ReadModelError> {
        match (self.prepared().ok(), self.bound) {
            (Some(prepared), _) => Ok(prepared),
            (None, Some(number)) => state.described(number),
            (None, None) => state.serving().cloned(),
        }
    }

    async fn begin(&self, operation: &'static str) -> Result<Call, ReadModelError> {
        self.process.begin(operation).await.map_err(unavailable::<M>)
    }

    async fn at_once<T>(
        &self,
        operation: &'static str,
        effect: impl FnOnce(&mut State<M>) -> Result<T, ReadModelError>,
    ) -> Result<T, ReadModelError> {
        let call = self.begin(operation).await?;
        let result = effect(&mut self.server.state());
        self.process.finish(call).await.map_err(unavailable::<M>)?;
        result
    }

    /// Checks the batch, and moves checkpoint and parked events. The rows are the caller's, in the same step.
    fn advance(
        &self,
        state: &mut State<M>,
        generation: &Generation,
        batch: &Batch<M::Key, M::Row>,
    ) -> Result<(), ReadModelError> {
        state.check_fed(generation)?;
        let at = (generation.number, batch.partition);
        let (name, partition) = (generation.to_string(), batch.partition);
        let held = state.parts.get(&at).filter(|part| part.is_claimed);
        let is_fenced = !self.process.world().is_off(Guard::StoreEpoch);
        if let Some(part) = held
            && is_fenced
            && part.epoch > batch.epoch
        {
            let (epoch, current) = (batch.epoch, part.epoch);
            return Err(ReadModelError::Superseded { name, partition, epoch, current });
        }
        // Without the claim nothing is known of what came behind it.
        let found = held.filter(|part| part.epoch >= batch.epoch).map(|part| part.checkpoint);
        if found != Some(batch.from) {
            let found = found.unwrap_or_default();
            return Err(ReadModelError::CheckpointMoved { name, partition, expected: batch.from, found });
        }
        state.remember(at);
        let part = state.parts.entry(at).or_default();
        part.checkpoint = batch.to;
        part.live |= batch.live;
        part.resolve(&batch.dead_letters);
        for event in &batch.parked {
            part.parked.insert(event.place(), event.clone());
        }
        Ok(())
    }

    /// A batch reaches the store.
    async fn arrive(self, generation: Generation, batch: Batch<M::Key, M::Row>) -> Result<(), ReadModelError> {
        let world = Arc::clone(self.process.world());
        let at = (generation.number, batch.partition);
        let call = self.begin("apply").await?;
        let advanced = self.advance(&mut self.server.state(), &generation, &batch);
        world.trace(|| {
            let told = match &advanced {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            };
            format!("{}: {} to {}: {told}", call.place, batch.partition, batch.to)
        });
        match &advanced {
            Ok(()) => {
                if world.is_off(Guard::CheckpointInCommit) {
                    let is_cut = call.fault == Some(crate::world::Fault::CrashAfter);
                    if is_cut {
                        self.process.crash("between checkpoint and rows");
                    }
                    self.process.spend(world.latency(call.place, 5)).await;
                }
                let mut state = self.server.state();
                let part = state.parts.entry(at).or_default();
                part.rows.extend(batch.changes.iter().cloned());
                if !batch.changes.is_empty() || batch.from != batch.to {
                    world.count(|stats| {
                        stats.applied_batches += 1;
                        stats.parked_events += batch.parked.len() as u64;
                    });
                }
                world.check(|checker| {
                    checker.written(M::NAME, batch.partition, batch.epoch)?;
                    checker.holds::<M>(batch.partition, part, "a write")
                });
            }
            Err(ReadModelError::Superseded { .. }) => world.count(|stats| stats.superseded_writes += 1),
            Err(_) => world.count(|stats| stats.moved_checkpoints += 1),
        }
        self.server.written.notify_waiters();
        self.process.finish(call).await.map_err(unavailable::<M>)?;
        advanced
    }
}

impl<M: Modelled> Clone for SimulatedReadModel<M> {
    fn clone(&self) -> Self {
        let prepared = Arc::clone(&self.prepared);
        Self { server: self.server.clone(), process: self.process.clone(), prepared, bound: self.bound }
    }
}

#[async_trait]
impl<M: Modelled> ReadModel for SimulatedReadModel<M> {
    type Key = M::Key;
    type Row = M::Row;

    async fn prepare(&self, generation: &Generation) -> Result<(), ReadModelError> {
        let is_unguarded = self.process.world().is_off(Guard::GenerationMarker);
        self.at_once("prepare", |state| {
            state.check_fed(generation)?;
            let held = state.generations.entry(generation.number).or_insert_with(|| generation.clone());
            state.serving.get_or_insert(generation.number);
            if is_unguarded { Ok(()) } else { held.check(generation) }
        })
        .await?;
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(generation.clone());
        Ok(())
    }

    async fn claim(&self, partition: PartitionRef) -> Result<Claimed, ReadModelError> {
        let generation = self.prepared()?;
        generation.check_partition(partition, M::CONTEXTS)?;
        let world = Arc::clone(self.process.world());
        let is_unguarded = world.is_off(Guard::GenerationMarker);
        let claimed = self
            .at_once("claim", |state| {
                state.check_fed(&generation)?;
                // The store may have been emptied since `prepare`.
                let held = state.generations.entry(generation.number).or_insert_with(|| generation.clone());
                state.serving.get_or_insert(generation.number);
                if !is_unguarded {
                    held.check(&generation)?;
                }
                let at = (generation.number, partition);
                state.remember(at);
                let part = state.parts.entry(at).or_default();
                // Time keeps the epoch above those that a store has forgotten.
                part.epoch = (part.epoch + 1).max(world.now() as u64 * 1_000);
                part.is_claimed = true;
                world.trace(|| {
                    format!(
                        "{} claims {partition} at {} with epoch {}",
                        self.process.name(),
                        part.checkpoint,
                        part.epoch
                    )
                });
                world.check(|checker| {
                    checker.claimed(M::NAME, partition, part.epoch);
                    checker.holds::<M>(partition, part, "a claim")
                });
                Ok(Claimed {
                    epoch: part.epoch,
                    checkpoint: part.checkpoint,
                    parked_keys: part.parked_keys(),
                    foreign_records: part.foreign_records(),
                    live: part.live,
                })
            })
            .await?;
        Ok(claimed)
    }

    async fn load(&self, partition: PartitionRef, keys: &[M::Key]) -> Result<Loaded<M::Row>, ReadModelError> {
        self.at_once("load_rows", |state| {
            let generation = self.told_of(state)?;
            let part = state.parts.get(&(generation.number, partition));
            let rows = keys.iter().map(|key| part.and_then(|part| part.rows.get(key).cloned())).collect();
            Ok(Loaded { checkpoint: part.map(|part| part.checkpoint).unwrap_or_default(), rows })
        })
        .await
    }

    async fn apply(&self, batch: &Batch<M::Key, M::Row>) -> Result<(), ReadModelError> {
        let generation = self.prepared()?;
        generation.check_partition(batch.partition, M::CONTEXTS)?;
        deliver(self.clone().arrive(generation, batch.clone())).await
    }

    async fn observe(&self, heads: &[(PartitionRef, Head)]) -> Result<(), ReadModelError> {
        let generation = self.prepared()?;
        self.at_once("observe", |state| {
            state.check_fed(&generation)?;
            for (partition, head) in heads {
                state.parts.entry((generation.number, *partition)).or_default().head = Some(*head);
            }
            Ok(())
        })
        .await
    }

    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        self.at_once("status", |state| {
            let generation = self.told_of(state)?;
            let mut partitions = Vec::new();
            for context in M::CONTEXTS {
                for number in 0..generation.partitions {
                    let partition = PartitionRef { context: *context, partition: number };
                    let nothing = Part::<M>::default();
                    let part = state.parts.get(&(generation.number, partition)).unwrap_or(&nothing);
                    partitions.push(PartitionStatus {
                        partition,
                        checkpoint: part.checkpoint,
                        live: part.live,
                        head: part.head,
                        parked_keys: part.parked_keys().len() as u64,
                        parked_events: part.parked.len() as u64,
                    });
                }
            }
            Ok(ReadModelStatus {
                name: generation.name.clone(),
                generation: generation.number,
                fold_version: generation.fold_version,
                partitions,
            })
        })
        .await
    }

    async fn rows(
        &self,
        partition: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<M::Key, M::Row>, ReadModelError> {
        self.reading("rows", partition, |part| {
            let mut rows: Vec<(String, &M::Key)> = part.rows.keys().map(|key| (format!("{key:?}"), key)).collect();
            rows.retain(|(name, _)| from.is_none_or(|from| name.as_str() > from));
            rows.sort_by(|a, b| a.0.cmp(&b.0));
            let next = (rows.len() > limit).then(|| rows[limit.max(1) - 1].0.clone());
            let page = rows.into_iter().take(limit.max(1)).map(|(_, key)| (key.clone(), Ok(part.rows[key].clone())));
            RowPage { rows: page.collect(), foreign: Vec::new(), next }
        })
        .await
    }

    async fn ping(&self) -> Result<(), ReadModelError> {
        self.at_once("ping", |_| Ok(())).await
    }
}
