//! What commits with the events: outcomes, claims, offsets, timers.

use event_store::{AppendBatch, Claim, LoadRequest, OffsetAdvance, RecordIdentity, StoredOffset, Timer, TimerChange};
use schemas::codec::decode_outcome;
use schemas::{Context, OutcomeKind, PositionToken, RegionId, WarehouseId, WriterSchema, partition_of};
use uuid::Uuid;

use super::{
    Fixture, NOW, PARTITIONS, batch, committed_when, conflict_of, load_stream, price_stream, refused, set_prices,
};

pub async fn a_known_command_id_is_a_conflict(fixture: &Fixture) {
    let store = fixture.started().await;
    let first = set_prices("a", 0, &[1]);
    store.append(&batch(vec![first.clone()])).await.unwrap();

    let mut again = set_prices("b", 0, &[2]);
    again.id = first.id;
    let what = conflict_of(&*store, &batch(vec![set_prices("c", 0, &[3]), again])).await;

    assert!(what.contains(&first.id.to_string()), "{what}");
    assert_eq!(load_stream(&*store, &price_stream("b")).await.version, 0);
    assert_eq!(load_stream(&*store, &price_stream("c")).await.version, 0);
    let mut twin = set_prices("d", 0, &[4]);
    let fresh = set_prices("e", 0, &[5]);
    twin.id = fresh.id;
    conflict_of(&*store, &batch(vec![fresh, twin])).await;
    assert_eq!(load_stream(&*store, &price_stream("e")).await.version, 0);
}

pub async fn outcomes_are_stored_with_their_position(fixture: &Fixture) {
    let store = fixture.started().await;
    let (accepted, rejected) = (set_prices("a", 0, &[1, 2]), refused("b"));

    let appended = store.append(&batch(vec![accepted.clone(), rejected.clone()])).await.unwrap();

    assert_eq!(appended.positions[1], None);
    let partition = partition_of(b"a", PARTITIONS);
    let token = PositionToken::of(Context::Pricing, partition, appended.positions[0].unwrap());
    let stored = store.outcome(accepted.id).await.unwrap().unwrap();
    assert_eq!(stored.digest, Some([7; 32]));
    assert_eq!(stored.outcome.position, Some(token));
    assert_eq!(stored.outcome.version, Some(2));
    let stored_refusal = store.outcome(rejected.id).await.unwrap().unwrap();
    assert_eq!(stored_refusal.outcome, rejected.outcome);

    let unknown = Uuid::new_v4();
    let command_ids = vec![accepted.id, rejected.id, unknown];
    let loaded = store.load(&LoadRequest { command_ids, ..LoadRequest::default() }).await.unwrap().outcomes;
    assert_eq!(loaded.len(), 2);
    assert_eq!(loaded[&accepted.id], stored);
    assert_eq!(loaded[&rejected.id], stored_refusal);
    assert_eq!(store.outcome(unknown).await.unwrap(), None);
}

pub async fn an_accepted_command_without_events_stands_where_its_stream_does(fixture: &Fixture) {
    let store = fixture.started().await;
    let commands = vec![
        set_prices("a", 0, &[1]),
        set_prices("a", 1, &[]),
        set_prices("b", 0, &[2]),
        set_prices("a", 1, &[3]),
        set_prices("a", 2, &[]),
        refused("a"),
    ];
    store.append(&batch(commands.clone())).await.unwrap();
    let mut positions = Vec::new();
    for command in &commands {
        positions.push(store.outcome(command.id).await.unwrap().unwrap().outcome.position);
    }
    assert!(positions[..5].iter().all(Option::is_some), "{positions:?}");
    assert_eq!((&positions[0], &positions[3]), (&positions[1], &positions[4]));
    assert_ne!(positions[0], positions[3]);
    assert_eq!(positions[5], None);
}

pub async fn outcomes_of_topic_commands_go_out(fixture: &Fixture) {
    let store = fixture.started().await;
    let mut accepted = set_prices("a", 0, &[1]);
    accepted.publish_outcome_on = Some(Context::Pricing);
    let mut rejected = refused("b");
    rejected.publish_outcome_on = Some(Context::Pricing);
    // The key of a record that could not be read may be anything.
    rejected.outcome_key = "no\u{0}key".to_owned();
    let quiet = set_prices("c", 0, &[2]);

    let appended = store.append(&batch(vec![accepted.clone(), rejected.clone(), quiet])).await.unwrap();

    let rows = committed_when(&*store, 4).await;
    assert_eq!(rows.len(), 4);
    let topics: Vec<&str> = rows.iter().map(|row| row.topic.as_str()).collect();
    let outcomes = "pricing.command-outcomes";
    assert_eq!(topics, ["pricing.events", outcomes, outcomes, "pricing.events"]);
    assert_eq!(Some(rows[0].position), appended.positions[0]);
    let (first, second) = (&rows[1], &rows[2]);
    assert_eq!(first.stream.as_str(), format!("outcome-{}", accepted.id));
    assert_eq!((first.version, first.key.as_str(), first.time), (1, "a", NOW));
    assert!(second.key.starts_with("no") && second.key.ends_with("key"), "{:?}", second.key);
    let body = decode_outcome(WriterSchema::of(first.schema).unwrap(), &first.body).unwrap();
    assert_eq!((body.command_id, body.outcome), (accepted.id.to_string(), OutcomeKind::Accepted));
    assert_eq!(body.command_type.as_deref(), Some("SetPrice"));
    let token = PositionToken::of(Context::Pricing, partition_of(b"a", PARTITIONS), rows[0].position);
    assert_eq!(body.position, Some(token.to_string()));
    let body = decode_outcome(WriterSchema::of(second.schema).unwrap(), &second.body).unwrap();
    assert_eq!((body.outcome, body.position), (OutcomeKind::Rejected, None));
}

pub async fn a_published_outcome_is_never_too_large_for_a_broker(fixture: &Fixture) {
    let store = fixture.started().await;
    let mut wordy = refused("a");
    wordy.publish_outcome_on = Some(Context::Pricing);
    wordy.outcome.reason.as_mut().unwrap().message = "ä\u{1}".repeat(500_000);
    store.append(&batch(vec![wordy])).await.unwrap();
    let rows = committed_when(&*store, 1).await;
    assert!(rows[0].body.len() < 10_000, "{} bytes", rows[0].body.len());
}

pub async fn outcomes_are_forgotten_by_age(fixture: &Fixture) {
    let store = fixture.started().await;
    let mut commands: Vec<_> = ["a", "b", "c", "d"].into_iter().map(|sku| set_prices(sku, 0, &[1])).collect();
    for (command, age) in commands.iter_mut().zip([4000, 3000, 2000, 0]) {
        command.received_at = NOW - age;
        command.publish_outcome_on = Some(Context::Pricing);
    }
    store.append(&batch(commands.clone())).await.unwrap();

    assert_eq!(store.forget_outcomes(NOW - 1000, 2).await.unwrap(), 2);
    assert_eq!(store.outcome(commands[0].id).await.unwrap(), None);
    assert_eq!(store.outcome(commands[1].id).await.unwrap(), None);
    assert!(store.outcome(commands[2].id).await.unwrap().is_some());
    assert_eq!(store.forget_outcomes(NOW - 1000, 10).await.unwrap(), 1);
    assert_eq!(store.forget_outcomes(NOW - 1000, 10).await.unwrap(), 0);
    assert!(store.outcome(commands[3].id).await.unwrap().is_some());

    // A forgotten id is a new command; its published row of then does not stand in its way.
    let mut again = set_prices("a", 1, &[2]);
    again.id = commands[0].id;
    again.publish_outcome_on = Some(Context::Pricing);
    store.append(&batch(vec![again])).await.unwrap();
    assert_eq!(load_stream(&*store, &price_stream("a")).await.version, 2);
}

pub async fn a_warehouse_lies_in_one_region(fixture: &Fixture) {
    let store = fixture.started().await;
    let (w1, w2) = (WarehouseId::new("w1").unwrap(), WarehouseId::new("w2").unwrap());
    let (north, south) = (RegionId::new("north").unwrap(), RegionId::new("south").unwrap());
    let claiming = |sku: &str, region: &RegionId| {
        let mut command = set_prices(sku, 0, &[1]);
        command.claims.push(Claim { warehouse: w1.clone(), region: region.clone() });
        command
    };
    store.append(&batch(vec![claiming("a", &north)])).await.unwrap();
    store.append(&batch(vec![claiming("b", &north)])).await.unwrap();

    let what = conflict_of(&*store, &batch(vec![claiming("c", &south)])).await;

    assert!(what.contains("w1") && what.contains("north"), "{what}");
    assert_eq!(load_stream(&*store, &price_stream("c")).await.version, 0);
    let request = LoadRequest { warehouses: vec![w1.clone(), w2.clone()], ..LoadRequest::default() };
    let regions = store.load(&request).await.unwrap().regions;
    assert_eq!(regions.get(&w1), Some(&north));
    assert_eq!(regions.get(&w2), None);
}

pub async fn offsets_are_compared_and_set(fixture: &Fixture) {
    let store = fixture.started().await;
    let topic = "pricing.commands";
    let advancing = |sku: &str, partition: u32, expected: u64, next: u64| {
        let mut batch = batch(vec![set_prices(sku, 0, &[1])]);
        batch.offsets.push(OffsetAdvance { topic: topic.to_owned(), partition, expected, next, last: None });
        batch
    };
    store.append(&advancing("a", 0, 0, 5)).await.unwrap();
    store.append(&advancing("b", 1, 0, 2)).await.unwrap();
    store.append(&advancing("c", 0, 5, 9)).await.unwrap();

    for (sku, expected) in [("d", 5), ("e", 0), ("f", 12)] {
        let what = conflict_of(&*store, &advancing(sku, 0, expected, 20)).await;
        assert!(what.contains(&format!("{topic}/0")), "{what}");
        assert_eq!(load_stream(&*store, &price_stream(sku)).await.version, 0);
    }
    let stored = |next| StoredOffset { next, last: None };
    assert_eq!(store.command_offsets(topic).await.unwrap(), [(0, stored(9)), (1, stored(2))].into());
    // A topic that was there before does not begin at 0.
    store.append(&advancing("i", 2, 300, 304)).await.unwrap();
    assert_eq!(store.command_offsets(topic).await.unwrap()[&2].next, 304);
    assert!(store.command_offsets("inventory.commands").await.unwrap().is_empty());

    // Two handlers with the same records after a rebalance: one of them takes them.
    let (left, right) = (advancing("g", 1, 2, 4), advancing("h", 1, 2, 4));
    let (left, right) = tokio::join!(store.append(&left), store.append(&right));
    assert_ne!(left.is_ok(), right.is_ok(), "{left:?} {right:?}");
    assert_eq!(store.command_offsets(topic).await.unwrap()[&1].next, 4);
}

/// Fault 21, for commands: no other trace is kept of a topic that is gone.
pub async fn an_offset_comes_with_the_last_record_that_was_taken(fixture: &Fixture) {
    let store = fixture.started().await;
    let topic = "pricing.commands";
    let record = |offset: u64| Some(RecordIdentity { offset, digest: [offset as u8; 32] });
    let advancing = |partition: u32, expected: u64, next: u64, last: Option<RecordIdentity>| {
        let advance = OffsetAdvance { topic: topic.to_owned(), partition, expected, next, last };
        AppendBatch { offsets: vec![advance], ..AppendBatch::default() }
    };
    // The first of a partition that has no row, one that only begins, and one before which the log leaves offsets out.
    store.append(&advancing(0, 0, 5, record(4))).await.unwrap();
    store.append(&advancing(1, 300, 300, None)).await.unwrap();
    store.append(&advancing(2, 0, 200, record(150))).await.unwrap();
    let stored = |next: u64, last: Option<RecordIdentity>| StoredOffset { next, last };
    let first = [(0, stored(5, record(4))), (1, stored(300, None)), (2, stored(200, record(150)))].into();
    assert_eq!(store.command_offsets(topic).await.unwrap(), first);

    // What is refused leaves it; what is taken replaces it, and a set-back has none.
    conflict_of(&*store, &advancing(0, 4, 9, record(8))).await;
    store.append(&advancing(1, 300, 301, record(300))).await.unwrap();
    store.append(&advancing(2, 200, 0, None)).await.unwrap();
    let then = [(0, stored(5, record(4))), (1, stored(301, record(300))), (2, stored(0, None))].into();
    assert_eq!(store.command_offsets(topic).await.unwrap(), then);
    store.append(&advancing(0, 5, 6, record(5))).await.unwrap();
    assert_eq!(store.command_offsets(topic).await.unwrap()[&0], stored(6, record(5)));
}

pub async fn timers_are_set_cleared_and_due(fixture: &Fixture) {
    let store = fixture.started().await;
    let timer = |key: &str, due_at: i64| Timer { key: key.to_owned(), due_at, command: format!("{{\"k\":\"{key}\"}}") };
    let changing = |sku: &str, changes: Vec<TimerChange>| {
        let mut command = set_prices(sku, 0, &[1]);
        command.timers = changes;
        batch(vec![command])
    };
    let sets = [("late", NOW + 1), ("second", NOW), ("first", NOW - 5), ("gone", NOW - 9)];
    let sets = sets.map(|(key, due_at)| TimerChange::Set(timer(key, due_at)));
    store.append(&changing("a", sets.to_vec())).await.unwrap();
    let clears = vec![
        TimerChange::Clear { key: "gone".to_owned() },
        TimerChange::Clear { key: "never set".to_owned() },
        TimerChange::Set(timer("set and cleared", NOW)),
        TimerChange::Clear { key: "set and cleared".to_owned() },
    ];
    store.append(&changing("b", clears)).await.unwrap();

    assert_eq!(store.due_timers(NOW, 10).await.unwrap(), [timer("first", NOW - 5), timer("second", NOW)]);
    assert_eq!(store.due_timers(NOW, 1).await.unwrap(), [timer("first", NOW - 5)]);
    store.append(&changing("c", vec![TimerChange::Set(timer("first", NOW + 7))])).await.unwrap();
    assert_eq!(store.due_timers(NOW, 10).await.unwrap(), [timer("second", NOW)]);
    assert_eq!(store.due_timers(NOW + 7, 10).await.unwrap().len(), 3);
}

pub async fn a_given_timer_is_cleared_only_while_it_is_the_same(fixture: &Fixture) {
    let store = fixture.started().await;
    let timer = |key: &str, command: &str| Timer { key: key.to_owned(), due_at: NOW, command: command.to_owned() };
    let set = |key: &str, command: &str| TimerChange::Set(timer(key, command));
    let given = |key: &str, command: &str| TimerChange::ClearGiven { key: key.to_owned(), command: command.to_owned() };
    let mut first = set_prices("a", 0, &[1]);
    first.timers = vec![set("kept", "old"), set("gone", "old"), set("either", "old"), set("kept", "new")];
    store.append(&batch(vec![first])).await.unwrap();

    // No command at all, as for a timer whose release was decided before.
    let timers = vec![
        given("kept", "old"),
        given("gone", "old"),
        given("either", "other"),
        given("either", "old"),
        given("never set", "old"),
    ];
    store.append(&AppendBatch { timers, ..AppendBatch::default() }).await.unwrap();
    assert_eq!(store.due_timers(NOW, 10).await.unwrap(), [timer("kept", "new")]);

    // And what the same batch sets.
    let mut second = set_prices("a", 1, &[2]);
    second.timers = vec![
        set("set and given", "one"),
        given("set and given", "one"),
        set("set anew", "two"),
        given("set anew", "one"),
        given("kept", "new"),
        set("kept", "newest"),
    ];
    store.append(&batch(vec![second])).await.unwrap();
    assert_eq!(store.due_timers(NOW, 10).await.unwrap(), [timer("kept", "newest"), timer("set anew", "two")]);
}
