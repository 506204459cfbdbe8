//! Several generations in one store: one pointer, moved by compare-and-set, and what a retired one leaves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use read_models::generations::{Action, Candidate, GenerationEntry, GenerationState, Share, Verdict, check_chain};
use read_models::process_report::{
    Halted, Lately, LiveSide, MirrorReport, ProcessReport, ReadFigures, ThrottleStatus, YieldsTo,
};
use read_models::{Batch, Catalogue, Generation, Head, ReadModelError};
use serde_json::Value;

use super::*;

fn second() -> Generation {
    Generation { number: 2, ..generation() }
}

fn verdict(reason: &str) -> Verdict {
    let (who, reason) = ("ann".to_owned(), reason.to_owned());
    Verdict { at: 7, who, action: Action::CutOver, generation: second(), reason, evidence: Value::Null }
}

async fn decide(stock: &SharedStock, edit: impl FnOnce(&mut Catalogue)) -> Result<Catalogue, ReadModelError> {
    let held = stock.catalogue().await?;
    let mut to = held.clone();
    edit(&mut to);
    let (to, decisions) = held.decided(to, vec![verdict("a reason")]);
    stock.change(&to, &decisions).await.map(|()| to)
}

/// Every partition live, all its SKUs with so many units.
async fn filled(stock: &SharedStock, generation: &Generation, units: i64) {
    stock.prepare(generation).await.unwrap();
    for number in 0..PARTITIONS {
        let claimed = stock.claim(at(number)).await.unwrap();
        let changes = skus_of(number, 5).iter().map(|sku| (key(sku, "north"), row(units, 1))).collect();
        let parked = vec![parked_event("x", 1, 1)];
        let live = Batch { changes, parked, live: true, ..batch(number, &claimed, checkpoint(1)) };
        stock.apply(&live).await.unwrap();
    }
    stock.observe(&[(at(0), Head { next_offset: 1, seen_at: 1 })]).await.unwrap();
}

/// Two generations, the first serves.
async fn two(store: &Fixture) -> SharedStock {
    filled(&store.stock, &generation(), 10).await;
    let shadow = store.another().await.of_generation(2);
    filled(&shadow, &second(), 20).await;
    let fed = GenerationEntry::fed(&second());
    decide(&store.stock, |to| drop(to.generations.insert(2, fed))).await.unwrap();
    shadow
}

pub async fn a_store_without_a_catalogue_has_one_of_version_0(store: &Fixture) {
    assert_eq!(store.stock.catalogue().await.unwrap(), Catalogue::of_built(None));
    store.stock.prepare(&generation()).await.unwrap();
    assert_eq!(store.another().await.catalogue().await.unwrap(), Catalogue::of_built(Some(&generation())));
}

pub async fn of_two_that_change_the_catalogue_one_does(store: &Fixture) {
    store.live().await;
    let (left, right) = (store.another().await, store.another().await);
    let moved = |result: &Result<Catalogue, _>| matches!(result, Err(ReadModelError::CatalogueMoved { .. }));
    let held = left.catalogue().await.unwrap();
    let (to, made) = held.decided(held.clone(), vec![verdict("left"), verdict("more")]);
    let (other, others) = held.decided(held.clone(), vec![verdict("right")]);
    let (one, two) = tokio::join!(left.change(&to, &made), right.change(&other, &others));
    let (won, decided) = if one.is_ok() { (to, made) } else { (other, others) };
    assert!(one.is_ok() != two.is_ok());
    let lost = one.err().or(two.err()).unwrap();
    assert!(matches!(lost, ReadModelError::CatalogueMoved { expected: 0, found: 1, .. }), "{lost}");
    assert_eq!(right.catalogue().await.unwrap(), won);
    assert_eq!(left.decisions(0, 10).await.unwrap(), decided);

    // The next one follows on it, and a late one on nothing.
    decide(&right, |to| to.previous = Some(1)).await.unwrap();
    let late = won.decided(won.clone(), vec![verdict("late")]);
    assert!(moved(&left.change(&late.0, &late.1).await.map(|()| won.clone())));
    let all = left.decisions(0, 10).await.unwrap();
    check_chain(&all).unwrap();
    assert_eq!(all.len(), decided.len() + 1);
    assert_eq!(left.decisions(1, 1).await.unwrap(), all[1..2]);
    for (noted, published) in [(2, 2), (1, 2), (10, 10)] {
        left.note_published(noted).await.unwrap();
        assert_eq!(right.published_decisions().await.unwrap(), published);
    }
}

pub async fn a_switch_is_seen_at_once_and_no_request_mixes(store: &Fixture) {
    two(store).await;
    let reading = store.another().await;
    let skus: Vec<Sku> = (0..PARTITIONS).flat_map(|number| skus_of(number, 5)).collect();
    assert_eq!(reading.stock(&skus, any()).await.unwrap().generation, 1);
    for turn in 0..6 {
        let serving = 1 + (turn + 1) % 2;
        let is_switched = AtomicBool::new(false);
        let switch = async {
            decide(&store.stock, |to| to.serving = serving).await.unwrap();
            is_switched.store(true, Ordering::SeqCst);
        };
        let reads = async {
            loop {
                let is_behind = is_switched.load(Ordering::SeqCst);
                let read = reading.stock(&skus, any()).await.unwrap();
                let units = i64::from(read.generation) * 10;
                let are_of_one = read.answers.iter().all(|answer| answer.warehouses[0].1.on_hand == units);
                assert!(are_of_one, "{read:?}");
                if read.generation == serving {
                    return;
                }
                assert!(!is_behind, "a read that began after the switch is of the old one");
            }
        };
        tokio::time::timeout(DEADLINE, async { tokio::join!(switch, reads) }).await.unwrap();
        // A handle that neither writes nor is bound tells of what serves.
        assert_eq!(reading.status().await.unwrap().generation, serving);
    }
}

pub async fn a_stage_answers_from_the_candidate_whom_it_is_for(store: &Fixture) {
    two(store).await;
    let candidate = |share| Candidate { generation: 2, share, mirror_percent: 0, meant: Vec::new(), since: 0 };
    let region = |name: &str| ReadChoice { region: Some(RegionId::new(name).unwrap()), ..ReadChoice::default() };
    let reading = store.another().await;
    let generation =
        async |choice: &ReadChoice| reading.stock(&skus_of(0, 1), choice).await.map(|read| read.generation);
    let share = Share::Regions(vec![RegionId::new("eu").unwrap()]);
    decide(&store.stock, |to| to.candidate = Some(candidate(share))).await.unwrap();
    assert_eq!((generation(&region("eu")).await.unwrap(), generation(&region("us")).await.unwrap()), (2, 1));
    assert!(reading.wait_for(&at(0).token(checkpoint(1).position), &region("eu"), DEADLINE).await.unwrap());
    decide(&store.stock, |to| to.candidate = Some(candidate(Share::Percent(100)))).await.unwrap();
    assert_eq!(generation(any()).await.unwrap(), 2);
    let wanted = |number| ReadChoice { generation: Some(number), ..ReadChoice::default() };
    assert_eq!(generation(&wanted(1)).await.unwrap(), 1);
    let refused = generation(&wanted(3)).await;
    assert!(matches!(refused, Err(ReadModelError::UnknownGeneration { wanted: 3, .. })), "{refused:?}");
}

pub async fn a_retired_generation_is_removed_for_good_and_the_other_is_not_touched(store: &Fixture) {
    let frozen = two(store).await;
    let owner = frozen.claim(at(0)).await.unwrap();
    assert!(matches!(store.stock.remove_some(2, 10).await, Err(ReadModelError::Permanent { .. })), "it is fed");
    let mut retired = GenerationEntry::fed(&second());
    retired.state = GenerationState::Retired;
    decide(&store.stock, |to| drop(to.generations.insert(2, retired))).await.unwrap();

    let is_retired = |error| matches!(error, ReadModelError::Retired { .. });
    let write = batch(0, &owner, checkpoint(2));
    let is_refused = async || {
        assert!(is_retired(frozen.apply(&write).await.unwrap_err()));
        assert!(is_retired(frozen.claim(at(0)).await.unwrap_err()));
        assert!(is_retired(frozen.observe(&[(at(0), Head { next_offset: 9, seen_at: 9 })]).await.unwrap_err()));
        assert!(is_retired(store.another().await.prepare(&second()).await.unwrap_err()));
    };
    is_refused().await;
    let begun = Instant::now();
    while store.stock.remove_some(2, 3).await.unwrap() {
        assert!(begun.elapsed() < DEADLINE);
    }
    is_refused().await;
    for number in 0..PARTITIONS {
        let keys: Vec<_> = skus_of(number, 5).iter().map(|sku| key(sku, "north")).collect();
        let gone = frozen.load(at(number), &keys).await.unwrap();
        assert!(gone.rows.iter().all(Option::is_none) && gone.checkpoint == Checkpoint::default(), "{gone:?}");
        assert!(frozen.parked(at(number), None, 1).await.unwrap().is_empty());
        let kept = store.stock.load(at(number), &keys).await.unwrap();
        assert!(kept.rows.iter().all(|stored| *stored == Some(row(10, 1))) && kept.checkpoint == checkpoint(1));
        assert_eq!(store.stock.parked(at(number), None, 9).await.unwrap().len(), 1);
    }
    assert!(frozen.status().await.unwrap().partitions.iter().all(|at| at.head.is_none() && !at.live));
}

pub async fn a_bound_handle_tells_of_its_generation_alone(store: &Fixture) {
    two(store).await;
    let bound = store.another().await.of_generation(2);
    assert_eq!(bound.status().await.unwrap().generation, 2);
    let loaded = bound.load(at(0), &[key(&skus_of(0, 1)[0], "north")]).await.unwrap();
    assert_eq!((loaded.checkpoint, loaded.rows), (checkpoint(1), vec![Some(row(20, 1))]));
    assert!(matches!(bound.prepare(&generation()).await, Err(ReadModelError::Permanent { .. })));
    let unknown = store.another().await.of_generation(7).status().await;
    assert!(matches!(unknown, Err(ReadModelError::UnknownGeneration { wanted: 7, .. })), "{unknown:?}");
    assert_eq!(bound.stock(&skus_of(0, 1), any()).await.unwrap().generation, 1, "requests follow the catalogue");
}

pub async fn the_last_report_of_each_process_is_read(store: &Fixture) {
    let report = |process: &str, at| {
        let figures = ReadFigures { requests: 20, errors: 1, differing: 2, p99_ms: 0.25 };
        let lately = Lately { seconds: figures, minute: ReadFigures { requests: 70, ..figures } };
        let mirror = MirrorReport { generation: 2, stage: 7, whole: figures, lately, samples: vec!["A".to_owned()] };
        let yields_to = Some(YieldsTo::LiveLag { events: 3_000, bound: 2_000 });
        ProcessReport {
            process: process.to_owned(),
            at,
            reads: [(1, lately), (2, Lately::default())].into(),
            mirror: Some(mirror),
            throttle: Some(ThrottleStatus { rate: Some(512.5), yields_to }),
            live: Some(LiveSide { generation: 1, lag_events: 3_000, events_come: true, arrivals: 2_000 }),
            halted: [(1, Halted::from([("inventory.events/0".to_owned(), "lost".to_owned())]))].into(),
        }
    };
    for (process, at) in [("a", 1_000), ("b", 2_000), ("a", 3_000)] {
        store.stock.note_report(&report(process, at)).await.unwrap();
    }
    let reading = store.another().await;
    assert_eq!(reading.reports(3_000, 1_000).await.unwrap(), [report("a", 3_000), report("b", 2_000)]);
    assert_eq!(reading.reports(3_000, 999).await.unwrap(), [report("a", 3_000)]);
    // The clock was set back since: what lies far ahead and does not change is of a process that is gone. Where several
    // clocks may report, it takes as long to see that as a report is of late.
    let begun = Instant::now();
    while reading.reports(1_500, 600).await.unwrap() != [report("b", 2_000)] {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
