//! What an operation on a replay comes to: what was done and what can be done next, or what is missing.

use serde::Serialize;
use utoipa::ToSchema;

use crate::gates::Missing;

/// A refusal is an answer, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ReplayOutcome)] // a command's is `Outcome` in the same document
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done(Done),
    Refused(Refused),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Done {
    /// `stock@2`.
    pub generation: String,
    pub number: u32,
    /// The decision's.
    pub action: &'static str,
    /// In a sentence.
    pub done: String,
    pub reversal: Reversal,
    pub next: Vec<NextStep>,
    /// Of the catalogue, with this in it.
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Refused {
    pub missing: Vec<Missing>,
}

/// What may be done next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NextStep {
    /// `cutover stock`: behind `millrace replay`.
    pub command: String,
    /// What it would do.
    pub effect: String,
    pub reversal: Reversal,
}

/// Whether a step can be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub enum Reversal {
    #[serde(rename = "reversible")]
    Reversible,
    /// Nothing leads back: what is wrong is mended, and another replay started.
    #[serde(rename = "forward-fix only")]
    ForwardFixOnly,
}

// === impl Outcome ===

impl Outcome {
    /// What was done; `None` where it was refused.
    pub fn done(&self) -> Option<&Done> {
        match self {
            Outcome::Done(done) => Some(done),
            Outcome::Refused(_) => None,
        }
    }

    /// What is missing; nothing where it was done.
    pub fn missing(&self) -> &[Missing] {
        match self {
            Outcome::Done(_) => &[],
            Outcome::Refused(refused) => &refused.missing,
        }
    }
}

// === impl NextStep ===

impl NextStep {
    pub(crate) fn new(command: String, effect: impl Into<String>, reversal: Reversal) -> Self {
        Self { command, effect: effect.into(), reversal }
    }
}

// === impl Reversal ===

impl Reversal {
    pub const fn as_str(self) -> &'static str {
        match self {
            Reversal::Reversible => "reversible",
            Reversal::ForwardFixOnly => "forward-fix only",
        }
    }
}
