//! What events stand for beside their rows, when they come back into the event table from the log: the regions of
//! warehouses, the timers of reservations that are still open, and the outcomes of their commands, without which a
//! repeat would be decided again. A refusal that was told over HTTP alone is not in the log: a repeat of that command
//! is decided again, and has had no effect before.

use std::collections::HashMap;

use event_store::{RestoredOutcome, RestoredRows, StoredEvent, Topology};
use schemas::codec::decode_outcome;
use schemas::{Outcome, OutcomeKind, PositionToken, Reason, WriterSchema, decode_event};
use uuid::Uuid;

use crate::group::{claim_region, timer_change};

/// `events` in the order of their places. An error says which event does not read.
pub fn restored_rows(topology: Topology, events: Vec<StoredEvent>) -> Result<RestoredRows, String> {
    let mut rows = RestoredRows::default();
    let mut claimed = HashMap::new();
    let mut outcomes = HashMap::new();
    for stored in &events {
        let unreadable = |problem: String| format!("event {} of {}: {problem}", stored.id, stored.stream);
        let writer =
            WriterSchema::of(stored.schema).ok_or_else(|| unreadable(format!("{} is unknown", stored.schema)))?;
        if stored.stream.context().is_none() {
            // Comes after the events of its command, and says the same and more.
            let outcome = published_outcome(writer, stored).map_err(unreadable)?;
            outcomes.insert(outcome.id, outcome);
            continue;
        }
        if let Some(outcome) = outcome_of_cause(topology, stored) {
            outcomes.insert(outcome.id, outcome);
        }
        let event = decode_event(writer, &stored.body).map_err(|error| unreadable(error.to_string()))?;
        claim_region(&event, None, &mut claimed, &mut rows.claims);
        rows.timers.extend(timer_change(&stored.stream, stored.version, &event));
    }
    rows.outcomes = outcomes.into_values().collect();
    rows.outcomes.sort_by_key(|outcome| outcome.id);
    rows.events = events;
    Ok(rows)
}

/// The outcome of the command that an event came from, as it is when this is its last event.
fn outcome_of_cause(topology: Topology, stored: &StoredEvent) -> Option<RestoredOutcome> {
    let id = Uuid::parse_str(stored.causation_id.as_deref()?).ok()?;
    let outcome = Outcome {
        id,
        outcome: OutcomeKind::Accepted,
        position: Some(topology.token(stored.stream.context()?, &stored.key, stored.position)),
        stream: Some(stored.stream.to_string()),
        version: Some(stored.version),
        reason: None,
    };
    Some(RestoredOutcome { id, received_at: stored.time, outcome })
}

/// The outcome that a row of an outcome topic told. Its own id is that of the row in `commands`: the refusal of a
/// reused command id is kept beside the first outcome of that id.
fn published_outcome(writer: &WriterSchema, stored: &StoredEvent) -> Result<RestoredOutcome, String> {
    let body = decode_outcome(writer, &stored.body).map_err(|error| error.to_string())?;
    let position = body.position.map(|token| token.parse::<PositionToken>()).transpose();
    let outcome = Outcome {
        id: Uuid::parse_str(&body.command_id).map_err(|error| error.to_string())?,
        outcome: body.outcome,
        position: position.map_err(|error| error.to_string())?,
        stream: body.stream,
        version: body.version.map(|version| version as u64),
        reason: body.reason_code.map(|code| Reason { code, message: body.reason_message.unwrap_or_default() }),
    };
    Ok(RestoredOutcome { id: stored.id, received_at: stored.time, outcome })
}

#[cfg(test)]
mod tests {
    use event_store::{StreamId, TimerChange};
    use schemas::event::{StockChange, StockUpdated};
    use schemas::{Event, RegionId, ReservationId, Sku, StorePosition, WarehouseId, encode_event};
    use uuid::Uuid;

    use super::*;

    fn stored(version: u64, change: StockChange, reservation: Option<&str>, expires_at: Option<i64>) -> StoredEvent {
        let event = Event::StockUpdated(StockUpdated {
            sku: Sku::new("a").unwrap(),
            warehouse: WarehouseId::new("w").unwrap(),
            region: RegionId::new("north").unwrap(),
            change,
            quantity: 1,
            on_hand: 9,
            reserved: 1,
            reservation_id: reservation.map(|id| ReservationId::new(id).unwrap()),
            expires_at,
            reason: None,
        });
        let encoded = encode_event(&event).unwrap();
        StoredEvent {
            position: StorePosition { xid: 0, position: version },
            topic: "inventory.events".to_owned(),
            stream: StreamId::from_stored("stock-a@w".to_owned()),
            version,
            key: "a".to_owned(),
            id: Uuid::from_u128(u128::from(version)),
            schema: encoded.schema,
            body: encoded.body,
            time: 0,
            correlation_id: None,
            causation_id: None,
            actor: None,
            traceparent: None,
        }
    }

    #[test]
    fn regions_and_timers_of_open_reservations_come_back() {
        let rows = restored_rows(
            Topology { partitions: 4 },
            vec![
                stored(1, StockChange::Received, None, None),
                stored(2, StockChange::Reserved, Some("r1"), Some(100)),
                stored(3, StockChange::Reserved, Some("r2"), Some(200)),
                stored(4, StockChange::Shipped, Some("r1"), None),
            ],
        )
        .unwrap();
        assert_eq!(rows.events.len(), 4);
        assert_eq!(rows.claims.len(), 1);
        assert_eq!(rows.claims[0].region.as_str(), "north");
        let keys: Vec<(bool, &str)> = rows
            .timers
            .iter()
            .map(|change| match change {
                TimerChange::Set(timer) => (true, timer.key.as_str()),
                TimerChange::Clear { key } | TimerChange::ClearGiven { key, .. } => (false, key.as_str()),
            })
            .collect();
        assert_eq!(keys, [(true, "stock-a@w/r1"), (true, "stock-a@w/r2"), (false, "stock-a@w/r1")]);
    }
}
