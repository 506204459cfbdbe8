//! The rules, without a log: the tests play the polling thread and the reader.

use bytes::Bytes;

use super::*;
use crate::headers::Headers;

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);
/// Waited out where a wait must not end early.
const MOMENT: Duration = Duration::from_millis(20);

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("events", partition)
}

fn record(partition: u32, offset: u64) -> Record {
    Record {
        at: at(partition),
        offset,
        key: Bytes::new(),
        headers: Headers::default(),
        value: Bytes::from_static(b"v"),
        timestamp: 0,
    }
}

fn records(partition: u32, offsets: std::ops::Range<u64>) -> Vec<Record> {
    offsets.map(|offset| record(partition, offset)).collect()
}

/// An inbox with partitions 0, 1, … assigned, the signal taken, and all of them started at 0.
fn started(partitions: u32) -> Inbox {
    let inbox = Inbox::new();
    let all: Vec<_> = (0..partitions).map(at).collect();
    inbox.assign(all.clone());
    assert_eq!(signal(&inbox), Some(Signal::Assigned(all)));
    for partition in 0..partitions {
        assert!(inbox.started(&at(partition), 0));
    }
    inbox
}

/// As above with one partition, whose store is full.
fn full() -> Inbox {
    let inbox = started(1);
    inbox.keep(records(0, 0..STORE_RECORDS as u64));
    inbox
}

/// What the reader gets now; `None` when it would have to wait.
fn signal(inbox: &Inbox) -> Option<Signal> {
    inbox.take().map(Result::unwrap)
}

/// The partition and the offsets of the batch that the reader gets now.
fn batch(inbox: &Inbox) -> (u32, Vec<u64>) {
    match signal(inbox) {
        Some(Signal::Records(records)) => {
            let partition = records[0].at.partition;
            assert!(records.iter().all(|record| record.at == at(partition)), "a batch is of one partition");
            (partition, records.iter().map(|record| record.offset).collect())
        }
        other => panic!("records were expected, not {other:?}"),
    }
}

fn error(inbox: &Inbox) -> EventLogError {
    inbox.take().unwrap().unwrap_err()
}

fn request_start(inbox: &Inbox) -> oneshot::Receiver<Result<(), EventLogError>> {
    let (done, answer) = oneshot::channel();
    inbox.request_start(StartRequest { at: at(0), offset: 0, done });
    answer
}

/// Why a reader will not come: it waits itself for its start, or it has left.
const HINDRANCES: [fn(&Inbox); 2] = [|inbox| drop(request_start(inbox)), Inbox::close];

/// Whether a wait lasts as long as it may.
fn waits(wait: impl FnOnce(Duration)) -> bool {
    let begun = Instant::now();
    wait(MOMENT);
    begun.elapsed() >= MOMENT
}

/// Whether a wait ends before its time.
fn goes_on(wait: impl FnOnce(Duration)) -> bool {
    let begun = Instant::now();
    wait(DEADLINE);
    begun.elapsed() < DEADLINE
}

#[test]
fn nothing_is_handed_out_before_it_is_started_nor_below_that_offset() {
    let inbox = Inbox::new();
    inbox.assign(vec![at(0)]);
    assert_eq!(signal(&inbox), Some(Signal::Assigned(vec![at(0)])));
    inbox.keep(records(0, 0..10));
    assert_eq!(signal(&inbox), None);
    assert!(inbox.started(&at(0), 5));
    assert_eq!(signal(&inbox), None, "what came before the start is gone");
    inbox.keep(records(0, 3..8));
    assert_eq!(batch(&inbox), (0, vec![5, 6, 7]));
    assert_eq!(inbox.fetched(), [(at(0), 8)]);
    // librdkafka may come with the same ones again, after a restart of the fetching.
    inbox.keep(records(0, 5..10));
    assert_eq!(batch(&inbox), (0, vec![8, 9]));
    assert_eq!(signal(&inbox), None);
}

#[test]
fn a_partition_that_is_not_ours_keeps_and_starts_nothing() {
    let inbox = started(1);
    assert!(!inbox.started(&at(1), 0) && !inbox.is_assigned(&at(1)) && !inbox.set_paused(&at(1), false));
    // Among records of one that is ours.
    inbox.keep([record(1, 0), record(0, 0), record(1, 1), record(0, 1)].to_vec());
    assert_eq!(batch(&inbox), (0, vec![0, 1]));
    assert_eq!(signal(&inbox), None);
    assert_eq!(inbox.revoke(vec![at(1)]), []);
    assert_eq!(signal(&inbox), None, "nobody is told of it");
}

#[test]
fn started_again_it_goes_on_from_there_without_what_was_held() {
    let inbox = started(1);
    inbox.keep(records(0, 0..10));
    assert!(inbox.started(&at(0), 3));
    assert_eq!(signal(&inbox), None);
    inbox.keep(records(0, 3..5));
    assert_eq!(batch(&inbox), (0, vec![3, 4]));
}

#[test]
fn a_stopped_partition_takes_nothing_more_and_hands_out_what_it_holds() {
    let inbox = started(1);
    inbox.keep(records(0, 0..2));
    inbox.stopped(&at(0));
    assert_eq!(inbox.fetched(), []);
    inbox.keep(records(0, 2..4));
    assert_eq!(batch(&inbox), (0, vec![0, 1]));
    assert_eq!(signal(&inbox), None);
}

#[test]
fn a_paused_partition_is_silent_and_goes_on_where_it_was() {
    let inbox = started(2);
    assert!(inbox.set_paused(&at(0), true));
    inbox.keep(records(0, 0..3));
    inbox.keep(records(1, 0..1));
    assert_eq!(batch(&inbox), (1, vec![0]));
    assert_eq!(signal(&inbox), None);
    inbox.keep(records(0, 3..5));
    assert!(inbox.set_paused(&at(0), false));
    assert_eq!(batch(&inbox), (0, vec![0, 1, 2, 3, 4]));
}

#[test]
fn after_a_revocation_nothing_of_the_partition_comes() {
    let inbox = started(3);
    inbox.stopped(&at(1));
    inbox.keep([records(0, 0..5), records(2, 0..1)].concat());
    assert_eq!(inbox.revoke(vec![at(0), at(1)]), [at(0)], "those that were fetched");
    inbox.keep(records(0, 5..10));
    assert_eq!(signal(&inbox), Some(Signal::Revoked(vec![at(0), at(1)])));
    assert_eq!(batch(&inbox), (2, vec![0]));
    assert_eq!(signal(&inbox), None);
    assert!(!inbox.set_paused(&at(0), true));
    // Assigned anew it begins from nothing.
    inbox.assign(vec![at(0)]);
    assert_eq!(signal(&inbox), Some(Signal::Assigned(vec![at(0)])));
    inbox.keep(records(0, 10..11));
    assert_eq!(signal(&inbox), None);
}

#[test]
fn signals_go_before_records_in_their_order() {
    let inbox = started(1);
    inbox.keep(records(0, 0..1));
    inbox.assign(Vec::new());
    inbox.assign(vec![at(1), at(2)]);
    inbox.report(EventLogError::OffsetOutOfRange { at: at(0), asked: 1, first: 2, next: 3 });
    inbox.revoke(vec![at(2)]);
    assert_eq!(signal(&inbox), Some(Signal::Assigned(vec![at(1), at(2)])));
    assert!(matches!(error(&inbox), EventLogError::OffsetOutOfRange { .. }));
    assert_eq!(signal(&inbox), Some(Signal::Revoked(vec![at(2)])));
    assert_eq!(batch(&inbox), (0, vec![0]));
}

#[test]
fn partitions_take_turns_in_batches_of_a_bounded_size() {
    let inbox = started(3);
    for partition in 0..3 {
        inbox.keep(records(partition, 0..1_500));
    }
    for partition in 0..3 {
        assert_eq!(batch(&inbox), (partition, (0..1_000).collect()));
        // However much comes for the first.
        inbox.keep(records(0, 1_500 + u64::from(partition) * 100..1_600 + u64::from(partition) * 100));
    }
    assert_eq!(batch(&inbox), (0, (1_000..1_800).collect()));
    assert_eq!(batch(&inbox), (1, (1_000..1_500).collect()));
    assert_eq!(batch(&inbox), (2, (1_000..1_500).collect()));
    assert_eq!(signal(&inbox), None);
}

#[test]
fn a_partition_with_a_full_store_is_named_once_and_again_when_half_of_it_is_gone() {
    let inbox = started(2);
    inbox.keep([records(0, 0..STORE_RECORDS as u64 - 1), records(1, 0..1)].concat());
    assert_eq!(inbox.wait_for_room(Duration::ZERO), []);
    inbox.keep(records(0, STORE_RECORDS as u64 - 1..STORE_RECORDS as u64));
    assert_eq!(inbox.wait_for_room(Duration::ZERO), [at(0)]);
    assert_eq!(inbox.wait_for_room(Duration::ZERO), [], "it is not fetched any more");
    let mut left = STORE_RECORDS;
    while left > STORE_RECORDS / 2 {
        assert_eq!(inbox.drained(), [], "{left} records are left");
        let (partition, offsets) = batch(&inbox);
        left -= if partition == 0 { offsets.len() } else { 0 };
    }
    assert_eq!(inbox.drained(), [at(0)]);
    assert_eq!(inbox.drained(), [], "it is fetched again");
}

#[test]
fn a_store_is_full_by_bytes_as_well() {
    let inbox = started(1);
    // Key, value and headers count.
    let third = STORE_BYTES / 3;
    let large = |offset| Record {
        key: vec![0; third].into(),
        value: vec![0; third].into(),
        headers: [("h", "x".repeat(third))].into_iter().collect(),
        ..record(0, offset)
    };
    inbox.keep(vec![large(0)]);
    assert_eq!(inbox.wait_for_room(Duration::ZERO), [at(0)]);
    assert_eq!(batch(&inbox).1, [0]);
    assert_eq!(inbox.drained(), [at(0)]);

    // A batch of small ones leaves a bit more than half of the bytes behind, though few records.
    let value = Bytes::from(vec![0; STORE_BYTES / 2_000 + 1]);
    inbox.keep((1..2_001).map(|offset| Record { value: value.clone(), ..record(0, offset) }).collect());
    assert_eq!(inbox.wait_for_room(Duration::ZERO), [at(0)]);
    batch(&inbox);
    assert_eq!(inbox.drained(), []);
    batch(&inbox);
    assert_eq!(inbox.drained(), [at(0)]);
}

#[test]
fn the_polling_thread_gives_the_reader_a_moment_to_make_room() {
    let inbox = full();
    assert!(waits(|longest| assert_eq!(inbox.wait_for_room(longest), [at(0)])));

    let inbox = full();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| goes_on(|longest| assert_eq!(inbox.wait_for_room(longest), [])));
        // It waits by then, and has to be woken.
        std::thread::sleep(MOMENT);
        batch(&inbox);
        assert!(waiting.join().unwrap(), "the reader has made room");
    });
    // One that will not come makes none.
    for hinder in HINDRANCES {
        let inbox = full();
        hinder(&inbox);
        assert!(goes_on(|longest| assert_eq!(inbox.wait_for_room(longest), [at(0)])));
    }
}

#[test]
fn a_paused_partition_holds_up_nobody_and_is_fetched_again_only_when_resumed() {
    let inbox = full();
    inbox.set_paused(&at(0), true);
    assert!(goes_on(|longest| assert_eq!(inbox.wait_for_room(longest), [at(0)])));
    inbox.set_paused(&at(0), false);
    while signal(&inbox).is_some() {}
    inbox.set_paused(&at(0), true);
    assert_eq!(inbox.drained(), []);
    inbox.set_paused(&at(0), false);
    assert_eq!(inbox.drained(), [at(0)]);
}

#[test]
fn a_revoked_partition_is_given_up_when_the_reader_has_come_back() {
    let inbox = started(3);
    let handover = |longest| inbox.wait_for_handover(longest);
    assert!(goes_on(handover), "nothing was revoked");
    inbox.revoke(vec![at(0)]);
    inbox.assign(vec![at(3)]);
    inbox.revoke(vec![at(1)]);
    assert!(waits(handover), "the reader has not heard of it");
    assert_eq!(signal(&inbox), Some(Signal::Revoked(vec![at(0)])));
    assert_eq!(signal(&inbox), Some(Signal::Assigned(vec![at(3)])));
    assert!(waits(handover), "the reader has not heard of the second");
    assert_eq!(signal(&inbox), Some(Signal::Revoked(vec![at(1)])));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| goes_on(handover));
        assert!(waits(handover), "the reader may be at work on it");
        assert_eq!(signal(&inbox), None);
        assert!(waiting.join().unwrap(), "the reader has come back");
    });
}

#[test]
fn a_reader_that_waits_itself_or_has_left_is_not_waited_for() {
    for hinder in HINDRANCES {
        let inbox = started(1);
        inbox.revoke(vec![at(0)]);
        assert!(waits(|longest| inbox.wait_for_handover(longest)));
        hinder(&inbox);
        assert!(goes_on(|longest| inbox.wait_for_handover(longest)));
    }
}

#[tokio::test]
async fn a_waiting_reader_is_woken_by_whatever_comes() {
    let inbox = started(1);
    inbox.set_paused(&at(0), true);
    inbox.keep(records(0, 0..1));
    let happenings: [fn(&Inbox); 6] = [
        |inbox| assert!(inbox.set_paused(&at(0), false)),
        |inbox| inbox.keep(records(0, 1..2)),
        |inbox| inbox.assign(vec![at(1)]),
        |inbox| drop(inbox.revoke(vec![at(1)])),
        |inbox| inbox.report(EventLogError::Permanent { problem: "p".to_owned() }),
        |inbox| inbox.end("over".to_owned()),
    ];
    for (number, happens) in happenings.into_iter().enumerate() {
        // The reader is polled first, and finds nothing.
        let next = tokio::time::timeout(DEADLINE, inbox.next());
        let (next, ()) = tokio::join!(next, async { happens(&inbox) });
        assert!(next.is_ok(), "happening {number} wakes nobody");
    }
}

#[test]
fn a_problem_that_may_pass_is_told_once_until_it_is_read() {
    let inbox = started(1);
    let away = || EventLogError::Unavailable { address: "a".to_owned(), problem: "p".to_owned() };
    let lost = |asked| EventLogError::OffsetOutOfRange { at: at(0), asked, first: 8, next: 9 };
    for _ in 0..3 {
        inbox.report(away());
    }
    // Each of these is about something else.
    inbox.report(lost(1));
    inbox.report(lost(2));
    assert!(error(&inbox).is_transient());
    assert!(matches!(error(&inbox), EventLogError::OffsetOutOfRange { asked: 1, .. }));
    assert!(matches!(error(&inbox), EventLogError::OffsetOutOfRange { asked: 2, .. }));
    assert_eq!(signal(&inbox), None);
    inbox.report(away());
    assert!(error(&inbox).is_transient());
}

#[test]
fn after_the_end_the_reader_gets_its_first_reason_for_ever() {
    let inbox = started(1);
    inbox.keep(records(0, 0..1));
    inbox.revoke(vec![at(0)]);
    inbox.end("fenced".to_owned());
    inbox.end("closed".to_owned());
    assert_eq!(signal(&inbox), Some(Signal::Revoked(vec![at(0)])));
    for _ in 0..3 {
        let error = error(&inbox);
        assert!(!error.is_transient() && error.to_string().contains("fenced"), "{error}");
    }
}

#[test]
fn progress_is_the_newest_of_the_partitions_that_are_ours() {
    let inbox = started(2);
    for (partition, next) in [(0, 3), (1, 4), (0, 5), (7, 6)] {
        inbox.note_progress(&at(partition), next);
    }
    inbox.revoke(vec![at(1)]);
    // It was not ours when its progress was noted.
    inbox.assign(vec![at(7)]);
    assert_eq!(inbox.take_progress(), [(at(0), 5)]);
    assert_eq!(inbox.take_progress(), [], "it is told once");
}

#[test]
fn a_start_is_taken_once_and_after_the_close_it_is_answered_by_nobody() {
    let inbox = started(1);
    let _answer = request_start(&inbox);
    assert!(inbox.take_start().is_some_and(|request| request.at == at(0)));
    assert!(inbox.take_start().is_none());

    let mut waiting = request_start(&inbox);
    inbox.close();
    let mut late = request_start(&inbox);
    assert!(inbox.is_closed() && inbox.take_start().is_none());
    for answer in [&mut waiting, &mut late] {
        assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    }
}
