//! The catalogue of a read model: which generations there are, which one answers what, and who decided so.
//!
//! It is one small document, changed by compare-and-set only, and every change carries the decisions that made it: both
//! are written as one, so that the pointer never moves without a trace, and never half. Readers look at it with each
//! read. The store of the rows keeps it: switching back needs nothing but that store.

mod decisions;
pub mod fields;
pub mod meant;

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use schemas::{PositionToken, RegionId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use self::decisions::{Action, BrokenChain, Decision, UnknownAction, Verdict, check_chain, check_chain_after};
use self::meant::MeantDifference;
use crate::error::ReadModelError;
use crate::process_report::ProcessReport;
use crate::read_model::Generation;

/// All that is known of the generations of one read model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Catalogue {
    /// Names this catalogue: it is another one after its store was wiped.
    pub id: Uuid,
    /// Raised by one with each change; 0 while none is stored.
    pub version: u64,
    /// Answers what no stage gives to the candidate.
    pub serving: u32,
    /// Served before, and still fed: what a rollback goes back to.
    pub previous: Option<u32>,
    /// The generation that is being cut over to.
    pub candidate: Option<Candidate>,
    /// Also those that are gone: a number is never used again.
    pub generations: BTreeMap<u32, GenerationEntry>,
    /// Number of the last decision; 0 before the first.
    pub decisions: u64,
    /// Hash of the last decision; empty before the first.
    pub last_hash: String,
}

/// One generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationEntry {
    /// Version of the fold that builds it.
    pub fold_version: u32,
    /// Partitions of each event topic.
    pub partitions: u32,
    pub state: GenerationState,
    /// Where it stands still for good: what the read model was then.
    pub until: Option<Until>,
    /// Where its events come from.
    #[serde(default)]
    pub source: Source,
    /// What the replay that builds it keeps of itself. Read models carry it and do not look into it.
    #[serde(default)]
    pub replay: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationState {
    /// Projectors feed it: the one that serves, one that is built, the one before.
    Fed,
    /// Nobody feeds or answers from it any more; its rows are being removed.
    Retired,
    /// Nothing is left of it but this entry.
    Removed,
}

/// Where a generation of the past stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// In each partition before the first event of a later time, in milliseconds since 1970.
    Time(i64),
    /// In each partition at the position that the token names; before everything where it names none.
    Position(#[serde(with = "token_text")] PositionToken),
}

/// Where the events of a generation come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The topics, from their first record on.
    #[default]
    Log,
    /// The event table up to where the topics begin, since retention has passed; then the topics.
    EventTable,
}

/// A generation on its way to serving.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub generation: u32,
    /// What is answered from it.
    pub share: Share,
    /// Percent of the other requests that are read from it too, for comparison; nobody is answered from these.
    pub mirror_percent: u8,
    /// Differences that are meant: mirrored answers may have them.
    #[serde(default, alias = "excused_fields")]
    pub meant: Vec<MeantDifference>,
    /// Version of the catalogue that began its stage: mirrored reads are counted from there.
    #[serde(default)]
    pub since: u64,
}

/// Which requests are answered from the candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    None,
    /// By a stable hash of what the request is for: the same SKU is always answered from the same generation.
    Percent(u8),
    /// Requests for one of these regions.
    Regions(Vec<RegionId>),
}

/// What a request is for, as far as it matters for the choice of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadChoice {
    /// A generation that the caller wants to see, whatever serves.
    pub generation: Option<u32>,
    /// What the stable hash is of: a SKU, the first one of a list, the text of a search.
    pub key: String,
    pub region: Option<RegionId>,
}

/// Where a read model's catalogue is kept.
#[async_trait]
pub trait Generations: Send + Sync {
    /// `stock` or `search`.
    fn name(&self) -> &'static str;

    /// The catalogue as it stands. Where none is stored: version 0, and the generation that is there, if any, serves.
    async fn catalogue(&self) -> Result<Catalogue, ReadModelError>;

    /// Writes the next version of the catalogue: [`Self::replace`] of the version before it.
    async fn change(&self, to: &Catalogue, decisions: &[Decision]) -> Result<(), ReadModelError> {
        self.replace(to.version.saturating_sub(1), to, decisions).await
    }

    /// Writes the catalogue and its new decisions as one, or nothing. Refused with
    /// [`ReadModelError::CatalogueMoved`] unless version `found` of it is stored; 0 where none is.
    async fn replace(&self, found: u64, to: &Catalogue, decisions: &[Decision]) -> Result<(), ReadModelError>;

    /// Decisions in order, from the one after `after`; about `limit` of them.
    async fn decisions(&self, after: u64, limit: usize) -> Result<Vec<Decision>, ReadModelError>;

    /// Number of the last decision that is known to be on `platform.commands`.
    async fn published_decisions(&self) -> Result<u64, ReadModelError>;

    /// Notes that decisions up to `number` are published. Only ever grows.
    async fn note_published(&self, number: u64) -> Result<(), ReadModelError>;

    /// Removes about `limit` rows of a retired generation, or what else is left of it. `false` once nothing is left.
    async fn remove_some(&self, generation: u32, limit: usize) -> Result<bool, ReadModelError>;

    /// Replaces the report of a process.
    async fn note_report(&self, report: &ProcessReport) -> Result<(), ReadModelError>;

    /// The reports that are at most `max_age_ms` old at `now`, in milliseconds since 1970. What lies ahead is of late while
    /// it goes on changing, or lies ahead by no more: see [`is_of_late`](crate::process_report::is_of_late).
    async fn reports(&self, now: i64, max_age_ms: i64) -> Result<Vec<ProcessReport>, ReadModelError>;
}

// === impl Catalogue ===

impl Catalogue {
    /// Of a store that has no catalogue: what it was built as serves, if anything.
    pub fn of_built(built: Option<&Generation>) -> Self {
        let serving = built.map_or(1, |generation| generation.number);
        let entry = built.map(|generation| (serving, GenerationEntry::fed(generation)));
        Self {
            id: Uuid::nil(),
            version: 0,
            serving,
            previous: None,
            candidate: None,
            generations: entry.into_iter().collect(),
            decisions: 0,
            last_hash: String::new(),
        }
    }

    /// The generation that answers a request; [`ReadModelError::UnknownGeneration`] where the one that is asked for is
    /// not there, or not any more.
    pub fn choose(&self, name: &str, choice: &ReadChoice) -> Result<u32, ReadModelError> {
        if let Some(wanted) = choice.generation {
            if self.fed_entry(wanted).is_some() || (self.generations.is_empty() && wanted == self.serving) {
                return Ok(wanted);
            }
            let there = self.fed().map(|number| format!("{name}@{number}")).collect::<Vec<_>>().join(", ");
            return Err(ReadModelError::UnknownGeneration { name: name.to_owned(), wanted, there });
        }
        match &self.candidate {
            Some(candidate) if candidate.share.takes(choice) => Ok(candidate.generation),
            _ => Ok(self.serving),
        }
    }

    /// Numbers of the generations that are fed.
    pub fn fed(&self) -> impl Iterator<Item = u32> + '_ {
        let is_fed = |entry: &GenerationEntry| entry.state == GenerationState::Fed;
        self.generations.iter().filter(move |(_, entry)| is_fed(entry)).map(|(number, _)| *number)
    }

    /// The generation of that number, while it is fed.
    pub fn fed_entry(&self, number: u32) -> Option<&GenerationEntry> {
        self.generations.get(&number).filter(|entry| entry.state == GenerationState::Fed)
    }

    /// The number that a new generation gets.
    pub fn next_number(&self) -> u32 {
        self.generations.keys().next_back().copied().unwrap_or(0).max(self.serving) + 1
    }

    /// The generation of a number, as projectors build it.
    pub fn generation(&self, name: &str, number: u32) -> Option<Generation> {
        self.generations.get(&number).map(|entry| Generation {
            name: name.to_owned(),
            number,
            fold_version: entry.fold_version,
            partitions: entry.partitions,
        })
    }

    /// The next version of this catalogue, and the decisions that lead to it, chained to those before.
    pub fn decided(&self, mut to: Catalogue, verdicts: Vec<Verdict>) -> (Catalogue, Vec<Decision>) {
        to.version = self.version + 1;
        if to.id.is_nil() {
            to.id = Uuid::new_v4();
        }
        let mut decisions = Vec::new();
        for verdict in verdicts {
            let decision = Decision::chained(self.decisions + 1 + decisions.len() as u64, &to.last_hash, verdict);
            to.last_hash.clone_from(&decision.hash);
            to.decisions = decision.number;
            decisions.push(decision);
        }
        (to, decisions)
    }
}

// === impl GenerationEntry ===

impl GenerationEntry {
    /// One that follows the log.
    pub fn fed(generation: &Generation) -> Self {
        Self {
            fold_version: generation.fold_version,
            partitions: generation.partitions,
            state: GenerationState::Fed,
            until: None,
            source: Source::Log,
            replay: Value::Null,
        }
    }
}

// === impl Share ===

impl Share {
    fn takes(&self, choice: &ReadChoice) -> bool {
        match self {
            Share::None => false,
            Share::Percent(percent) => hundredth(&choice.key) < *percent,
            Share::Regions(regions) => choice.region.as_ref().is_some_and(|region| regions.contains(region)),
        }
    }
}

/// 0 to 99, the same in every process and version, and independent of the partition of a key.
pub fn hundredth(key: &str) -> u8 {
    let digest = Sha256::digest(key.as_bytes());
    let first = digest.iter().take(8).fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
    (first % 100) as u8
}

// === impl Until ===

impl fmt::Display for Until {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Until::Time(time) => write!(formatter, "time {time}"),
            Until::Position(token) => write!(formatter, "position {token}"),
        }
    }
}

mod token_text {
    use schemas::PositionToken;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(token: &PositionToken, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(token)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PositionToken, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
