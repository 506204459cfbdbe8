//! What the command side would double, tear or put in the wrong order.

use std::sync::Arc;
use std::time::Duration;

use command_api::{CommandHandler, HandlerSettings, RecordCommand, RecordGroup};
use event_store::{AppendBatch, EventStore, EventStoreError, LoadRequest, PostgresEventStore, RecordIdentity};
use resilience::guard::{Guard, holds, without};
use schemas::command::ReceiveStock;
use schemas::{Command, CommandEnvelope, Context, OutcomeKind, RegionId, WarehouseId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::proxy::{Proxy, Then};
use super::world::{TOPOLOGY, World, counted, sku, stream};

fn receive(id: Uuid, quantity: i64) -> CommandEnvelope {
    CommandEnvelope {
        id,
        correlation_id: None,
        causation_id: None,
        actor: None,
        traceparent: None,
        received_at: 0,
        command: Command::ReceiveStock(ReceiveStock {
            sku: sku("A"),
            warehouse: WarehouseId::new("w-1").unwrap(),
            region: Some(RegionId::new("north").unwrap()),
            quantity,
        }),
    }
}

fn handler(store: Arc<dyn EventStore>) -> CommandHandler {
    let settings = HandlerSettings { retry_for: Duration::ZERO, ..HandlerSettings::default() };
    CommandHandler::start(store, TOPOLOGY, settings, CancellationToken::new()).0
}

async fn version(store: &dyn EventStore) -> u64 {
    let request = LoadRequest { streams: vec![stream("A")], ..LoadRequest::default() };
    store.load(&request).await.unwrap().streams[&stream("A")].version
}

/// Fault 24: a client repeats a command whose answer it did not get.
async fn a_command_is_repeated() -> u64 {
    let world = World::postgres().await;
    let id = Uuid::new_v4();
    for _ in 0..2 {
        let outcome = handler(Arc::clone(&world.store)).handle(receive(id, 10)).await;
        assert_eq!(outcome.outcome, OutcomeKind::Accepted, "{outcome:?}");
    }
    version(&*world.store).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn the_command_id_keeps_a_repeat_without_effect() {
    assert_eq!(a_command_is_repeated().await, 1);
    let _off = without(Guard::CommandId);
    assert_eq!(a_command_is_repeated().await, 2, "W2: the repeat had an effect of its own");
}

/// The handler of a command topic dies before its events are committed. Returns the events after the next handler.
async fn a_handler_dies_before_its_commit() -> u64 {
    let world = World::postgres().await;
    // The commit that has the events: the first, unless the offset has one of its own.
    let commits = if holds(Guard::OffsetInTransaction) { 1 } else { 2 };
    let proxy = Proxy::start(world.postgres.as_ref().unwrap(), b"COMMIT\0", Then::Cut { nth: commits }).await;
    let dying: Arc<dyn EventStore> = Arc::new(PostgresEventStore::connect(proxy.url()).await.unwrap());
    let topic = Context::Inventory.commands_topic();
    let id = Uuid::new_v4();
    let records = |first| RecordGroup {
        context: Context::Inventory,
        topic: topic.to_owned(),
        partition: 0,
        first,
        next: first + 1,
        commands: vec![(
            RecordIdentity { offset: first, digest: [0; 32] },
            RecordCommand::Command { envelope: Box::new(receive(id, 10)), place_id: Uuid::from_u128(7) },
        )],
    };
    let died = handler(dying).handle_records(records(0)).await;
    assert!(died.is_err(), "{died:?}");
    // The next one goes on where the store says that the last one was.
    let next = world.store.command_offsets(topic).await.unwrap().get(&0).map_or(0, |stored| stored.next);
    if next == 0 {
        handler(Arc::clone(&world.store)).handle_records(records(0)).await.unwrap();
    }
    version(&*world.store).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn the_offset_in_the_transaction_keeps_a_record_from_being_skipped() {
    assert_eq!(a_handler_dies_before_its_commit().await, 1);
    let _off = without(Guard::OffsetInTransaction);
    assert_eq!(a_handler_dies_before_its_commit().await, 0, "W2: the offset is past a command that has no effect");
}

/// Appends the next version of a stream.
async fn append_next(store: Arc<dyn EventStore>) {
    loop {
        let next = version(&*store).await;
        let batch = AppendBatch { commands: vec![counted("A", next, 5)], ..AppendBatch::default() };
        match store.append(&batch).await {
            Err(EventStoreError::Conflict { .. }) => {}
            appended => {
                appended.unwrap();
                return;
            }
        }
    }
}

/// Fault 3: of two writers of one stream, the one that began first commits last. Ends with what the relay could publish.
async fn two_writers_of_one_stream() -> (World, Option<String>) {
    let world = World::postgres().await;
    let released = Arc::new(Notify::new());
    let then = Then::Hold { until: Arc::clone(&released) };
    let proxy = Proxy::start(world.postgres.as_ref().unwrap(), b"; SELECT pg_current_xact_id()", then).await;
    let slow: Arc<dyn EventStore> = Arc::new(PostgresEventStore::connect(proxy.url()).await.unwrap());
    let slow = tokio::spawn(append_next(slow));
    if !holds(Guard::LoadsBeforeWrites) {
        proxy.holds().await;
    }
    append_next(Arc::clone(&world.store)).await;
    released.notify_one();
    slow.await.unwrap();
    let relay = world.relay();
    let halted = relay.until_published_or_halted(&world, 2).await;
    (world, halted)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn loads_before_writes_keep_versions_in_commit_order() {
    let (world, halted) = two_writers_of_one_stream().await;
    assert_eq!((world.kinds().await, halted), (vec![], None));
    let off = without(Guard::LoadsBeforeWrites);
    let (world, halted) = two_writers_of_one_stream().await;
    drop(off);
    let kinds = world.kinds().await;
    assert!(halted.is_some() || !kinds.is_empty(), "P1: version 2 stands before version 1, and nobody says so");
}
