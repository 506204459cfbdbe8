//! A breaker towards one server: after some failures in a row nobody waits for it any more, and from time to time one
//! call looks whether it is back.
//!
//! Closed: calls go through. Open: calls are refused at once, until its time is over: short at first, so that a stall
//! costs little more than itself, and twice as long after each probe that fails. Half open: one call goes through as the
//! probe, others are refused; its result closes the breaker or opens it again. Of a call that began before the breaker
//! opened, a failure is older than the verdict and says nothing; an answer shows that the server is there, so the next
//! call is the probe.
//!
//! Time is tokio's clock, so that tests and a simulator can move it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::gauge;
use tokio::time::Instant;

use crate::metrics::BREAKER_STATE;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it is open at first; doubled by each probe that fails.
    pub open_for: Duration,
    /// The longest that it is open.
    pub open_for_at_most: Duration,
}

/// A breaker towards one server.
#[derive(Debug)]
pub struct Breaker {
    server: &'static str,
    settings: BreakerSettings,
    state: Mutex<State>,
}

/// Leave to make one call. Dropped without a verdict (the caller went away) it says nothing about the server.
#[must_use = "the breaker learns from the call's result"]
#[derive(Debug)]
pub struct Admission<'b> {
    breaker: &'b Breaker,
    /// The state's number when the call began.
    period: u64,
    is_decided: bool,
}

/// The call was not made: the server did not answer several times, and is looked at again in `retry_after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{server} does not answer; it is asked again in {:.1} s", .retry_after.as_secs_f64())]
pub struct Open {
    pub server: &'static str,
    pub retry_after: Duration,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// How long it is open when it opens next.
    open_for: Duration,
    /// Goes up with each change of the mode.
    period: u64,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

/// What those hear that come while the probe is under way.
const WHILE_PROBED: Duration = Duration::from_secs(1);

impl Default for BreakerSettings {
    /// For servers of ours: ADR 0009 says why so short.
    fn default() -> Self {
        Self { failures: 5, open_for: Duration::from_millis(250), open_for_at_most: Duration::from_secs(2) }
    }
}

// === impl Breaker ===

impl Breaker {
    /// `server` is the word for it in messages and in the metric's label.
    pub fn new(server: &'static str, settings: BreakerSettings) -> Self {
        let closed = Mode::Closed { failures: 0 };
        let state = State { mode: closed, open_for: settings.open_for, period: 0 };
        let breaker = Self { server, settings, state: Mutex::new(state) };
        breaker.tell(closed);
        breaker
    }

    /// Leave to make a call now, or why not.
    pub fn admit(&self) -> Result<Admission<'_>, Open> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.mode {
            Mode::Closed { .. } => {}
            Mode::Open { until } if Instant::now() >= until => self.change(&mut state, Mode::HalfOpen),
            Mode::Open { until } => return Err(self.open(until.saturating_duration_since(Instant::now()))),
            Mode::HalfOpen => return Err(self.open(WHILE_PROBED)),
        }
        Ok(Admission { breaker: self, period: state.period, is_decided: false })
    }

    /// Makes a call if the breaker lets it, and learns from it. `is_failure` says which errors are the server's
    /// absence; any other answer, also a refusal, shows that it is there.
    pub async fn call<T, E>(
        &self,
        is_failure: impl FnOnce(&E) -> bool,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<Result<T, E>, Open> {
        let admission = self.admit()?;
        let result = call.await;
        match &result {
            Err(error) if is_failure(error) => admission.failed(),
            _ => admission.succeeded(),
        }
        Ok(result)
    }

    /// Whether calls are refused now.
    pub fn is_open(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(state.mode, Mode::Open { until } if Instant::now() < until)
    }

    /// What a call would be refused with now, for who asks before it takes work; nothing changes by asking.
    pub fn refusal(&self) -> Option<Open> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.mode {
            Mode::Closed { .. } => None,
            Mode::Open { until } => {
                let left = until.saturating_duration_since(Instant::now());
                (!left.is_zero()).then(|| self.open(left))
            }
            Mode::HalfOpen => Some(self.open(WHILE_PROBED)),
        }
    }

    fn open(&self, retry_after: Duration) -> Open {
        Open { server: self.server, retry_after }
    }

    fn decide(&self, period: u64, has_failed: bool, weight: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.period != period {
            if let (Mode::Open { until }, false) = (&mut state.mode, has_failed) {
                *until = Instant::now();
            }
            return;
        }
        match (state.mode, has_failed) {
            (Mode::Closed { failures: 0 }, false) | (Mode::Open { .. }, _) => {}
            (Mode::Closed { .. }, false) => state.mode = Mode::Closed { failures: 0 },
            (Mode::Closed { failures }, true) if failures.saturating_add(weight) >= self.settings.failures => {
                tracing::warn!(server = self.server, failures = failures + 1, "breaker opens");
                self.open_again(&mut state);
            }
            (Mode::Closed { failures }, true) => state.mode = Mode::Closed { failures: failures + weight },
            (Mode::HalfOpen, false) => {
                tracing::info!(server = self.server, "breaker closes");
                state.open_for = self.settings.open_for;
                self.change(&mut state, Mode::Closed { failures: 0 });
            }
            (Mode::HalfOpen, true) => self.open_again(&mut state),
        }
    }

    fn open_again(&self, state: &mut State) {
        let open_for = state.open_for;
        state.open_for = open_for.saturating_mul(2).min(self.settings.open_for_at_most);
        self.change(state, Mode::Open { until: Instant::now() + open_for });
    }

    /// The probe's caller went away: the next call is the probe.
    fn give_back(&self, period: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.period == period && matches!(state.mode, Mode::HalfOpen) {
            self.change(&mut state, Mode::Open { until: Instant::now() });
        }
    }

    fn change(&self, state: &mut State, mode: Mode) {
        state.mode = mode;
        state.period += 1;
        self.tell(mode);
    }

    fn tell(&self, mode: Mode) {
        let level = match mode {
            Mode::Closed { .. } => 0.0,
            Mode::HalfOpen => 1.0,
            Mode::Open { .. } => 2.0,
        };
        gauge!(BREAKER_STATE, "server" => self.server).set(level);
    }
}

// === impl Open ===

impl Open {
    /// Whole seconds, for `Retry-After`.
    pub fn retry_after_seconds(&self) -> u32 {
        u32::try_from(self.retry_after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
    }
}

// === impl Admission ===

impl Admission<'_> {
    pub fn succeeded(mut self) {
        self.is_decided = true;
        self.breaker.decide(self.period, false, 0);
    }

    pub fn failed(mut self) {
        self.is_decided = true;
        self.breaker.decide(self.period, true, 1);
    }

    /// The server let the call wait for all of its time. Where that time is long, nobody shall wait for it five times: this
    /// opens the breaker alone.
    pub fn timed_out(mut self) {
        self.is_decided = true;
        self.breaker.decide(self.period, true, u32::MAX);
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if !self.is_decided {
            self.breaker.give_back(self.period);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use super::*;

    const OPEN_FOR: Duration = Duration::from_secs(30);
    const OPEN_FOR_AT_MOST: Duration = Duration::from_secs(100);

    fn breaker() -> Breaker {
        Breaker::new("store", BreakerSettings { failures: 3, open_for: OPEN_FOR, open_for_at_most: OPEN_FOR_AT_MOST })
    }

    fn opened() -> Breaker {
        let breaker = breaker();
        for _ in 0..3 {
            breaker.admit().unwrap().failed();
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let breaker = breaker();
        for _ in 0..10 {
            breaker.admit().unwrap().failed();
            breaker.admit().unwrap().failed();
            breaker.admit().unwrap().succeeded();
        }
        for _ in 0..3 {
            assert!(!breaker.is_open());
            breaker.admit().unwrap().failed();
        }
        assert!(breaker.is_open());
        assert_eq!(breaker.admit().unwrap_err(), Open { server: "store", retry_after: OPEN_FOR });
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(breaker.admit().unwrap_err().retry_after, Duration::from_secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_goes_through_and_decides() {
        let breaker = opened();
        tokio::time::advance(OPEN_FOR).await;
        let probe = breaker.admit().unwrap();
        breaker.admit().unwrap_err();
        probe.failed();
        assert_eq!(breaker.admit().unwrap_err().retry_after, 2 * OPEN_FOR);

        tokio::time::advance(2 * OPEN_FOR).await;
        breaker.admit().unwrap().succeeded();
        let (first, second) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        first.succeeded();
        second.succeeded();
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_that_waited_for_all_of_its_time_opens_it() {
        let breaker = breaker();
        assert_eq!(breaker.refusal(), None);
        breaker.admit().unwrap().timed_out();
        let refused = breaker.refusal().unwrap();
        assert_eq!((refused.retry_after, refused.retry_after_seconds()), (OPEN_FOR, 30));
        tokio::time::advance(OPEN_FOR).await;
        assert_eq!(breaker.refusal(), None, "the next call is the probe");
        let probe = breaker.admit().unwrap();
        assert_eq!(breaker.refusal().unwrap().retry_after, WHILE_PROBED);
        probe.succeeded();
        assert_eq!(breaker.refusal(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_caller_left_is_taken_by_the_next() {
        let breaker = opened();
        tokio::time::advance(OPEN_FOR).await;
        drop(breaker.admit().unwrap());
        breaker.admit().unwrap().succeeded();
        assert!(breaker.admit().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_for_longer_with_each_probe_that_fails_and_shortly_again_once_one_did_not() {
        let breaker = opened();
        for open_for in [OPEN_FOR, 2 * OPEN_FOR, OPEN_FOR_AT_MOST, OPEN_FOR_AT_MOST] {
            assert_eq!(breaker.refusal().unwrap().retry_after, open_for);
            tokio::time::advance(open_for).await;
            breaker.admit().unwrap().failed();
        }
        tokio::time::advance(OPEN_FOR_AT_MOST).await;
        breaker.admit().unwrap().succeeded();
        for _ in 0..3 {
            breaker.admit().unwrap().failed();
        }
        assert_eq!(breaker.refusal().unwrap().retry_after, OPEN_FOR);
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_makes_the_next_call_the_probe() {
        let breaker = breaker();
        let late = breaker.admit().unwrap();
        for _ in 0..3 {
            breaker.admit().unwrap().failed();
        }
        assert!(breaker.is_open());
        late.succeeded();
        let probe = breaker.admit().unwrap();
        breaker.admit().unwrap_err();
        probe.succeeded();
        assert!(breaker.admit().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_older_than_the_verdict_changes_nothing() {
        let breaker = breaker();
        let (late_failure, later_failure) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        for _ in 0..3 {
            breaker.admit().unwrap().failed();
        }
        late_failure.failed();
        assert_eq!(breaker.refusal().unwrap().retry_after, OPEN_FOR);
        tokio::time::advance(OPEN_FOR).await;
        let probe = breaker.admit().unwrap();
        later_failure.failed();
        probe.succeeded();
        assert!(breaker.admit().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_by_the_server_is_no_failure() {
        let breaker = breaker();
        let is_failure = |error: &&str| *error == "away";
        for _ in 0..10 {
            assert_eq!(breaker.call(is_failure, async { Err::<(), _>("no such key") }).await, Ok(Err("no such key")));
        }
        for _ in 0..3 {
            assert_eq!(breaker.call(is_failure, async { Err::<(), _>("away") }).await, Ok(Err("away")));
        }
        assert!(breaker.call(is_failure, async { Ok(()) }).await.is_err());
    }
}
