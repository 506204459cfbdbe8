//! How a projector works: what its caller says of it.

use std::sync::Arc;
use std::time::Duration;

use event_log::EventTable;
use metrics::SharedString;
use read_models::generations::{Source, Until};
use read_models::process_report::Halted;
use tokio::sync::watch;

use crate::dead_letters::DeadLetterMirror;
use crate::projection::Projection;
use crate::throttle::Throttle;

/// How a projector works.
#[derive(Debug, Clone)]
pub struct ProjectorSettings {
    /// Consumer group; processes of one group share the partitions.
    pub group: String,
    /// Generation of the read model.
    pub generation: u32,
    /// Version of the fold that builds this generation: one of [`Projection::FOLDS`]. The first one by default; a
    /// program's wiring sets [`Projection::CURRENT_FOLD`], or what the generation was built with.
    pub fold_version: u32,
    /// Partitions of each event topic.
    pub partitions: u32,
    /// Most events in one write.
    pub batch: usize,
    /// Records that may wait for one worker before its partition is paused.
    pub buffered: usize,
    /// How long a missing sequence may take to follow before the partition halts.
    pub gap_patience: Duration,
    /// Parked keys of one partition at which the projection halts.
    pub parked_keys_limit: usize,
    /// How often the log's end is noted in the read model.
    pub observe_every: Duration,
    /// Records behind the log's end from which on the projector is not ready: what it serves is too old.
    pub not_ready_behind: u64,
    /// Where parked events are mirrored to; an engine without one has no effect but on its read model.
    pub dead_letter_mirror: Option<DeadLetterMirror>,
    /// Nothing beyond is applied; the generation then stands still and is read from.
    pub until: Option<Until>,
    /// Where the generation's events come from.
    pub source: Source,
    /// What was published, for a generation whose events retention took from the topics. A process that has none feeds
    /// such a generation only where the topics have all that it lacks.
    pub event_table: Option<Arc<dyn EventTable>>,
    /// What the generation is fed for. It may change while the engine runs.
    pub role: watch::Receiver<Role>,
    /// The partitions that are halted, and why, as the engine says; each engine has its own.
    pub halted: watch::Sender<Halted>,
    /// Most events in one write of a shadow, and how fast it may be fed; unbounded without.
    pub shadow_batch: usize,
    pub throttle: Option<Throttle>,
}

/// What a generation is fed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It answers; its parked events are mirrored.
    Serving,
    /// It answers a share of the requests, or is what a rollback goes back to.
    Kept,
    /// It is built beside: nobody waits for it, and it yields to those that somebody waits for.
    Shadow,
}

// === impl ProjectorSettings ===

impl Default for ProjectorSettings {
    fn default() -> Self {
        Self {
            group: String::new(),
            generation: 1,
            fold_version: 1,
            partitions: 12,
            batch: 500,
            buffered: 4_000,
            gap_patience: Duration::from_secs(30),
            parked_keys_limit: 1_000,
            observe_every: Duration::from_millis(500),
            not_ready_behind: 100_000,
            dead_letter_mirror: None,
            until: None,
            source: Source::Log,
            event_table: None,
            role: watch::channel(Role::Serving).1,
            halted: watch::Sender::default(),
            shadow_batch: 5_000,
            throttle: None,
        }
    }
}

impl ProjectorSettings {
    pub(crate) fn batch(&self, role: Role) -> usize {
        if role == Role::Shadow { self.shadow_batch } else { self.batch }
    }

    /// Records that may wait for one worker.
    pub(crate) fn buffered(&self) -> usize {
        if *self.role.borrow() == Role::Shadow { self.buffered.max(4 * self.shadow_batch) } else { self.buffered }
    }

    pub(crate) fn label<P: Projection>(&self) -> SharedString {
        label_of::<P>(self.generation)
    }
}

/// The value of the metrics' label: a generation built beside must not be taken for the first.
pub(crate) fn label_of<P: Projection>(generation: u32) -> SharedString {
    match generation {
        1 => P::NAME.into(),
        number => format!("{}@{number}", P::NAME).into(),
    }
}
