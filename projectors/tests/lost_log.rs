//! A projector whose log lost records, was made anew, or holds another history: it halts, says why, and goes on by
//! itself once the log holds what it needs. Real read model and real log, both in files.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{
    EmbeddedRegistry, EventEnvelope, EventLog, Headers, NewRecord, SqliteEventLog, TopicPartition, TopicSpec,
    frame::frame,
};
use projectors::{ProjectorSettings, StockProjection, run_projector};
use read_models::PartitionRef;
use read_models::stock::{SharedStock, StockReadModel, connect_stock};
use schemas::contract::embedded_id;
use schemas::event::{StockChange, StockUpdated};
use schemas::{Context, Event, RegionId, Sku, StorePosition, WarehouseId, encode_event};
use telemetry::Health;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const TOPIC: &str = "inventory.events";
/// Below the time after which a halted partition looks at a log that did not change.
const DEADLINE: Duration = Duration::from_secs(45);

/// Event `sequence` of `history`: the stock is then `sequence`.
fn event(history: u128, sequence: u64) -> NewRecord {
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
        id: Uuid::from_u128((history << 64) | u128::from(sequence)),
        source: "/millrace/inventory".to_owned(),
        event_type: encoded.schema.name.to_owned(),
        time: history as i64 * 1_000_000 + sequence as i64,
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

fn events(history: u128, sequences: std::ops::RangeInclusive<u64>) -> Vec<NewRecord> {
    sequences.map(|sequence| event(history, sequence)).collect()
}

async fn log_of(path: &Path, records: Vec<NewRecord>) -> Arc<dyn EventLog> {
    let log = SqliteEventLog::open(path).unwrap();
    log.ensure_topics(&[TopicSpec { name: TOPIC.to_owned(), partitions: 1 }]).await.unwrap();
    log.publish(records).await.unwrap();
    Arc::new(log)
}

struct Running {
    stock: SharedStock,
    health: Health,
    shutdown: CancellationToken,
    projector: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(stock: &SharedStock, log: &Arc<dyn EventLog>, partitions: u32) -> Self {
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let settings = ProjectorSettings {
            group: "test".to_owned(),
            partitions,
            gap_patience: Duration::from_millis(200),
            ..ProjectorSettings::default()
        };
        let projector = run_projector::<StockProjection, dyn StockReadModel>(
            stock.clone(),
            log.clone(),
            Arc::new(EmbeddedRegistry::default()),
            settings,
            health.component("stock"),
            shutdown.clone(),
        );
        let projector = tokio::spawn(async move { projector.await.unwrap() });
        Self { stock: stock.clone(), health, shutdown, projector }
    }

    async fn reaches(&self, sequence: u64) {
        let begun = Instant::now();
        while self.sequence().await != sequence {
            assert!(begun.elapsed() < DEADLINE, "at {}, not {sequence}: {}", self.sequence().await, self.told());
            tokio::task::yield_now().await;
        }
    }

    async fn says(&self, words: &str) {
        let begun = Instant::now();
        while !self.told().contains(words) {
            assert!(begun.elapsed() < DEADLINE, "{:?} is not said: {}", words, self.told());
            tokio::task::yield_now().await;
        }
    }

    async fn sequence(&self) -> u64 {
        // There is none before the projector has made it.
        let Ok(status) = self.stock.status().await else { return 0 };
        status.partitions.first().map_or(0, |partition| partition.checkpoint.sequence)
    }

    fn told(&self) -> String {
        self.health.report().components["stock"].clone()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.projector.await.unwrap();
    }
}

async fn stock_at(folder: &Path, sequence: u64) -> SharedStock {
    let stock = connect_stock(&format!("sqlite:{}", folder.join("stock.db").display())).await.unwrap();
    let log = log_of(&folder.join("first.db"), events(1, 1..=sequence)).await;
    let running = Running::start(&stock, &log, 1);
    running.reaches(sequence).await;
    running.stop().await;
    stock
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_its_tail_is_waited_for_and_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let stock = stock_at(folder.path(), 5).await;
    let log = log_of(&folder.path().join("second.db"), events(1, 1..=3)).await;
    let running = Running::start(&stock, &log, 1);
    running.says("made anew, run `millrace relay reconcile`").await;
    assert_eq!(running.sequence().await, 5);
    // Published again from where it was lost, and on.
    log.publish(events(1, 3..=8)).await.unwrap();
    running.reaches(8).await;
    running.says("ready").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_of_another_history_is_never_dropped_as_known() {
    let folder = tempfile::tempdir().unwrap();
    let stock = stock_at(folder.path(), 5).await;
    for count in [5, 9] {
        let log = log_of(&folder.path().join(format!("other-{count}.db")), events(2, 1..=count)).await;
        let running = Running::start(&stock, &log, 1);
        running.says("belongs to another event table").await;
        assert_eq!(running.sequence().await, 5);
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_with_another_id_halts_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
    let log = log_of(&folder.path().join("log.db"), events(1, 1..=5)).await;
    let running = Running::start(&stock, &log, 1);
    running.reaches(5).await;
    log.publish(events(1, 3..=6)).await.unwrap();
    running.reaches(6).await;
    log.publish(vec![event(2, 4)]).await.unwrap();
    running.says("belongs to another event table").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_halts_and_is_closed_without_a_new_start() {
    let folder = tempfile::tempdir().unwrap();
    let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
    let log = log_of(&folder.path().join("log.db"), events(1, 1..=5)).await;
    let running = Running::start(&stock, &log, 1);
    running.reaches(5).await;
    log.publish(events(1, 8..=9)).await.unwrap();
    running.says("halted").await;
    assert_eq!(running.sequence().await, 5);
    log.publish(events(1, 6..=9)).await.unwrap();
    running.reaches(9).await;
    running.says("ready").await;
    running.stop().await;
}

/// Faults 1 and 25 at once: the relay publishes again behind what somebody else put there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_nobody_behind_a_gap_is_kept_once_the_gap_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
    let foreign = || NewRecord { headers: Headers::default(), ..event(1, 1) };
    let mut records = events(1, 1..=5);
    records.extend([foreign()]);
    records.extend(events(1, 8..=9));
    records.extend([foreign(), foreign()]);
    records.extend(events(1, 6..=7));
    records.extend([foreign()]);
    let log = log_of(&folder.path().join("log.db"), records).await;
    let running = Running::start(&stock, &log, 1);
    running.reaches(7).await;
    log.publish(events(1, 8..=9)).await.unwrap();
    running.reaches(9).await;
    let at = PartitionRef { context: Context::Inventory, partition: 0 };
    let kept = stock.parked(at, None, 10).await.unwrap();
    let offsets: Vec<u64> = kept.iter().map(|event| event.offset).collect();
    assert_eq!(offsets, [5, 8, 9, 12]);
    running.stop().await;
}

/// Fault 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_partition_is_refused_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
    let log = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
    log.ensure_topics(&[TopicSpec { name: TOPIC.to_owned(), partitions: 2 }]).await.unwrap();
    log.publish(events(1, 1..=5)).await.unwrap();
    let log: Arc<dyn EventLog> = Arc::new(log);
    let running = Running::start(&stock, &log, 1);
    running.reaches(5).await;
    running.says("partitions were added to the topic, and keys would move").await;
    running.stop().await;
}
