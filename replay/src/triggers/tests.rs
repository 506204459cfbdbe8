use read_models::Generation;
use read_models::generations::{Candidate, GenerationEntry, Share};
use read_models::process_report::{MirrorReport, ProcessReport};

use super::*;
use crate::memory::{HOUR, STAGES, level, record_of};
use crate::observed::ObservedGeneration;
use crate::plan::Plan;
use crate::record::CutOver;

fn in_stage(index: usize) -> Watched {
    let bounds = Plan::parse("stages.toml", STAGES).unwrap().triggers;
    Watched { generation: 2, bounds, stage: Some(EnteredStage { index, at: 0, version: 7, forced: false }), instead: 1 }
}

fn figures(requests: u64, errors: u64, differing: u64, p99_ms: f64) -> ReadFigures {
    ReadFigures { requests, errors, differing, p99_ms }
}

/// Of the last minute, and nothing in its last seconds.
fn minute(minute: ReadFigures) -> Lately {
    Lately { minute, ..Lately::default() }
}

fn answered(generation: u32, lately: Lately) -> Observed {
    let report = ProcessReport { reads: [(generation, lately)].into(), ..ProcessReport::default() };
    Observed { reports: vec![report], ..level() }
}

fn mirrored(stage: u64, lately: Lately) -> Observed {
    let mirror = Some(MirrorReport { generation: 2, stage, whole: lately.minute, lately, samples: Vec::new() });
    Observed { reports: vec![ProcessReport { mirror, ..ProcessReport::default() }], ..level() }
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
    let behind = ObservedGeneration { lag_events: Some(5_001), is_live: true, ..ObservedGeneration::default() };
    late.generations.insert(2, behind);
    assert_eq!(bounds(&watched, &late), ["max_lag_events"]);
    let unknown = ObservedGeneration { is_live: true, ..ObservedGeneration::default() };
    late.generations.insert(2, unknown);
    assert_eq!(bounds(&watched, &late), ["max_lag_events"], "nobody feeds it");
    late.generations.insert(2, ObservedGeneration { is_beyond_log: true, ..unknown });
    assert_eq!(bounds(&watched, &late), NOTHING, "what it lost the other one lost as well");
    late.generations.insert(2, unknown);
    late.generations.insert(1, unknown);
    assert_eq!(bounds(&watched, &late), NOTHING, "of none is it known while the log is away");
    let of_stage = |lately| mirrored(7, minute(lately));
    assert_eq!(bounds(&watched, &of_stage(figures(100, 5, 0, 1.0))), NOTHING);
    assert_eq!(bounds(&watched, &of_stage(figures(100, 6, 0, 1.0))), ["max_error_rate"]);
    assert_eq!(bounds(&watched, &of_stage(figures(10, 10, 0, 1.0))), NOTHING, "too few to tell");
    assert_eq!(bounds(&watched, &of_stage(figures(100, 0, 1, 1.0))), ["max_differing"]);
    assert_eq!(bounds(&watched, &of_stage(figures(100, 0, 0, 201.0))), ["max_p99_ms"]);
    assert_eq!(bounds(&watched, &mirrored(6, minute(figures(100, 9, 9, 999.0)))), NOTHING, "of the stage before");
    assert_eq!(bounds(&watched, &mirrored(8, minute(figures(100, 9, 9, 999.0)))), NOTHING, "of the stage behind");
}

#[test]
fn a_generation_is_judged_by_its_own_reads() {
    let watched = in_stage(1);
    let bad = minute(figures(100, 6, 0, 201.0));
    assert_eq!(bounds(&watched, &answered(2, bad)), ["max_error_rate", "max_p99_ms"]);
    assert_eq!(bounds(&watched, &answered(1, bad)), NOTHING, "these are the live one's");
    // Good reads of the live one, however many, make the candidate's no better.
    let mut both = answered(2, bad);
    both.reports[0].reads.insert(1, minute(figures(1_000_000, 0, 0, 1.0)));
    assert_eq!(bounds(&watched, &both), ["max_error_rate", "max_p99_ms"]);
}

#[test]
fn what_is_sudden_is_seen_in_the_last_seconds_and_what_is_rare_in_the_last_minute() {
    let watched = in_stage(0);
    let sudden = Lately { seconds: figures(100, 10, 0, 1.0), minute: figures(6_000, 10, 0, 1.0) };
    let found = passed(&watched, &mirrored(7, sudden));
    assert_eq!(found.len(), 1);
    assert!(found[0].sentence.contains("10 of 100 mirrored reads of the last 10 s failed"), "{}", found[0].sentence);
    let rare = Lately { seconds: figures(4, 0, 0, 1.0), minute: figures(24, 2, 0, 1.0) };
    let found = passed(&watched, &mirrored(7, rare));
    assert!(found[0].sentence.contains("2 of 24 mirrored reads of the last minute failed"), "{}", found[0].sentence);
    assert_eq!(bounds(&watched, &mirrored(7, Lately::default())), NOTHING, "what is over is no reason");
}

#[test]
fn what_serves_is_watched_within_its_window_also_while_the_next_one_comes() {
    let of = |number| Generation { name: "stock".to_owned(), number, fold_version: 1, partitions: 4 };
    let mut catalogue = Catalogue::of_built(Some(&of(2)));
    let mut entry = |number, cut_over| {
        let record = ReplayRecord { cut_over, stage: in_stage(0).stage, ..record_of(STAGES) };
        let replay = record.to_value().unwrap();
        catalogue.generations.insert(number, GenerationEntry { replay, ..GenerationEntry::fed(&of(number)) });
    };
    entry(2, Some(CutOver { at: 0, from: 1 }));
    entry(3, None);
    catalogue.generations.insert(1, GenerationEntry::fed(&of(1)));
    let generations = |catalogue: &Catalogue, now| -> Vec<(u32, bool)> {
        let watched = watched(catalogue, now).unwrap();
        watched.iter().map(|watched| (watched.generation, watched.stage.is_some())).collect()
    };
    assert_eq!(generations(&catalogue, HOUR), [(2, false)]);
    let meant = Vec::new();
    catalogue.candidate = Some(Candidate { generation: 3, share: Share::None, mirror_percent: 100, meant, since: 7 });
    assert_eq!(generations(&catalogue, HOUR), [(2, false), (3, true)]);
    assert_eq!(generations(&catalogue, 24 * HOUR), [(3, true)], "the window is over");
}

fn after(begun: Instant, seconds: u64) -> Instant {
    begun + std::time::Duration::from_secs(seconds)
}

#[test]
fn a_trigger_fires_once_its_bound_is_passed_without_a_break() {
    let (watched, bad, good) = ([in_stage(0)], mirrored(7, minute(figures(100, 0, 1, 1.0))), level());
    let mut watch = TriggerWatch::default();
    let begun = Instant::now();
    let mut fired = |observed: &Observed, second: u64| watch.fired(&watched, observed, after(begun, second)).is_some();
    assert_eq!((fired(&bad, 0), fired(&bad, 9)), (false, false));
    assert!(!fired(&good, 9));
    assert_eq!((fired(&bad, 10), fired(&bad, 19)), (false, false));
    assert!(fired(&bad, 20));
}

#[test]
fn another_stage_begins_anew() {
    let bad = mirrored(7, minute(figures(100, 0, 1, 1.0)));
    let mut watch = TriggerWatch::default();
    let begun = Instant::now();
    assert!(watch.fired(&[in_stage(0)], &bad, begun).is_none());
    assert!(watch.fired(&[in_stage(1)], &bad, after(begun, 10)).is_none());
    assert!(watch.fired(&[], &bad, after(begun, 15)).is_none());
    assert!(watch.fired(&[in_stage(1)], &bad, after(begun, 21)).is_none());
    // Another generation that is watched too changes nothing.
    let other = Watched { generation: 1, stage: None, ..in_stage(1) };
    let (watched, passed) = watch.fired(&[other, in_stage(1)], &bad, after(begun, 31)).unwrap();
    assert_eq!((watched.generation, passed.len()), (2, 1));
}
