//! What each simulated process runs: the parts of Millrace as they are, wired to simulated ports.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use command_api::{CommandHandler, HandlerSettings, TopicIntakeSettings, run_expiry, run_topic_intake};
use event_log::{EmbeddedRegistry, EventLog, SchemaRegistry};
use event_store::{EventStore, Topology};
use outbox_relay::{Relay, RelaySettings};
use projectors::{Projection, ProjectorError, ProjectorSettings, SearchProjection, StockProjection, run_projector};
use read_models::ReadModel;
use telemetry::Health;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event_log::EventLogServer;
use crate::event_store::EventStoreServer;
use crate::process::Process;
use crate::projection::{OtherStock, Search, Stock};
use crate::read_model::ReadModelServer;
use crate::world::{EPOCH, Violation, World};

/// The servers, which outlive the processes, and the processes that live now.
#[derive(Clone)]
pub struct System {
    pub world: Arc<World>,
    pub store: EventStoreServer,
    pub log: EventLogServer,
    pub stock: ReadModelServer<Stock>,
    pub search: ReadModelServer<Search>,
    pub registry: Arc<EmbeddedRegistry>,
    pub topology: Topology,
    pub health: Health,
    living: Arc<Mutex<BTreeMap<&'static str, Process>>>,
    handlers: Arc<Mutex<BTreeMap<&'static str, CommandHandler>>>,
}

thread_local! {
    /// When simulated time began on this thread.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Milliseconds since 1970, in simulated time.
fn simulated_now() -> i64 {
    EPOCH + BEGAN.get().map_or(0, |began| began.elapsed().as_millis() as i64)
}

/// Drops the handler loop with the process that runs it.
struct Loop(JoinHandle<()>);

impl Drop for Loop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl System ===

impl System {
    pub fn new(world: Arc<World>, topology: Topology) -> Self {
        BEGAN.set(Some(Instant::now()));
        Self {
            world,
            store: EventStoreServer::default(),
            log: EventLogServer::default(),
            stock: ReadModelServer::default(),
            search: ReadModelServer::default(),
            registry: Arc::default(),
            topology,
            health: Health::default(),
            living: Arc::default(),
            handlers: Arc::default(),
        }
    }

    pub fn living(&self, name: &str) -> Option<Process> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub fn handler(&self, name: &str) -> Option<CommandHandler> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Runs a process, and again after each of its deaths.
    pub async fn supervise(self, name: &'static str) {
        for life in 1.. {
            let process = Process::new(self.world.clone(), name);
            self.living.lock().unwrap_or_else(PoisonError::into_inner).insert(name, process.clone());
            self.world.trace(|| format!("{name} starts"));
            let ended = tokio::select! {
                biased;
                () = process.died() => None,
                ended = self.run(name, process.clone()) => Some(ended),
            };
            self.handlers.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            process.retire();
            if let Some(Err(violation)) = ended {
                self.world.violate(violation);
                return;
            }
            let place = crate::world::Place { process: name, operation: "start", count: life };
            let most = if self.world.is_faulty() { 3_000 } else { 100 };
            tokio::time::sleep(Duration::from_millis(self.world.dice(place, 0) % most)).await;
        }
    }

    async fn run(&self, name: &'static str, process: Process) -> Result<(), Violation> {
        let stopped = |error: String| Violation::new("LIVE", format!("{name} stops: {error}"));
        match name {
            "writer-1" | "writer-2" => self.write(name, process).await.map_err(stopped),
            "relay-1" | "relay-2" => self.relay(name, process).await.map_err(stopped),
            "search-1" => {
                let model = Arc::new(self.search.connect(process.clone()));
                self.project::<SearchProjection, _>(name, model, process)
                    .await
                    .map_err(|error| stopped(error.to_string()))
            }
            _ => {
                let model = Arc::new(self.stock.connect(process.clone()));
                self.project::<StockProjection, _>(name, model, process)
                    .await
                    .map_err(|error| stopped(error.to_string()))
            }
        }
    }

    async fn write(&self, name: &'static str, process: Process) -> Result<(), String> {
        let store: Arc<dyn EventStore> = Arc::new(self.store.connect(process.clone()));
        let log: Arc<dyn EventLog> = Arc::new(self.log.connect(process));
        while let Err(error) = store.fix_topology(self.topology).await {
            if !error.is_transient() {
                return Err(error.to_string());
            }
        }
        let settings = HandlerSettings {
            group_commands: 8,
            queue: 64,
            snapshot_every: 4,
            // More than there are streams: which one a full cache forgets hangs on the order in a hash map.
            cached_streams: NonZeroUsize::new(256).unwrap_or(NonZeroUsize::MIN),
            retry_for: Duration::from_secs(5),
            ..HandlerSettings::default()
        };
        let shutdown = CancellationToken::new();
        let (handler, running) = CommandHandler::start(store.clone(), self.topology, settings, shutdown.clone());
        let _running = Loop(running);
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner).insert(name, handler.clone());
        let expiry =
            run_expiry(store.clone(), handler.clone(), Duration::from_secs(2), simulated_now, shutdown.clone());
        let registry: Arc<dyn SchemaRegistry> = self.registry.clone();
        let health = self.health.component(name);
        let settings =
            TopicIntakeSettings { topology: self.topology, outcome_retention: Duration::from_secs(7 * 24 * 60 * 60) };
        let intake = run_topic_intake(handler, store, log, registry, settings, health, simulated_now, shutdown);
        tokio::select! {
            biased;
            ended = intake => ended.map_err(|error| error.to_string()),
            () = expiry => Ok(()),
        }
    }

    async fn relay(&self, name: &'static str, process: Process) -> Result<(), String> {
        let store = Arc::new(self.store.connect(process.clone()));
        let log = Arc::new(self.log.connect(process));
        let settings = RelaySettings { batch: 7, poll: Duration::from_millis(200) };
        let health = self.health.component(name);
        let relay = Relay::new(store, log, self.registry.clone(), self.topology, settings, health);
        relay.run(CancellationToken::new()).await.map_err(|error| error.to_string())
    }

    async fn project<P, M>(&self, name: &'static str, model: Arc<M>, process: Process) -> Result<(), ProjectorError>
    where
        P: Projection,
        M: ReadModel<Key = P::Key, Row = P::Row>,
    {
        let log = Arc::new(self.log.connect(process));
        let settings = ProjectorSettings {
            group: format!("millrace-{}", P::NAME),
            fold_version: P::CURRENT_FOLD,
            partitions: self.topology.partitions,
            batch: 5,
            buffered: 12,
            gap_patience: Duration::from_secs(10),
            observe_every: Duration::from_secs(2),
            ..ProjectorSettings::default()
        };
        let health = self.health.component(name);
        run_projector::<P, M>(model, log, self.registry.clone(), settings, health, CancellationToken::new()).await
    }

    /// A projector of another version, which must be refused.
    pub async fn run_other_version(self) {
        let process = Process::new(self.world.clone(), "stock-other");
        let model = Arc::new(self.stock.connect(process.clone()));
        tokio::select! {
            biased;
            () = process.died() => {}
            ended = self.project::<OtherStock, _>("stock-other", model, process.clone()) => {
                self.world.trace(|| format!("stock-other ends: {}", ended.is_err()));
            }
        }
        process.retire();
    }
}
