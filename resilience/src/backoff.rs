//! Exponential backoff with full jitter: each wait is anything between nothing and a ceiling that doubles.
//!
//! Full jitter spreads those that failed together, which a small jitter on top of a fixed wait does not (Brooker,
//! "Exponential Backoff and Jitter", 2015). The chance comes from fastrand's generator of the thread, so that a
//! simulator that seeds it (`fastrand::seed`) sees the same waits again.

use std::fmt::Display;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;

/// How long to wait between attempts: the first ceiling and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    least: Duration,
    most: Duration,
}

/// The waits of one trouble, ever longer; made anew when the trouble is over.
#[derive(Debug)]
pub struct Backoff {
    ceilings: backon::ExponentialBackoff,
    most: Duration,
}

// === impl Policy ===

impl Policy {
    /// Writers that met on a stream, or a store that a transaction did not reach: soon, and apart from each other.
    pub const CONFLICT: Self = Self::new(Duration::from_millis(1), Duration::from_millis(500));
    /// A read or a write of a store that is away for a moment; the relay, which begins again with each lost connection.
    pub const STORE: Self = Self::new(Duration::from_millis(20), Duration::from_secs(2));
    /// A loop that begins from its saved place again: command topics, index passes, tail.
    pub const RESTART: Self = Self::new(Duration::from_millis(50), Duration::from_secs(5));
    /// A question to a server over HTTP.
    pub const HTTP: Self = Self::new(Duration::from_millis(100), Duration::from_secs(2));

    pub const fn new(least: Duration, most: Duration) -> Self {
        Self { least, most }
    }

    pub fn backoff(self) -> Backoff {
        let ceilings = ExponentialBuilder::default()
            .with_min_delay(self.least)
            .with_max_delay(self.most)
            .without_max_times()
            .build();
        Backoff { ceilings, most: self.most }
    }
}

// === impl Backoff ===

impl Backoff {
    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.ceilings.next().unwrap_or(self.most);
        ceiling.mul_f64(fastrand::f64())
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }
}

/// Tries until it works, until an error that trying again cannot mend, or until `deadline` would pass while waiting:
/// then with the last error. Without a deadline it is for callers that are cancelled from outside.
pub async fn retry<T, E: Display, F>(
    policy: Policy,
    deadline: Option<Instant>,
    is_transient: impl Fn(&E) -> bool,
    mut operation: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut backoff = policy.backoff();
    loop {
        let error = match operation().await {
            Err(error) if is_transient(&error) => error,
            result => return result,
        };
        let delay = backoff.next_delay();
        if deadline.is_some_and(|deadline| Instant::now() + delay > deadline) {
            return Err(error);
        }
        tracing::warn!(%error, "tried again");
        tokio::time::sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const POLICY: Policy = Policy::new(Duration::from_millis(10), Duration::from_millis(80));

    #[test]
    fn waits_lie_anywhere_below_a_ceiling_that_doubles() {
        let mut longest = [Duration::ZERO; 6];
        let mut shortest = [Duration::MAX; 6];
        for seed in 0..500 {
            fastrand::seed(seed);
            let mut backoff = POLICY.backoff();
            for step in 0..6 {
                let delay = backoff.next_delay();
                longest[step] = longest[step].max(delay);
                shortest[step] = shortest[step].min(delay);
            }
        }
        for (step, ceiling) in [10, 20, 40, 80, 80, 80].map(Duration::from_millis).into_iter().enumerate() {
            assert!(longest[step] <= ceiling && longest[step] > ceiling.mul_f64(0.9), "{step}: {longest:?}");
            assert!(shortest[step] < ceiling.mul_f64(0.1), "{step}: {shortest:?}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_waits_again() {
        let waits = |seed| {
            fastrand::seed(seed);
            let mut backoff = POLICY.backoff();
            [backoff.next_delay(), backoff.next_delay(), backoff.next_delay()]
        };
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_transient_error_is_tried_again_until_the_deadline_and_another_is_not() {
        let tries = AtomicU32::new(0);
        let attempt = |works_at: u32, error: &'static str| {
            let tries = &tries;
            move || async move {
                let this = tries.fetch_add(1, Ordering::Relaxed) + 1;
                if this == works_at { Ok(this) } else { Err(error) }
            }
        };
        let is_transient = |error: &&str| *error == "away";
        assert_eq!(retry(POLICY, None, is_transient, attempt(5, "away")).await, Ok(5));

        tries.store(0, Ordering::Relaxed);
        assert_eq!(retry(POLICY, None, is_transient, attempt(5, "wrong")).await, Err("wrong"));
        assert_eq!(tries.load(Ordering::Relaxed), 1);

        let begun = Instant::now();
        let deadline = Some(begun + Duration::from_secs(1));
        assert_eq!(retry(POLICY, deadline, is_transient, attempt(u32::MAX, "away")).await, Err("away"));
        assert!(begun.elapsed() <= Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());
    }
}
