//! Decisions on the generations of a read model, and the chain that shows that none of them was changed afterwards.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::read_model::Generation;

/// A decision on a read model's generations. Each names the hash of the one before: what was decided cannot be changed
/// afterwards without that being seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// 1, 2, 3 …
    pub number: u64,
    /// Milliseconds since 1970.
    pub at: i64,
    pub who: String,
    /// The name of an [`Action`]; a newer release may know others.
    pub action: String,
    /// `stock@2`.
    pub generation: String,
    pub reason: String,
    /// What it rests on: a parity report's sums, a trigger's figures.
    pub evidence: Value,
    /// Hash of the decision before; empty for the first.
    pub previous: String,
    /// SHA-256, in hex, of all of the above as JSON.
    pub hash: String,
}

/// What somebody decides; the chain is added when it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub at: i64,
    pub who: String,
    pub action: Action,
    pub generation: Generation,
    pub reason: String,
    pub evidence: Value,
}

/// What is decided on a generation. A decision has its name as text: stores, the topic and the hash keep what a release
/// wrote, also where the one that reads it does not know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Started,
    Verified,
    Approved,
    StageEntered,
    CutOver,
    RolledBack,
    Retired,
    Aborted,
    /// Keys were folded anew in what serves.
    Repaired,
    Removed,
    /// A process brought a lost catalogue back, with all decisions that it knew.
    RestoredAfterLoss,
}

/// A name that no action of this release has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no action of this release")]
pub struct UnknownAction(String);

/// Where a history was tampered with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("decision {number}: {problem}")]
pub struct BrokenChain {
    pub number: u64,
    pub problem: &'static str,
}

// === impl Decision ===

impl Decision {
    pub(super) fn chained(number: u64, previous: &str, verdict: Verdict) -> Self {
        let mut decision = Self {
            number,
            at: verdict.at,
            who: verdict.who,
            action: verdict.action.as_str().to_owned(),
            generation: verdict.generation.to_string(),
            reason: verdict.reason,
            evidence: verdict.evidence,
            previous: previous.to_owned(),
            hash: String::new(),
        };
        decision.hash = decision.own_hash();
        decision
    }

    /// What its hash must be.
    pub fn own_hash(&self) -> String {
        let unhashed = Decision { hash: String::new(), ..self.clone() };
        // A struct of texts and numbers always has a JSON form.
        let json = serde_json::to_vec(&unhashed).unwrap_or_default();
        Sha256::digest(&json).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The first decision that does not follow from the one before it, or says another thing than when it was made.
/// `Ok` where all do; `decisions` begins with the first one.
pub fn check_chain(decisions: &[Decision]) -> Result<(), BrokenChain> {
    check_chain_after(None, decisions)
}

/// [`check_chain`] of a part that begins behind `before`.
pub fn check_chain_after(before: Option<&Decision>, decisions: &[Decision]) -> Result<(), BrokenChain> {
    let mut previous = before.map(|before| before.hash.clone()).unwrap_or_default();
    for (expected, decision) in (before.map_or(0, |before| before.number) + 1..).zip(decisions) {
        let broken = |problem| Err(BrokenChain { number: expected, problem });
        if decision.number != expected {
            return broken("it is missing, or out of order");
        }
        if decision.previous != previous {
            return broken("it does not name the decision before it: one of the two was replaced");
        }
        if decision.hash != decision.own_hash() {
            return broken("it was changed after it was made");
        }
        previous.clone_from(&decision.hash);
    }
    Ok(())
}

// === impl Action ===

impl Action {
    /// All of them: a name that none of these has is read as unknown.
    pub(super) const ALL: [Self; 11] = [
        Self::Started,
        Self::Verified,
        Self::Approved,
        Self::StageEntered,
        Self::CutOver,
        Self::RolledBack,
        Self::Retired,
        Self::Aborted,
        Self::Repaired,
        Self::Removed,
        Self::RestoredAfterLoss,
    ];

    /// As decisions are written, hashed and published: a name never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Verified => "verified",
            Self::Approved => "approved",
            Self::StageEntered => "stage_entered",
            Self::CutOver => "cut_over",
            Self::RolledBack => "rolled_back",
            Self::Retired => "retired",
            Self::Aborted => "aborted",
            Self::Repaired => "repaired",
            Self::Removed => "removed",
            Self::RestoredAfterLoss => "restored_after_loss",
        }
    }
}

impl FromStr for Action {
    type Err = UnknownAction;

    fn from_str(name: &str) -> Result<Self, UnknownAction> {
        let known = Self::ALL.into_iter().find(|action| action.as_str() == name);
        known.ok_or_else(|| UnknownAction(name.to_owned()))
    }
}
