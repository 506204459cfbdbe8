//! What a projection is: which contexts it reads, which row an event touches, and the fold. Pure.

use std::any::Any;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};

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

/// A row that an event changed, as it is then.
pub type Folded<P> = (<P as Projection>::Key, <P as Projection>::Row);

/// The row that an event touches, and what the fold makes of it; `None` when the event changes nothing.
pub fn fold_event<'r, P: Projection>(
    fold: u32,
    event: &Event,
    facts: Facts,
    row: impl FnOnce(&P::Key) -> Option<&'r P::Row>,
) -> Result<Option<Folded<P>>, FoldError>
where
    P::Row: 'r,
{
    contained(|| {
        let Some(key) = P::key(event) else { return Ok(None) };
        Ok(P::project(fold, row(&key), event, facts)?.map(|new| (key, new)))
    })
}

/// Calls a fold: the way to call any. One that panics has met poison, for which one key stands still, not all that
/// share its partition.
pub fn contained<T>(fold: impl FnOnce() -> Result<T, FoldError>) -> Result<T, FoldError> {
    // A fold changes nothing but what it gives back: a panic leaves nothing half done.
    catch_unwind(AssertUnwindSafe(fold))
        .unwrap_or_else(|panic| Err(FoldError::Panicked { problem: panic_message(&*panic) }))
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
