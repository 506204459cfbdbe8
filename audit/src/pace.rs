//! How fast an audit goes, and how far it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What was read so far, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Rows of the event table.
    pub events: AtomicU64,
    /// Records of topics.
    pub records: AtomicU64,
    /// Rows of read models.
    pub rows: AtomicU64,
}

/// Bounds the share of time that an audit works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    share: f64,
}

/// No pause is longer, whatever a page cost: shutdown is looked at in between.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

// === impl Progress ===

impl Progress {
    pub(crate) fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

// === impl Pace ===

impl Pace {
    /// `share` of 1 is without pauses.
    pub(crate) fn of(share: f64) -> Self {
        Self { share: share.clamp(0.001, 1.0) }
    }

    /// Pauses after work that began at `begun`.
    pub(crate) async fn rest(self, begun: Instant) {
        if self.share < 1.0 {
            let pause = begun.elapsed().mul_f64(1.0 / self.share - 1.0);
            tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
        }
    }
}
