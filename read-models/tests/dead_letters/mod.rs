//! Dead letters of any read model (invariant P4): listed, asked for, resolved by the owner in one write or not at all.
//! Each test takes a model whose partition is prepared and empty, and one row to write.

use read_models::{
    Batch, Checkpoint, Claimed, DeadLetterAction, DeadLetterAnswer, DeadLetterOutcome, DeadLetterRequest, DiscardNote,
    DiscardedEvent, FOREIGN_KEY, KEPT_ANSWERS, MAX_REQUESTS, ParkedEvent, ParkedPlace, PartitionRef, ReadModel,
    ReadModelError, Resolution, Resolved,
};
use schemas::StorePosition;
use uuid::Uuid;

type Row<M> = (<M as ReadModel>::Key, <M as ReadModel>::Row);

fn event(key: &str, sequence: u64, offset: u64) -> ParkedEvent {
    ParkedEvent {
        key: key.to_owned(),
        sequence,
        offset,
        position: StorePosition { xid: 1 << 60, position: sequence },
        headers: vec![("ce_id".to_owned(), "é\n".to_owned())],
        value: vec![0, b'\n', 255, offset as u8],
        reason: format!("reason of {sequence}"),
        parked_at: 1_700_000_000_000 + sequence as i64,
    }
}

fn place(sequence: u64, offset: u64) -> ParkedPlace {
    ParkedPlace { sequence, offset }
}

fn request(number: u128, key: &str, action: DeadLetterAction) -> DeadLetterRequest {
    let by = Some("ops \"night\" shift".to_owned());
    let requested_at = 1_000 + number as i64;
    DeadLetterRequest { id: Uuid::from_u128(number), key: key.to_owned(), action, by, note: None, requested_at }
}

fn answer(request: &DeadLetterRequest, outcome: DeadLetterOutcome, resolved: u64, left: u64) -> DeadLetterAnswer {
    let message = "said\nso".to_owned();
    DeadLetterAnswer { request: request.clone(), outcome, message, resolved, left, answered_at: 9_999 }
}

fn resolved(event: &ParkedEvent) -> Resolved {
    Resolved { key: event.key.clone(), place: event.place() }
}

fn batch<M: ReadModel + ?Sized>(at: PartitionRef, claimed: &Claimed) -> Batch<M::Key, M::Row> {
    Batch::unmoved(at, claimed.epoch, claimed.checkpoint, false)
}

/// Parks events, and gives the owner as it stands after that.
async fn park<M: ReadModel + ?Sized>(model: &M, at: PartitionRef, events: &[ParkedEvent]) -> Claimed {
    let claimed = model.claim(at).await.unwrap();
    let last = events.last().map_or(0, |event| event.sequence);
    let to = Checkpoint { sequence: last, next_offset: last + 1_000, ..claimed.checkpoint };
    model.apply(&Batch { to, parked: events.to_vec(), ..batch::<M>(at, &claimed) }).await.unwrap();
    model.claim(at).await.unwrap()
}

pub async fn keys_and_queues_are_listed_in_pages<M: ReadModel + ?Sized>(model: &M, at: PartitionRef, _: Row<M>) {
    let all = [
        event(FOREIGN_KEY, 0, 3),
        event("B", 5, 10),
        event("A", 6, 11),
        event(FOREIGN_KEY, 6, 12),
        event("B", 7, 13),
        // Its name begins like that of another.
        event("A.1", 8, 14),
        // Of a topic that was made anew since.
        event("B", 9, 4),
        // And these as if they went on with a place, or were the next byte.
        event("B\u{0}000", 10, 16),
        event("B\u{1}", 11, 17),
    ];
    let claimed = park(model, at, &all).await;
    assert_eq!(claimed.foreign_records, 2);
    assert_eq!(claimed.parked_keys.len(), 6);

    // Records from before the first event are shown as well, and a page ends where it is told to.
    assert_eq!(model.parked(at, None, 100).await.unwrap(), all);
    assert_eq!(model.parked(at, None, 3).await.unwrap(), all[..3]);
    assert_eq!(model.parked(at, Some(place(6, 11)), 2).await.unwrap(), all[3..5]);
    assert!(model.parked(at, Some(place(11, 17)), 9).await.unwrap().is_empty());
    assert!(model.parked(at, None, 0).await.unwrap().is_empty());

    let of_b = [all[1].clone(), all[4].clone(), all[6].clone()];
    assert_eq!(model.parked_of(at, "B", None, 100).await.unwrap(), of_b);
    assert_eq!(model.parked_of(at, "B", None, 2).await.unwrap(), of_b[..2]);
    assert_eq!(model.parked_of(at, "B", Some(place(5, 10)), 1).await.unwrap(), of_b[1..2]);
    assert_eq!(model.parked_of(at, "B\u{0}000", None, 9).await.unwrap(), all[7..8]);
    assert_eq!(model.parked_of(at, "B\u{1}", None, 9).await.unwrap(), all[8..]);
    assert_eq!(model.parked_of(at, "A", None, 9).await.unwrap(), all[2..3]);
    assert!(model.parked_of(at, "C", None, 9).await.unwrap().is_empty());

    let keys = model.parked_keys(at, None, 100).await.unwrap();
    let told: Vec<_> = keys.iter().map(|key| (key.key.as_str(), key.events, key.first)).collect();
    let expected = [
        (FOREIGN_KEY, 2, place(0, 3)),
        ("A", 1, place(6, 11)),
        ("A.1", 1, place(8, 14)),
        ("B", 3, place(5, 10)),
        ("B\u{0}000", 1, place(10, 16)),
        ("B\u{1}", 1, place(11, 17)),
    ];
    assert_eq!(told, expected);
    assert_eq!((keys[3].reason.as_str(), keys[3].parked_at), ("reason of 5", 1_700_000_000_005));
    assert_eq!(model.parked_keys(at, None, 1).await.unwrap(), keys[..1]);
    assert_eq!(model.parked_keys(at, Some("A"), 1).await.unwrap(), keys[2..3]);
    assert_eq!(model.parked_keys(at, Some("A.1"), 9).await.unwrap(), keys[3..]);
    assert_eq!(model.parked_keys(at, Some("B"), 9).await.unwrap(), keys[4..]);
    assert_eq!(model.parked_keys(at, Some("B\u{0}000"), 9).await.unwrap(), keys[5..]);
    assert!(model.parked_keys(at, Some("B\u{1}"), 9).await.unwrap().is_empty());
    assert!(model.partitions().await.unwrap().contains(&at));
}

pub async fn a_redrive_is_one_write_and_what_is_left_keeps_its_order<M: ReadModel + ?Sized>(
    model: &M,
    at: PartitionRef,
    row: Row<M>,
) {
    let all = [event("A", 1, 1), event("B", 2, 2), event("A", 3, 3), event("A", 4, 4)];
    let owner = park(model, at, &all).await;
    let asked = request(7, "A", DeadLetterAction::Redrive);
    model.request_dead_letter(at, &asked).await.unwrap();
    assert_eq!(model.dead_letter_requests(at).await.unwrap(), std::slice::from_ref(&asked));

    let again = ParkedEvent { reason: "still: no".to_owned(), ..all[3].clone() };
    let failed = answer(&asked, DeadLetterOutcome::Failed, 2, 1);
    let dead_letters = Resolution {
        redriven: vec![resolved(&all[0]), resolved(&all[2])],
        kept: vec![again.clone()],
        answers: vec![failed.clone()],
        ..Resolution::default()
    };
    // An event that came meanwhile goes behind.
    let late = event("A", 5, 5);
    let to = Checkpoint { sequence: 5, ..owner.checkpoint };
    let written =
        Batch { to, changes: vec![row.clone()], parked: vec![late.clone()], dead_letters, ..batch::<M>(at, &owner) };
    model.apply(&written).await.unwrap();
    assert_eq!(model.load(at, std::slice::from_ref(&row.0)).await.unwrap().rows, [Some(row.1.clone())]);
    assert_eq!(model.parked_of(at, "A", None, 9).await.unwrap(), [again.clone(), late.clone()]);
    assert_eq!(model.parked(at, None, 9).await.unwrap(), [all[1].clone(), again.clone(), late.clone()]);
    assert!(model.dead_letter_requests(at).await.unwrap().is_empty());
    assert_eq!(model.dead_letter_answers(at, 9).await.unwrap(), [failed]);
    let keys = model.parked_keys(at, None, 9).await.unwrap();
    assert_eq!((keys[0].events, keys[0].reason.as_str()), (2, "still: no"));

    let owner = model.claim(at).await.unwrap();
    assert_eq!(owner.checkpoint, to);
    assert!(owner.parked_keys.contains("A"));
    let dead_letters = Resolution { redriven: vec![resolved(&again), resolved(&late)], ..Resolution::default() };
    model.apply(&Batch { dead_letters, ..batch::<M>(at, &owner) }).await.unwrap();
    assert_eq!(model.parked(at, None, 9).await.unwrap(), all[1..2]);
    let keys = model.claim(at).await.unwrap().parked_keys;
    assert_eq!(keys.into_iter().collect::<Vec<_>>(), ["B"]);
    let status = model.status().await.unwrap();
    let status = status.partitions.iter().find(|status| status.partition == at).unwrap();
    assert_eq!((status.parked_keys, status.parked_events), (1, 1));
    assert!(model.discarded(at, None, 9).await.unwrap().is_empty());
}

pub async fn what_is_discarded_is_recorded<M: ReadModel + ?Sized>(model: &M, at: PartitionRef, _: Row<M>) {
    let all = [event("A", 1, 1), event("A", 2, 2), event("A", 3, 3)];
    let owner = park(model, at, &all).await;
    let reason = "sent twice\nby mistake".to_owned();
    let action = DeadLetterAction::Discard { reason, first_only: true, to: Some(place(1, 1)) };
    let asked = request(1, "A", action);
    model.request_dead_letter(at, &asked).await.unwrap();
    assert_eq!(model.dead_letter_requests(at).await.unwrap(), std::slice::from_ref(&asked));
    let note = DiscardNote {
        request: asked.id,
        reason: "sent twice\nby mistake".to_owned(),
        by: asked.by.clone(),
        discarded_at: 77,
    };
    let dead_letters = Resolution {
        discarded: all[..2].iter().map(|event| (resolved(event), note.clone())).collect(),
        answers: vec![answer(&asked, DeadLetterOutcome::Done, 2, 1)],
        ..Resolution::default()
    };
    model.apply(&Batch { dead_letters, ..batch::<M>(at, &owner) }).await.unwrap();
    assert_eq!(model.parked(at, None, 9).await.unwrap(), all[2..]);
    let recorded: Vec<_> =
        all[..2].iter().map(|event| DiscardedEvent { event: event.clone(), note: note.clone() }).collect();
    assert_eq!(model.discarded(at, None, 9).await.unwrap(), recorded);
    assert_eq!(model.discarded(at, None, 1).await.unwrap(), recorded[..1]);
    assert_eq!(model.discarded(at, Some(place(1, 1)), 9).await.unwrap(), recorded[1..]);
}

pub async fn only_the_owner_resolves_and_a_refused_write_leaves_all_as_it_was<M: ReadModel + ?Sized>(
    model: &M,
    at: PartitionRef,
    row: Row<M>,
) {
    let all = [event("A", 1, 1), event("A", 2, 2)];
    let zombie = park(model, at, &all).await;
    let owner = model.claim(at).await.unwrap();
    let asked = request(1, "A", DeadLetterAction::Redrive);
    model.request_dead_letter(at, &asked).await.unwrap();
    let note = DiscardNote { request: asked.id, reason: "r".to_owned(), by: None, discarded_at: 1 };
    let dead_letters = Resolution {
        redriven: vec![resolved(&all[0])],
        discarded: vec![(resolved(&all[1]), note)],
        kept: vec![ParkedEvent { reason: "changed".to_owned(), ..all[1].clone() }],
        answers: vec![answer(&asked, DeadLetterOutcome::Done, 2, 0)],
    };
    let write = Batch { changes: vec![row.clone()], dead_letters, ..batch::<M>(at, &zombie) };
    let refused = model.apply(&write).await.unwrap_err();
    assert!(matches!(refused, ReadModelError::Superseded { .. }), "{refused}");
    let elsewhere = Checkpoint { sequence: 99, ..owner.checkpoint };
    let refused = model.apply(&Batch { epoch: owner.epoch, from: elsewhere, ..write.clone() }).await.unwrap_err();
    assert!(matches!(refused, ReadModelError::CheckpointMoved { .. }), "{refused}");
    assert_eq!(model.parked(at, None, 9).await.unwrap(), all);
    assert_eq!(model.dead_letter_requests(at).await.unwrap(), [asked]);
    assert!(model.dead_letter_answers(at, 9).await.unwrap().is_empty());
    assert!(model.discarded(at, None, 9).await.unwrap().is_empty());
    assert_eq!(model.load(at, &[row.0]).await.unwrap().rows, [None]);
}

pub async fn requests_and_answers_are_bounded_and_asked_once<M: ReadModel + ?Sized>(
    model: &M,
    at: PartitionRef,
    _: Row<M>,
) {
    let mut owner = model.claim(at).await.unwrap();
    let ask = |number: u128| request(number, "A", DeadLetterAction::Redrive);
    let requests: Vec<_> = (1..=MAX_REQUESTS as u128).map(ask).collect();
    for one in &requests {
        model.request_dead_letter(at, one).await.unwrap();
    }
    let refused = model.request_dead_letter(at, &ask(5_000)).await.unwrap_err();
    assert!(matches!(refused, ReadModelError::TooManyRequests { .. }) && refused.is_transient(), "{refused}");
    assert_eq!(model.dead_letter_requests(at).await.unwrap(), requests);

    let answers: Vec<_> = requests.iter().map(|one| answer(one, DeadLetterOutcome::Done, 0, 0)).collect();
    let dead_letters = Resolution { answers, ..Resolution::default() };
    model.apply(&Batch { dead_letters: dead_letters.clone(), ..batch::<M>(at, &owner) }).await.unwrap();
    assert!(model.dead_letter_requests(at).await.unwrap().is_empty());
    assert_eq!(model.dead_letter_answers(at, 5_000).await.unwrap().len(), KEPT_ANSWERS);

    let twice = ask(6_000);
    model.request_dead_letter(at, &twice).await.unwrap();
    model.request_dead_letter(at, &twice).await.unwrap();
    owner = model.claim(at).await.unwrap();
    // Nobody waits for the others any more: their answers are not kept a second time.
    let mut dead_letters = dead_letters;
    dead_letters.answers.push(answer(&twice, DeadLetterOutcome::Failed, 1, 2));
    model.apply(&Batch { dead_letters, ..batch::<M>(at, &owner) }).await.unwrap();
    let newest = model.dead_letter_answers(at, 5_000).await.unwrap();
    assert_eq!(newest.len(), KEPT_ANSWERS);
    assert_eq!((newest[0].request.id, newest[1].request.id), (twice.id, Uuid::from_u128(MAX_REQUESTS as u128)));
    assert_eq!(newest.last().unwrap().request.id, Uuid::from_u128(2));
    assert_eq!(model.dead_letter_answers(at, 1).await.unwrap(), newest[..1]);
    assert!(model.dead_letter_answers(at, 0).await.unwrap().is_empty());
}

pub async fn the_mirror_s_mark_only_goes_on<M: ReadModel + ?Sized>(model: &M, at: PartitionRef, _: Row<M>) {
    park(model, at, &[event("A", 9, 200), event("A", 10, 201)]).await;
    assert_eq!(model.mirrored(at).await.unwrap(), None);
    for (mark, found) in [((9, 200), (9, 200)), ((10, 3), (10, 3)), ((9, 999), (10, 3)), ((10, 201), (10, 201))] {
        model.set_mirrored(at, place(mark.0, mark.1)).await.unwrap();
        assert_eq!(model.mirrored(at).await.unwrap(), Some(place(found.0, found.1)));
    }
    let claimed = model.claim(at).await.unwrap();
    assert_eq!(claimed.checkpoint.sequence, 10);
}
