//! What the relay needs: the committed order, the lease, the cursor, the lag.

use std::collections::HashMap;
use std::time::Duration;

use event_store::{
    EventStore, EventStoreError, LoadRequest, MOST_COUNTED, RelayCursor, RestoredOutcome, RestoredRows, StoredEvent,
    StoredOutcome, StreamId,
};
use schemas::{Outcome, OutcomeKind, StorePosition};

use super::{DEADLINE, Fixture, NOW, batch, committed_when, conflict_of, set_prices};

pub async fn committed_rows_are_read_in_pages(fixture: &Fixture) {
    let store = fixture.started().await;
    for number in 0..7 {
        store.append(&batch(vec![set_prices(&format!("sku-{number}"), 0, &[number])])).await.unwrap();
    }
    let all = committed_when(&*store, 7).await;
    assert!(all.is_sorted_by_key(|row| row.position));

    let first = store.read_committed(StorePosition::default(), 3).await.unwrap();
    let second = store.read_committed(first[2].position, 3).await.unwrap();
    let third = store.read_committed(second[2].position, 3).await.unwrap();
    assert_eq!([first, second, third.clone()].concat(), all);
    assert_eq!(store.read_committed(third[0].position, 3).await.unwrap(), []);
}

pub async fn a_second_relay_waits_and_a_zombie_is_refused(fixture: &Fixture) {
    let (leader, standby) = (fixture.started().await, fixture.open().await);
    let lease = leader.lease_relay().await.unwrap();
    leader.append(&batch(vec![set_prices("a", 0, &[1])])).await.unwrap();
    let position = committed_when(&*leader, 1).await[0].position;
    let cursor = RelayCursor { position, sequences: HashMap::from([(("pricing.events".to_owned(), 4), 1)]) };
    leader.save_cursor(lease.epoch, &cursor).await.unwrap();

    let mut waiting = tokio::spawn(async move { (standby.lease_relay().await, standby) });
    let too_early = tokio::time::timeout(Duration::from_millis(700), &mut waiting).await;
    assert!(too_early.is_err(), "two lead at once");
    drop(leader);
    let (taken, standby) = tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap();

    let taken = taken.unwrap();
    assert!(taken.epoch > lease.epoch);
    assert_eq!(taken.cursor, cursor);
    let zombie = fixture.open().await;
    let further = RelayCursor { position, sequences: HashMap::from([(("pricing.events".to_owned(), 4), 99)]) };
    match zombie.save_cursor(lease.epoch, &further).await {
        Err(EventStoreError::RelaySuperseded { epoch, current }) => {
            assert_eq!((epoch, current), (lease.epoch, taken.epoch));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(standby.lease_relay().await.unwrap().cursor, cursor, "the zombie changed nothing");
}

pub async fn one_process_leads_again_without_waiting_for_itself(fixture: &Fixture) {
    let store = fixture.started().await;
    let first = store.lease_relay().await.unwrap();
    let second = tokio::time::timeout(DEADLINE, store.lease_relay()).await.unwrap().unwrap();
    assert!(second.epoch > first.epoch);
    let superseded = store.save_cursor(first.epoch, &RelayCursor::default()).await;
    assert!(matches!(superseded, Err(EventStoreError::RelaySuperseded { .. })), "{superseded:?}");
    store.save_cursor(second.epoch, &RelayCursor::default()).await.unwrap();
}

pub async fn the_cursor_comes_back_and_nothing_in_it_is_lowered(fixture: &Fixture) {
    let store = fixture.started().await;
    let epoch = store.lease_relay().await.unwrap().epoch;
    store.append(&batch(vec![set_prices("a", 0, &[1, 2, 3])])).await.unwrap();
    let rows = committed_when(&*store, 3).await;
    let cursor = |row: usize, sequences: &[(u32, u64)]| {
        let sequences =
            sequences.iter().map(|(partition, sequence)| (("pricing.events".to_owned(), *partition), *sequence));
        RelayCursor { position: rows[row].position, sequences: sequences.collect() }
    };
    store.save_cursor(epoch, &cursor(1, &[(0, 10), (1, 20)])).await.unwrap();
    // Only what is passed is touched, and only upwards.
    store.save_cursor(epoch, &cursor(2, &[(1, 21), (2, 5)])).await.unwrap();
    store.save_cursor(epoch, &cursor(0, &[(0, 3)])).await.unwrap();

    assert_eq!(store.lease_relay().await.unwrap().cursor, cursor(2, &[(0, 10), (1, 21), (2, 5)]));
}

pub async fn the_cursor_is_read_without_a_lease(fixture: &Fixture) {
    let store = fixture.started().await;
    assert_eq!(fixture.reading().await.relay_cursor().await.unwrap(), RelayCursor::default());
    let epoch = store.lease_relay().await.unwrap().epoch;
    store.append(&batch(vec![set_prices("a", 0, &[1])])).await.unwrap();
    let position = committed_when(&*store, 1).await[0].position;
    let cursor = RelayCursor { position, sequences: HashMap::from([(("pricing.events".to_owned(), 4), 1)]) };
    store.save_cursor(epoch, &cursor).await.unwrap();

    let reading = fixture.reading().await;
    let read = tokio::time::timeout(DEADLINE, reading.relay_cursor()).await.expect("waits for no leader").unwrap();
    assert_eq!(read, cursor);
    assert_eq!(reading.read_committed(StorePosition::default(), 10).await.unwrap().len(), 1);
    store.save_cursor(epoch, &cursor).await.expect("nobody took the lead");
}

pub async fn lag_counts_what_is_behind_the_cursor(fixture: &Fixture) {
    let store = fixture.started().await;
    assert_eq!(store.relay_lag(NOW).await.unwrap(), (0, None));
    // Times NOW + 1, 2, 3.
    store.append(&batch(vec![set_prices("a", 0, &[1, 2, 3])])).await.unwrap();
    assert_eq!(store.relay_lag(NOW + 1001).await.unwrap(), (3, Some(1000)));

    let rows = committed_when(&*store, 3).await;
    let epoch = store.lease_relay().await.unwrap().epoch;
    let cursor = RelayCursor { position: rows[1].position, sequences: HashMap::new() };
    store.save_cursor(epoch, &cursor).await.unwrap();
    assert_eq!(store.relay_lag(NOW + 1003).await.unwrap(), (1, Some(1000)));
}

pub async fn a_long_lag_is_not_counted_to_its_end(fixture: &Fixture) {
    let store = fixture.started().await;
    let amounts: Vec<i64> = (1..=MOST_COUNTED as i64 + 5).collect();
    store.append(&batch(vec![set_prices("a", 0, &amounts)])).await.unwrap();
    assert_eq!(store.relay_lag(NOW + 1001).await.unwrap(), (MOST_COUNTED, Some(1000)));
}

pub async fn what_goes_out_again_is_lag_and_not_unpublished(fixture: &Fixture) {
    let store = fixture.started().await;
    store.append(&batch(vec![set_prices("a", 0, &[1, 2, 3, 4, 5])])).await.unwrap();
    let rows = committed_when(&*store, 5).await;
    let cursor = |row: usize| RelayCursor { position: rows[row].position, ..RelayCursor::default() };
    let epoch = store.lease_relay().await.unwrap().epoch;
    assert_eq!(store.unpublished().await.unwrap(), 5);
    store.save_cursor(epoch, &cursor(3)).await.unwrap();
    assert_eq!(store.unpublished().await.unwrap(), 1);
    assert!(!store.is_published_again().await.unwrap());

    assert!(store.reset_cursor(epoch - 1, &RelayCursor::default()).await.is_err());
    store.reset_cursor(epoch, &cursor(1)).await.unwrap();
    store.reset_cursor(epoch, &RelayCursor::default()).await.unwrap();
    let both =
        async |store: &dyn EventStore| [store.relay_lag(NOW).await.unwrap().0, store.unpublished().await.unwrap()];
    assert_eq!(both(&*store).await, [5, 1]);
    assert!(store.is_published_again().await.unwrap());
    store.append(&batch(vec![set_prices("b", 0, &[1])])).await.unwrap();
    store.save_cursor(epoch, &cursor(2)).await.unwrap();
    drop(store);
    let store = fixture.open().await;
    assert_eq!(both(&*store).await, [3, 2]);
    let epoch = store.lease_relay().await.unwrap().epoch;
    store.save_cursor(epoch, &cursor(4)).await.unwrap();
    assert_eq!(both(&*store).await, [1, 1]);
    assert!(!store.is_published_again().await.unwrap());
}

pub async fn an_append_wakes_whoever_waits(fixture: &Fixture) {
    let store = fixture.started().await;
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.wait_for_appends(Duration::from_secs(3600)).await }
    });
    store.append(&batch(vec![set_prices("a", 0, &[1])])).await.unwrap();
    tokio::time::timeout(DEADLINE, waiting).await.expect("woken").unwrap();
    // An append just before the wait is not slept over either.
    store.append(&batch(vec![set_prices("a", 1, &[2])])).await.unwrap();
    tokio::time::timeout(DEADLINE, store.wait_for_appends(Duration::from_secs(3600))).await.expect("woken");
    store.wait_for_appends(Duration::from_millis(1)).await;
}

pub async fn a_released_relay_is_free_for_another(fixture: &Fixture) {
    let (leader, other) = (fixture.started().await, fixture.open().await);
    let lease = leader.lease_relay().await.unwrap();
    leader.release_relay().await.unwrap();
    let taken = tokio::time::timeout(DEADLINE, other.lease_relay()).await.unwrap().unwrap();
    assert!(taken.epoch > lease.epoch);
    let superseded = leader.save_cursor(lease.epoch, &RelayCursor::default()).await;
    assert!(matches!(superseded, Err(EventStoreError::RelaySuperseded { .. })), "{superseded:?}");
}

pub async fn a_cursor_is_set_back_by_the_holder_alone(fixture: &Fixture) {
    let store = fixture.started().await;
    store.append(&batch(vec![set_prices("a", 0, &[1, 2, 3])])).await.unwrap();
    let rows = committed_when(&*store, 3).await;
    let cursor = |row: usize, sequences: &[(u32, u64)]| {
        let sequences =
            sequences.iter().map(|(partition, sequence)| (("pricing.events".to_owned(), *partition), *sequence));
        RelayCursor { position: rows[row].position, sequences: sequences.collect() }
    };
    let zombie = store.lease_relay().await.unwrap().epoch;
    let epoch = store.lease_relay().await.unwrap().epoch;
    store.save_cursor(epoch, &cursor(2, &[(0, 10), (1, 20)])).await.unwrap();

    let superseded = store.reset_cursor(zombie, &cursor(0, &[(0, 1)])).await;
    assert!(matches!(superseded, Err(EventStoreError::RelaySuperseded { .. })), "{superseded:?}");
    let lease = store.lease_relay().await.unwrap();
    assert_eq!(lease.cursor, cursor(2, &[(0, 10), (1, 20)]), "nothing of it was done");

    store.reset_cursor(lease.epoch, &cursor(0, &[(0, 3)])).await.unwrap();
    assert_eq!(store.lease_relay().await.unwrap().cursor, cursor(0, &[(0, 3)]));
}

/// A table that was restored to an earlier point takes back what the log kept.
pub async fn lost_rows_come_back_at_their_places(fixture: &Fixture) {
    let other = fixture.another().await;
    let restored = other.started().await;
    restored.append(&batch(vec![set_prices("a", 0, &[1]), set_prices("b", 0, &[1])])).await.unwrap();
    let kept = committed_when(&*restored, 2).await;
    let store = fixture.started().await;
    store.append(&batch(vec![set_prices("a", 0, &[1]), set_prices("b", 0, &[1])])).await.unwrap();
    store.append(&batch(vec![set_prices("a", 1, &[2, 3]), set_prices("c", 0, &[1])])).await.unwrap();
    let all = committed_when(&*store, 5).await;

    let lost = RestoredRows { events: all[2..].to_vec(), ..RestoredRows::default() };
    // Looked for before the second row came.
    let late = restored.restore(&RestoredRows { behind: Some(kept[0].position), ..lost.clone() }).await;
    assert!(matches!(late, Err(EventStoreError::TableWentOn { .. })), "{late:?}");
    assert_eq!(committed_when(&*restored, 2).await, kept);
    restored.restore(&RestoredRows { behind: Some(kept[1].position), ..lost.clone() }).await.unwrap();
    let found = committed_when(&*restored, 5).await;
    assert_eq!(found[..2], kept);
    let of_adapter = |event: &StoredEvent| (event.stream.clone(), event.version, event.id, event.position.position);
    assert!(found[2..].iter().map(of_adapter).eq(all[2..].iter().map(of_adapter)));

    // Not twice, and not half.
    let twice = restored.restore(&lost).await;
    assert!(matches!(twice, Err(EventStoreError::Conflict { .. })), "{twice:?}");
    let mut further = all[4].clone();
    further.position.position += 100;
    further.stream = StreamId::from_stored("price-d@north".to_owned());
    further.version = 1;
    let half = restored.restore(&RestoredRows { events: vec![further, all[3].clone()], ..lost }).await;
    assert!(matches!(half, Err(EventStoreError::Conflict { .. })), "{half:?}");
    assert_eq!(committed_when(&*restored, 5).await.len(), 5);

    // The next append comes behind what was restored.
    restored.append(&batch(vec![set_prices("a", 3, &[4])])).await.unwrap();
    let after = committed_when(&*restored, 6).await;
    assert!(after[5].position > after[4].position && after[5].position.position > after[4].position.position);
    drop(restored);
    other.drop_database().await;
}

/// Without them a command that is repeated would be decided again.
pub async fn lost_outcomes_come_back_for_any_body(fixture: &Fixture) {
    let store = fixture.started().await;
    let (kept, lost) = (set_prices("a", 0, &[1]), set_prices("b", 0, &[1]));
    store.append(&batch(vec![kept.clone()])).await.unwrap();
    let first = store.outcome(kept.id).await.unwrap().unwrap();
    let outcome = |id, version, reason: &str| RestoredOutcome {
        id,
        received_at: NOW,
        outcome: Outcome {
            version: Some(version),
            position: Some("pricing-1-7.8".parse().unwrap()),
            ..Outcome::refused(id, OutcomeKind::Accepted, reason, "an escaped \u{0} NUL")
        },
    };
    let restored = outcome(lost.id, 5, "lost");
    let outcomes = vec![outcome(kept.id, 9, "other"), restored.clone()];
    store.restore(&RestoredRows { outcomes, ..RestoredRows::default() }).await.unwrap();

    assert_eq!(store.outcome(kept.id).await.unwrap(), Some(first), "a known one stays");
    let stored = StoredOutcome { digest: None, outcome: restored.outcome };
    assert_eq!(store.outcome(lost.id).await.unwrap(), Some(stored.clone()));
    let asked = LoadRequest { command_ids: vec![lost.id], ..LoadRequest::default() };
    assert_eq!(store.load(&asked).await.unwrap().outcomes[&lost.id], stored);
    conflict_of(&*store, &batch(vec![lost.clone()])).await;
    assert_eq!(store.forget_outcomes(NOW + 1, 10).await.unwrap(), 2, "it ages like any other");
}
