use read_models::Generation;
use read_models::process_report::{Lately, MirrorReport, ProcessReport};

use super::*;
use crate::evidence::{ParityEvidence, QueryEvidence};
use crate::memory::{HOUR, SECOND, STAGES, clean, level, ownership, record_of};
use crate::observed::ObservedGeneration;
use crate::record::{Approval, EnteredStage};

fn catalogue() -> Catalogue {
    let of = |number| Generation { name: "stock".to_owned(), number, fold_version: number, partitions: 4 };
    let mut catalogue = Catalogue::of_built(Some(&of(1)));
    catalogue.generations.insert(2, GenerationEntry::fed(&of(2)));
    catalogue
}

/// Compared at 0 and approved, in the stage of that place since 0.
fn record(stage: Option<usize>) -> ReplayRecord {
    let parity = clean(2, 1, 0);
    let approval =
        Approval { by: "ann".to_owned(), at: 0, reason: String::new(), report_sha256: parity.report_sha256.clone() };
    ReplayRecord {
        parity: Some(parity),
        approvals: vec![approval],
        stage: stage.map(|index| EnteredStage { index, at: 0, version: 7, forced: false }),
        ..record_of(STAGES)
    }
}

fn entering(stage: usize, now: i64) -> Entering<'static> {
    Entering { name: "stock", generation: 2, stage, who: "eve", forced: false, now }
}

/// In the last minute, all of it in the stage.
fn mirrored(requests: u64, errors: u64, differing: u64, p99_ms: f64) -> Observed {
    let minute = |minute| Lately { minute, ..Lately::default() };
    let whole = ReadFigures { requests, errors, differing, p99_ms };
    let mirror = MirrorReport { generation: 2, stage: 7, whole, lately: minute(whole), samples: Vec::new() };
    let live = minute(ReadFigures { requests: 1_000, errors: 0, differing: 0, p99_ms: 10.0 });
    let report = ProcessReport { reads: [(1, live)].into(), mirror: Some(mirror), ..ProcessReport::default() };
    Observed { reports: vec![report], ..level() }
}

fn codes(record: &ReplayRecord, observed: &Observed, entering: Entering<'_>) -> Vec<&'static str> {
    missing(&catalogue(), record, observed, entering, &ownership()).iter().map(|missing| missing.code).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn nothing_is_missing_from_a_clean_fresh_approved_and_level_replay() {
    assert_eq!(codes(&record(None), &level(), entering(0, 1)), NOTHING);
}

#[test]
fn parity_must_be_clean_fresh_and_with_what_serves() {
    let with = |parity| ReplayRecord { parity, ..record(None) };
    assert_eq!(codes(&with(None), &level(), entering(0, 1)), ["no_parity", "not_approved"]);
    let other = Some(ParityEvidence { against: 3, ..clean(2, 1, 0) });
    assert_eq!(codes(&with(other), &level(), entering(0, 1)), ["no_parity"]);
    let nowhere = Some(ParityEvidence { vector: String::new(), ..clean(2, 1, 0) });
    assert_eq!(codes(&with(nowhere), &level(), entering(0, 1)), ["no_parity"]);
    let queries = Some(QueryEvidence { queries: 9, worst_overlap: 0.1, below_bound: 2 });
    let dirty = with(Some(ParityEvidence { queries, ..clean(2, 1, 0) }));
    let missing = missing(&catalogue(), &dirty, &level(), entering(0, 1), &ownership());
    assert_eq!(missing[0].code, "parity_differs");
    assert!(missing[0].sentence.contains("2 of 9 queries"), "{}", missing[0].sentence);
    assert_eq!(codes(&record(None), &level(), entering(0, HOUR)), NOTHING);
    assert_eq!(codes(&record(None), &level(), entering(0, HOUR + 1)), ["parity_old"]);
    let of_a_clock_ahead = |by| {
        let mut record = record(None);
        record.parity.as_mut().unwrap().at = HOUR + by;
        record
    };
    assert_eq!(codes(&of_a_clock_ahead(AHEAD_MS), &level(), entering(0, HOUR)), NOTHING);
    assert_eq!(codes(&of_a_clock_ahead(AHEAD_MS + 1), &level(), entering(0, HOUR)), ["parity_ahead"]);
}

#[test]
fn of_search_a_comparison_asks_queries_unless_the_plan_lets_it_be() {
    let search = Entering { name: "search", ..entering(0, 1) };
    let with = |queries: Option<u64>, rule| {
        let mut record = record(None);
        record.parity.as_mut().unwrap().queries =
            queries.map(|queries| QueryEvidence { queries, worst_overlap: 1.0, below_bound: 0 });
        record.plan.queries = rule;
        record
    };
    assert_eq!(codes(&with(None, None), &level(), search), ["no_queries"]);
    assert_eq!(codes(&with(Some(0), None), &level(), search), ["no_queries"]);
    assert_eq!(codes(&with(Some(1), None), &level(), search), NOTHING);
    assert_eq!(codes(&with(None, Some(QueryRule::Optional)), &level(), search), NOTHING);
    assert_eq!(codes(&with(None, None), &level(), entering(0, 1)), NOTHING, "stock answers none");
}

#[test]
fn what_differs_is_not_told_twice() {
    let evidence = ParityEvidence {
        differing_keys: 7,
        missing_keys: 2,
        extra_keys: 0,
        parked_keys_differing: 1,
        ..clean(2, 1, 0)
    };
    let told = "7 of 100 keys differ, of which 2 are missing in the candidate, 1 are parked in one of the two only";
    assert_eq!(differences(&evidence), told);
    assert_eq!(differences(&ParityEvidence { differing_keys: 3, ..clean(2, 1, 0) }), "3 of 100 keys differ");
}

#[test]
fn an_approval_counts_while_its_giver_is_an_approver_and_somebody_else() {
    let approved_by = |name: &str| {
        let mut record = record(None);
        record.approvals[0].by = name.to_owned();
        record
    };
    assert_eq!(codes(&approved_by("bob"), &level(), entering(0, 1)), NOTHING);
    for name in ["eve", "EVE ", "mallory"] {
        assert_eq!(codes(&approved_by(name), &level(), entering(0, 1)), ["not_approved"], "{name}");
    }
    let by_cutter = Entering { who: "Ann", ..entering(0, 1) };
    assert_eq!(codes(&record(None), &level(), by_cutter), ["not_approved"]);
    let mut two = record(None);
    two.plan.approvals.needed = 2;
    assert_eq!(codes(&two, &level(), entering(0, 1)), ["not_approved"]);
    two.approvals.push(Approval { by: "bob".to_owned(), ..two.approvals[0].clone() });
    assert_eq!(codes(&two, &level(), entering(0, 1)), NOTHING);
}

#[test]
fn the_candidate_must_have_caught_up_and_be_readable() {
    let at = |lag_events, is_live| {
        let mut observed = level();
        observed.generations.insert(2, ObservedGeneration { lag_events, is_live, ..ObservedGeneration::default() });
        observed
    };
    assert_eq!(codes(&record(None), &at(Some(1_000), true), entering(0, 1)), NOTHING);
    assert_eq!(codes(&record(None), &at(Some(1_001), true), entering(0, 1)), ["not_caught_up"]);
    assert_eq!(codes(&record(None), &at(None, false), entering(0, 1)), ["rebuilding", "not_caught_up"]);
    assert_eq!(codes(&record(None), &Observed::default(), entering(0, 1)), ["rebuilding", "not_caught_up"]);
    let forced = Entering { forced: true, ..entering(0, 1) };
    assert_eq!(codes(&record(None), &at(None, false), forced), ["rebuilding"]);
}

#[test]
fn a_stage_is_left_when_what_was_mirrored_is_good() {
    let record = record(Some(0));
    let minute = 60 * SECOND;
    assert_eq!(codes(&record, &mirrored(100, 1, 0, 20.0), entering(1, minute)), NOTHING);
    assert_eq!(codes(&record, &mirrored(100, 1, 0, 20.0), entering(1, minute - 1)), ["too_early"]);
    assert_eq!(codes(&record, &mirrored(99, 0, 0, 20.0), entering(1, minute)), ["too_few_mirrored"]);
    assert_eq!(codes(&record, &mirrored(100, 2, 0, 20.0), entering(1, minute)), ["mirror_errors"]);
    assert_eq!(codes(&record, &mirrored(100, 0, 1, 20.0), entering(1, minute)), ["mirror_differs"]);
    assert_eq!(codes(&record, &mirrored(100, 0, 0, 20.1), entering(1, minute)), ["mirror_slow"]);
    let mut unbounded = record.clone();
    unbounded.plan.stages[0].exit.min_mirrored = 0;
    assert_eq!(codes(&unbounded, &level(), entering(1, minute)), ["too_few_mirrored"], "of nothing every bound holds");
    // What was slow more than a minute ago is over; what failed or differed is not made good by waiting.
    let mut lately = mirrored(100, 0, 0, 9_000.0);
    let calm =
        Lately { minute: ReadFigures { requests: 20, p99_ms: 20.0, ..ReadFigures::default() }, ..Lately::default() };
    lately.reports[0].mirror.as_mut().unwrap().lately = calm;
    assert_eq!(codes(&record, &lately, entering(1, minute)), NOTHING);
    let mut failing = lately.clone();
    failing.reports[0].mirror.as_mut().unwrap().lately.minute.errors = 1;
    assert_eq!(codes(&record, &failing, entering(1, minute)), ["mirror_errors"], "of late, however long all was well");
    lately.reports[0].mirror.as_mut().unwrap().whole.differing = 1;
    assert_eq!(codes(&record, &lately, entering(1, minute)), ["mirror_differs"]);
    lately.reports[0].mirror.as_mut().unwrap().whole.differing = 0;
    lately.reports[0].mirror.as_mut().unwrap().lately = Lately::default();
    assert_eq!(codes(&record, &lately, entering(1, minute)), ["too_few_mirrored"], "nothing of late");
    let mut later = record;
    later.stage = Some(EnteredStage { index: 0, at: 0, version: 8, forced: false });
    let of_before = mirrored(100, 1, 0, 20.0);
    assert_eq!(codes(&later, &of_before, entering(1, minute)), ["too_few_mirrored"], "of an earlier stage");
}

#[test]
fn no_force_enters_a_stage_that_answers() {
    let dirty = ReplayRecord { parity: None, approvals: Vec::new(), ..record(Some(0)) };
    let forced = |stage| Entering { forced: true, ..entering(stage, HOUR) };
    assert_eq!(codes(&ReplayRecord { stage: None, ..dirty.clone() }, &level(), forced(0)), NOTHING);
    assert_eq!(codes(&dirty, &level(), forced(1)), ["not_forcible"]);
    let tenth = ReplayRecord { stage: record(Some(1)).stage, ..dirty };
    assert_eq!(codes(&tenth, &level(), forced(2)), ["not_forcible"]);
}
