//! Streams: versions, order, snapshots.

use domain::{State, apply};
use event_store::{
    EventStoreError, LoadRequest, NewSnapshot, OffsetAdvance, RecordIdentity, RelayCursor, StoredOffset, Timer,
    TimerChange, Topology,
};
use schemas::{Context, StorePosition};

use super::{
    DEADLINE, Fixture, NOW, PARTITIONS, batch, committed, committed_when, conflict_of, load_stream, price_event,
    price_stream, record_decision, set_prices,
};

/// What the events of a price stream come to.
fn priced(sku: &str, amount: i64) -> State {
    let mut state = State::initial(Context::Pricing);
    apply(&mut state, &price_event(sku, amount));
    state
}

pub async fn appended_events_are_loaded_back(fixture: &Fixture) {
    let store = fixture.started().await;
    let (first, second) = (set_prices("a", 0, &[10, 20]), set_prices("b", 0, &[30]));

    let appended = store.append(&batch(vec![first.clone(), second.clone()])).await.unwrap();

    let nothing = price_stream("c");
    let streams = vec![first.stream.clone(), second.stream.clone(), nothing.clone()];
    let loaded = store.load(&LoadRequest { streams, ..LoadRequest::default() }).await.unwrap().streams;
    assert_eq!(loaded.len(), 3);
    let (a, b, c) = (&loaded[&first.stream], &loaded[&second.stream], &loaded[&nothing]);
    assert_eq!((a.version, a.position, a.snapshot_version), (2, appended.positions[0], 0));
    assert_eq!(a.state, priced("a", 20));
    assert_eq!((b.version, b.position), (1, appended.positions[1]));
    assert_eq!(b.state, priced("b", 30));
    assert_eq!((c.version, c.position), (0, None));
    assert_eq!(c.state, State::initial(Context::Pricing));

    let rows = store.read_stream(&first.stream, 1, 10).await.unwrap();
    assert_eq!(rows.len(), 2);
    for ((row, event), version) in rows.iter().zip(&first.events).zip(1..) {
        assert_eq!((row.version, row.id, row.time), (version, event.id, event.time));
        assert_eq!((row.topic.as_str(), &row.stream), ("pricing.events", &first.stream));
        assert_eq!((&row.key, row.schema, &row.body), (&event.key, event.schema, &event.body));
        assert_eq!((&row.correlation_id, &row.causation_id), (&event.correlation_id, &event.causation_id));
        assert_eq!((&row.actor, &row.traceparent), (&event.actor, &event.traceparent));
    }
    assert_eq!(Some(rows[1].position), appended.positions[0]);
    assert_eq!(store.read_stream(&first.stream, 2, 10).await.unwrap(), rows[1..]);
    assert_eq!(store.read_stream(&first.stream, 1, 1).await.unwrap(), rows[..1]);
}

/// A store that knew other contexts only takes the events of a new one, and counts its partitions beside the others.
pub async fn a_context_may_come_later(fixture: &Fixture) {
    let store = fixture.started().await;
    store.append(&batch(vec![set_prices("a", 0, &[10])])).await.unwrap();
    let epoch = store.lease_relay().await.unwrap().epoch;
    let rows = committed_when(&*store, 1).await;
    let counted = |topic: &str, partition, sequence| ((topic.to_owned(), partition), sequence);
    let before = RelayCursor { position: rows[0].position, sequences: [counted("pricing.events", 4, 1)].into() };
    store.save_cursor(epoch, &before).await.unwrap();
    drop(store);

    let store = fixture.open().await;
    let lease = store.lease_relay().await.unwrap();
    assert_eq!(lease.cursor, before);
    let (first, second) = (record_decision(1), record_decision(2));
    store.append(&batch(vec![first.clone()])).await.unwrap();
    store.append(&batch(vec![second])).await.unwrap();
    let loaded = load_stream(&*store, &first.stream).await;
    let State::Decisions(state) = &loaded.state else { panic!("{:?}", loaded.state) };
    assert_eq!((loaded.version, state.hashes.len()), (2, 2));

    let rows = committed_when(&*store, 3).await;
    assert_eq!(rows[2].topic, "platform.events");
    let new = counted("platform.events", 0, 2);
    let after = RelayCursor { position: rows[2].position, sequences: [new.clone()].into() };
    store.save_cursor(lease.epoch, &after).await.unwrap();
    let cursor = store.relay_cursor().await.unwrap();
    assert_eq!(cursor.position, rows[2].position);
    assert_eq!(cursor.sequences, [counted("pricing.events", 4, 1), new].into());
}

pub async fn a_version_conflict_writes_nothing(fixture: &Fixture) {
    let store = fixture.started().await;
    store.append(&batch(vec![set_prices("a", 0, &[10])])).await.unwrap();

    let mut other = set_prices("b", 0, &[20]);
    other.timers.push(TimerChange::Set(Timer { key: "t".to_owned(), due_at: NOW, command: "{}".to_owned() }));
    other.snapshot = Some(NewSnapshot { stream: other.stream.clone(), version: 1, body: b"{}".to_vec() });
    let stale = set_prices("a", 0, &[99]);
    let mut refused = batch(vec![other.clone(), stale.clone()]);
    let topic = "pricing.commands".to_owned();
    refused.offsets.push(OffsetAdvance { topic: topic.clone(), partition: 0, expected: 0, next: 5, last: None });
    let what = conflict_of(&*store, &refused).await;

    assert!(what.contains("price-a@north"), "{what}");
    assert_eq!(load_stream(&*store, &stale.stream).await.state, priced("a", 10));
    assert_eq!(load_stream(&*store, &other.stream).await.version, 0);
    assert_eq!(store.outcome(other.id).await.unwrap(), None);
    assert!(store.command_offsets(&topic).await.unwrap().is_empty());
    assert!(store.due_timers(NOW, 10).await.unwrap().is_empty());
    // And the store goes on.
    store.append(&batch(vec![set_prices("a", 1, &[20])])).await.unwrap();
    assert_eq!(committed_when(&*store, 2).await.len(), 2);
}

/// A cache that outlived a restored database must not leave a gap (W1).
pub async fn an_append_ahead_of_its_stream_is_a_conflict(fixture: &Fixture) {
    let store = fixture.started().await;
    store.append(&batch(vec![set_prices("a", 0, &[1])])).await.unwrap();
    let what = conflict_of(&*store, &batch(vec![set_prices("a", 3, &[2])])).await;
    assert!(what.contains("price-a@north"), "{what}");
    assert_eq!(load_stream(&*store, &price_stream("a")).await.version, 1);
}

/// Invariant W1.
pub async fn concurrent_appenders_lose_and_double_no_version(fixture: &Fixture) {
    const APPENDERS: u64 = 16;
    const EACH: u64 = 4;
    let stores = [fixture.started().await, fixture.open().await];
    let stream = price_stream("hot");
    let appenders = (0..APPENDERS).map(|appender| {
        let (store, stream) = (stores[(appender % 2) as usize].clone(), stream.clone());
        tokio::spawn(async move {
            for number in 0..EACH {
                loop {
                    let version = load_stream(&*store, &stream).await.version;
                    let command = set_prices("hot", version, &[(appender * EACH + number) as i64 + 1]);
                    match store.append(&batch(vec![command])).await {
                        Ok(_) => break,
                        Err(EventStoreError::Conflict { .. }) => {}
                        // A file's writers have no queue: one may find it locked for longer than it waits.
                        Err(EventStoreError::Unavailable { problem, .. }) if problem.contains("locked") => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        })
    });
    tokio::time::timeout(DEADLINE, futures::future::try_join_all(appenders)).await.unwrap().unwrap();

    let rows = stores[0].read_stream(&stream, 1, 1000).await.unwrap();
    let versions: Vec<u64> = rows.iter().map(|row| row.version).collect();
    assert_eq!(versions, (1..=APPENDERS * EACH).collect::<Vec<u64>>());
    let mut amounts: Vec<i64> = rows.iter().map(|row| row.time - NOW).collect();
    amounts.sort_unstable();
    assert_eq!(amounts, (1..=(APPENDERS * EACH) as i64).collect::<Vec<i64>>(), "each append is there once");
    // Versions, places and the relay's order agree (fault 3).
    assert_eq!(committed_when(&*stores[1], rows.len()).await, rows);
    assert!(rows.is_sorted_by_key(|row| row.position));
}

pub async fn a_batch_keeps_the_order_of_its_commands(fixture: &Fixture) {
    let store = fixture.started().await;
    let commands =
        vec![set_prices("z", 0, &[1, 2]), set_prices("a", 0, &[3]), set_prices("z", 2, &[4]), set_prices("m", 0, &[5])];

    let appended = store.append(&batch(commands)).await.unwrap();

    let rows = committed_when(&*store, 5).await;
    let order: Vec<i64> = rows.iter().map(|row| row.time - NOW).collect();
    assert_eq!(order, [1, 2, 3, 4, 5]);
    let last: Vec<Option<StorePosition>> =
        [1, 2, 3, 4].into_iter().map(|index: usize| Some(rows[index].position)).collect();
    assert_eq!(appended.positions, last);
}

pub async fn snapshots_are_used_and_never_lowered(fixture: &Fixture) {
    let store = fixture.started().await;
    // A state that the events do not lead to: only the snapshot can be where it comes from.
    let snapshot = |version: u64, amount: i64| {
        let body = serde_json::to_vec(&priced("a", amount)).unwrap();
        Some(NewSnapshot { stream: price_stream("a"), version, body })
    };
    let mut first = set_prices("a", 0, &[1, 2, 3]);
    first.snapshot = snapshot(3, 333);
    let appended = store.append(&batch(vec![first])).await.unwrap();
    let loaded = load_stream(&*store, &price_stream("a")).await;
    assert_eq!((loaded.version, loaded.snapshot_version, loaded.position), (3, 3, appended.positions[0]));
    assert_eq!(loaded.state, priced("a", 333));

    let mut late = set_prices("b", 0, &[9]);
    late.snapshot = snapshot(2, 222);
    store.append(&batch(vec![late])).await.unwrap();
    let loaded = load_stream(&*store, &price_stream("a")).await;
    assert_eq!((loaded.version, loaded.snapshot_version), (3, 3));
    assert_eq!(loaded.state, priced("a", 333));

    store.append(&batch(vec![set_prices("a", 3, &[4])])).await.unwrap();
    let loaded = load_stream(&*store, &price_stream("a")).await;
    assert_eq!((loaded.version, loaded.snapshot_version), (4, 3));
    assert_eq!(loaded.state, priced("a", 4));
}

pub async fn a_snapshot_that_does_not_read_is_passed_over(fixture: &Fixture) {
    let store = fixture.started().await;
    let mut first = set_prices("a", 0, &[1, 2, 3]);
    first.snapshot = Some(NewSnapshot { stream: price_stream("a"), version: 3, body: b"{\"Price\":".to_vec() });
    store.append(&batch(vec![first, set_prices("b", 0, &[7])])).await.unwrap();
    let appended = store.append(&batch(vec![set_prices("a", 3, &[4])])).await.unwrap();
    let streams = vec![price_stream("a"), price_stream("b")];
    let loaded = store.load(&LoadRequest { streams, ..LoadRequest::default() }).await.unwrap().streams;
    let a = &loaded[&price_stream("a")];
    assert_eq!((a.version, a.snapshot_version, a.position), (4, 0, appended.positions[0]));
    assert_eq!(a.state, priced("a", 4));
    assert_eq!(loaded[&price_stream("b")].state, priced("b", 7));
}

pub async fn everything_is_there_after_opening_again(fixture: &Fixture) {
    let store = fixture.started().await;
    let command = set_prices("a", 0, &[1]);
    let mut first = batch(vec![command.clone()]);
    let (topic, last) = ("pricing.commands".to_owned(), Some(RecordIdentity { offset: 7, digest: [3; 32] }));
    first.offsets.push(OffsetAdvance { topic, partition: 3, expected: 0, next: 8, last });
    store.append(&first).await.unwrap();
    let rows = committed_when(&*store, 1).await;
    let outcome = store.outcome(command.id).await.unwrap().unwrap();
    drop(store);

    let store = fixture.open().await;
    assert_eq!(store.topology().await.unwrap(), Some(Topology { partitions: PARTITIONS }));
    assert_eq!(committed(&*store).await, rows);
    assert_eq!(load_stream(&*store, &command.stream).await.version, 1);
    assert_eq!(store.outcome(command.id).await.unwrap(), Some(outcome));
    assert_eq!(store.command_offsets("pricing.commands").await.unwrap()[&3], StoredOffset { next: 8, last });
    store.ping().await.unwrap();
}

pub async fn topology_is_fixed_once(fixture: &Fixture) {
    let store = fixture.open().await;
    assert_eq!(store.topology().await.unwrap(), None);
    let too_early = store.append(&batch(vec![set_prices("a", 0, &[1])])).await;
    assert!(matches!(too_early, Err(EventStoreError::Permanent { .. })), "{too_early:?}");

    let eight = Topology { partitions: 8 };
    assert_eq!(store.fix_topology(eight).await.unwrap(), eight);
    assert_eq!(store.fix_topology(eight).await.unwrap(), eight);
    for store in [store, fixture.open().await] {
        let refused = store.fix_topology(Topology { partitions: 16 }).await;
        assert!(matches!(refused, Err(EventStoreError::Topology { stored: 8, asked: 16 })), "{refused:?}");
        assert_eq!(store.topology().await.unwrap(), Some(eight));
    }
}
