//! The relay's loop: take the lease, then batch after batch. Stops 5 and 6 of an event's path.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use event_log::{EventLog, EventLogError, SchemaRegistry, TopicPartition};
use event_store::{EventStore, EventStoreError, RelayCursor, RelayLease, StoredEvent, Topology};
use metrics::{counter, gauge, histogram};
use resilience::Policy;
use schemas::SchemaRef;
use telemetry::ComponentHealth;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::batch::BatchSize;
use crate::error::RelayError;
use crate::history::{SeenEnds, check_history, check_topics, has_gap, watch_log};
use crate::metrics::{BATCH_SECONDS, EVENTS, HALTED, LAG_EVENTS, LAG_SECONDS, LEADER};
use crate::schema_ids::look_up_ahead;
use crate::stamp::Stamper;
use crate::topics::ensure_topics;

/// How the relay works.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// Most events in a batch.
    pub batch: usize,
    /// How long an idle relay waits before it looks again, when no append of this process wakes it.
    pub poll: Duration,
}

/// Publishes committed events. One per event store leads; others wait to take over.
pub struct Relay {
    store: Arc<dyn EventStore>,
    log: Arc<dyn EventLog>,
    registry: Arc<dyn SchemaRegistry>,
    topology: Topology,
    settings: RelaySettings,
    health: ComponentHealth,
    /// Registry ids of (topic, schema): they never change.
    schema_ids: HashMap<(String, SchemaRef), u32>,
    /// Something was published, or there was nothing to publish, since the last error.
    has_progressed: bool,
    /// Since when errors came with no progress between them.
    failing_since: Option<tokio::time::Instant>,
    batch: BatchSize,
    /// Topics that others use and whose partition count was told to be wrong.
    told_topics: HashSet<String>,
    published_at: Option<tokio::time::Instant>,
    /// The sequences of the cursor that was saved last.
    saved: HashMap<(String, u32), u64>,
    /// What the log lost while this relay led.
    shrunk: Option<Shrunk>,
}

/// A partition that lost records. What was published behind the loss before it was noticed hides it from a look at the
/// partition's end, so the relay itself remembers.
struct Shrunk {
    at: TopicPartition,
    seen: u64,
    found: u64,
    /// The saved sequence then: `reconcile` sets it back.
    saved: u64,
}

/// How often a relay that halted looks whether it may go on.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often one that only waits looks whether the log has again what it lost.
const LOOK_FOR_LOSS_AGAIN: Duration = Duration::from_secs(60);
/// After so long without publishing it is looked whether the log still ends where it did.
const QUIET: Duration = Duration::from_secs(1);
/// A relay that gets nothing done for so long, because of the log or the registry, lets another one try.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(10);
/// How long it leaves the lock alone then: longer than others need to see that it is free.
const GIVES_WAY_FOR: Duration = Duration::from_secs(1);
/// A relay that has no lease after so long waits for another one that leads.
const WAITS_AFTER: Duration = Duration::from_secs(1);
/// How often the lag is measured.
const LAG_EVERY: Duration = Duration::from_secs(2);

impl Default for RelaySettings {
    fn default() -> Self {
        Self { batch: 2_000, poll: Duration::from_millis(20) }
    }
}

// === impl Relay ===

impl Relay {
    pub fn new(
        store: Arc<dyn EventStore>,
        log: Arc<dyn EventLog>,
        registry: Arc<dyn SchemaRegistry>,
        topology: Topology,
        settings: RelaySettings,
        health: ComponentHealth,
    ) -> Self {
        let batch = BatchSize::new(settings.batch);
        Self {
            store,
            log,
            registry,
            topology,
            settings,
            health,
            schema_ids: HashMap::new(),
            has_progressed: false,
            failing_since: None,
            batch,
            told_topics: HashSet::new(),
            published_at: None,
            saved: HashMap::new(),
            shrunk: None,
        }
    }

    /// Relays until `shutdown`, or until an error of settings. After one that trying again cannot mend the relay halts:
    /// it publishes nothing, is not ready and says why, leaves the lead to whoever mends it (but where versions
    /// contradict each other), and looks from time to time whether that has happened. A process that ended instead
    /// would be started again and again.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), RelayError> {
        let mut delays = Policy::STORE.backoff();
        let mut logged = None;
        loop {
            let lead = self.lead(&shutdown);
            let error = match lead.await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if std::mem::take(&mut self.has_progressed) {
                delays = Policy::STORE.backoff();
                self.failing_since = None;
            }
            let failing_for = self.failing_since.get_or_insert_with(tokio::time::Instant::now).elapsed();
            let mut at_least = Duration::ZERO;
            gauge!(LEADER).set(0.0);
            self.health.not_ready(error.to_string());
            if let RelayError::LogShrank { at, seen, found } = &error {
                let saved = self.saved.get(&(at.topic.clone(), at.partition)).copied().unwrap_or(0);
                self.shrunk.get_or_insert(Shrunk { at: at.clone(), seen: *seen, found: *found, saved });
            }
            match error {
                RelayError::Store(EventStoreError::RelaySuperseded { .. }) => {
                    tracing::info!(%error, "relay waits to lead again");
                }
                error if error.is_transient() => {
                    tracing::warn!(%error, "relay tries again");
                    // One that is cut off from a part of the log, say, and would lead for ever while another one waits
                    // that is not. Where there is no other it leads again.
                    if matches!(error, RelayError::Log(_)) && failing_for >= GIVES_WAY_AFTER {
                        at_least = GIVES_WAY_FOR;
                        if let Err(error) = self.store.release_relay().await {
                            tracing::warn!(%error, "relay's lock is not given up");
                        }
                    }
                }
                error if error.is_of_settings() => return Err(error),
                error => match self.halt(&error, &mut logged, &shutdown).await {
                    ControlFlow::Continue(()) => continue,
                    ControlFlow::Break(()) => return Ok(()),
                },
            }
            tokio::select! {
                biased;
                _ = async { tokio::join!(delays.wait(), tokio::time::sleep(at_least)) } => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Leaves the lead until it is time to look whether `error` is mended; breaks when `shutdown` comes first. An error
    /// is logged once, however often it halts the relay: `logged` is the last one.
    async fn halt(
        &self,
        error: &RelayError,
        logged: &mut Option<String>,
        shutdown: &CancellationToken,
    ) -> ControlFlow<()> {
        gauge!(HALTED).set(1.0);
        let text = error.to_string();
        if logged.as_ref() != Some(&text) {
            tracing::error!(%error, "relay halts");
            *logged = Some(text);
        }
        // Neither this process nor another one that waits for the lock would know, on a new start, the versions that
        // contradict each other, and publish them: so the lock is kept.
        let is_for_good = matches!(error, RelayError::VersionsOutOfOrder { .. });
        if !is_for_good && let Err(error) = self.store.release_relay().await {
            tracing::warn!(%error, "relay's lock is not given up");
        }
        let mended = async {
            if is_for_good {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        tokio::select! {
            biased;
            () = mended => ControlFlow::Continue(()),
            () = shutdown.cancelled() => ControlFlow::Break(()),
        }
    }

    /// Leads until an error or the end. Every start goes on from the saved cursor.
    async fn lead(&mut self, shutdown: &CancellationToken) -> Result<(), RelayError> {
        // Who cannot reach the log leaves the lead to those who can.
        let reached = tokio::select! {
            biased;
            reached = self.log.ping() => reached,
            () = shutdown.cancelled() => return Ok(()),
        };
        if let Err(error) = reached {
            self.store.release_relay().await?;
            return Err(error.into());
        }
        let lease = tokio::select! {
            biased;
            lease = self.store.lease_relay() => lease?,
            never = self.tell_that_it_waits() => match never {},
            () = shutdown.cancelled() => return Ok(()),
        };
        let checked = async {
            // By the one that leads, and not before: a topic that is gone must not come back, empty, under another one
            // that still publishes to it.
            check_topics(&*self.log, &lease.cursor).await?;
            ensure_topics(&*self.log, self.topology, &mut self.told_topics).await?;
            let history = check_history(&*self.log, &*self.store, self.topology, &lease.cursor, self.settings.batch);
            let ends = history.await?;
            let is_mended = match &self.shrunk {
                Some(shrunk) => shrunk.is_mended(&*self.log, &lease.cursor).await?,
                None => true,
            };
            Ok::<_, RelayError>((ends, is_mended))
        };
        let (ends, is_mended) = tokio::select! {
            biased;
            checked = checked => checked?,
            () = shutdown.cancelled() => return Ok(()),
        };
        if let Some(Shrunk { at, seen, found, .. }) = self.shrunk.as_ref().filter(|_| !is_mended) {
            return Err(RelayError::LogShrank { at: at.clone(), seen: *seen, found: *found });
        }
        self.shrunk = None;
        self.saved.clone_from(&lease.cursor.sequences);
        let seen = Arc::new(SeenEnds::new(ends, self.topology));
        gauge!(LEADER).set(1.0);
        gauge!(HALTED).set(0.0);
        tracing::info!(epoch = lease.epoch, position = %lease.cursor.position, "relay leads");
        let lag = watch_lag(self.store.clone());
        let log = self.log.clone();
        let shrunk = watch_log(&*log, &seen);
        // The lag is told, and ids are looked up ahead, beside the publishing, and end with it: what fails or takes
        // long there stops nothing.
        let registry = self.registry.clone();
        tokio::select! {
            biased;
            led = self.publish_from(lease, &seen, shutdown) => led,
            error = shrunk => Err(error),
            never = lag => match never {},
            never = look_up_ahead(&*registry) => match never {},
        }
    }

    /// Says that another relay leads, once that is so: what this one halted for is over then, or the leader's to say.
    async fn tell_that_it_waits(&self) -> Infallible {
        tokio::time::sleep(WAITS_AFTER).await;
        loop {
            match self.only_waits().await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "not known whether the relay only waits"),
            }
            // Whether a loss is mended may take a look at a whole partition.
            tokio::time::sleep(if self.shrunk.is_some() { LOOK_FOR_LOSS_AGAIN } else { LOOK_AGAIN }).await;
        }
        gauge!(HALTED).set(0.0);
        self.health.not_ready("waits to lead: another relay does");
        std::future::pending().await
    }

    /// The event store answers, so it is the lock that is waited for. And the log has again what this relay saw it
    /// lose: the one that leads need not know of that, where records stand behind it.
    async fn only_waits(&self) -> Result<bool, RelayError> {
        let cursor = self.store.relay_cursor().await?;
        match &self.shrunk {
            Some(shrunk) => shrunk.is_mended(&*self.log, &cursor).await,
            None => Ok(true),
        }
    }

    async fn publish_from(
        &mut self,
        lease: RelayLease,
        seen: &SeenEnds,
        shutdown: &CancellationToken,
    ) -> Result<(), RelayError> {
        let RelayLease { epoch, cursor } = lease;
        let mut position = cursor.position;
        let mut stamper = Stamper::new(self.topology, cursor);
        let mut read = VecDeque::from(self.store.read_committed(position, self.batch.to_read()).await?);
        self.health.ready();
        loop {
            let events = self.batch.take(&mut read);
            if let Some(last) = events.last() {
                position = last.position;
                read.extend(self.relay_batch(&mut stamper, epoch, events, read.is_empty(), seen).await?);
                self.has_progressed = true;
                if shutdown.is_cancelled() {
                    return Ok(());
                }
                continue;
            }
            self.has_progressed = true;
            tokio::select! {
                biased;
                () = self.store.wait_for_appends(self.settings.poll) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            read = self.store.read_committed(position, self.batch.to_read()).await?.into();
        }
    }

    /// Whether the log ends where it did: what it lost while nothing was published, the publisher may not have noticed.
    async fn look_before(&self, events: &[StoredEvent], seen: &SeenEnds) -> Result<(), RelayError> {
        let topics: BTreeSet<&str> = events.iter().map(|event| event.topic.as_str()).collect();
        match seen.look(&*self.log, topics).await {
            // A broker that was just restarted may not know it yet: publishing fails, and then it is looked for.
            Err(RelayError::Log(EventLogError::UnknownTopic { .. })) => Ok(()),
            looked => looked,
        }
    }

    /// Publishes one batch and saves the cursor behind it; reads what follows meanwhile, where nothing more is read.
    async fn relay_batch(
        &mut self,
        stamper: &mut Stamper,
        epoch: u64,
        events: Vec<StoredEvent>,
        reads_ahead: bool,
        seen: &SeenEnds,
    ) -> Result<Vec<StoredEvent>, RelayError> {
        let started = Instant::now();
        self.look_up_schema_ids(&events).await?;
        if self.published_at.is_none_or(|at| at.elapsed() > QUIET) {
            self.look_before(&events, seen).await?;
        }
        let stamped = stamper.stamp(&events, |event| self.schema_ids[&(event.topic.clone(), event.schema)])?;
        let behind = seen.behind(&stamped.records);
        let span = tracing::debug_span!("relay_batch", events = events.len());
        let publish = self.log.publish(stamped.records).instrument(tracing::debug_span!(parent: &span, "publish"));
        let to_read = self.batch.to_read();
        let read_ahead = async {
            if !reads_ahead {
                return Ok(Vec::new());
            }
            self.store.read_committed(stamped.cursor.position, to_read).await
        };
        let publishing = tokio::time::Instant::now();
        let publish = async { (publish.await, publishing.elapsed()) };
        let ((published, took), next) = tokio::join!(publish, read_ahead);
        if let Err(error) = published {
            self.batch.failed(events.len());
            return Err(error.into());
        }
        self.batch.acknowledged(took);
        seen.acknowledged(behind);
        self.published_at = Some(tokio::time::Instant::now());
        self.store.save_cursor(epoch, &stamped.cursor).await?;
        // Of the partitions of this batch.
        self.saved.extend(stamped.cursor.sequences);
        for event in &events {
            counter!(EVENTS, "topic" => event.topic.clone()).increment(1);
        }
        histogram!(BATCH_SECONDS).record(started.elapsed().as_secs_f64());
        Ok(next?)
    }

    async fn look_up_schema_ids(&mut self, events: &[StoredEvent]) -> Result<(), RelayError> {
        for event in events {
            let place = (event.topic.clone(), event.schema);
            if !self.schema_ids.contains_key(&place) {
                let id = self.registry.id_of(&event.topic, event.schema).await?;
                self.schema_ids.insert(place, id);
            }
        }
        Ok(())
    }
}

// === impl Shrunk ===

impl Shrunk {
    /// True once the lost records were published again, or if nothing is missing after all.
    async fn is_mended(&self, log: &dyn EventLog, cursor: &RelayCursor) -> Result<bool, RelayError> {
        let sequence = cursor.sequence_of(&(self.at.topic.clone(), self.at.partition));
        Ok(sequence < self.saved || !has_gap(log, &self.at).await?)
    }
}

/// Measures the lag for as long as it is polled.
async fn watch_lag(store: Arc<dyn EventStore>) -> Infallible {
    let mut ticks = tokio::time::interval(LAG_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        match store.relay_lag(now).await {
            Ok((events, oldest)) => {
                gauge!(LAG_EVENTS).set(events as f64);
                gauge!(LAG_SECONDS).set(oldest.unwrap_or(0) as f64 / 1000.0);
            }
            Err(error) => tracing::warn!(%error, "relay lag is not known"),
        }
    }
}
