//! One generation's engine: opened, run, ended, and tried again where that may help.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use event_log::{EventLog, SchemaRegistry};
use read_models::generations::GenerationEntry;
use read_models::process_report::Halted;
use telemetry::ComponentHealth;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::GenerationStores;
use crate::engine::run_projector;
use crate::error::ProjectorError;
use crate::projection::Projection;
use crate::settings::{ProjectorSettings, Role};

/// An engine, and what it is for.
pub(super) struct Feed<P: Projection, S: GenerationStores<P>> {
    entry: GenerationEntry,
    role: watch::Sender<Role>,
    component: ComponentHealth,
    engine: Engine<P, S>,
    /// When an engine that failed is started again.
    again_at: Option<Instant>,
    running: JoinSet<Result<(), ProjectorError>>,
    stop: CancellationToken,
}

/// What an engine is started from.
struct Engine<P: Projection, S: GenerationStores<P>> {
    stores: Arc<S>,
    log: Arc<dyn EventLog>,
    registry: Arc<dyn SchemaRegistry>,
    settings: ProjectorSettings,
    component: ComponentHealth,
    /// Once it is open.
    read_model: Arc<OnceLock<Arc<S::Model>>>,
    stop: CancellationToken,
    projection: std::marker::PhantomData<P>,
}

/// How long an engine that failed, and that others can do without, is left alone.
const AGAIN_AFTER: Duration = Duration::from_secs(15);
/// How long one that is told to end may take.
const END_WITHIN: Duration = Duration::from_secs(7);

// === impl Feed ===

impl<P: Projection, S: GenerationStores<P>> Feed<P, S> {
    pub(super) fn start(
        stores: Arc<S>,
        log: Arc<dyn EventLog>,
        registry: Arc<dyn SchemaRegistry>,
        settings: ProjectorSettings,
        entry: GenerationEntry,
        role: Role,
        component: ComponentHealth,
    ) -> Self {
        let (role_sender, role_receiver) = watch::channel(role);
        let stop = CancellationToken::new();
        let engine = Engine {
            stores,
            log,
            registry,
            settings: ProjectorSettings { role: role_receiver, halted: watch::Sender::default(), ..settings },
            component: component.clone(),
            read_model: Arc::default(),
            stop: stop.clone(),
            projection: std::marker::PhantomData,
        };
        let mut feed =
            Self { entry, role: role_sender, component, engine, again_at: None, running: JoinSet::new(), stop };
        feed.component.set_beside(role != Role::Serving);
        if P::FOLDS.contains(&feed.entry.fold_version) {
            feed.running.spawn(feed.engine.clone().run());
        } else {
            // Another program may feed it; this one does not touch it.
            feed.component.not_ready(
                ProjectorError::UnknownFold {
                    generation: format!("{}@{}", P::NAME, feed.engine.settings.generation),
                    fold_version: feed.entry.fold_version,
                    folds: P::FOLDS,
                }
                .to_string(),
            );
        }
        feed
    }

    /// Whether it feeds what the catalogue says now: what a replay notes in its entry changes nothing.
    pub(super) fn is_of(&self, entry: &GenerationEntry) -> bool {
        let told = |entry: &GenerationEntry| (entry.fold_version, entry.partitions, entry.until.clone(), entry.source);
        told(&self.entry) == told(entry)
    }

    pub(super) fn set_role(&mut self, role: Role) {
        let is_another = self.role.send_if_modified(|held| {
            let is_another = *held != role;
            *held = role;
            is_another
        });
        // What failed while it served was left to who started the process; now others may do without it, or need it.
        if is_another
            && self.running.is_empty()
            && self.again_at.is_none()
            && P::FOLDS.contains(&self.entry.fold_version)
        {
            self.again_at = Some(Instant::now());
        }
        self.component.set_beside(role != Role::Serving);
    }

    pub(super) fn is_shadow(&self) -> bool {
        *self.role.borrow() == Role::Shadow
    }

    pub(super) fn halted(&self) -> Halted {
        self.engine.settings.halted.borrow().clone()
    }

    pub(super) fn read_model(&self) -> Option<&Arc<S::Model>> {
        self.engine.read_model.get()
    }

    /// Looks whether the engine still runs. The error of one that ended is told once.
    pub(super) async fn tend(&mut self) -> Option<ProjectorError> {
        if self.again_at.is_some_and(|at| at <= Instant::now()) {
            self.again_at = None;
            self.engine.read_model = Arc::default();
            self.running.spawn(self.engine.clone().run());
        }
        let ended = self.running.try_join_next()?;
        // An engine that panicked did not say that it is over.
        self.engine.settings.halted.send_replace(Halted::new());
        let error = match ended {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => {
                self.component.not_ready(error.to_string());
                Some(error)
            }
            // A panic, logged by its hook: the same as any other end.
            Err(error) => {
                self.component.not_ready("panicked");
                Some(ProjectorError::BrokeOff { problem: error.to_string() })
            }
        };
        // Of what serves, who started the process decides.
        if *self.role.borrow() != Role::Serving {
            self.again_at = Some(Instant::now() + AGAIN_AFTER);
        }
        tracing::error!(
            generation = %format!("{}@{}", P::NAME, self.engine.settings.generation),
            error = error.as_ref().map(tracing::field::display),
            "generation is not fed"
        );
        error
    }

    pub(super) fn tell_to_stop(&self) {
        self.stop.cancel();
    }

    /// Waits until it has ended.
    pub(super) async fn wait(mut self) {
        let ended = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(END_WITHIN, ended).await.is_err() {
            self.running.shutdown().await;
        }
    }

    /// Ends it for good: nothing is said of it any more.
    pub(super) async fn stop(self) {
        self.tell_to_stop();
        let component = self.component.clone();
        self.wait().await;
        component.remove();
    }
}

// === impl Engine ===

impl<P: Projection, S: GenerationStores<P>> Clone for Engine<P, S> {
    fn clone(&self) -> Self {
        Self {
            stores: Arc::clone(&self.stores),
            log: Arc::clone(&self.log),
            registry: Arc::clone(&self.registry),
            settings: self.settings.clone(),
            component: self.component.clone(),
            read_model: Arc::clone(&self.read_model),
            stop: self.stop.clone(),
            projection: std::marker::PhantomData,
        }
    }
}

impl<P: Projection, S: GenerationStores<P>> Engine<P, S> {
    async fn run(self) -> Result<(), ProjectorError> {
        let opened = tokio::select! {
            biased;
            opened = self.open() => opened?,
            () = self.stop.cancelled() => None,
        };
        let Some(opened) = opened else { return Ok(()) };
        // Empty until now: it is opened once in each life.
        let _ = self.read_model.set(Arc::clone(&opened.read_model));
        let settings = ProjectorSettings { group: opened.group, ..self.settings };
        let engine = run_projector::<P, S::Model>(
            opened.read_model,
            self.log,
            self.registry,
            settings,
            self.component,
            self.stop.clone(),
        );
        match opened.beside {
            None => engine.await,
            Some(beside) => {
                // Rows that nobody indexes are of no use: one ends with the other.
                let beside = beside(self.stop.clone());
                let both = async { tokio::try_join!(engine, async { Ok(beside.await?) }) };
                both.await.map(|_| ())
            }
        }
    }

    async fn open(&self) -> Result<Option<super::OpenGeneration<S::Model>>, ProjectorError> {
        let mut delays = resilience::Policy::STORE.backoff();
        loop {
            match self.stores.open(self.settings.generation, &self.component, &self.stop).await {
                Err(error) if error.is_transient() => {
                    self.component.not_ready(error.to_string());
                    delays.wait().await;
                }
                opened => return Ok(opened?),
            }
        }
    }
}
