use read_models::generations::{MirrorReport, ReadReport};

use super::*;
use crate::memory::{SECOND, STAGES, level};
use crate::observed::ObservedGeneration;
use crate::plan::Plan;

fn in_stage(index: usize) -> Watched {
    let bounds = Plan::parse("stages.toml", STAGES).unwrap().triggers;
    Watched { generation: 2, bounds, stage: Some(EnteredStage { index, at: 0, version: 7, forced: false }) }
}

fn reads(requests: u64, errors: u64, mirror: Option<(u64, u64, u64, f64)>) -> Observed {
    let mirror = mirror.map(|(requests, errors, differing, p99_ms)| MirrorReport {
        generation: 2,
        catalogue_version: 7,
        requests,
        errors,
        differing,
        p99_ms,
        samples: Vec::new(),
    });
    let report = ReadReport { process: "a".to_owned(), at: 0, seconds: 5.0, requests, errors, p99_ms: 10.0, mirror };
    Observed { reads: vec![report], ..level() }
}

fn bounds(watched: &Watched, observed: &Observed) -> Vec<&'static str> {
    passed(watched, observed).iter().map(|passed| passed.bound).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn each_bound_is_passed_by_what_it_measures() {
    let watched = in_stage(0);
    assert_eq!(bounds(&watched, &level()), NOTHING);
    let mut late = level();
    late.generations.insert(2, ObservedGeneration { lag_events: Some(5_001), is_live: true });
    assert_eq!(bounds(&watched, &late), ["max_lag_events"]);
    assert_eq!(bounds(&watched, &reads(100, 5, None)), NOTHING);
    assert_eq!(bounds(&watched, &reads(100, 6, None)), ["max_error_rate"]);
    assert_eq!(bounds(&watched, &reads(10, 10, None)), NOTHING, "too few to tell");
    assert_eq!(bounds(&watched, &reads(100, 0, Some((100, 6, 0, 1.0)))), ["max_error_rate"]);
    assert_eq!(bounds(&watched, &reads(100, 0, Some((100, 0, 1, 1.0)))), ["max_differing"]);
    assert_eq!(bounds(&watched, &reads(100, 0, Some((100, 0, 0, 201.0)))), ["max_p99_ms"]);
    let of_before = Watched { stage: in_stage(0).stage.map(|stage| EnteredStage { version: 8, ..stage }), ..watched };
    assert_eq!(bounds(&of_before, &reads(100, 0, Some((100, 9, 9, 999.0)))), NOTHING);
}

#[test]
fn a_trigger_fires_once_its_bound_is_passed_without_a_break() {
    let (watched, bad, good) = (in_stage(0), reads(100, 0, Some((100, 0, 1, 1.0))), level());
    let mut watch = TriggerWatch::default();
    let mut fired = |observed: &Observed, second: i64| watch.fired(Some(&watched), observed, second * SECOND).len();
    assert_eq!((fired(&bad, 0), fired(&bad, 9)), (0, 0));
    assert_eq!(fired(&good, 9), 0);
    assert_eq!((fired(&bad, 10), fired(&bad, 19)), (0, 0));
    assert_eq!(fired(&bad, 20), 1);
}

#[test]
fn another_stage_begins_anew() {
    let bad = reads(100, 0, Some((100, 0, 1, 1.0)));
    let mut watch = TriggerWatch::default();
    assert!(watch.fired(Some(&in_stage(0)), &bad, 0).is_empty());
    assert!(watch.fired(Some(&in_stage(1)), &bad, 10 * SECOND).is_empty());
    assert!(watch.fired(None, &bad, 15 * SECOND).is_empty());
    assert!(watch.fired(Some(&in_stage(1)), &bad, 21 * SECOND).is_empty());
    assert_eq!(watch.fired(Some(&in_stage(1)), &bad, 31 * SECOND).len(), 1);
}
