//! What events stand for beside their rows, when they come back into the event table from the log: the regions of
//! warehouses, and the timers of reservations that are still open.

use std::collections::HashMap;

use event_store::{RestoredRows, StoredEvent};
use schemas::{WriterSchema, decode_event};

use crate::group::{claim_region, timer_change};

/// `events` in the order of their places. An error says which event does not read.
pub fn restored_rows(events: Vec<StoredEvent>) -> Result<RestoredRows, String> {
    let mut rows = RestoredRows::default();
    let mut claimed = HashMap::new();
    for stored in &events {
        // An outcome changes nothing.
        if stored.stream.context().is_none() {
            continue;
        }
        let unreadable = |problem: String| format!("event {} of {}: {problem}", stored.id, stored.stream);
        let writer =
            WriterSchema::of(stored.schema).ok_or_else(|| unreadable(format!("{} is unknown", stored.schema)))?;
        let event = decode_event(writer, &stored.body).map_err(|error| unreadable(error.to_string()))?;
        claim_region(&event, None, &mut claimed, &mut rows.claims);
        rows.timers.extend(timer_change(&stored.stream, stored.version, &event));
    }
    rows.events = events;
    Ok(rows)
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
        let rows = restored_rows(vec![
            stored(1, StockChange::Received, None, None),
            stored(2, StockChange::Reserved, Some("r1"), Some(100)),
            stored(3, StockChange::Reserved, Some("r2"), Some(200)),
            stored(4, StockChange::Shipped, Some("r1"), None),
        ])
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
