use std::sync::Mutex;

use read_models::generations::check_chain;
use read_models::process_report::{Halted, Lately, MirrorReport, ProcessReport, ReadFigures};
use read_models::{Checkpoint, PartitionRef};
use read_models::{Head, PartitionStatus};
use schemas::Context;

use super::*;
use crate::decide::StartRequest;
use crate::memory::{HOUR, MemoryGenerations, SECOND, STAGES, by, clean, level, ownership, request};
use crate::rules::Rules;

async fn replay(request: &StartRequest) -> (Arc<MemoryGenerations>, Operations) {
    let stored = Arc::new(MemoryGenerations::new());
    let operations = Operations::new(stored.clone(), Arc::new(ownership()));
    operations.start(request, &by("eve", 0)).await.unwrap();
    (stored, operations)
}

async fn let_through(operations: &Operations) {
    operations.note_parity(&clean(2, 1, 0), &Rules::default(), &by("eve", 0)).await.unwrap();
    operations.approve(2, None, &by("ann", 0)).await.unwrap().done().unwrap();
}

fn mirrored(stage: u64, requests: u64, differing: u64) -> Observed {
    let minute = ReadFigures { requests, errors: 0, differing, p99_ms: 1.0 };
    let lately = Lately { minute, ..Lately::default() };
    let mirror = Some(MirrorReport { generation: 2, stage, whole: minute, lately, samples: Vec::new() });
    Observed { reports: vec![ProcessReport { mirror, ..ProcessReport::default() }], ..level() }
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_rolled_back_by_itself_and_once_though_two_watch_and_the_clock_is_set_back() {
    let (stored, operations) = replay(&request(STAGES)).await;
    let forced = CutoverRequest { generation: 2, stage: None, forced: true };
    operations.cutover(&forced, &level(), &by("eve", 0)).await.unwrap().done().unwrap();
    let catalogue = stored.catalogue().await.unwrap();
    let bad = mirrored(catalogue.version, 500, 1);

    let mut watchers = [Controller::new(operations.clone()), Controller::new(operations.clone())];
    for second in 0..10 {
        for watcher in &mut watchers {
            // Somebody sets it back every second.
            assert_eq!(watcher.step(&catalogue, &bad, -second * HOUR).await.unwrap(), None);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let [one, other] = &mut watchers;
    let rolled_back = one.step(&catalogue, &bad, 10 * SECOND).await.unwrap().unwrap();
    assert_eq!(rolled_back.done().unwrap().action, "rolled_back");
    // Looked before the first one decided.
    let late = other.step(&catalogue, &bad, 10 * SECOND).await.unwrap().unwrap();
    assert_eq!(late.missing()[0].code, "nothing_to_roll_back");

    assert_eq!(stored.catalogue().await.unwrap().candidate, None);
    assert_eq!(stored.actions(), ["started", "stage_entered", "rolled_back"]);
    let last = stored.all_decisions().pop().unwrap();
    assert_eq!(last.who, TRIGGER);
    assert!(last.reason.contains("1 of 500 mirrored reads of the last minute differ"), "{}", last.reason);
    assert_eq!(last.evidence["because"][0]["bound"], "max_differing");
}

#[tokio::test]
async fn what_serves_is_watched_until_its_window_is_over() {
    let (stored, operations) = replay(&request("[triggers]\nmax_lag_events = 5\nholds_for = \"0s\"")).await;
    let_through(&operations).await;
    let all = CutoverRequest { generation: 2, ..CutoverRequest::default() };
    operations.cutover(&all, &level(), &by("eve", 0)).await.unwrap().done().unwrap();
    let catalogue = stored.catalogue().await.unwrap();
    let mut late = level();
    late.generations.entry(2).or_default().lag_events = Some(6);

    let mut controller = Controller::new(operations);
    assert_eq!(controller.step(&catalogue, &late, 24 * HOUR).await.unwrap(), None, "the window is over");
    controller.step(&catalogue, &late, 24 * HOUR - 1).await.unwrap().unwrap().done().unwrap();
    assert_eq!(stored.catalogue().await.unwrap().serving, 1);
}

#[tokio::test]
async fn what_was_cut_over_to_is_taken_back_though_the_next_one_is_on_its_way() {
    let (stored, operations) = replay(&request("[triggers]\nmax_lag_events = 5\nholds_for = \"0s\"")).await;
    let_through(&operations).await;
    let all = CutoverRequest { generation: 2, ..CutoverRequest::default() };
    operations.cutover(&all, &level(), &by("eve", 0)).await.unwrap().done().unwrap();
    operations.start(&request(STAGES), &by("eve", 1)).await.unwrap().done().unwrap();
    let forced = CutoverRequest { generation: 3, stage: None, forced: true };
    operations.cutover(&forced, &level(), &by("eve", 2)).await.unwrap().done().unwrap();

    let catalogue = stored.catalogue().await.unwrap();
    assert_eq!(catalogue.candidate.as_ref().map(|candidate| candidate.generation), Some(3));
    let mut late = level();
    late.generations.entry(2).or_default().lag_events = Some(6);
    let outcome = Controller::new(operations).step(&catalogue, &late, HOUR).await.unwrap().unwrap();
    assert_eq!(outcome.done().unwrap().generation, "stock@2");
    let catalogue = stored.catalogue().await.unwrap();
    assert_eq!((catalogue.serving, catalogue.candidate), (1, None));
}

#[tokio::test]
async fn an_automatic_replay_goes_from_stage_to_stage_as_its_gates_let_it() {
    let (stored, operations) = replay(&StartRequest { automatic: true, ..request(STAGES) }).await;
    let mut controller = Controller::new(operations.clone());
    let mut step = async |observed: &Observed, now| {
        let catalogue = stored.catalogue().await.unwrap();
        let outcome = controller.step(&catalogue, observed, now).await.unwrap();
        outcome.map(|outcome| outcome.done().unwrap().action)
    };
    assert_eq!(step(&level(), 0).await, None, "not approved");
    let_through(&operations).await;
    assert_eq!(step(&level(), 1).await, Some("stage_entered"));
    let version = stored.catalogue().await.unwrap().version;
    assert_eq!(step(&mirrored(version, 100, 0), 59 * SECOND).await, None, "too early");
    assert_eq!(step(&mirrored(version, 100, 0), 61 * SECOND).await, Some("stage_entered"));
    assert_eq!(step(&level(), 62 * SECOND).await, Some("cut_over"));
    assert_eq!(step(&level(), 63 * SECOND).await, None);
    assert_eq!(stored.catalogue().await.unwrap().serving, 2);

    // What was rolled back does not come again by itself.
    operations.rollback(None, &by("bob", 70 * SECOND)).await.unwrap().done().unwrap();
    let_through(&operations).await;
    assert_eq!(step(&level(), 71 * SECOND).await, None);
    check_chain(&stored.decisions(0, 100).await.unwrap()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn it_runs_beside_another_one_until_it_is_told_to_stop() {
    let (stored, operations) = replay(&StartRequest { automatic: true, ..request("") }).await;
    let_through(&operations).await;
    let shutdown = CancellationToken::new();
    let asked = Arc::new(Mutex::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (generations, ownership) = (stored.clone(), Arc::new(ownership()));
        let (asked, shutdown) = (asked.clone(), shutdown.clone());
        tasks.spawn(async move {
            let statuses = move |catalogue: Catalogue| {
                *asked.lock().unwrap() += 1;
                async move { Ok(catalogue.fed().map(status).collect()) }
            };
            run_controller(generations, ownership, statuses, || 5, shutdown).await;
        });
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while stored.catalogue().await.unwrap().serving != 2 {
        assert!(Instant::now() < deadline, "it never serves");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    shutdown.cancel();
    tasks.join_all().await;
    assert!(*asked.lock().unwrap() >= 1);
    assert_eq!(stored.actions().iter().filter(|action| *action == "cut_over").count(), 1);
}

#[tokio::test]
async fn how_far_a_generation_is_behind_is_not_known_where_it_is_ahead_of_its_topic() {
    let stored = MemoryGenerations::new();
    let mut ahead = status(2);
    ahead.partitions[0].checkpoint.next_offset = 5;
    let lag = async || Observed::gather(&stored, std::slice::from_ref(&ahead), 0).await.unwrap().of(2).lag_events;
    assert_eq!(lag().await, Some(0), "applied since the end was noted");
    let halted = Halted::from([("inventory.events/0".to_owned(), "the topic was made anew".to_owned())]);
    let report = ProcessReport { halted: [(2, halted)].into(), ..ProcessReport::default() };
    stored.note_report(&report).await.unwrap();
    assert_eq!(lag().await, None);
}

fn status(generation: u32) -> ReadModelStatus {
    let partition = PartitionStatus {
        partition: PartitionRef { context: Context::Inventory, partition: 0 },
        checkpoint: Checkpoint::default(),
        live: true,
        head: Some(Head { next_offset: 0, seen_at: 0 }),
        parked_keys: 0,
        parked_events: 0,
    };
    ReadModelStatus { name: "stock".to_owned(), generation, fold_version: generation, partitions: vec![partition] }
}
