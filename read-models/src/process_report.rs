//! What one process tells the others of itself, through the store: how its reads fare, and how fast it may build.
//!
//! A later report replaces the earlier one of the same process. Figures are of the last seconds and of the last minute:
//! what is over stops to count by itself. Mirrored reads are counted over their stage, too.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A report of one process.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProcessReport {
    /// Names the process.
    pub process: String,
    /// When it was written, milliseconds since 1970.
    pub at: i64,
    /// Reads of callers, by the generation that answered them or was to.
    #[serde(default)]
    pub reads: BTreeMap<u32, Lately>,
    #[serde(default)]
    pub mirror: Option<MirrorReport>,
    /// Of a process that builds shadows.
    #[serde(default)]
    pub throttle: Option<ThrottleStatus>,
    /// Of a process that feeds what serves, while others are built beside.
    #[serde(default)]
    pub live: Option<LiveSide>,
    /// Of a process that feeds generations: the partitions that it cannot go on with, by the generation.
    #[serde(default)]
    pub halted: BTreeMap<u32, Halted>,
}

/// Why partitions are halted, by their names, as in `inventory.events/0`.
pub type Halted = BTreeMap<String, String>;

/// Whether something that was noted `at` is at most `max_age_ms` old, all in milliseconds since 1970. What lies as far
/// ahead was noted before the clock was set back, perhaps by a process that is gone (fault 15).
pub fn is_of_late(at: i64, now: i64, max_age_ms: i64) -> bool {
    now.abs_diff(at) <= max_age_ms.unsigned_abs()
}

/// What was last seen of processes whose reports lie ahead of the reader's clock. One that goes on reporting has a clock
/// that is ahead; one that does not was there before the clock was set back, and is gone (fault 15).
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The time that each told, and since when the reader knows it.
    told: HashMap<String, (i64, Instant)>,
}

/// How what serves is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSide {
    pub generation: u32,
    /// Events that wait for it.
    pub lag_events: u64,
    /// Whether events came for it of late.
    pub events_come: bool,
    /// Events per second that come for it.
    #[serde(default)]
    pub arrivals: u64,
}

/// The same figures over two spans: in the short one what is sudden shows, in the long one what is rare.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Lately {
    /// The last 10 s.
    pub seconds: ReadFigures,
    pub minute: ReadFigures,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ReadFigures {
    pub requests: u64,
    /// Of those, answered by a server error.
    pub errors: u64,
    /// Of mirrored ones: answers that differ from what was served, both being true at one position. What rules allow is
    /// not counted.
    pub differing: u64,
    /// Milliseconds; of several processes, the slowest one's.
    pub p99_ms: f64,
}

/// What mirrored reads of a stage showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorReport {
    pub generation: u32,
    /// Version of the catalogue that began the stage: the next stage is counted from nothing.
    #[serde(default)]
    pub stage: u64,
    /// Since the stage began.
    #[serde(default)]
    pub whole: ReadFigures,
    #[serde(default)]
    pub lately: Lately,
    /// SKUs or queries whose answers differed; a few of them.
    pub samples: Vec<String>,
}

/// How fast shadows are built by a process, and why not faster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ThrottleStatus {
    /// Events per second of all shadows of the process; `None`: as fast as they can.
    pub rate: Option<f64>,
    /// What they yield to; `None` while nothing suffers.
    pub yields_to: Option<YieldsTo>,
}

/// Why the building of shadows is held back.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum YieldsTo {
    /// Events wait for what serves.
    LiveLag { events: u64, bound: u64 },
    /// The 99th percentile of reads is above its bound.
    ReadP99 { p99_ms: f64, bound_ms: f64 },
    /// Nobody can tell how the live side fares.
    Unseen,
}

// === impl Ahead ===

impl Ahead {
    /// Leaves those reports out that are older than `max_age_ms` at `now`.
    pub(crate) fn retain_of_late(&mut self, reports: &mut Vec<ProcessReport>, now: i64, max_age_ms: i64) {
        let max_age = Duration::from_millis(max_age_ms.unsigned_abs());
        let mut told = HashMap::new();
        reports.retain(|report| {
            let is_of_late = is_of_late(report.at, now, max_age_ms);
            if is_of_late || report.at <= now {
                return is_of_late;
            }
            let known = self.told.get(&report.process).filter(|(at, _)| *at == report.at);
            let (at, since) = known.copied().unwrap_or_else(|| (report.at, Instant::now()));
            told.insert(report.process.clone(), (at, since));
            since.elapsed() <= max_age
        });
        self.told = told;
    }
}

// === impl LiveSide ===

impl LiveSide {
    /// Of two processes, what is worst in either.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        Self {
            lag_events: self.lag_events.max(other.lag_events),
            events_come: self.events_come || other.events_come,
            arrivals: self.arrivals.max(other.arrivals),
            ..self
        }
    }
}

// === impl Lately ===

impl Lately {
    /// Of two processes together.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self { seconds: self.seconds.plus(more.seconds), minute: self.minute.plus(more.minute) }
    }
}

// === impl ReadFigures ===

impl ReadFigures {
    /// Of two processes together.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            requests: self.requests + more.requests,
            errors: self.errors + more.errors,
            differing: self.differing + more.differing,
            p99_ms: self.p99_ms.max(more.p99_ms),
        }
    }

    /// `None` where there was no request.
    pub fn error_rate(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.errors as f64 / self.requests as f64)
    }
}

// === impl YieldsTo ===

impl YieldsTo {
    /// As it is written in JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            YieldsTo::LiveLag { .. } => "live_lag",
            YieldsTo::ReadP99 { .. } => "read_p99",
            YieldsTo::Unseen => "unseen",
        }
    }
}

impl fmt::Display for YieldsTo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            YieldsTo::LiveLag { events, bound } => {
                write!(formatter, "{events} events wait for the live side, the bound is {bound}")
            }
            YieldsTo::ReadP99 { p99_ms, bound_ms } => {
                write!(formatter, "p99 of reads is {p99_ms:.1} ms, the bound is {bound_ms} ms")
            }
            YieldsTo::Unseen => formatter.write_str("how the live side fares cannot be read"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_ahead_of_the_clock_counts_for_as_long_as_its_process_goes_on() {
        const AHEAD: i64 = 3_600_000;
        let mut ahead = Ahead::default();
        let report = |process: &str, at| ProcessReport { process: process.to_owned(), at, ..ProcessReport::default() };
        let mut left = |now: i64, alive_at: i64| {
            let mut reports = vec![report("alive", alive_at), report("gone", AHEAD), report("level", now - 10)];
            ahead.retain_of_late(&mut reports, now, 20);
            reports.into_iter().map(|report| report.process).collect::<Vec<_>>()
        };
        assert_eq!(left(1_000, AHEAD), ["alive", "gone", "level"]);
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(left(1_040, AHEAD + 40), ["alive", "level"]);
        assert_eq!(left(1_041, AHEAD + 40), ["alive", "level"]);
        let (mut old, mut now) = (vec![report("level", 0)], Vec::new());
        ahead.retain_of_late(&mut old, 21, 20);
        ahead.retain_of_late(&mut now, 21, 20);
        assert_eq!((old.len(), now.len()), (0, 0));
    }
}
