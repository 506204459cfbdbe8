//! Commands of the platform: what Millrace records of its own operation.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::check::{Check, MAX_DESCRIPTION, MAX_EVIDENCE, MAX_TEXT};
use super::{CommandError, instant};
use crate::id::{ProjectionId, is_id, uuid_text};

data!(
    /// Record a decision on the generations of a read model, at its place in the chain.
    RecordDecision {
        projection: ProjectionId,
        /// Which store of that read model: each has a catalogue, and a chain of decisions, of its own.
        #[serde(with = "uuid_text")] catalogue_id: Uuid,
        /// 1, 2, 3 … in that catalogue.
        number: i64,
        /// Milliseconds since 1970, or RFC 3339 in JSON.
        #[serde(deserialize_with = "instant::deserialize")] at: i64,
        who: String,
        /// Such as `started`, `approved`, `cut_over`, `rolled_back`.
        action: String,
        /// What it was decided on, such as `stock@2`.
        generation: String,
        /// May be empty.
        reason: String,
        /// What it rests on, as JSON text.
        evidence: String,
        /// SHA-256 of the decision before, 64 lower-case hex digits; empty for the first.
        previous: String,
        /// SHA-256 of this decision, 64 lower-case hex digits.
        hash: String,
    }
);

// === impl RecordDecision ===

impl RecordDecision {
    pub(super) fn check(&self, check: Check) -> Result<(), CommandError> {
        check.number("number", self.number, 1)?;
        check.text("who", &self.who, MAX_TEXT)?;
        if !is_id(&self.action) {
            return Err(check.refused("action", "is not 1 to 64 of the characters A-Z a-z 0-9 . _ -".to_owned()));
        }
        if !is_generation_of(&self.generation, &self.projection) {
            let projection = &self.projection;
            let problem = format!("is not a generation of {projection}, such as {projection}@2");
            return Err(check.refused("generation", problem));
        }
        if !self.reason.is_empty() {
            check.text("reason", &self.reason, MAX_DESCRIPTION)?;
        }
        // Which characters it may have is JSON's own rule.
        check.length("evidence", &self.evidence, MAX_EVIDENCE)?;
        if let Err(error) = serde_json::from_str::<IgnoredAny>(&self.evidence) {
            return Err(check.refused("evidence", format!("is not JSON: {error}")));
        }
        if !self.previous.is_empty() {
            check.hash("previous", &self.previous)?;
        }
        check.hash("hash", &self.hash)
    }
}

/// Whether a text is `<projection>@<number>`, the number being 1 or more.
fn is_generation_of(generation: &str, projection: &ProjectionId) -> bool {
    let number = generation.strip_prefix(projection.as_str()).and_then(|rest| rest.strip_prefix('@'));
    // `parse` alone would take a sign.
    let digits = number.filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse::<u32>().ok()).is_some_and(|number| number > 0)
}
