//! Latencies of the last seconds: enough of a histogram for a high quantile, and nothing that grows.

use std::time::Duration;

/// Buckets grow by a quarter from 50 µs on: a quantile is right to within that.
const FIRST_MICROS: f64 = 50.0;
const GROWTH: f64 = 1.25;
const BUCKETS: usize = 64;

/// Counts by latency.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Latencies {
    counts: [u64; BUCKETS],
    count: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], count: 0 }
    }
}

// === impl Latencies ===

impl Latencies {
    pub(crate) fn note(&mut self, took: Duration) {
        let micros = took.as_secs_f64() * 1e6;
        let bucket = (micros / FIRST_MICROS).max(1.0).log(GROWTH) as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.count += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Milliseconds that 99 of 100 stay below: the upper bound of a bucket. 0 where there are none.
    pub(crate) fn p99_ms(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let wanted = (self.count as f64 * 0.99).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return FIRST_MICROS * GROWTH.powi(bucket as i32 + 1) / 1000.0;
            }
        }
        f64::INFINITY
    }

    pub(crate) fn merge(&mut self, other: &Latencies) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_right_to_within_a_quarter() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.p99_ms(), 0.0);
        for millisecond in 1..=1_000 {
            latencies.note(Duration::from_millis(millisecond));
        }
        let p99 = latencies.p99_ms();
        assert!((990.0..=990.0 * 1.25).contains(&p99), "{p99}");
        let mut both = Latencies::default();
        both.note(Duration::from_secs(86_400));
        both.merge(&latencies);
        assert_eq!(both.count(), 1_001);
        assert!(both.p99_ms() < 1_300.0);
    }
}
