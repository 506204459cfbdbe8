//! What both adapters write for an outcome: the stored one with its position, and the row that publishes it.

use schemas::codec::{EncodedEvent, encode_outcome};
use schemas::{Outcome, PositionToken, StorePosition, partition_of};

use crate::error::EventStoreError;
use crate::store::{DecidedCommand, Topology};

/// The outcome as it is stored: with the position of the command's last event, where it has events.
pub(crate) fn positioned(command: &DecidedCommand, topology: Topology, last: Option<StorePosition>) -> Outcome {
    let mut outcome = command.outcome.clone();
    if let (Some(position), Some(event)) = (last, command.events.last()) {
        let partition = partition_of(event.key.as_bytes(), topology.partitions);
        outcome.position = Some(PositionToken::of(event.context, partition, position));
    }
    outcome
}

/// The row that goes out on an outcome topic, for a command that came by a command topic.
pub(crate) fn published(command: &DecidedCommand, outcome: &Outcome) -> Result<EncodedEvent, EventStoreError> {
    encode_outcome(outcome, command.command_type.as_deref())
        .map_err(|error| EventStoreError::Permanent { problem: format!("outcome of {}: {error}", command.id) })
}

/// Stream of the row that publishes an outcome; its only version is 1.
pub(crate) fn published_stream(command: &DecidedCommand) -> String {
    format!("outcome-{}", command.id)
}
