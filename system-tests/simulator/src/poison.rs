//! Poison: events that a projector cannot decode, or cannot fold. Which ones follows from the seed and the event's id, so
//! that a relay that publishes an event again publishes the same poison.
//!
//! Only what the relay reads is spoiled: the command side must go on deciding on the events as they are.

use event_store::StoredEvent;
use schemas::{Event, WriterSchema, decode_event, encode_event};

use crate::world::{World, mixed};

/// Of so many events of a seed that has poison, one is.
const ONE_IN: u64 = 25;

pub(crate) fn poisoned(world: &World, mut row: StoredEvent) -> StoredEvent {
    let seed = world.plan().seed;
    if world.is_quiet() || !mixed(seed, "poison", 0).is_multiple_of(3) || !row.topic.ends_with(".events") {
        return row;
    }
    let (high, low) = row.id.as_u64_pair();
    let dice = mixed(seed, "poison", high ^ low);
    if !dice.is_multiple_of(ONE_IN) {
        return row;
    }
    if (dice / ONE_IN).is_multiple_of(2) {
        row.body.truncate(row.body.len() / 2);
        return row;
    }
    let event = WriterSchema::of(row.schema).and_then(|writer| decode_event(writer, &row.body).ok());
    if let Some(Event::StockUpdated(mut event)) = event {
        event.reserved = event.on_hand + 1;
        if let Ok(encoded) = encode_event(&Event::StockUpdated(event)) {
            row.body = encoded.body;
        }
    }
    row
}
