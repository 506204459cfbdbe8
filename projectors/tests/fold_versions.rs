//! A generation is fed by the fold that built it, or by none. Real read model and real log, both in files.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{
    EmbeddedRegistry, EventEnvelope, EventLog, NewRecord, SqliteEventLog, TopicPartition, TopicSpec, frame::frame,
};
use projectors::{Projection, ProjectorError, ProjectorSettings, StockProjection, run_projector};
use read_models::stock::{StockKey, StockReadModel, StockRow, connect_stock};
use read_models::{PartitionRef, ReadModelError};
use schemas::contract::embedded_id;
use schemas::event::{StockChange, StockUpdated};
use schemas::{Context, Event, RegionId, Sku, StorePosition, WarehouseId, encode_event};
use telemetry::Health;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const TOPIC: &str = "inventory.events";
const DEADLINE: Duration = Duration::from_secs(60);

/// Event `sequence`: the stock is then `sequence`, decided at that many milliseconds.
fn event(sequence: u64) -> NewRecord {
    let event = Event::StockUpdated(StockUpdated {
        sku: Sku::new("a").unwrap(),
        warehouse: WarehouseId::new("w").unwrap(),
        region: RegionId::new("north").unwrap(),
        change: StockChange::Counted,
        quantity: sequence as i64,
        on_hand: sequence as i64,
        reserved: 0,
        reservation_id: None,
        expires_at: None,
        reason: None,
    });
    let encoded = encode_event(&event).unwrap();
    let envelope = EventEnvelope {
        id: Uuid::from_u128(u128::from(sequence)),
        source: "/millrace/inventory".to_owned(),
        event_type: encoded.schema.name.to_owned(),
        time: 1_700_000_000_000 + sequence as i64,
        subject: "stock-a@w".to_owned(),
        partition_key: "a".to_owned(),
        sequence,
        stream_version: sequence,
        position: StorePosition { xid: 0, position: sequence },
        correlation_id: None,
        causation_id: None,
        traceparent: None,
    };
    NewRecord {
        at: TopicPartition::new(TOPIC, 0),
        key: b"a".to_vec(),
        headers: envelope.to_headers(),
        value: frame(embedded_id(encoded.schema), &encoded.body),
        timestamp: 0,
    }
}

#[tokio::test]
async fn generations_of_two_folds_are_fed_side_by_side_from_one_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
    log.ensure_topics(&[TopicSpec { name: TOPIC.to_owned(), partitions: 1 }]).await.unwrap();
    log.publish((1..=3).map(event).collect()).await.unwrap();
    let log: Arc<dyn EventLog> = Arc::new(log);
    let url = format!("sqlite:{}", folder.path().join("stock.db").display());
    let (health, shutdown) = (Health::default(), CancellationToken::new());
    let mut projectors = Vec::new();
    let mut stores = Vec::new();
    for (generation, fold_version) in [(1, 1), (2, 2)] {
        let stock = connect_stock(&url).await.unwrap();
        let group = format!("test@{generation}");
        let settings = ProjectorSettings { group, generation, fold_version, partitions: 1, ..Default::default() };
        let projector = run_projector::<StockProjection, dyn StockReadModel>(
            stock.clone(),
            log.clone(),
            Arc::new(EmbeddedRegistry::default()),
            settings,
            health.component("stock"),
            shutdown.clone(),
        );
        projectors.push(tokio::spawn(projector));
        // A handle of its generation, prepared or not; one that is bound to none tells of what serves until then.
        stores.push(stock.of_generation(generation));
    }
    let partition = PartitionRef { context: Context::Inventory, partition: 0 };
    let key = StockKey { sku: Sku::new("a").unwrap(), warehouse: WarehouseId::new("w").unwrap() };
    let region = RegionId::new("north").unwrap();
    for (stock, updated_at) in stores.iter().zip([None, Some(1_700_000_000_003)]) {
        let begun = Instant::now();
        let loaded = loop {
            match stock.load(partition, std::slice::from_ref(&key)).await {
                Ok(loaded) if loaded.checkpoint.sequence == 3 => break loaded,
                _ => assert!(begun.elapsed() < DEADLINE, "not level"),
            }
            tokio::task::yield_now().await;
        };
        let row = StockRow { region: region.clone(), on_hand: 3, reserved: 0, version: 3, updated_at };
        assert_eq!(loaded.rows, [Some(row)]);
    }
    shutdown.cancel();
    for projector in projectors {
        projector.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_fold_that_is_not_in_the_program_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let log = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
    log.ensure_topics(&[TopicSpec { name: TOPIC.to_owned(), partitions: 1 }]).await.unwrap();
    let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
    for unknown in [0, StockProjection::FOLDS.last().unwrap() + 1] {
        let health = Health::default();
        let settings =
            ProjectorSettings { group: "test".to_owned(), fold_version: unknown, partitions: 1, ..Default::default() };
        let refused = run_projector::<StockProjection, dyn StockReadModel>(
            stock.clone(),
            Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap()),
            Arc::new(EmbeddedRegistry::default()),
            settings,
            health.component("stock"),
            CancellationToken::new(),
        )
        .await
        .unwrap_err();
        assert!(matches!(&refused, ProjectorError::UnknownFold { fold_version, .. } if *fold_version == unknown));
        assert!(!refused.is_transient());
        let told = refused.to_string();
        assert!(told.contains("a replay is due") && told.contains("this program has 1, 2:"), "{told}");
        assert!(matches!(stock.status().await, Err(ReadModelError::Rebuilding { .. })));
    }
}
