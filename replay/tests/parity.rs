//! Parity on a real log and a real store, while events keep coming: clean where both generations are right, and exactly
//! the differing keys where one is not.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use fixture::{Fixture, PARTITIONS, WrongStock};
use projectors::StockProjection;
use read_models::ReadModelStatus;
use replay::parity::{Progress, Sides, compare};
use replay::report::DifferenceKind;
use replay::rules::Rules;

const NEW_FIELD: &str = r#"
    [[difference]]
    projection = "stock"
    field = "updated_at"
    kind = "new"
    reason = "fold 2 tells when a row last changed"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_right_generations_are_level_at_one_vector_while_events_keep_coming() {
    let fixture = Fixture::with_events(4_000).await;
    let live = fixture.build::<StockProjection>(1, 1).await;
    let candidate = fixture.build::<StockProjection>(2, 2).await;
    let load = fixture.load();
    let rules = Rules::parse(NEW_FIELD, "stock").unwrap();
    let sides = Sides { live: &live, live_fold: 1, candidate: &candidate, candidate_fold: 2 };
    let log = fixture.log_reader();
    let mut vectors = Vec::new();
    for _ in 0..20 {
        let report = compare::<StockProjection>(&sides, &log, &rules, &Progress::default(), 7).await.unwrap();
        assert!(report.is_clean(), "{}", report.text(10));
        assert_eq!((report.compared(), report.excused()), (fixture.rows(), fixture.rows()));
        assert_eq!(report.partitions.len(), PARTITIONS as usize);
        vectors.push(report.vector);
    }
    load.stop().await;
    assert!(vectors.windows(2).any(|pair| pair[0] != pair[1]), "events came meanwhile");

    let strict = Rules::default();
    let report = compare::<StockProjection>(&sides, &log, &strict, &Progress::default(), 7).await.unwrap();
    assert_eq!(report.differing, fixture.rows(), "without a rule every row differs by the new field");
    assert_eq!(report.by_field().keys().collect::<Vec<_>>(), [&"updated_at"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_one_field_of_one_region_is_named_key_by_key() {
    let fixture = Fixture::with_events(2_000).await;
    let live = fixture.build::<WrongStock>(1, 1).await;
    let candidate = fixture.build::<WrongStock>(2, 2).await;
    let load = fixture.load();
    let sides = Sides { live: &live, live_fold: 1, candidate: &candidate, candidate_fold: 2 };
    let log = fixture.log_reader();
    let rules = Rules::default();
    let report = compare::<WrongStock>(&sides, &log, &rules, &Progress::default(), 7).await.unwrap();
    load.stop().await;

    let mut differing: Vec<String> = report
        .differences
        .iter()
        .filter(|difference| difference.kind == DifferenceKind::Differs)
        .map(|difference| difference.key.clone())
        .collect();
    differing.sort();
    assert_eq!(differing, fixture.keys_of_region("eu", &[WrongStock::LOST]));
    for difference in report.differences.iter().filter(|found| found.kind == DifferenceKind::Differs) {
        assert_eq!(difference.fields, ["reserved"]);
        assert_ne!(difference.live, difference.candidate);
    }
    let missing: Vec<&str> = report
        .differences
        .iter()
        .filter(|difference| difference.kind == DifferenceKind::Missing)
        .map(|difference| difference.key.as_str())
        .collect();
    assert_eq!(missing, fixture.keys_of_sku(WrongStock::LOST));
    assert!(!report.is_clean() && !report.evidence().is_clean());
    let html = report.html();
    assert!(html.contains("Differing keys by field") && html.contains(&differing[0]) && !html.contains("http"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_only_one_side_has_come_to_park_is_no_difference() {
    let fixture = Fixture::with_events(900).await;
    let live = fixture.build::<StockProjection>(1, 1).await;
    let candidate = fixture.build::<StockProjection>(2, 1).await;
    fixture.level(&live).await;
    fixture.level(&candidate).await;
    fixture.stop_feeding().await;
    fixture.publish_unreadable().await;
    fixture.build::<StockProjection>(1, 1).await;
    fixture.level(&live).await;

    let sides = Sides { live: &live, live_fold: 1, candidate: &candidate, candidate_fold: 1 };
    let (log, progress, rules) = (fixture.log_reader(), Progress::default(), Rules::default());
    let compared = compare::<StockProjection>(&sides, &log, &rules, &progress, 7);
    let catches_up = async {
        // All but the one with the key that one side has parked.
        while progress.seen().1 < u64::from(PARTITIONS) - 1 {
            tokio::task::yield_now().await;
        }
        fixture.build::<StockProjection>(2, 1).await;
    };
    let (report, ()) = tokio::join!(compared, catches_up);
    let report = report.unwrap();
    assert!(report.is_clean(), "{}", report.text(10));
    let parked =
        |status: ReadModelStatus| status.partitions.iter().map(|partition| partition.parked_events).sum::<u64>();
    assert_eq!((parked(live.status().await.unwrap()), parked(candidate.status().await.unwrap())), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_is_still_built_is_not_compared() {
    let fixture = Fixture::with_events(100).await;
    let live = fixture.build::<StockProjection>(1, 1).await;
    let candidate = fixture.unbuilt(2, 2).await;
    let sides = Sides { live: &live, live_fold: 1, candidate: &candidate, candidate_fold: 2 };
    let log = fixture.log_reader();
    let refused = compare::<StockProjection>(&sides, &log, &Rules::default(), &Progress::default(), 7).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("stock@2 is still being built"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_writes_nothing_and_names_what_would_change() {
    let fixture = Fixture::with_events(2_000).await;
    let live = fixture.build::<WrongStock>(1, 1).await;
    let log = fixture.log_reader();
    let (rules, progress) = (Rules::default(), Progress::default());
    let same = replay::dry_run::<WrongStock>(&live, 1, 1, &log, &rules, &progress).await.unwrap();
    assert!(same.is_clean());
    assert_eq!((same.events, same.rows, same.failed_events), (2_000, fixture.rows(), 0));

    let before = fixture.generations().await;
    let wrong = replay::dry_run::<WrongStock>(&live, 1, 2, &log, &rules, &progress).await.unwrap();
    let expected =
        fixture.keys_of_region("eu", &[WrongStock::LOST]).len() + fixture.keys_of_sku(WrongStock::LOST).len();
    assert_eq!(wrong.differing, expected as u64);
    assert_eq!(fixture.generations().await, before);
}
