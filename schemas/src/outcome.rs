//! What became of a command: the answer to its sender, kept with its id and given again to a repeat.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::position::PositionToken;

/// The answer to one command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// Id of the command; nil where none could be read.
    pub id: Uuid,
    pub outcome: OutcomeKind,
    /// Give it to a read that must see this write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "inventory-7-812.4021")]
    pub position: Option<PositionToken>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Version of the stream after the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutcomeKind {
    /// Its events are committed.
    Accepted,
    /// A rule of the aggregate refused it; it has no event.
    Rejected,
    /// It could not be read, or its id was used for another body.
    Invalid,
    /// It was not decided; give it again under the same id.
    Failed,
}

/// Why a command was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// For programs: `insufficient_stock`, `unknown_field` …
    pub code: String,
    /// For people, with the numbers.
    pub message: String,
}

// === impl Outcome ===

impl Outcome {
    /// An outcome that is not accepted.
    pub fn refused(id: Uuid, outcome: OutcomeKind, code: &str, message: impl Into<String>) -> Self {
        Self {
            id,
            outcome,
            position: None,
            stream: None,
            version: None,
            reason: Some(Reason { code: code.to_owned(), message: message.into() }),
        }
    }
}

// === impl OutcomeKind ===

impl OutcomeKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            OutcomeKind::Accepted => "accepted",
            OutcomeKind::Rejected => "rejected",
            OutcomeKind::Invalid => "invalid",
            OutcomeKind::Failed => "failed",
        }
    }
}
