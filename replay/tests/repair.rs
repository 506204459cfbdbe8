//! Single keys replayed into the generation that is fed, while events for them keep coming.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::time::{Duration, Instant};

use fixture::{Fixture, PARTITIONS, WrongStock};
use projectors::StockProjection;
use read_models::DeadLetterOutcome;
use read_models::stock::SharedStock;
use replay::parity::Progress;
use replay::repair::{Selection, answers, ask, select};
use schemas::{RegionId, Sku};

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

#[test]
fn a_time_that_ends_before_it_begins_is_refused() {
    let of = |since, until| Selection { since, until, ..Selection::default() }.check();
    for (since, until) in [(5, 5), (6, 5)] {
        let refused = of(Some(since), Some(until)).unwrap_err().to_string();
        assert!(refused.starts_with("setting since: "), "{refused}");
    }
    assert!(of(Some(5), Some(6)).is_ok() && of(Some(5), None).is_ok() && of(None, Some(5)).is_ok());
}
