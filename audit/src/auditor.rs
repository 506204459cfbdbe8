//! The audit: one walk over the event table, then topics, then read models. What was learned stays, so that the next
//! round only reads what is new.

use std::collections::BTreeMap;
use std::sync::Arc;

use event_log::{EventLog, EventLogError, PartitionEnds, SchemaRegistry, TopicPartition};
use event_store::{EventStore, RelayCursor};
use projectors::{Projection, SearchProjection, StockProjection};
use read_models::search::{DocumentProblem, SearchReader};
use read_models::stock::SharedStock;
use read_models::{PartitionRef, ReadModelError};
use schemas::{Context, StorePosition};

use crate::behind::{MOST_LATER, ReadModels};
use crate::error::AuditError;
use crate::oracle::{Audited, Folds, Standing};
use crate::pace::{Pace, Progress};
use crate::report::{Difference, Findings, IndexReport, Kind, Place, ReadModelReport, Report, TopicReport};
use crate::rows::{Comparison, OracleOf};
use crate::since::Since;
use crate::topics::{SchemaIds, Sources, TopicSide};
use crate::walk::TableWalk;

/// How an audit goes about it.
#[derive(Debug, Clone, Copy)]
pub struct AuditSettings {
    /// Share of the time that it works, from 0.001 to 1: what it costs at most of one core of its own, and about that
    /// of the servers it asks.
    pub share: f64,
    /// Where the walk begins, if not at the beginning.
    pub since: Option<Since>,
}

/// Rounds from one check of the search index to the next.
const INDEX_EVERY: u64 = 10;

/// Compares event table, topics and read models.
pub struct Auditor {
    sources: Sources,
    settings: AuditSettings,
    /// Events that may wait behind the checkpoint of a partition, from one round to the next.
    most_later: usize,
    progress: Arc<Progress>,
    state: Option<State>,
}

/// How many of the read models' partitions a round compares.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    /// So many, each in its turn.
    Turn(usize),
}

/// A partition of a read model as it was held against the walk.
type Held = (ReadModelReport, Findings);

/// What was learned so far.
struct State {
    walk: TableWalk,
    topics: BTreeMap<TopicPartition, TopicSide>,
    /// The newest comparison of each partition of a read model.
    read_models: BTreeMap<(Place, PartitionRef), Held>,
    index: Option<(IndexReport, Findings)>,
    /// The newest comparison of each topic partition.
    compared: Vec<(TopicReport, Findings)>,
    rounds: u64,
    /// The partition of a read model that the next round begins with.
    turn: usize,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self { share: 1.0, since: None }
    }
}

// === impl Auditor ===

impl Auditor {
    /// Without a stock store or a search directory it compares the rest.
    pub fn new(
        store: Arc<dyn EventStore>,
        log: Arc<dyn EventLog>,
        registry: Arc<dyn SchemaRegistry>,
        stock: Option<SharedStock>,
        search: Option<Arc<SearchReader>>,
        settings: AuditSettings,
    ) -> Self {
        let schemas = SchemaIds { registry, known: tokio::sync::Mutex::default() };
        Self {
            sources: Sources { store, log, schemas, models: ReadModels { stock, search } },
            settings,
            most_later: MOST_LATER,
            progress: Arc::default(),
            state: None,
        }
    }

    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Everything, from the beginning.
    pub async fn audit_once(&mut self) -> Result<Report, AuditError> {
        self.state = None;
        self.compare(Extent::All).await
    }

    /// Forgets what was learned: the next round reads everything again.
    pub fn begin_anew(&mut self) {
        self.state = None;
    }

    /// What is new in the table and on the topics, and `partitions` of the read models' partitions, each in its turn.
    pub async fn round(&mut self, partitions: usize) -> Result<Report, AuditError> {
        self.compare(Extent::Turn(partitions)).await
    }

    async fn compare(&mut self, extent: Extent) -> Result<Report, AuditError> {
        let pace = Pace::of(self.settings.share);
        // The cursor goes before the ends: what it says is published lies before them.
        let relay = self.sources.store.relay_cursor().await?;
        let kept = match self.state.take() {
            Some(mut state) => match self.must_begin_anew(&mut state.walk).await {
                Ok(must) => Some(state).filter(|_| !must),
                Err(error) => {
                    self.state = Some(state);
                    return Err(error);
                }
            },
            None => None,
        };
        let mut state = match kept {
            Some(state) => state,
            None => {
                let most_later = match extent {
                    // Who compares once has the memory for it, and no second round.
                    Extent::All => usize::MAX,
                    Extent::Turn(_) => self.most_later,
                };
                self.begin(&relay, pace, most_later).await?
            }
        };
        let done = self.round_of(&mut state, &relay, extent, pace).await;
        // What was learned up to an error is as true as before.
        let events = state.walk.events;
        let report = done.map(|()| self.report(&state, &relay, events));
        self.state = Some(state);
        report
    }

    /// Whether the walk is of no use any more for what serves, or what was given up can be followed again.
    async fn must_begin_anew(&self, walk: &mut TableWalk) -> Result<bool, AuditError> {
        let is_of_other_folds = walk.folds() != self.folds(walk.folds()).await?;
        Ok(is_of_other_folds || self.sources.models.is_near_again(walk).await?)
    }

    async fn begin(&self, relay: &RelayCursor, pace: Pace, most_later: usize) -> Result<State, AuditError> {
        let store = self.sources.store.as_ref();
        let topology = store.topology().await?.ok_or(AuditError::NoTopology)?;
        let folds = self.folds(Folds::default()).await?;
        let mut walk = TableWalk::from_beginning(topology, folds, most_later);
        if let Some(since) = self.settings.since {
            let place = since.place(store, relay.position).await?;
            walk = TableWalk::since(store, walk, place, relay, pace).await?;
        }
        let (topics, read_models) = (BTreeMap::new(), BTreeMap::new());
        Ok(State { walk, topics, read_models, index: None, compared: Vec::new(), rounds: 0, turn: 0 })
    }

    /// The folds that built what serves; `known` where nothing serves, or something of a fold that this program lacks.
    async fn folds(&self, known: Folds) -> Result<Folds, AuditError> {
        let mut folds = known;
        let ReadModels { stock, search } = &self.sources.models;
        if let Some(stock) = stock {
            folds.stock = fold_of::<StockProjection>(stock, known.stock).await?;
        }
        if let Some(search) = search {
            folds.search = fold_of::<SearchProjection>(search.as_ref(), known.search).await?;
        }
        Ok(folds)
    }

    async fn round_of(
        &self,
        state: &mut State,
        relay: &RelayCursor,
        extent: Extent,
        pace: Pace,
    ) -> Result<(), AuditError> {
        let (sources, progress) = (&self.sources, self.progress.as_ref());
        let ends = self.ends(state).await?;
        // Folded as far as the read models are: what is behind their checkpoints waits, event by event.
        sources.models.fold_to_checkpoints(&mut state.walk).await?;
        let walk = &mut state.walk;
        walk.relay_is_at(relay.position);
        if !sources.walk_to(walk, relay.position, pace, progress).await? {
            let (end, relayed) = (walk.position(), relay.position);
            walk.note_end(format!("the event table ends at {end}, before the relay's cursor at {relayed}"));
        }
        for (at, ends) in &ends {
            let side = state.topics.entry(at.clone()).or_default();
            side.read(sources, at, *ends, walk, pace, progress).await?;
        }
        // Records above the cursor are of events that the table has by now.
        while state.topics.iter().any(|(at, side)| side.has_unmatched(walk, at)) {
            let before = walk.position();
            let next = StorePosition { position: before.position.saturating_add(1), ..before };
            sources.walk_to(walk, next, pace, progress).await?;
            if walk.position() == before {
                break;
            }
        }
        self.compare_read_models(state, extent, pace).await?;
        // It reads the whole index.
        if extent == Extent::All || state.rounds.is_multiple_of(INDEX_EVERY) {
            state.index = self.check_index().await?;
        }
        state.rounds += 1;
        // Last: what it narrows is read again.
        let mut reports = Vec::new();
        for (at, ends) in &ends {
            let counted = relay.sequences.get(&(at.topic.clone(), at.partition)).copied();
            if let Some(side) = state.topics.get_mut(at) {
                reports.push(side.compare(&self.sources, at, *ends, &state.walk, counted).await?);
            }
        }
        state.compared = reports;
        Ok(())
    }

    /// The ends of every partition of every topic that events go to.
    async fn ends(&self, state: &State) -> Result<Vec<(TopicPartition, PartitionEnds)>, AuditError> {
        let mut all = Vec::new();
        for topic in Context::ALL.into_iter().flat_map(|context| [context.events_topic(), context.outcomes_topic()]) {
            let ends = match self.sources.log.ends(topic).await {
                // Events that the table has for it are lost, then.
                Err(EventLogError::UnknownTopic { .. }) => {
                    let partitions = 0..state.walk.topology().partitions;
                    partitions.map(|partition| PartitionEnds { partition, first: 0, next: 0 }).collect()
                }
                ends => ends?,
            };
            all.extend(ends.into_iter().map(|ends| (TopicPartition::new(topic, ends.partition), ends)));
        }
        Ok(all)
    }

    async fn compare_read_models(&self, state: &mut State, extent: Extent, pace: Pace) -> Result<(), AuditError> {
        let count = state.walk.topology().partitions;
        let of = |place: Place, contexts: &'static [Context]| {
            contexts.iter().flat_map(move |context| {
                (0..count).map(move |partition| (place, PartitionRef { context: *context, partition }))
            })
        };
        let ReadModels { stock, search } = &self.sources.models;
        let mut all: Vec<(Place, PartitionRef)> = Vec::new();
        all.extend(of(Place::Stock, StockProjection::CONTEXTS).filter(|_| stock.is_some()));
        all.extend(of(Place::Search, SearchProjection::CONTEXTS).filter(|_| search.is_some()));
        let steps = extent.partitions_of(all.len());
        for step in 0..steps {
            let (place, at) = all[(state.turn + step) % all.len()];
            let walk = &mut state.walk;
            let compared = match (place, stock, search) {
                (Place::Stock, Some(stock), _) => self.comparison(stock, at, |walk| &mut walk.stock, pace, walk).await,
                (_, _, Some(search)) => self.comparison(search.as_ref(), at, |walk| &mut walk.search, pace, walk).await,
                _ => continue,
            };
            let compared = match compared {
                // Nothing there that could be compared: the read model says so itself.
                Err(AuditError::ReadModel(ReadModelError::Rebuilding { name })) => skipped(&name, at),
                compared => compared?,
            };
            let known = state.read_models.remove(&(place, at));
            state.read_models.insert((place, at), with_known(compared, known));
        }
        state.turn = state.turn.wrapping_add(steps) % all.len().max(1);
        Ok(())
    }

    async fn comparison<P: Audited>(
        &self,
        model: &dyn Standing<P>,
        at: PartitionRef,
        oracle: OracleOf<P>,
        pace: Pace,
        walk: &mut TableWalk,
    ) -> Result<Held, AuditError> {
        let comparison =
            Comparison { sources: &self.sources, model, oracle, at, pace, progress: self.progress.as_ref() };
        comparison.compare(walk).await
    }

    async fn check_index(&self) -> Result<Option<(IndexReport, Findings)>, AuditError> {
        let Some(search) = &self.sources.models.search else { return Ok(None) };
        let check = match search.check_documents().await {
            Ok(check) => check,
            Err(ReadModelError::Rebuilding { .. }) => {
                let skipped = Some("it is being built".to_owned());
                let report = IndexReport { documents: 0, shown: 0, newer: 0, differences: 0, skipped };
                return Ok(Some((report, Findings::default())));
            }
            Err(error) => return Err(error.into()),
        };
        let mut findings = Findings::default();
        for fault in check.faults {
            let (kind, detail) = match fault.problem {
                DocumentProblem::Missing => (Kind::Missing, "no document shows this product".to_owned()),
                DocumentProblem::Twin { documents } => (Kind::Doubled, format!("{documents} documents")),
                DocumentProblem::Altered => (Kind::Altered, "the document is not what the rows give".to_owned()),
                DocumentProblem::Unexplained => (Kind::Extra, "a document of no shown product".to_owned()),
                DocumentProblem::DamagedFile => (Kind::Altered, "the file is not what its checksum says".to_owned()),
            };
            findings.push(Difference {
                place: Place::Index,
                partition: String::new(),
                kind,
                sequence: None,
                offset: None,
                what: fault.what,
                detail,
            });
        }
        let (documents, shown, newer) = (check.documents, check.shown, check.newer);
        let report = IndexReport { documents, shown, newer, differences: findings.total(), skipped: None };
        Ok(Some((report, findings)))
    }

    fn report(&self, state: &State, relay: &RelayCursor, events: u64) -> Report {
        let mut findings = state.walk.findings.clone();
        let mut topics: Vec<TopicReport> = Vec::new();
        for (topic, found) in &state.compared {
            // Topics that nothing goes to say nothing.
            if topic.events > 0 || topic.on_topic > 0 || topic.differences > 0 {
                topics.push(topic.clone());
            }
            findings.merge(found);
        }
        let mut read_models = Vec::new();
        for (report, found) in state.read_models.values() {
            read_models.push(report.clone());
            findings.merge(found);
        }
        if let Some((_, found)) = &state.index {
            findings.merge(found);
        }
        let (counts, differences) = findings.into_parts();
        Report {
            position: relay.position.to_string(),
            since: self.settings.since.map(|since| match since {
                Since::Position(position) => position.to_string(),
                Since::Time(time) => time.to_string(),
            }),
            events,
            topics,
            read_models,
            index: state.index.as_ref().map(|(report, _)| report.clone()),
            counts,
            differences,
        }
    }
}

// === impl Extent ===

impl Extent {
    fn partitions_of(self, all: usize) -> usize {
        match self {
            Extent::All => all,
            Extent::Turn(most) => most.min(all),
        }
    }
}

/// What was found before stays told while nothing can be compared: it is not gone.
fn with_known(compared: Held, known: Option<Held>) -> Held {
    match (compared, known) {
        ((report, findings), Some((_, known))) if report.skipped.is_some() && findings.total() == 0 => (report, known),
        (compared, _) => compared,
    }
}

fn skipped(name: &str, at: PartitionRef) -> Held {
    let report = ReadModelReport {
        read_model: name.to_owned(),
        topic: at.context.events_topic().to_owned(),
        partition: at.partition,
        checkpoint: 0,
        keys: 0,
        rows: 0,
        digest: String::new(),
        parked_keys: 0,
        differences: 0,
        skipped: Some("it is being built".to_owned()),
    };
    (report, Findings::default())
}

async fn fold_of<P: Audited>(model: &dyn Standing<P>, known: u32) -> Result<u32, AuditError> {
    let fold_version = match model.status().await {
        Err(ReadModelError::Rebuilding { .. }) => return Ok(known),
        status => status?.fold_version,
    };
    Ok(if P::FOLDS.contains(&fold_version) { fold_version } else { known })
}

#[cfg(test)]
impl Auditor {
    pub(crate) fn set_most_later(&mut self, most: usize) {
        self.most_later = most;
    }

    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Most events that wait behind a checkpoint.
    pub(crate) fn most_that_waits(&mut self) -> usize {
        let state = self.state.as_mut().unwrap();
        (0..state.walk.topology().partitions)
            .map(|partition| PartitionRef { context: Context::Inventory, partition })
            .map(|at| state.walk.stock.partition(at).later.len())
            .max()
            .unwrap()
    }
}
