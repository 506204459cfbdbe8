//! The guards: each check without which an event could be lost, doubled, torn or taken out of order.
//!
//! A check that cannot fail proves nothing, and neither does one that stays green without the guard that it is about. So
//! each guard asks [`holds`] first. As Millrace is built that is the constant `true` and the compiler removes the
//! question. With the cargo feature `unguarded`, which no default turns on, guards can be turned off one by one: for a
//! process with `MILLRACE_GUARDS_OFF=sequence-rule,redis-epoch`, in a test with [`without`].

use std::fmt;
use std::str::FromStr;

/// A guard. Its name in settings and reports is in kebab case: `snapshot-horizon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guard {
    /// The relay reads only below the oldest running transaction: a lower id may commit later.
    SnapshotHorizon,
    /// The relay goes on behind (transaction, position), not behind a position alone.
    PairCursor,
    /// States are loaded before the transaction's first write: commit order and version order agree.
    LoadsBeforeWrites,
    /// A projector accepts exactly `last + 1`.
    SequenceRule,
    /// Redis refuses a write of a superseded owner.
    RedisEpoch,
    /// The SQLite ledgers refuse a write of a superseded owner.
    SqliteEpoch,
    /// A store that is empty but should not be says so, and is made again.
    GenerationMarker,
    /// One process writes a search directory.
    SearchLock,
    /// Effect and checkpoint are one atomic write.
    CheckpointInCommit,
    /// A superseded relay cannot save its cursor.
    RelayEpoch,
    /// A repeated command id has its first outcome.
    CommandId,
    /// A command topic's offset moves in the transaction of its events.
    OffsetInTransaction,
    /// Later events of a parked key are parked behind it.
    KeyParking,
}

/// The environment variable that turns guards off, where the build lets it.
pub const VARIABLE: &str = "MILLRACE_GUARDS_OFF";

/// Whether this build can turn guards off at all.
pub const IS_SWITCHABLE: bool = cfg!(feature = "unguarded");

/// Why a guard is not turned off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    #[error("{name:?} is no guard; the guards are {known}", known = Guard::ALL.map(Guard::name).join(", "))]
    Unknown { name: String },
    #[error("this build has no guard that can be turned off: unset {VARIABLE}")]
    NotSwitchable,
}

// === impl Guard ===

impl Guard {
    pub const ALL: [Self; 13] = [
        Self::SnapshotHorizon,
        Self::PairCursor,
        Self::LoadsBeforeWrites,
        Self::SequenceRule,
        Self::RedisEpoch,
        Self::SqliteEpoch,
        Self::GenerationMarker,
        Self::SearchLock,
        Self::CheckpointInCommit,
        Self::RelayEpoch,
        Self::CommandId,
        Self::OffsetInTransaction,
        Self::KeyParking,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::SnapshotHorizon => "snapshot-horizon",
            Self::PairCursor => "pair-cursor",
            Self::LoadsBeforeWrites => "loads-before-writes",
            Self::SequenceRule => "sequence-rule",
            Self::RedisEpoch => "redis-epoch",
            Self::SqliteEpoch => "sqlite-epoch",
            Self::GenerationMarker => "generation-marker",
            Self::SearchLock => "search-lock",
            Self::CheckpointInCommit => "checkpoint-in-commit",
            Self::RelayEpoch => "relay-epoch",
            Self::CommandId => "command-id",
            Self::OffsetInTransaction => "offset-in-transaction",
            Self::KeyParking => "key-parking",
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Guard {
    type Err = GuardError;

    fn from_str(name: &str) -> Result<Self, GuardError> {
        let guard = Self::ALL.into_iter().find(|guard| guard.name() == name);
        guard.ok_or_else(|| GuardError::Unknown { name: name.to_owned() })
    }
}

/// Whether the guard is on. Always, unless this is a build for checking the checks.
#[cfg(not(feature = "unguarded"))]
#[inline(always)]
pub const fn holds(_guard: Guard) -> bool {
    true
}

/// Turns guards off for the life of the process, as [`VARIABLE`] names them, and says which. The program calls it
/// before anything else.
#[cfg(not(feature = "unguarded"))]
pub fn turn_off_named(names: &str) -> Result<Vec<Guard>, GuardError> {
    if names.is_empty() { Ok(Vec::new()) } else { Err(GuardError::NotSwitchable) }
}

#[cfg(feature = "unguarded")]
pub use switches::{Without, holds, turn_off_named, without};

#[cfg(feature = "unguarded")]
mod switches {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::{Guard, GuardError};

    /// One bit per guard that is off, in this whole process.
    static OFF: AtomicU32 = AtomicU32::new(0);

    /// Keeps guards off until it is dropped.
    #[must_use = "the guards are on again when this is dropped"]
    #[derive(Debug)]
    pub struct Without(u32);

    /// Whether the guard is on.
    pub fn holds(guard: Guard) -> bool {
        OFF.load(Ordering::Relaxed) & bit(guard) == 0
    }

    /// Turns one guard off in this process, also for its other threads: tests that do so run one at a time, or each in
    /// a process of its own.
    pub fn without(guard: Guard) -> Without {
        tracing::warn!(%guard, "GUARD IS OFF: events can be lost or doubled");
        OFF.fetch_or(bit(guard), Ordering::Relaxed);
        Without(bit(guard))
    }

    /// Turns guards off for the life of the process, as [`super::VARIABLE`] names them, and says which. The program
    /// calls it before anything else.
    pub fn turn_off_named(names: &str) -> Result<Vec<Guard>, GuardError> {
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        let guards: Vec<Guard> = names.map(str::parse).collect::<Result<_, _>>()?;
        for guard in &guards {
            std::mem::forget(without(*guard));
        }
        Ok(guards)
    }

    fn bit(guard: Guard) -> u32 {
        1 << (guard as u32)
    }

    impl Drop for Without {
        fn drop(&mut self) {
            OFF.fetch_and(!self.0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

    use super::*;

    #[test]
    fn names_are_of_one_guard_each() {
        for guard in Guard::ALL {
            assert_eq!(guard.name().parse(), Ok(guard));
            let kebab: String = format!("{guard:?}")
                .chars()
                .flat_map(|letter| {
                    let dash = letter.is_ascii_uppercase().then_some('-');
                    dash.into_iter().chain([letter.to_ascii_lowercase()])
                })
                .collect();
            assert_eq!(kebab.trim_start_matches('-'), guard.name());
        }
        let unknown = "epoch".parse::<Guard>().unwrap_err().to_string();
        assert!(unknown.contains("\"epoch\"") && unknown.contains("sqlite-epoch"), "{unknown}");
    }

    #[cfg(not(feature = "unguarded"))]
    #[test]
    fn every_guard_holds_in_a_build_of_its_own() {
        const HOLDS: bool = holds(Guard::SequenceRule);
        const { assert!(HOLDS && !IS_SWITCHABLE) };
        assert_eq!(turn_off_named(""), Ok(Vec::new()));
        assert_eq!(turn_off_named("sequence-rule"), Err(GuardError::NotSwitchable));
    }

    #[cfg(feature = "unguarded")]
    #[test]
    fn guards_are_turned_off_one_by_one() {
        let off = without(Guard::RedisEpoch);
        assert!(Guard::ALL.into_iter().all(|guard| holds(guard) == (guard != Guard::RedisEpoch)));
        drop(off);
        assert!(Guard::ALL.into_iter().all(holds));
        turn_off_named("redis-epoch, nobody").unwrap_err();
        assert!(Guard::ALL.into_iter().all(holds));
        assert_eq!(turn_off_named(" command-id ,key-parking"), Ok(vec![Guard::CommandId, Guard::KeyParking]));
        assert!(!holds(Guard::CommandId) && !holds(Guard::KeyParking) && holds(Guard::RedisEpoch));
    }
}
