//! How generations, checkpoints, rows and parked events are written in Redis: text, and numbers as decimals.

use std::str::FromStr;

use schemas::{RegionId, StorePosition};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::dead_letters::DiscardedEvent;
use crate::parked::{ParkedEvent, ParkedKey, ParkedPlace};
use crate::read_model::Generation;
use crate::stock::{NAME, StockRow};

/// `fold version:partitions`.
pub fn built(generation: &Generation) -> String {
    format!("{}:{}", generation.fold_version, generation.partitions)
}

/// In the place of how a generation is built, once it is retired: whoever would feed it finds that it cannot.
pub const RETIRED: &str = "retired";

pub fn generation(number: u32, built: &str) -> Option<Generation> {
    let (fold_version, partitions) = built.split_once(':')?;
    Some(Generation {
        name: NAME.to_owned(),
        number,
        fold_version: fold_version.parse().ok()?,
        partitions: partitions.parse().ok()?,
    })
}

/// In the order that the functions keep.
pub fn checkpoint_fields(checkpoint: &Checkpoint) -> [String; 5] {
    [
        checkpoint.sequence.to_string(),
        checkpoint.next_offset.to_string(),
        checkpoint.position.xid.to_string(),
        checkpoint.position.position.to_string(),
        checkpoint.event_time.to_string(),
    ]
}

pub fn checkpoint(fields: &[Option<String>]) -> Option<Checkpoint> {
    Some(Checkpoint {
        sequence: number(fields.first()?)?,
        next_offset: number(fields.get(1)?)?,
        position: StorePosition { xid: number(fields.get(2)?)?, position: number(fields.get(3)?)? },
        event_time: number(fields.get(4)?)?,
    })
}

pub fn number<N: FromStr>(field: &Option<String>) -> Option<N> {
    field.as_ref()?.parse().ok()
}

/// `region:on_hand:reserved:version`, and from fold 2 on `:updated_at`; no id holds a colon.
pub fn row(row: &StockRow) -> String {
    let text = format!("{}:{}:{}:{}", row.region.as_str(), row.on_hand, row.reserved, row.version);
    match row.updated_at {
        Some(updated_at) => format!("{text}:{updated_at}"),
        None => text,
    }
}

pub fn row_of(text: &str) -> Option<StockRow> {
    let mut fields = text.split(':');
    let row = StockRow {
        region: RegionId::new(fields.next()?).ok()?,
        on_hand: fields.next()?.parse().ok()?,
        reserved: fields.next()?.parse().ok()?,
        version: fields.next()?.parse().ok()?,
        updated_at: fields.next().map(str::parse).transpose().ok()?,
    };
    fields.next().is_none().then_some(row)
}

/// Place of a parked event in its partition: sorts as (sequence, offset) do.
pub fn place(place: ParkedPlace) -> String {
    format!("{:020}:{:020}", place.sequence, place.offset)
}

pub fn place_of(text: &str) -> Option<ParkedPlace> {
    let (sequence, offset) = text.split_once(':')?;
    Some(ParkedPlace { sequence: sequence.parse().ok()?, offset: offset.parse().ok()? })
}

/// All of a parked event but its value, which follows as it came: JSON would make four bytes of one.
#[derive(Serialize, Deserialize)]
struct ParkedHead {
    key: String,
    sequence: u64,
    offset: u64,
    position: StorePosition,
    headers: Vec<(String, String)>,
    reason: String,
    parked_at: i64,
}

/// One line of JSON, then the value.
pub fn parked(event: &ParkedEvent) -> serde_json::Result<Vec<u8>> {
    let head = ParkedHead {
        key: event.key.clone(),
        sequence: event.sequence,
        offset: event.offset,
        position: event.position,
        headers: event.headers.clone(),
        reason: event.reason.clone(),
        parked_at: event.parked_at,
    };
    let mut bytes = serde_json::to_vec(&head)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&event.value);
    Ok(bytes)
}

pub fn parked_of(bytes: &[u8]) -> Option<ParkedEvent> {
    // JSON on one line has no line feed: it would be escaped.
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let head: ParkedHead = serde_json::from_slice(&bytes[..end]).ok()?;
    Some(ParkedEvent {
        key: head.key,
        sequence: head.sequence,
        offset: head.offset,
        position: head.position,
        headers: head.headers,
        value: bytes[end + 1..].to_vec(),
        reason: head.reason,
        parked_at: head.parked_at,
    })
}

/// A key with its number of events, from the head of its first.
pub fn parked_key(key: &str, events: u64, head: &[u8]) -> Option<ParkedKey> {
    let head: ParkedHead = serde_json::from_slice(head).ok()?;
    let first = ParkedPlace { sequence: head.sequence, offset: head.offset };
    Some(ParkedKey { key: key.to_owned(), events, first, reason: head.reason, parked_at: head.parked_at })
}

/// One line of JSON, then the parked event.
pub fn discarded_of(bytes: &[u8]) -> Option<DiscardedEvent> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    Some(DiscardedEvent { note: serde_json::from_slice(&bytes[..end]).ok()?, event: parked_of(&bytes[end + 1..])? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_event_reads_back_whatever_bytes_it_has() {
        let event = ParkedEvent {
            key: "SKU-1".to_owned(),
            sequence: u64::MAX,
            offset: 7,
            position: StorePosition { xid: 1 << 60, position: 3 },
            headers: vec![("ce_id".to_owned(), "a\nb\"".to_owned())],
            value: vec![0, b'\n', b'{', 255, b'\n'],
            reason: "line\nfeed".to_owned(),
            parked_at: -1,
        };
        assert_eq!(parked_of(&parked(&event).unwrap()), Some(event));
    }

    #[test]
    fn places_sort_by_sequence_then_offset() {
        let place = |sequence, offset| super::place(ParkedPlace { sequence, offset });
        let mut places = vec![place(10, 1), place(9, 20), place(u64::MAX, 0), place(9, 3)];
        places.sort();
        assert_eq!(places, [place(9, 3), place(9, 20), place(10, 1), place(u64::MAX, 0)]);
        assert_eq!(place_of(&places[1]), Some(ParkedPlace { sequence: 9, offset: 20 }));
    }

    #[test]
    fn a_row_reads_back_and_a_damaged_one_does_not() {
        let region = RegionId::new("eu").unwrap();
        let stock = StockRow { region, on_hand: i64::MAX, reserved: -1, version: 9, updated_at: None };
        assert_eq!(row(&stock), "eu:9223372036854775807:-1:9", "rows of fold 1 are as they always were");
        assert_eq!(row_of(&row(&stock)), Some(stock.clone()));
        for updated_at in [Some(-1), Some(0), Some(1_700_000_000_000)] {
            let stock = StockRow { updated_at, ..stock.clone() };
            assert_eq!(row_of(&row(&stock)), Some(stock));
        }
        for damaged in
            ["", "eu", "eu:1:2", "eu:1:2:-3", "e u:1:2:3", "eu:1:2:3:", "eu:1:2:3:x", "eu:1:2:3:4:5", "eu:1:2:3:4:"]
        {
            assert_eq!(row_of(damaged), None, "{damaged}");
        }
    }
}
