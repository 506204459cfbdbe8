//! Outcomes that refuse. Their messages repeat what senders wrote, so each is bounded here.

use event_store::bounded_message;
use schemas::{Outcome, OutcomeKind};
use uuid::Uuid;

pub(crate) fn refused(id: Uuid, outcome: OutcomeKind, code: &str, message: &str) -> Outcome {
    Outcome::refused(id, outcome, code, bounded_message(message))
}
