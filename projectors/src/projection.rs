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
    /// Versions of the fold that this program has, ascending. A new one is added when `project` is to make something
    /// else of old events; the old one stays while generations of it are fed.
    const FOLDS: &'static [u32];
    /// Version that a store which holds nothing yet is built with.
    const CURRENT_FOLD: u32;
    /// The contexts whose event topics are read.
    const CONTEXTS: &'static [Context];

    /// The row that an event touches; `None` for an event that this projection has no use for.
    fn key(event: &Event) -> Option<Self::Key>;

    /// Stop 8: the new row by one of [`Projection::FOLDS`], or `None` when the event changes nothing.
    fn project(fold: u32, row: Option<&Self::Row>, event: &Event, facts: Facts)
    -> Result<Option<Self::Row>, FoldError>;
}

/// What a fold may know of an event beside what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The event's place in its stream.
    pub version: u64,
    /// When it was decided, in milliseconds since 1970.
    pub time: i64,
}
