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

/// Most that an item of a page is taken to cost, here and at the server that gave it. What a page took beyond that was
/// waiting, for which nobody needs a rest: a round over many partitions would take as many pauses.
const MOST_PER_ITEM: Duration = Duration::from_micros(50);

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

    /// Pauses after work on so many items that began at `begun`.
    pub(crate) async fn rest(self, begun: Instant, items: usize) {
        let pause = self.pause(begun.elapsed(), items);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    fn pause(self, took: Duration, items: usize) -> Duration {
        let most = MOST_PER_ITEM * u32::try_from(items).unwrap_or(u32::MAX);
        took.min(most).mul_f64(1.0 / self.share - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_paused_for_and_waiting_is_not() {
        let pace = Pace::of(0.05);
        let page = pace.pause(Duration::from_millis(20), 1_000);
        assert!((page.as_secs_f64() - 0.38).abs() < 0.001, "{page:?}");
        let waited = pace.pause(Duration::from_secs(5), 2);
        assert!(waited < Duration::from_millis(3), "{waited:?}");
        assert_eq!(Pace::of(1.0).pause(Duration::from_secs(5), 1_000), Duration::ZERO);
    }
}
