//! What both adapters write for an outcome: the stored one with its position, and the row that publishes it.

use std::borrow::Cow;
use std::collections::HashMap;

use domain::StreamId;
use schemas::codec::{EncodedEvent, encode_outcome};
use schemas::{Outcome, OutcomeKind, PositionToken, StorePosition};
use uuid::Uuid;

use crate::error::EventStoreError;
use crate::store::{DecidedCommand, Topology};

/// Longest message of a refusal, in characters. It may repeat what a sender wrote, and JSON or Avro may double it: an
/// outcome that no broker takes would stop the relay for good.
const MAX_MESSAGE: usize = 1_000;

/// A message that is short enough for an outcome. Cut, it ends in an ellipsis.
pub fn bounded_message(message: &str) -> Cow<'_, str> {
    match message.char_indices().nth(MAX_MESSAGE) {
        None => Cow::Borrowed(message),
        Some((end, _)) => Cow::Owned(format!("{}…", &message[..end])),
    }
}

/// The newest position of each stream that a batch has written so far.
#[derive(Default)]
pub struct NewestPositions<'batch>(HashMap<&'batch StreamId, PositionToken>);

/// The outcome as it is stored and answered: with the position of the command's last event, or, accepted without one,
/// with the newest that an earlier command of the batch has written on its stream: only a read from there shows what
/// was asked.
pub fn positioned<'batch>(
    command: &'batch DecidedCommand,
    topology: Topology,
    last: Option<StorePosition>,
    newest: &mut NewestPositions<'batch>,
) -> Outcome {
    let mut outcome = command.outcome.clone();
    if let (Some(position), Some(event)) = (last, command.events.last()) {
        let token = topology.token(event.context, &event.key, position);
        newest.0.insert(&command.stream, token.clone());
        outcome.position = Some(token);
    } else if outcome.outcome == OutcomeKind::Accepted
        && let Some(token) = newest.0.get(&command.stream)
    {
        outcome.position = Some(token.clone());
    }
    outcome
}

/// The row that goes out on an outcome topic, for a command that came by a command topic.
pub fn published(command: &DecidedCommand, outcome: &Outcome) -> Result<EncodedEvent, EventStoreError> {
    let mut outcome = Cow::Borrowed(outcome);
    // Whoever decided has bounded it already; this is the last place before it cannot be taken back.
    if let Some(reason) = &outcome.reason
        && let Cow::Owned(message) = bounded_message(&reason.message)
        && let Some(reason) = &mut outcome.to_mut().reason
    {
        reason.message = message;
    }
    encode_outcome(&outcome, command.command_type.as_deref())
        .map_err(|error| EventStoreError::Permanent { problem: format!("outcome of {}: {error}", command.id) })
}

/// The outcome as a row of `commands` holds it.
pub fn outcome_text(id: Uuid, outcome: &Outcome) -> Result<String, EventStoreError> {
    serde_json::to_string(outcome)
        .map_err(|error| EventStoreError::Permanent { problem: format!("outcome of {id}: {error}") })
}

/// The digest in a row of `commands`: of no bytes where the outcome came back from the log.
pub fn stored_digest(bytes: &[u8]) -> Result<Option<[u8; 32]>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.try_into().map(Some).map_err(|_| format!("its digest has {} bytes", bytes.len()))
}
