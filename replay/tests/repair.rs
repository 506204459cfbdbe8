//! Single keys replayed into the generation that is fed, while events for them keep coming.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use event_log::{EmbeddedRegistry, EventDecoder, EventLogError, SchemaRegistry};
use fixture::{Fixture, PARTITIONS, WrongStock};
use projectors::StockProjection;
use read_models::DeadLetterOutcome;
use read_models::stock::SharedStock;
use replay::LogReader;
use replay::parity::Progress;
use replay::repair::{Selection, answers, ask, select};
use schemas::{Contract, RegionId, SchemaRef, Sku, WriterSchema};

/// Questions that a registry which has just been started leaves without an answer.
const UNANSWERED: u32 = 5;

/// The embedded registry, away at first.
struct AwayAtFirst {
    registry: EmbeddedRegistry,
    questions: AtomicU32,
    unanswered: u32,
}

impl AwayAtFirst {
    fn new(unanswered: u32) -> Self {
        Self { registry: EmbeddedRegistry::default(), questions: AtomicU32::new(0), unanswered }
    }
}

#[async_trait]
impl SchemaRegistry for AwayAtFirst {
    async fn id_of(&self, topic: &str, schema: SchemaRef) -> Result<u32, EventLogError> {
        self.registry.id_of(topic, schema).await
    }

    async fn schema(&self, id: u32) -> Result<Arc<WriterSchema>, EventLogError> {
        if self.questions.fetch_add(1, Ordering::Relaxed) < self.unanswered {
            let (address, problem) = ("registry".to_owned(), "it is being started".to_owned());
            return Err(EventLogError::RegistryUnavailable { address, problem });
        }
        self.registry.schema(id).await
    }

    async fn register(&self, topic: &str, contract: &Contract) -> Result<u32, EventLogError> {
        self.registry.register(topic, contract).await
    }

    async fn check(&self, topic: &str, contract: &Contract) -> Result<Result<(), String>, EventLogError> {
        self.registry.check(topic, contract).await
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.registry.ping().await
    }
}

/// How many keys a selection means.
async fn count(log: &LogReader, selection: &Selection) -> usize {
    let progress = Progress::default();
    let keys = select::<StockProjection>(log, PARTITIONS, selection, &progress).await.unwrap();
    keys.values().map(|keys| keys.len()).sum()
}

async fn repair(fixture: &Fixture, live: &SharedStock, selection: Selection) -> usize {
    let log = fixture.log_reader();
    let progress = Progress::default();
    let keys = select::<StockProjection>(&log, PARTITIONS, &selection, &progress).await.unwrap();
    let selected = keys.values().map(|keys| keys.len()).sum();
    let asked = ask(live.as_ref(), &keys, "ann", "rows were altered by hand", 7).await.unwrap();
    let begun = Instant::now();
    loop {
        let found = answers(live.as_ref(), &asked).await.unwrap();
        if found.iter().all(Option::is_some) {
            for answer in found.into_iter().flatten() {
                assert_eq!(answer.outcome, DeadLetterOutcome::Done, "{}", answer.message);
            }
            return selected;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody answers");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sku_a_region_and_an_hour_end_right_while_events_keep_coming() {
    // What fold 2 of the wrong projection writes is what an operator finds damaged.
    let fixture = Fixture::with_events(3_000).await;
    let damaged = fixture.build::<WrongStock>(1, 2).await;
    fixture.stop_feeding().await;
    let live = fixture.build::<StockProjection>(1, 2).await;
    let load = fixture.load_of("nyc-1", 3);
    let wrong = fixture.wrong_rows(&damaged).await;
    assert!(!wrong.is_empty());

    let sku = |sku: &str| Sku::new(sku).unwrap();
    let one = Selection { skus: vec![sku("sku-3")], ..Selection::default() };
    assert_eq!(repair(&fixture, &live, one).await, 1);
    let left = fixture.wrong_rows(&live).await;
    assert!(left.len() < wrong.len() && !left.iter().any(|key| key.starts_with("sku-3 ")), "{left:?}");

    let hour = Selection { since: Some(1_700_000_000_000), until: Some(1_700_000_000_090), ..Selection::default() };
    let of_hour = repair(&fixture, &live, hour).await;
    assert_eq!(of_hour, 30, "90 events of 3 warehouses each");
    assert!(!fixture.wrong_rows(&live).await.iter().any(|key| key.starts_with("sku-29 ")));

    let region = Selection { regions: vec![RegionId::new("eu").unwrap()], ..Selection::default() };
    assert_eq!(repair(&fixture, &live, region).await, 150);
    load.stop().await;
    fixture.level(&live).await;
    assert_eq!(fixture.wrong_rows(&live).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sku_that_the_log_has_no_event_of_is_named() {
    let fixture = Fixture::with_events(300).await;
    let log = fixture.log_reader();
    let selected = async |selection: &Selection| {
        let progress = Progress::default();
        select::<StockProjection>(&log, PARTITIONS, selection, &progress).await.unwrap()
    };
    let sku = |sku: &str| Sku::new(sku).unwrap();
    let typed = Selection { skus: vec![sku("sku-3"), sku("sku-TYPO")], ..Selection::default() };
    let found = selected(&typed).await;
    assert_eq!(found.values().flatten().collect::<Vec<_>>(), ["sku-3"]);
    assert_eq!(typed.not_in(&found), [sku("sku-TYPO")]);
    let missing = typed.missing(&found).unwrap();
    assert_eq!((missing.code, missing.sentence.contains("no event of sku-TYPO;")), ("unknown_sku", true));
    let right = Selection { skus: vec![sku("sku-3")], ..Selection::default() };
    assert_eq!(right.missing(&selected(&right).await), None);

    // Before its first event.
    let early = Selection { until: Some(1), ..right };
    assert_eq!(early.missing(&selected(&early).await).unwrap().code, "nothing_selected");
}

/// Fault 13: what the registry cannot say just now is no event of another region.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_is_passed_over_while_the_registry_is_away() {
    // Three events of each SKU: who passes five over has lost one.
    let fixture = Fixture::with_events(450).await;
    let registry = Arc::new(AwayAtFirst::new(UNANSWERED));
    let decoder = Arc::new(EventDecoder::new(registry.clone()));
    let log = LogReader { decoder, ..fixture.log_reader() };
    let region = Selection { regions: vec![RegionId::new("eu").unwrap()], ..Selection::default() };
    assert_eq!(count(&log, &region).await, 150);
    assert!(registry.questions.load(Ordering::Relaxed) > UNANSWERED);
}

#[tokio::test]
async fn a_registry_that_stays_away_ends_the_selection_and_is_told() {
    let fixture = Fixture::with_events(3).await;
    let decoder = Arc::new(EventDecoder::new(Arc::new(AwayAtFirst::new(u32::MAX))));
    let log = LogReader { decoder, ..fixture.log_reader() };
    let region = Selection { regions: vec![RegionId::new("eu").unwrap()], ..Selection::default() };
    // Its patience is longer than a test may take.
    tokio::time::pause();
    let error = select::<StockProjection>(&log, PARTITIONS, &region, &Progress::default()).await.unwrap_err();
    assert!(error.to_string().contains("it is being started"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_only_event_nobody_can_read_is_meant_by_its_time() {
    // All events of 100 SKUs, and one of the next.
    let fixture = Fixture::with_events(300).await;
    fixture.publish_unreadable().await;
    let log = fixture.log_reader();
    let region = Selection { regions: vec![RegionId::new("eu").unwrap()], ..Selection::default() };
    assert_eq!(count(&log, &region).await, 101, "its region may be this one");
    let its_time = 1_700_000_000_300;
    assert_eq!(count(&log, &Selection { since: Some(its_time), ..region.clone() }).await, 1);
    assert_eq!(count(&log, &Selection { until: Some(its_time), ..region }).await, 100);
}

#[test]
fn a_time_that_ends_before_it_begins_is_refused() {
    let of = |since, until| Selection { since, until, ..Selection::default() }.check();
    for (since, until) in [(5, 5), (6, 5)] {
        let refused = of(Some(since), Some(until)).unwrap_err().to_string();
        assert!(refused.starts_with("setting since: "), "{refused}");
    }
    assert!(of(Some(5), Some(6)).is_ok() && of(Some(5), None).is_ok() && of(None, Some(5)).is_ok());
}
