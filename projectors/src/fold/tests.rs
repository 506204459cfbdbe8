use std::collections::HashSet;

use event_log::{Headers, TopicPartition};
use proptest::prelude::*;
use read_models::stock::{StockKey, StockRow};
use schemas::event::{StockChange, StockUpdated};
use schemas::{RegionId, Sku, StorePosition, WarehouseId};

use super::*;
use crate::error::FoldError;
use crate::stock::StockProjection;

pub(crate) fn stock_updated(sku: &str, warehouse: &str, on_hand: i64, reserved: i64) -> Event {
    Event::StockUpdated(StockUpdated {
        sku: Sku::new(sku).unwrap(),
        warehouse: WarehouseId::new(warehouse).unwrap(),
        region: RegionId::new("eu").unwrap(),
        change: StockChange::Counted,
        quantity: on_hand,
        on_hand,
        reserved,
        reservation_id: None,
        expires_at: None,
        reason: None,
    })
}

fn record(offset: u64) -> Record {
    Record {
        at: TopicPartition::new("inventory.events", 0),
        offset,
        key: Default::default(),
        headers: Headers::default(),
        value: vec![offset as u8].into(),
        timestamp: 0,
    }
}

fn read(sku: &str, sequence: u64, version: u64, event: Result<Event, String>) -> Read {
    let envelope = EventEnvelope {
        id: uuid::Uuid::from_u128(u128::from(sequence)),
        source: String::new(),
        event_type: String::new(),
        time: sequence as i64,
        subject: format!("stock-{sku}@w"),
        partition_key: sku.to_owned(),
        sequence,
        stream_version: version,
        position: StorePosition { xid: 0, position: sequence },
        correlation_id: None,
        causation_id: None,
        traceparent: None,
    };
    Read::Event { envelope, event }
}

fn none(_: &StockKey) -> Option<&'static StockRow> {
    None
}

#[test]
fn events_of_one_key_become_one_write() {
    let mut fold = Fold::<StockProjection>::new(1, Checkpoint::default());
    for sequence in 1..=5 {
        let event = stock_updated("A", "w", sequence as i64, 0);
        fold.take(&record(sequence - 1), read("A", sequence, sequence, Ok(event)), &HashSet::new(), none, 0);
    }
    assert_eq!(fold.changes.len(), 1);
    assert_eq!(fold.changes.values().next().unwrap().on_hand, 5);
    assert_eq!((fold.checkpoint.sequence, fold.checkpoint.next_offset, fold.applied), (5, 5, 5));
}

#[test]
fn a_republished_event_moves_the_offset_and_nothing_else() {
    let mut fold = Fold::<StockProjection>::new(1, Checkpoint { sequence: 3, next_offset: 3, ..Checkpoint::default() });
    fold.take(&record(9), read("A", 2, 2, Ok(stock_updated("A", "w", 7, 0))), &HashSet::new(), none, 0);
    assert!(fold.changes.is_empty());
    assert_eq!((fold.checkpoint.sequence, fold.checkpoint.next_offset, fold.duplicates), (3, 10, 1));
}

#[test]
fn poison_parks_its_key_in_order_and_the_others_go_on() {
    let mut fold = Fold::<StockProjection>::new(1, Checkpoint::default());
    let events = [
        read("A", 1, 1, Ok(stock_updated("A", "w", 1, 0))),
        read("A", 2, 2, Err("body does not fit".to_owned())),
        read("B", 3, 1, Ok(stock_updated("B", "w", 2, 0))),
        read("A", 4, 3, Ok(stock_updated("A", "w", 3, 0))),
    ];
    for (offset, read) in events.into_iter().enumerate() {
        fold.take(&record(offset as u64), read, &HashSet::new(), none, 77);
    }
    let parked: Vec<(u64, &str, &str)> =
        fold.parked.iter().map(|event| (event.sequence, event.key.as_str(), event.reason.as_str())).collect();
    assert_eq!(parked, [(2, "A", "body does not fit"), (4, "A", BEHIND)]);
    assert_eq!(fold.parked[1].value, [3]);
    // A stays at its last good state.
    let key = |sku: &str| StockKey { sku: Sku::new(sku).unwrap(), warehouse: WarehouseId::new("w").unwrap() };
    assert_eq!(fold.changes[&key("A")].on_hand, 1);
    assert_eq!(fold.changes[&key("B")].on_hand, 2);
    assert_eq!(fold.checkpoint.sequence, 4);
}

#[test]
fn a_key_that_was_parked_before_stays_parked() {
    let mut fold = Fold::<StockProjection>::new(1, Checkpoint::default());
    let parked = HashSet::from(["A".to_owned()]);
    fold.take(&record(0), read("A", 1, 1, Ok(stock_updated("A", "w", 1, 0))), &parked, none, 0);
    assert!(fold.changes.is_empty());
    assert_eq!(fold.parked.len(), 1);
}

#[test]
fn a_foreign_record_parks_no_key() {
    let mut fold = Fold::<StockProjection>::new(1, Checkpoint::default());
    fold.take(&record(0), Read::Foreign { why: "header ce_id is missing".to_owned() }, &HashSet::new(), none, 0);
    fold.take(&record(1), read("A", 1, 1, Ok(stock_updated("A", "w", 1, 0))), &HashSet::new(), none, 0);
    assert_eq!((fold.foreign, fold.applied, fold.checkpoint.next_offset), (1, 1, 2));
    assert_eq!(fold.parked[0].key, FOREIGN_KEY);
}

#[test]
fn records_of_nobody_are_kept_up_to_a_bound_and_cut() {
    let mut fold = Fold::<StockProjection>::new(1, Checkpoint::default());
    fold.foreign_room = 2;
    for offset in 0..5 {
        let mut hostile = record(offset);
        hostile.value = vec![7; 1 << 20].into();
        hostile.headers = [("a", "b".repeat(1 << 16)), ("c", "d".to_owned())].into_iter().collect();
        fold.take(&hostile, Read::Foreign { why: "no".to_owned() }, &HashSet::new(), none, 0);
    }
    assert_eq!((fold.parked.len(), fold.foreign, fold.foreign_dropped, fold.foreign_room), (2, 5, 3, 0));
    assert_eq!(fold.parked[1].value.len(), FOREIGN_BYTES);
    assert_eq!(fold.parked[1].headers, [("c".to_owned(), "d".to_owned())]);
    // What is not kept is read past all the same.
    assert_eq!(fold.checkpoint.next_offset, 5);
}

/// Stock whose fold has a mistake that shows with one count.
struct Panicking;

impl Projection for Panicking {
    type Key = StockKey;
    type Row = StockRow;

    const NAME: &'static str = StockProjection::NAME;
    const FOLDS: &'static [u32] = StockProjection::FOLDS;
    const CURRENT_FOLD: u32 = StockProjection::CURRENT_FOLD;
    const CONTEXTS: &'static [schemas::Context] = StockProjection::CONTEXTS;

    fn key(event: &Event) -> Option<StockKey> {
        StockProjection::key(event)
    }

    fn project(fold: u32, row: Option<&StockRow>, event: &Event, facts: Facts) -> Result<Option<StockRow>, FoldError> {
        let folded = StockProjection::project(fold, row, event, facts)?;
        assert!(folded.as_ref().is_none_or(|row| row.on_hand != 13), "unlucky");
        Ok(folded)
    }
}

#[test]
fn an_event_at_which_the_fold_panics_is_poison_for_its_key_alone() {
    let mut fold = Fold::<Panicking>::new(1, Checkpoint::default());
    let events = [("A", 1, 5), ("B", 1, 6), ("A", 2, 13), ("B", 2, 7), ("A", 3, 8)];
    for (offset, (sku, version, on_hand)) in events.into_iter().enumerate() {
        let read = read(sku, offset as u64 + 1, version, Ok(stock_updated(sku, "w", on_hand, 0)));
        fold.take(&record(offset as u64), read, &HashSet::new(), none, 0);
    }
    let reasons: Vec<_> = fold.parked.iter().map(|parked| (parked.key.as_str(), parked.reason.as_str())).collect();
    assert_eq!(reasons, [("A", "the fold panicked: unlucky"), ("A", BEHIND)]);
    let mut rows: Vec<_> = fold.changes.iter().map(|(key, row)| (key.sku.as_str(), row.on_hand)).collect();
    rows.sort();
    assert_eq!(rows, [("A", 5), ("B", 7)]);
    assert_eq!(fold.checkpoint.sequence, 5);
}

proptest! {
    /// P2 for the fold alone: however the events are cut into batches, and whatever is delivered twice, the rows are
    /// those of the events in their order.
    #[test]
    fn any_batching_with_any_duplicates_gives_the_same_rows(
        stock in prop::collection::vec((0_u8..4, 0_i64..50), 1..60),
        cuts in prop::collection::vec(1_usize..9, 1..30),
        again in prop::collection::vec(0_usize..60, 0..20),
    ) {
        let mut versions = [0_u64; 4];
        let mut events = Vec::new();
        for (index, (sku, on_hand)) in stock.iter().enumerate() {
            versions[usize::from(*sku)] += 1;
            events.push((format!("S{sku}"), index as u64 + 1, versions[usize::from(*sku)], *on_hand));
        }
        let mut delivered: Vec<_> = Vec::new();
        for (index, event) in events.iter().enumerate() {
            delivered.push(event.clone());
            // A relay that starts again repeats from an earlier place.
            if let Some(from) = again.get(index).filter(|from| **from <= index) {
                delivered.extend(events[*from..=index].iter().cloned());
            }
        }
        let mut expected = std::collections::HashMap::new();
        for (sku, _, version, on_hand) in &events {
            expected.insert(sku.clone(), (*version, *on_hand));
        }

        let mut rows: std::collections::HashMap<StockKey, StockRow> = Default::default();
        let mut checkpoint = Checkpoint::default();
        let mut offset = 0;
        let mut cuts = cuts.iter().cycle();
        let mut rest = delivered.as_slice();
        while !rest.is_empty() {
            let (batch, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            let mut fold = Fold::<StockProjection>::new(1, checkpoint);
            for (sku, sequence, version, on_hand) in batch {
                let event = stock_updated(sku, "w", *on_hand, 0);
                fold.take(&record(offset), read(sku, *sequence, *version, Ok(event)), &HashSet::new(), |key| rows.get(key), 0);
                offset += 1;
            }
            checkpoint = fold.checkpoint;
            let changes = fold.changes;
            rows.extend(changes);
            rest = later;
        }
        let found: std::collections::HashMap<String, (u64, i64)> =
            rows.into_iter().map(|(key, row)| (key.sku.to_string(), (row.version, row.on_hand))).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(checkpoint.sequence, events.len() as u64);
        prop_assert_eq!(checkpoint.next_offset, delivered.len() as u64);
    }
}
