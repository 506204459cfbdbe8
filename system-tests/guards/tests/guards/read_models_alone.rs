//! What a read model would lose, tear, or answer wrongly.

use audit::Kind;
use read_models::search::SearchReadModel;
use read_models::stock::{SharedStock, StockKey, StockRow, connect_stock};
use read_models::{Batch, Checkpoint, Claimed, Generation, PartitionRef, ReadChoice, ReadModelError};
use resilience::guard::{Guard, holds, without};
use schemas::{Context, RegionId, StorePosition, WarehouseId, partition_of};

use super::world::{TOPOLOGY, World, counted, sku, until};

fn generation() -> Generation {
    Generation { name: "stock".to_owned(), number: 1, fold_version: 1, partitions: TOPOLOGY.partitions }
}

fn home() -> PartitionRef {
    PartitionRef { context: Context::Inventory, partition: partition_of(b"A", TOPOLOGY.partitions) }
}

fn key() -> StockKey {
    StockKey { sku: sku("A"), warehouse: WarehouseId::new("w-1").unwrap() }
}

/// The write that an owner makes of one event.
fn write(owner: &Claimed, on_hand: i64) -> Batch<StockKey, StockRow> {
    let row = StockRow { region: RegionId::new("north").unwrap(), on_hand, reserved: 0, version: 1, updated_at: None };
    let position = StorePosition { xid: 0, position: 1 };
    Batch {
        to: Checkpoint { sequence: 1, next_offset: 1, position, event_time: 1 },
        changes: vec![(key(), row)],
        ..Batch::unmoved(home(), owner.epoch, owner.checkpoint, true)
    }
}

/// Fault 8: an owner that was frozen before its write wakes up when another has claimed its partition.
async fn a_zombie_writes(url: &str) -> Option<i64> {
    let (first, second) = (connect_stock(url).await.unwrap(), connect_stock(url).await.unwrap());
    first.prepare(&generation()).await.unwrap();
    second.prepare(&generation()).await.unwrap();
    let frozen = first.claim(home()).await.unwrap();
    second.claim(home()).await.unwrap();
    let written = first.apply(&write(&frozen, 99)).await;
    if let Err(error) = written {
        assert!(matches!(error, ReadModelError::Superseded { .. }), "{error}");
    }
    second.load(home(), &[key()]).await.unwrap().rows.remove(0).map(|row| row.on_hand)
}

fn redis_url() -> String {
    let server = std::env::var("MILLRACE_TEST_REDIS").expect("MILLRACE_TEST_REDIS is set by make test");
    format!("{server}?prefix=g-{}", uuid::Uuid::new_v4().simple())
}

/// The functions are loaded where they are missing, as the guards that are off want them.
async fn forget_functions() {
    let server = std::env::var("MILLRACE_TEST_REDIS").unwrap();
    let mut connection = redis::Client::open(server).unwrap().get_multiplexed_async_connection().await.unwrap();
    redis::cmd("FUNCTION").arg("FLUSH").exec_async(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn the_epoch_in_redis_keeps_a_zombie_out() {
    forget_functions().await;
    assert_eq!(a_zombie_writes(&redis_url()).await, None);
    forget_functions().await;
    let off = without(Guard::RedisEpoch);
    assert_eq!(a_zombie_writes(&redis_url()).await, Some(99), "P3: the zombie's write is in the store");
    drop(off);
    forget_functions().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_epoch_in_sqlite_keeps_a_zombie_out() {
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    assert_eq!(a_zombie_writes(&url("guarded.db")).await, None);
    let _off = without(Guard::SqliteEpoch);
    assert_eq!(a_zombie_writes(&url("unguarded.db")).await, Some(99), "P3: the zombie's write is in the store");
}

/// Fault 10: Redis is emptied while readers read. Returns what they are told of a SKU that has 5 units.
async fn an_emptied_redis_is_read() -> Result<i64, ReadModelError> {
    let url = redis_url();
    let stock: SharedStock = connect_stock(&url).await.unwrap();
    stock.prepare(&generation()).await.unwrap();
    for partition in 0..TOPOLOGY.partitions {
        let at = PartitionRef { context: Context::Inventory, partition };
        let claimed = stock.claim(at).await.unwrap();
        let live = if at == home() {
            write(&claimed, 5)
        } else {
            Batch { partition: at, changes: Vec::new(), to: claimed.checkpoint, ..write(&claimed, 0) }
        };
        stock.apply(&live).await.unwrap();
    }
    assert_eq!(told(&stock).await.unwrap(), 5);
    let (server, prefix) = url.split_once("?prefix=").unwrap();
    let mut connection = redis::Client::open(server).unwrap().get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{prefix}:*")).query_async(&mut connection).await.unwrap();
    redis::cmd("DEL").arg(keys).exec_async(&mut connection).await.unwrap();
    told(&stock).await
}

async fn told(stock: &SharedStock) -> Result<i64, ReadModelError> {
    let answer = stock.stock(&[sku("A")], &ReadChoice::default()).await?.answers.remove(0);
    Ok(answer.warehouses.iter().map(|(_, row)| row.on_hand).sum())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn the_generation_marker_keeps_an_emptied_redis_from_answering() {
    forget_functions().await;
    let guarded = an_emptied_redis_is_read().await;
    assert!(matches!(guarded, Err(ReadModelError::Rebuilding { .. })), "{guarded:?}");
    forget_functions().await;
    let off = without(Guard::GenerationMarker);
    let told = an_emptied_redis_is_read().await;
    drop(off);
    forget_functions().await;
    assert!(matches!(told, Ok(0)), "Q1: a stock of zero that never was: {told:?}");
}

/// Two processes are started on one search directory by mistake.
async fn a_second_writer_of_the_index() -> bool {
    let folder = tempfile::tempdir().unwrap();
    let _first = SearchReadModel::open(folder.path()).await.unwrap();
    SearchReadModel::open(folder.path()).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_search_lock_keeps_a_second_writer_out() {
    assert!(!a_second_writer_of_the_index().await);
    let _off = without(Guard::SearchLock);
    assert!(a_second_writer_of_the_index().await, "P3: two owners write one index");
}

/// The projector dies after its checkpoint would be written and before the rows.
async fn a_projector_dies_between_checkpoint_and_rows() -> World {
    let world = World::sqlite().await;
    world.append(vec![counted("A", 0, 5)]).await;
    let relay = world.relay();
    world.until_published(1).await;
    relay.stop().await;
    world.stock.prepare(&generation()).await.unwrap();
    // No row goes in: the first of a batch fails, as if the process had ended there.
    let file = rusqlite::Connection::open(world.path("stock.db")).unwrap();
    let trigger = "CREATE TRIGGER dies BEFORE INSERT ON stock BEGIN SELECT RAISE(ABORT, 'it dies here'); END";
    file.execute_batch(trigger).unwrap();
    let projector = world.projector();
    let halted = async || holds(Guard::CheckpointInCommit) || world.applied().await == 1;
    until(halted).await;
    projector.stop().await;
    file.execute_batch("DROP TRIGGER dies").unwrap();
    let projector = world.projector();
    world.until_folded().await;
    projector.stop().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoint_in_the_commit_keeps_effect_and_place_together() {
    assert_eq!(a_projector_dies_between_checkpoint_and_rows().await.kinds().await, []);
    let off = without(Guard::CheckpointInCommit);
    let world = a_projector_dies_between_checkpoint_and_rows().await;
    drop(off);
    assert_eq!(world.kinds().await, [Kind::Missing], "P2: {:?}", world.audit().await.differences);
}
