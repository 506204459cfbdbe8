//! What the relay and the projector would lose or tear.

use audit::{Difference, Kind, Place};
use event_store::RelayCursor;
use resilience::guard::{Guard, holds, without};
use schemas::{Event, encode_event};

use super::world::{World, counted, decided, until, updated};

/// An event that the table has and the topic has not. Where the relay went on, its count no longer is the table's.
fn is_loss(kinds: &[Kind]) -> bool {
    kinds.contains(&Kind::Lost) || kinds.contains(&Kind::Miscounted)
}

/// Inserts an event as a transaction of somebody else would.
async fn insert(client: &tokio_postgres::Client, sku: &str) {
    let encoded = encode_event(&Event::StockUpdated(updated(sku, 1))).unwrap();
    let insert = "INSERT INTO events (stream, version, topic, key, id, schema, schema_version, body, time)
                  VALUES ('stock-' || $1 || '@w-1', 1, 'inventory.events', $1, gen_random_uuid(), $2, $3, $4, 0)";
    let (schema, version) = (encoded.schema.name, encoded.schema.version as i32);
    client.execute(insert, &[&sku, &schema, &version, &encoded.body]).await.unwrap();
}

/// Fault 2: a transaction that began first commits last.
async fn an_older_transaction_commits_late() -> World {
    let world = World::postgres().await;
    let open = world.raw().await;
    open.batch_execute("BEGIN").await.unwrap();
    insert(&open, "late").await;
    world.append(vec![counted("early", 0, 5)]).await;
    let relay = world.relay();
    // Without the guard it goes past the open transaction; with it, it must not.
    until(async || holds(Guard::SnapshotHorizon) || world.published().await == 1).await;
    open.batch_execute("COMMIT").await.unwrap();
    world.append(vec![counted("last", 0, 5)]).await;
    world.until_published(if holds(Guard::SnapshotHorizon) { 3 } else { 2 }).await;
    relay.stop().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn the_snapshot_horizon_keeps_a_late_commit() {
    assert_eq!(an_older_transaction_commits_late().await.kinds().await, []);
    let off = without(Guard::SnapshotHorizon);
    let world = an_older_transaction_commits_late().await;
    drop(off);
    assert!(is_loss(&world.kinds().await), "W4: {:?}", world.audit().await.differences);
}

/// A younger transaction has the lower position, and commits after the older one was published.
async fn a_lower_position_has_the_higher_transaction() -> World {
    let world = World::postgres().await;
    let (older, younger) = (world.raw().await, world.raw().await);
    older.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    younger.batch_execute("BEGIN").await.unwrap();
    insert(&younger, "lower").await;
    insert(&older, "higher").await;
    older.batch_execute("COMMIT").await.unwrap();
    let relay = world.relay();
    world.until_published(1).await;
    younger.batch_execute("COMMIT").await.unwrap();
    world.append(vec![counted("last", 0, 5)]).await;
    world.until_published(if holds(Guard::PairCursor) { 3 } else { 2 }).await;
    relay.stop().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn the_pair_cursor_keeps_a_lower_position_of_a_later_transaction() {
    assert_eq!(a_lower_position_has_the_higher_transaction().await.kinds().await, []);
    let off = without(Guard::PairCursor);
    let world = a_lower_position_has_the_higher_transaction().await;
    drop(off);
    assert!(is_loss(&world.kinds().await), "W4: {:?}", world.audit().await.differences);
}

/// Fault 23: a relay that was superseded saves a cursor beyond what is on the log.
async fn a_zombie_saves_its_cursor() -> World {
    let world = World::sqlite().await;
    for version in 0..3 {
        world.append(vec![counted("A", version, 5)]).await;
    }
    let zombie = world.store.lease_relay().await.unwrap();
    let rows = world.store.read_committed(zombie.cursor.position, 10).await.unwrap();
    let leader = world.store.lease_relay().await.unwrap();
    assert!(leader.epoch > zombie.epoch);
    let beyond = RelayCursor { position: rows[1].position, ..RelayCursor::default() };
    let saved = world.store.save_cursor(zombie.epoch, &beyond).await;
    assert_eq!(saved.is_err(), holds(Guard::RelayEpoch), "{saved:?}");
    let relay = world.relay();
    world.until_published(if holds(Guard::RelayEpoch) { 3 } else { 1 }).await;
    relay.stop().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_epoch_keeps_the_cursor_from_a_zombie() {
    assert_eq!(a_zombie_saves_its_cursor().await.kinds().await, []);
    let off = without(Guard::RelayEpoch);
    let world = a_zombie_saves_its_cursor().await;
    drop(off);
    assert!(is_loss(&world.kinds().await), "W4: {:?}", world.audit().await.differences);
}

/// What the audit says of the stock.
async fn stock_differences(world: &World) -> Vec<Difference> {
    let report = world.audit().await;
    report.differences.into_iter().filter(|difference| difference.place == Place::Stock).collect()
}

/// The log has lost the second of three events of a partition.
async fn an_event_is_missing_on_the_log() -> World {
    let mut world = World::sqlite().await;
    // Of one partition, and so of one order.
    for (name, version) in [("A", 0), ("A", 1), ("A", 2)] {
        world.append(vec![counted(name, version, version as i64 + 5)]).await;
    }
    let relay = world.relay();
    world.until_published(3).await;
    relay.stop().await;
    world.lose_on_the_log("A", 2).await;
    let projector = world.projector();
    if holds(Guard::SequenceRule) {
        // The first one is folded, and nothing behind the gap.
        until(async || world.applied().await == 1).await;
    } else {
        until(async || world.applied().await >= 3).await;
    }
    projector.stop().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sequence_rule_sees_a_lost_event() {
    let guarded = an_event_is_missing_on_the_log().await;
    assert_eq!(guarded.version("A").await, Some(1));
    let off = without(Guard::SequenceRule);
    let world = an_event_is_missing_on_the_log().await;
    drop(off);
    assert_eq!(world.version("A").await, Some(3), "P1: what follows the gap was applied");
}

/// Fault 11: the second of three events of a SKU cannot be folded.
async fn an_event_is_poison() -> World {
    let world = World::sqlite().await;
    let mut impossible = updated("P", 3);
    impossible.reserved = 4;
    world.append(vec![counted("P", 0, 7)]).await;
    world.append(vec![decided("P", 1, Event::StockUpdated(impossible))]).await;
    world.append(vec![counted("P", 2, 9), counted("other", 0, 1)]).await;
    world.relay_and_fold(4).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn key_parking_keeps_the_last_good_state() {
    let guarded = an_event_is_poison().await;
    assert_eq!(stock_differences(&guarded).await, []);
    assert_eq!(guarded.version("P").await, Some(1));
    let off = without(Guard::KeyParking);
    let world = an_event_is_poison().await;
    drop(off);
    let found = stock_differences(&world).await;
    assert!(found.iter().any(|difference| difference.what.contains('P')), "P4: {found:?}");
}
