//! Which generations of a read model are fed: an engine for each one that the catalogue says.
//!
//! The catalogue is looked at every 250 ms. A generation that comes gets an engine with a consumer group of its own;
//! one that is retired loses it, and then its data, piece by piece. What happens to one of them touches no other: a
//! fold that this program does not have, a store that refuses, an engine that ends are told in the health of that one
//! alone. While the catalogue cannot be read, what runs goes on.

mod feed;
mod lost;
mod removal;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use event_log::{EventLog, SchemaRegistry};
use futures::future::BoxFuture;
use read_models::generations::{GenerationEntry, GenerationState, Share};
use read_models::process_report::{Halted, LiveSide, ProcessReport, ReadFigures, ThrottleStatus, is_of_late};
use read_models::{Catalogue, Generation, Generations, Head, ReadModel, ReadModelError};
use telemetry::{ComponentHealth, Health};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::ProjectorError;
use crate::metrics::fed_no_more;
use crate::projection::Projection;
use crate::settings::{ProjectorSettings, Role, label_of};
use crate::throttle::{Pressure, STEP};
use crate::worker::now;
use feed::Feed;
use lost::Known;
use removal::Removals;

/// Where the generations of a read model are kept, as the wiring opens them.
#[async_trait]
pub trait GenerationStores<P: Projection>: Send + Sync + 'static {
    type Model: ReadModel<Key = P::Key, Row = P::Row> + ?Sized + 'static;

    /// Keeps the catalogue.
    fn catalogue(&self) -> &dyn Generations;

    /// A handle on one generation, for this process to write. Called again after it failed. `shutdown` ends the wait
    /// for one that another process holds: then there is none. What runs beside its engine is told of by companions of
    /// `health`.
    async fn open(
        &self,
        generation: u32,
        health: &ComponentHealth,
        shutdown: &CancellationToken,
    ) -> Result<Option<OpenGeneration<Self::Model>>, ReadModelError>;
}

/// A generation that this process may write.
pub struct OpenGeneration<M: ?Sized> {
    pub read_model: Arc<M>,
    /// Consumer group of those who write it.
    pub group: String,
    /// What must run beside its engine, if anything. It ends when it is told to, or fails.
    pub beside: Option<Beside>,
}

/// Work beside an engine, begun with what tells it to end.
pub type Beside = Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, Result<(), ReadModelError>> + Send>;

/// How generations are fed.
#[derive(Debug, Clone)]
pub struct FeedSettings {
    /// Of each engine, but for what the generation says: its number, fold, bound, group and role.
    pub projector: ProjectorSettings,
    /// Whether the failure of the engine that feeds what serves ends all: who watches processes starts them anew.
    pub ends_with_serving: bool,
    /// How long after it was retired a generation's data is removed: until then every process has stopped feeding it.
    pub remove_after: Duration,
}

/// How often the catalogue is looked at.
const LOOK_EVERY: Duration = STEP;
/// Age at which the reports of serving processes are too old to say how reads are.
const REPORTS_MS: i64 = 5_000;
/// Age at which nobody notes the end of the log any more, which is done twice a second.
const HEADS_MS: i64 = 15_000;
/// How often others are told of the throttle and of halted partitions.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Live traffic is over when no event has come for so long.
const QUIET_AFTER: Duration = Duration::from_secs(3);
/// What comes is counted over so long: the log's ends are noted twice a second.
const COUNTED_OVER: Duration = Duration::from_secs(3);
/// And over so long at first, since nobody keeps up with what is not known.
const COUNTED_FIRST: Duration = Duration::from_secs(1);

impl Default for FeedSettings {
    fn default() -> Self {
        Self { projector: ProjectorSettings::default(), ends_with_serving: true, remove_after: Duration::from_secs(10) }
    }
}

/// Name of a generation's consumer group where all processes share it: `millrace-stock`, `millrace-stock@2`.
pub fn group_of(name: &str, generation: u32) -> String {
    match generation {
        1 => format!("millrace-{name}"),
        number => format!("millrace-{name}@{number}"),
    }
}

/// Feeds every generation that is to be fed until `shutdown`, or until the one that serves fails for good.
pub async fn run_generations<P, S>(
    stores: Arc<S>,
    log: Arc<dyn EventLog>,
    registry: Arc<dyn SchemaRegistry>,
    settings: FeedSettings,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), ProjectorError>
where
    P: Projection,
    S: GenerationStores<P>,
{
    let mut supervisor = Supervisor::<P, S> {
        feeds: BTreeMap::new(),
        removals: Removals::new(settings.remove_after),
        known: None,
        live_end: LogEnd::new(Instant::now()),
        process: Uuid::new_v4().to_string(),
        told_at: None,
        are_halts_told: false,
        is_told: false,
        first: health.component(component_of(P::NAME, 1, "projector")),
        stores,
        log,
        registry,
        settings,
        health,
        shutdown,
    };
    let result = supervisor.run().await;
    supervisor.stop_all().await;
    supervisor.withdraw().await;
    result
}

struct Supervisor<P: Projection, S: GenerationStores<P>> {
    stores: Arc<S>,
    log: Arc<dyn EventLog>,
    registry: Arc<dyn SchemaRegistry>,
    settings: FeedSettings,
    health: Health,
    shutdown: CancellationToken,
    feeds: BTreeMap<u32, Feed<P, S>>,
    removals: Removals,
    /// The catalogue as it was last read, with its decisions.
    known: Option<Known>,
    /// As noted with what serves.
    live_end: LogEnd,
    /// Names this supervisor in its reports.
    process: String,
    /// When others were last told of the throttle and of halted partitions.
    told_at: Option<Instant>,
    /// What they heard last names a partition that is halted.
    are_halts_told: bool,
    /// The catalogue could not be read, and it was said.
    is_told: bool,
    /// Until the catalogue is read the first generation stands for all.
    first: ComponentHealth,
}

/// The log's end, of all partitions together.
struct LogEnd {
    end: u64,
    /// How many it is the sum of.
    partitions: usize,
    moved_at: Instant,
    counted_from: (u64, Instant),
    /// Events per second.
    arrivals: u64,
}

// === impl Supervisor ===

impl<P: Projection, S: GenerationStores<P>> Supervisor<P, S> {
    async fn run(&mut self) -> Result<(), ProjectorError> {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            // What is under way in a store ends with the store's own patience; nothing here needs to be finished.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                looked = self.look() => looked?,
            }
        }
    }

    async fn look(&mut self) -> Result<(), ProjectorError> {
        if let Some(catalogue) = self.read_catalogue().await? {
            self.follow(&catalogue).await;
            self.removals.follow::<P, S>(&catalogue, &self.stores);
            self.observe(&catalogue).await;
        }
        for (number, feed) in &mut self.feeds {
            let Some(error) = feed.tend().await else { continue };
            let is_serving = self.known.as_ref().is_some_and(|known| known.catalogue.serving == *number);
            if is_serving && self.settings.ends_with_serving {
                return Err(error);
            }
        }
        Ok(())
    }

    /// `None` while it cannot be read.
    async fn read_catalogue(&mut self) -> Result<Option<Catalogue>, ProjectorError> {
        let stores = Arc::clone(&self.stores);
        let read = async {
            let found = stores.catalogue().catalogue().await?;
            lost::follow(stores.catalogue(), &mut self.known, found).await
        };
        match read.await {
            Ok(catalogue) => {
                self.is_told = false;
                Ok(Some(catalogue))
            }
            // From the first look on it may not get better by itself.
            Err(error) if self.known.is_none() && !error.is_transient() => {
                self.first.not_ready(error.to_string());
                Err(error.into())
            }
            Err(error) => {
                if self.known.is_none() {
                    self.first.not_ready(error.to_string());
                }
                if !self.is_told {
                    tracing::warn!(projection = P::NAME, %error, "the catalogue is not read for now; what runs goes on");
                    self.is_told = true;
                }
                Ok(None)
            }
        }
    }

    /// Starts and stops engines until they are those that the catalogue says.
    async fn follow(&mut self, catalogue: &Catalogue) {
        let wanted = self.wanted(catalogue);
        let gone: Vec<u32> = self.feeds.keys().filter(|number| !wanted.contains_key(number)).copied().collect();
        for number in gone {
            if let Some(feed) = self.feeds.remove(&number) {
                tracing::info!(projection = P::NAME, generation = number, "generation is fed no more");
                feed.stop().await;
                fed_no_more(label_of::<P>(number));
            }
        }
        if !wanted.contains_key(&1) {
            self.first.remove();
        }
        for (number, entry) in wanted {
            let role = Role::of(catalogue, number);
            if let Some(feed) = self.feeds.get_mut(&number).filter(|feed| feed.is_of(&entry)) {
                feed.set_role(role);
                continue;
            }
            // Another entry under the same number: the store was wiped, and begun anew.
            if let Some(feed) = self.feeds.remove(&number) {
                feed.stop().await;
            }
            tracing::info!(projection = P::NAME, generation = number, fold = entry.fold_version, "generation is fed");
            let component = match number {
                1 => self.first.clone(),
                _ => self.health.component(component_of(P::NAME, number, "projector")),
            };
            let settings = self.settings_of(number, &entry);
            let (stores, log, registry) = (Arc::clone(&self.stores), Arc::clone(&self.log), Arc::clone(&self.registry));
            let feed = Feed::start(stores, log, registry, settings, entry, role, component);
            self.feeds.insert(number, feed);
        }
    }

    /// What is fed, by number. A store in which nothing was built yet is built as this program would.
    fn wanted(&self, catalogue: &Catalogue) -> BTreeMap<u32, GenerationEntry> {
        if catalogue.generations.is_empty() {
            let first = Generation {
                name: P::NAME.to_owned(),
                number: catalogue.serving,
                fold_version: P::CURRENT_FOLD,
                partitions: self.settings.projector.partitions,
            };
            return BTreeMap::from([(catalogue.serving, GenerationEntry::fed(&first))]);
        }
        let fed = catalogue.generations.iter().filter(|(_, entry)| entry.state == GenerationState::Fed);
        fed.map(|(number, entry)| (*number, entry.clone())).collect()
    }

    fn settings_of(&self, number: u32, entry: &GenerationEntry) -> ProjectorSettings {
        ProjectorSettings {
            generation: number,
            fold_version: entry.fold_version,
            partitions: entry.partitions,
            until: entry.until.clone(),
            source: entry.source,
            ..self.settings.projector.clone()
        }
    }

    /// Tells others through the store what they cannot see: how fast shadows may be built, and what is halted.
    async fn observe(&mut self, catalogue: &Catalogue) {
        let throttled = self.hold_back(catalogue).await;
        let halted = self.halted();
        // Once more when it is over: what was told before would count until it is old.
        let is_news = throttled.is_some() || !halted.is_empty() || self.are_halts_told;
        if !is_news || self.told_at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        self.told_at = Some(Instant::now());
        self.are_halts_told |= !halted.is_empty();
        let (throttle, live) = throttled.unzip();
        let (process, live) = (self.process.clone(), live.flatten());
        let report = ProcessReport { process, at: now(), throttle, live, halted, ..ProcessReport::default() };
        let noted = self.stores.catalogue().note_report(&report).await;
        match noted {
            Ok(()) => self.are_halts_told = !report.halted.is_empty(),
            Err(error) => tracing::debug!(projection = P::NAME, %error, "others are not told"),
        }
    }

    /// Tells the throttle how those who are served fare; `None` while there is nobody to hold back.
    async fn hold_back(&mut self, catalogue: &Catalogue) -> Option<(ThrottleStatus, Option<LiveSide>)> {
        let throttle = self.settings.projector.throttle.clone()?;
        if !self.feeds.values().any(Feed::is_shadow) {
            // What once held shadows back must not hold back those of another read model.
            throttle.observe(P::NAME, Pressure::default());
            return None;
        }
        let live = self.live_side(catalogue).await;
        throttle.observe(P::NAME, self.pressure(catalogue, live).await);
        Some((throttle.status(), live))
    }

    /// At the end: what is halted here must not count against who goes on with it.
    async fn withdraw(&self) {
        if self.are_halts_told {
            let report = ProcessReport { process: self.process.clone(), at: now(), ..ProcessReport::default() };
            let _ = tokio::time::timeout(TELL_EVERY, self.stores.catalogue().note_report(&report)).await;
        }
    }

    /// Of every generation that is fed here.
    fn halted(&self) -> BTreeMap<u32, Halted> {
        let all = self.feeds.iter().map(|(number, feed)| (*number, feed.halted()));
        all.filter(|(_, halted)| !halted.is_empty()).collect()
    }

    /// `None` where this process does not feed what serves, or cannot tell.
    async fn live_side(&mut self, catalogue: &Catalogue) -> Option<LiveSide> {
        let status = self.feeds.get(&catalogue.serving)?.read_model()?.status().await.ok()?;
        let is_fresh = |head: &Head| is_of_late(head.seen_at, now(), HEADS_MS);
        let heads: Vec<Head> =
            status.partitions.iter().filter_map(|partition| partition.head).filter(is_fresh).collect();
        let lag_events = status.lag_events().filter(|_| !heads.is_empty())?;
        let end = heads.iter().map(|head| head.next_offset).sum();
        self.live_end.note(end, heads.len(), Instant::now());
        let events_come = self.live_end.moved_at.elapsed() < QUIET_AFTER;
        Some(LiveSide { generation: catalogue.serving, lag_events, events_come, arrivals: self.live_end.arrivals })
    }

    /// An unreadable report counts as unseen, not as quiet. A process without the serving fold takes the live lag from
    /// the others' reports.
    async fn pressure(&self, catalogue: &Catalogue, live: Option<LiveSide>) -> Pressure {
        let Ok(reports) = self.stores.catalogue().reports(now(), REPORTS_MS).await else {
            return Pressure { is_unseen: true, ..Pressure::default() };
        };
        let others = reports.iter().filter(|report| report.process != self.process);
        let told = others.filter_map(|report| report.live);
        let live = live.or_else(|| {
            let of_serving = told.filter(|told| told.generation == catalogue.serving);
            of_serving.reduce(LiveSide::worse)
        });
        let shadows = self.feeds.values().filter(|feed| feed.is_shadow()).count();
        let reads = reports.iter().flat_map(|report| report.reads.values()).map(|lately| lately.seconds);
        let reads = reads.fold(ReadFigures::default(), ReadFigures::plus);
        Pressure {
            live_lag: live.map_or(0, |live| live.lag_events),
            events_come: live.is_some_and(|live| live.events_come),
            arrivals: live.map_or(0, |live| live.arrivals).saturating_mul(shadows as u64),
            reads: reads.requests,
            read_p99_ms: reads.p99_ms,
            is_unseen: live.is_none(),
        }
    }

    async fn stop_all(&mut self) {
        // All are told first, so that they end at once.
        self.feeds.values().for_each(Feed::tell_to_stop);
        for (_, feed) in std::mem::take(&mut self.feeds) {
            feed.wait().await;
        }
        self.removals.stop();
    }
}

// === impl LogEnd ===

impl LogEnd {
    fn new(now: Instant) -> Self {
        Self { end: 0, partitions: 0, moved_at: now, counted_from: (0, now), arrivals: 0 }
    }

    /// `end` is the sum over those `partitions` whose end is known.
    fn note(&mut self, end: u64, partitions: usize, now: Instant) {
        if end != self.end {
            (self.end, self.moved_at) = (end, now);
        }
        let (from, since) = self.counted_from;
        // The first look, or the ends of others than before: nothing came, something else is counted.
        if partitions != self.partitions || end < from {
            (self.partitions, self.counted_from, self.arrivals) = (partitions, (end, now), 0);
        } else if now - since >= if self.arrivals == 0 { COUNTED_FIRST } else { COUNTED_OVER } {
            self.arrivals = ((end - from) as f64 / (now - since).as_secs_f64()) as u64;
            self.counted_from = (end, now);
        }
    }
}

/// Name of a component of a generation: `stock projector`, `stock@2 projector`.
pub fn component_of(name: &str, generation: u32, part: &str) -> String {
    match generation {
        1 => format!("{name} {part}"),
        number => format!("{name}@{number} {part}"),
    }
}

// === impl Role ===

impl Role {
    /// What a generation is fed for, by the catalogue.
    pub fn of(catalogue: &Catalogue, number: u32) -> Self {
        let candidate = catalogue.candidate.as_ref().filter(|candidate| candidate.generation == number);
        let has_share = candidate.is_some_and(|candidate| candidate.share != Share::None);
        if catalogue.serving == number {
            Self::Serving
        } else if catalogue.previous == Some(number) || has_share {
            Self::Kept
        } else {
            Self::Shadow
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_what_comes_on_the_partitions_that_are_known_all_along_is_counted() {
        let mut end = LogEnd::new(Instant::now());
        let mut arrivals = async |next_offsets, partitions| {
            tokio::time::advance(COUNTED_OVER).await;
            end.note(next_offsets, partitions, Instant::now());
            end.arrivals
        };
        assert_eq!(arrivals(9_000_000, 8).await, 0, "what was there");
        assert_eq!(arrivals(9_006_000, 8).await, 2_000);
        assert_eq!(arrivals(4_000_000, 4).await, 0, "one topic is not known any more");
        assert_eq!(arrivals(4_003_000, 4).await, 1_000);
        assert_eq!(arrivals(9_015_000, 8).await, 0, "and comes back");
        assert_eq!(arrivals(9_015_000, 8).await, 0);
        assert_eq!(arrivals(9_018_000, 8).await, 1_000);
    }
}
