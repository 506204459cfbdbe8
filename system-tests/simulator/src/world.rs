//! What one seed decides: every latency and every fault, the trace, the counts, and the first violation.
//!
//! A decision follows from the seed and from *which* call it is (process, operation, how many of its kind before it),
//! not from how many decisions came before: leaving one fault out leaves the others where they were, so a failing run
//! can be made smaller fault by fault.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::checker::Checker;
use crate::guard::Guard;

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub seed: u64,
    /// A guard that is off: the checker must then report a violation.
    pub guard_off: Option<Guard>,
    /// Only these faults; all that the seed gives without it.
    pub only_faults: Option<BTreeSet<Place>>,
    /// Only these incidents, by their number.
    pub only_incidents: Option<BTreeSet<usize>>,
    /// Only these commands, by their number.
    pub only_commands: Option<BTreeSet<usize>>,
    /// Whether the lines of the trace are kept, not only their hash.
    pub keeps_trace: bool,
}

/// One call of a port: the `count`th of this operation by this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub process: &'static str,
    pub operation: &'static str,
    pub count: u64,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and has no effect.
    Refused,
    /// It has its effect; the answer never comes.
    AnswerLost,
    /// The process dies before the call has its effect.
    CrashBefore,
    /// The process dies when the call had its effect.
    CrashAfter,
    /// It takes seconds.
    Slow,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Id of the invariant; `LIVE` when the system did not come level.
    pub invariant: &'static str,
    pub what: String,
}

/// Counts of what happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub steps: u64,
    pub faults: u64,
    pub crashes: u64,
    pub freezes: u64,
    pub rebalances: u64,
    pub commands: u64,
    pub conflicts: u64,
    pub events: u64,
    pub duplicate_records: u64,
    pub applied_batches: u64,
    pub superseded_writes: u64,
    pub moved_checkpoints: u64,
    pub parked_events: u64,
    pub rollbacks: u64,
    pub wipes: u64,
    pub relay_takeovers: u64,
}

/// One simulated world.
pub struct World {
    plan: Plan,
    rates: Rates,
    started: Instant,
    core: Mutex<Core>,
    checker: Mutex<Checker>,
    /// Told when the first violation is there.
    pub violated: Notify,
}

/// How often what happens in this seed; each seed has faults of its own kinds.
#[derive(Debug, Clone, Copy, Default)]
struct Rates {
    /// Of 10,000 calls, for [`Fault::Refused`], [`Fault::AnswerLost`], [`Fault::CrashBefore`], [`Fault::CrashAfter`] and
    /// [`Fault::Slow`].
    faults: [u64; 5],
    /// Longest usual latency in microseconds; 0 in a quiet world.
    latency: u64,
}

struct Core {
    counts: HashMap<(&'static str, &'static str), u64>,
    has_faults: bool,
    hash: u64,
    lines: Vec<String>,
    fired: Vec<(Place, Fault)>,
    stats: Stats,
    violation: Option<Violation>,
}

/// 2026-01-01, milliseconds since 1970: when simulated time begins.
pub const EPOCH: i64 = 1_767_225_600_000;

// === impl World ===

impl World {
    pub fn new(plan: Plan, partitions: u32) -> Self {
        let mut rates = Rates { faults: [0; 5], latency: 500 << (mixed(plan.seed, "latency", 0) % 5) };
        for (kind, rate) in rates.faults.iter_mut().enumerate() {
            let dice = mixed(plan.seed, "rate", kind as u64);
            let most = if (2..=3).contains(&kind) { 40 } else { 300 };
            *rate = if dice.is_multiple_of(3) { 0 } else { dice / 3 % most };
        }
        Self::with(plan, rates, partitions)
    }

    /// A world in which nothing fails and nothing takes time: to hold the ports against their contracts.
    pub fn quiet(partitions: u32) -> Self {
        Self::with(Plan::default(), Rates::default(), partitions)
    }

    fn with(plan: Plan, rates: Rates, partitions: u32) -> Self {
        let core = Core {
            counts: HashMap::new(),
            has_faults: rates.latency > 0,
            hash: 0xcbf2_9ce4_8422_2325,
            lines: Vec::new(),
            fired: Vec::new(),
            stats: Stats::default(),
            violation: None,
        };
        Self {
            rates,
            started: Instant::now(),
            core: Mutex::new(core),
            checker: Mutex::new(Checker::new(partitions)),
            violated: Notify::new(),
            plan,
        }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn is_quiet(&self) -> bool {
        self.rates.latency == 0
    }

    pub fn is_off(&self, guard: Guard) -> bool {
        self.plan.guard_off == Some(guard)
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since 1970, in simulated time.
    pub fn now(&self) -> i64 {
        EPOCH + self.started.elapsed().as_millis() as i64
    }

    /// Ends the faults: what is left must come level.
    pub fn heal(&self) {
        self.core().has_faults = false;
        self.trace(|| "the faults end".to_owned());
    }

    pub fn is_faulty(&self) -> bool {
        self.core().has_faults
    }

    /// The next call of an operation by a process, and what goes wrong with it.
    pub fn next_call(&self, process: &'static str, operation: &'static str, may_fail: bool) -> (Place, Option<Fault>) {
        let mut core = self.core();
        core.stats.steps += 1;
        let count = core.counts.entry((process, operation)).or_default();
        *count += 1;
        let place = Place { process, operation, count: *count };
        if !core.has_faults || !may_fail {
            return (place, None);
        }
        let Some(fault) = self.fault_at(place) else { return (place, None) };
        core.stats.faults += 1;
        core.fired.push((place, fault));
        (place, Some(fault))
    }

    fn fault_at(&self, place: Place) -> Option<Fault> {
        if self.plan.only_faults.as_ref().is_some_and(|only| !only.contains(&place)) {
            return None;
        }
        let mut dice = self.dice(place, 1) % 10_000;
        let kinds = [Fault::Refused, Fault::AnswerLost, Fault::CrashBefore, Fault::CrashAfter, Fault::Slow];
        for (fault, rate) in kinds.into_iter().zip(self.rates.faults) {
            if dice < rate {
                return Some(fault);
            }
            dice -= rate;
        }
        None
    }

    /// A number that follows from the seed and the call.
    pub fn dice(&self, place: Place, salt: u64) -> u64 {
        let operation = mixed(self.plan.seed, place.operation, place.count);
        mixed(operation, place.process, salt)
    }

    /// How long a part of a call takes.
    pub fn latency(&self, place: Place, salt: u64) -> Duration {
        if self.rates.latency == 0 {
            return Duration::ZERO;
        }
        let dice = self.dice(place, 100 + salt);
        // Mostly short, one in 32 long: that is what reorders.
        let factor = if dice.is_multiple_of(32) { 40 } else { 1 };
        Duration::from_micros((dice >> 8) % self.rates.latency * factor)
    }

    /// Adds a line to the trace. Simulated time comes with it.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.is_quiet() {
            return;
        }
        let at = self.started.elapsed();
        let line = line();
        let mut core = self.core();
        for byte in line.bytes().chain((at.as_micros() as u64).to_be_bytes()) {
            core.hash = (core.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.plan.keeps_trace {
            core.lines.push(format!("{:9.3} s  {line}", at.as_secs_f64()));
        }
    }

    pub fn count(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.core().stats);
    }

    pub fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the checker; the first violation is kept.
    pub fn check(&self, ask: impl FnOnce(&mut Checker) -> Result<(), Violation>) {
        if self.is_quiet() {
            return;
        }
        let result = ask(&mut self.checker());
        if let Err(violation) = result {
            self.violate(violation);
        }
    }

    pub fn violate(&self, violation: Violation) {
        self.trace(|| format!("VIOLATION {violation}"));
        self.core().violation.get_or_insert(violation);
        self.violated.notify_one();
    }

    pub fn violation(&self) -> Option<Violation> {
        self.core().violation.clone()
    }

    pub fn stats(&self) -> Stats {
        self.core().stats
    }

    pub fn fired(&self) -> Vec<(Place, Fault)> {
        self.core().fired.clone()
    }

    /// The trace as a number: equal for equal runs.
    pub fn hash(&self) -> u64 {
        self.core().hash
    }

    pub fn lines(&self) -> Vec<String> {
        std::mem::take(&mut self.core().lines)
    }
}

// === impl Violation ===

impl Violation {
    pub fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.invariant, self.what)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} #{}", self.process, self.operation, self.count)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Fault::Refused => "fails before its effect",
            Fault::AnswerLost => "has its effect, the answer is lost",
            Fault::CrashBefore => "the process dies before the effect",
            Fault::CrashAfter => "the process dies after the effect",
            Fault::Slow => "takes seconds",
        })
    }
}

// === impl Stats ===

impl Stats {
    /// Name and value of each count, in a fixed order.
    pub fn named(&self) -> [(&'static str, u64); 16] {
        [
            ("steps", self.steps),
            ("faults", self.faults),
            ("crashes", self.crashes),
            ("freezes", self.freezes),
            ("rebalances", self.rebalances),
            ("commands", self.commands),
            ("conflicts", self.conflicts),
            ("events", self.events),
            ("duplicate_records", self.duplicate_records),
            ("applied_batches", self.applied_batches),
            ("superseded_writes", self.superseded_writes),
            ("moved_checkpoints", self.moved_checkpoints),
            ("parked_events", self.parked_events),
            ("rollbacks", self.rollbacks),
            ("wipes", self.wipes),
            ("relay_takeovers", self.relay_takeovers),
        ]
    }

    pub fn add(&mut self, other: &Stats) {
        self.steps += other.steps;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.freezes += other.freezes;
        self.rebalances += other.rebalances;
        self.commands += other.commands;
        self.conflicts += other.conflicts;
        self.events += other.events;
        self.duplicate_records += other.duplicate_records;
        self.applied_batches += other.applied_batches;
        self.superseded_writes += other.superseded_writes;
        self.moved_checkpoints += other.moved_checkpoints;
        self.parked_events += other.parked_events;
        self.rollbacks += other.rollbacks;
        self.wipes += other.wipes;
        self.relay_takeovers += other.relay_takeovers;
    }
}

/// A number from a seed, a name and a number: FNV-1a over the name, then the finaliser of SplitMix64 (Steele, Lea and
/// Flood, 2014).
pub fn mixed(seed: u64, name: &str, number: u64) -> u64 {
    let mut hash = seed ^ 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = hash.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
