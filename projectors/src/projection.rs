//! What a projection is: which contexts it reads, which row an event touches, and the fold. Pure.

use std::fmt;
use std::hash::Hash;

use schemas::{Context, Event};

use crate::error::FoldError;

/// A fold of events into rows.
pub trait Projection: Send + Sync + 'static {
    type Key: Clone + Eq + Hash + fmt::Debug + Send + Sync;
    type Row: Clone + PartialEq + fmt::Debug + Send + Sync;

    /// `stock` or `search`: names the read model, the consumer group and the metrics.
    const NAME: &'static str;
    /// Version of the fold: raised when `project` changes what it makes of old events.
    const FOLD_VERSION: u32;
    /// The contexts whose event topics are read.
    const CONTEXTS: &'static [Context];

    /// The row that an event touches; `None` for an event that this projection has no use for.
    fn key(event: &Event) -> Option<Self::Key>;

    /// Stop 8: the new row, or `None` when the event changes nothing. `version` is the event's stream version.
    fn project(row: Option<&Self::Row>, event: &Event, version: u64) -> Result<Option<Self::Row>, FoldError>;
}
