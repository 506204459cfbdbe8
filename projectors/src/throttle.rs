//! How fast shadow generations may be built, so that those who are served do not notice.
//!
//! Beside a live side it begins with a part of the most. The rate grows by steps while that side does not suffer, no faster than
//! it would be seen to, and is halved with each step that it does (its events wait, or its reads are slow): what is free
//! is used, and given back at once. With nobody to disturb there is no bound; where it cannot be seen how the live side
//! fares, shadows get the least. One throttle is shared by all shadow engines of a process: they stand in each other's
//! way as well.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::gauge;
use read_models::process_report::{ThrottleStatus, YieldsTo};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::metrics::SHADOW_RATE;

/// When shadows yield.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ThrottleSettings {
    /// Events that may wait for a read model that serves.
    pub live_lag_events: u64,
    /// Milliseconds that the 99th of a hundred reads may take.
    pub read_p99_ms: f64,
    /// Events per second at most while events come for what serves, or reads are made: stores, disks and processors are
    /// shared, and what a build costs those who are served shows in no lag before it shows in their answers.
    pub rate_beside_live: f64,
}

/// What the live side of one read model looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Events that wait for the generation that serves.
    pub live_lag: u64,
    /// Events came for it since the last look.
    pub events_come: bool,
    /// Events per second that come for its shadows, all together.
    pub arrivals: u64,
    /// Requests that the reports of serving processes tell of.
    pub reads: u64,
    /// Of the slowest process.
    pub read_p99_ms: f64,
    /// Some of this could not be seen: it says nothing about who is served.
    pub is_unseen: bool,
}

/// Shared by the shadow engines of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Throttle {
    shared: Arc<Mutex<Shared>>,
    /// Pieces of work at once beside a live side: half of the processors are left to it.
    places: Arc<Semaphore>,
}

/// That a shadow may go on. Kept until it has.
#[derive(Debug)]
pub(crate) struct Permit {
    pub(crate) events: usize,
    /// `None` with nobody to disturb, or when none was given back in time.
    _place: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Shared {
    settings: ThrottleSettings,
    status: ThrottleStatus,
    /// Newest of each read model.
    pressures: BTreeMap<&'static str, Pressure>,
    stepped_at: Instant,
    /// Events that were let through since the last step.
    let_through: u64,
    /// When the next events may go.
    next_at: Instant,
}

/// How often the rate is set anew.
pub(crate) const STEP: Duration = Duration::from_millis(250);
/// Events per second that shadows always get: a replay that stands still for ever is none.
const FLOOR: f64 = 500.0;
/// Times what comes anyway that shadows get while reads are slow and what serves is level: reads may be slow for other
/// reasons for ever, and a shadow that gets less than what comes never catches up.
const KEEPS_UP: f64 = 1.5;
/// Steps from nothing to the most beside a live side: five seconds, for what a rate costs is told a second later.
const STEPS_TO_THE_MOST: f64 = 20.0;
/// Share of the most that shadows get at first. No less: a process that is started again and again must not fall behind
/// by that.
const AT_FIRST: f64 = 0.25;
/// Default of [`ThrottleSettings::rate_beside_live`] for each processor: measured on two, where three times as much
/// made events visible 2.5 times as late.
const BESIDE_LIVE: f64 = 5_000.0;
/// How long a piece waits for its place: longer than any piece takes whose store answers.
const PLACE_WITHIN: Duration = Duration::from_secs(1);
/// What the metric says where nothing is held back.
const CEILING: f64 = 1_000_000.0;
/// Time between two pieces of work of a shadow that is held back: the shorter, the less its writes hold up others.
const PIECE: Duration = Duration::from_millis(50);
/// Smallest piece, in events.
const LEAST: usize = 50;
/// Largest piece beside a live side: its write keeps a store for some milliseconds, for which a live write waits.
const LARGEST: usize = 1_000;

impl Default for ThrottleSettings {
    fn default() -> Self {
        Self { live_lag_events: 2_000, read_p99_ms: 50.0, rate_beside_live: BESIDE_LIVE * processors() as f64 }
    }
}

// === impl Throttle ===

impl Throttle {
    pub fn new(settings: ThrottleSettings) -> Self {
        let now = Instant::now();
        let shared = Shared {
            settings,
            status: ThrottleStatus { rate: Some(AT_FIRST * settings.rate_beside_live), yields_to: None },
            pressures: BTreeMap::new(),
            stepped_at: now,
            let_through: 0,
            next_at: now,
        };
        let places = Arc::new(Semaphore::new((processors() / 2).max(1)));
        Self { shared: Arc::new(Mutex::new(shared)), places }
    }

    /// Notes how a read model's live side stands, and sets the rate anew when it is time.
    pub fn observe(&self, read_model: &'static str, pressure: Pressure) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.pressures.insert(read_model, pressure);
        let (now, since) = (Instant::now(), shared.stepped_at.elapsed());
        // Several read models look in turn: one step for all of them.
        if since + STEP / 5 < STEP {
            return;
        }
        let used = shared.let_through as f64 / since.as_secs_f64();
        let worst = shared.pressures.values().copied().reduce(Pressure::worse).unwrap_or_default();
        shared.status = step(&shared.status, &shared.settings, worst, used);
        shared.stepped_at = now;
        shared.let_through = 0;
        gauge!(SHADOW_RATE).set(shared.status.rate.unwrap_or(CEILING));
    }

    pub fn status(&self) -> ThrottleStatus {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).status.clone()
    }

    /// Waits until a shadow may go on, and says with how many events, `wanted` at most.
    pub(crate) async fn permit(&self, wanted: usize) -> Permit {
        let (at, events, is_bounded) = {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            let (at, events) = shared.grant(wanted, Instant::now());
            (at, events, shared.status.rate.is_some())
        };
        tokio::time::sleep_until(at).await;
        if !is_bounded {
            return Permit { events, _place: None };
        }
        // Whoever has the place may wait for a store or a registry that is away: others do not wait for it with him.
        let place = tokio::time::timeout(PLACE_WITHIN, Arc::clone(&self.places).acquire_owned()).await;
        Permit { events, _place: place.ok().and_then(Result::ok) }
    }
}

// === impl Shared ===

impl Shared {
    /// When how many events may go.
    fn grant(&mut self, wanted: usize, now: Instant) -> (Instant, usize) {
        let Some(rate) = self.status.rate else {
            self.let_through += wanted as u64;
            self.next_at = now;
            return (now, wanted);
        };
        let events = wanted.min(((rate * PIECE.as_secs_f64()) as usize).clamp(LEAST, LARGEST));
        let at = self.next_at.max(now);
        self.next_at = at + Duration::from_secs_f64(events as f64 / rate);
        self.let_through += events as u64;
        (at, events)
    }
}

// === impl Pressure ===

impl Pressure {
    fn worse(self, other: Self) -> Self {
        Self {
            live_lag: self.live_lag.max(other.live_lag),
            events_come: self.events_come || other.events_come,
            // Each shadow folds its own.
            arrivals: self.arrivals + other.arrivals,
            reads: self.reads + other.reads,
            read_p99_ms: self.read_p99_ms.max(other.read_p99_ms),
            is_unseen: self.is_unseen || other.is_unseen,
        }
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// The next rate. `used` is what was let through of late, in events per second.
fn step(last: &ThrottleStatus, settings: &ThrottleSettings, pressure: Pressure, used: f64) -> ThrottleStatus {
    // Nobody knows whom it would disturb.
    if pressure.is_unseen {
        return ThrottleStatus { rate: Some(FLOOR), yields_to: Some(YieldsTo::Unseen) };
    }
    let keeps_up = (KEEPS_UP * pressure.arrivals as f64).max(FLOOR);
    let (yields_to, floor) = if pressure.live_lag > settings.live_lag_events {
        (Some(YieldsTo::LiveLag { events: pressure.live_lag, bound: settings.live_lag_events }), FLOOR)
    } else if pressure.reads > 0 && pressure.read_p99_ms > settings.read_p99_ms {
        (Some(YieldsTo::ReadP99 { p99_ms: pressure.read_p99_ms, bound_ms: settings.read_p99_ms }), keeps_up)
    } else {
        (None, FLOOR)
    };
    let rate = if yields_to.is_some() {
        // What is allowed and not used would have to be halved many times before it has an effect.
        let now = last.rate.map_or(used, |rate| rate.min(used.max(FLOOR)));
        Some((now / 2.0).max(floor).min(settings.rate_beside_live).max(FLOOR))
    } else if !pressure.events_come && pressure.reads == 0 {
        None
    } else {
        // A bound far above what is used holds nobody back when it is needed.
        let most = settings.rate_beside_live;
        let rate = last.rate.unwrap_or(used.max(AT_FIRST * most));
        Some((rate + most / STEPS_TO_THE_MOST).min((2.0 * used).max(rate)).min(most))
    };
    ThrottleStatus { rate, yields_to }
}

#[cfg(test)]
mod tests;
