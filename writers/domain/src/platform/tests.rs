use proptest::prelude::*;
use schemas::{Command, Context, Event};

use crate::testing::{given, when};
use crate::{State, StreamId};

const CATALOGUE: &str = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";

fn hash(of: u8) -> String {
    format!("{of:02x}").repeat(32)
}

/// Decision `number`, whose hash is made of `own`, behind the one whose hash is `previous`.
fn record(number: i64, previous: &str, own: &str) -> Command {
    let json = format!(
        r#"{{"projection":"stock","catalogue_id":"{CATALOGUE}","number":{number},"at":1000,"who":"ada","action":"started",
            "generation":"stock@2","reason":"","evidence":"{{}}","previous":"{previous}","hash":"{own}"}}"#
    );
    Command::from_json("RecordDecision", json.as_bytes()).unwrap()
}

/// A chain of decisions whose hashes are made of 1, 2, 3 …
fn recorded(count: u8) -> State {
    let mut state = State::initial(Context::Platform);
    for number in 1..=count {
        let previous = if number == 1 { String::new() } else { hash(number - 1) };
        let (events, after) = when(&state, &record(i64::from(number), &previous, &hash(number)), 0).unwrap();
        assert_eq!(events.len(), 1);
        state = after;
    }
    state
}

fn code(state: &State, command: &Command) -> &'static str {
    when(state, command, 0).unwrap_err().code
}

#[test]
fn decisions_are_recorded_one_behind_the_other_as_they_were_made() {
    let (events, _) = when(&recorded(1), &record(2, &hash(1), &hash(2)), 0).unwrap();
    let [Event::DecisionRecorded(event)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((event.number, event.at, event.who.as_str(), event.action.as_str()), (2, 1000, "ada", "started"));
    assert_eq!((event.generation.as_str(), event.evidence.as_str(), event.reason.as_str()), ("stock@2", "{}", ""));
    assert_eq!((&event.previous, &event.hash), (&hash(1), &hash(2)));
    assert_eq!((event.projection.as_str(), event.catalogue_id.to_string().as_str()), ("stock", CATALOGUE));
}

#[test]
fn a_decision_that_skips_one_is_refused() {
    assert_eq!(code(&recorded(0), &record(2, &hash(1), &hash(2))), "decision_gap");
    let rejection = when(&recorded(2), &record(5, &hash(4), &hash(5)), 0).unwrap_err();
    assert_eq!(rejection.code, "decision_gap");
    assert!(rejection.message.contains('5') && rejection.message.contains("3 is next"), "{}", rejection.message);
}

#[test]
fn a_decision_that_names_another_one_before_it_is_refused() {
    assert_eq!(code(&recorded(2), &record(3, &hash(9), &hash(3))), "decision_chain_broken");
    assert_eq!(code(&recorded(2), &record(3, "", &hash(3))), "decision_chain_broken");
    assert_eq!(code(&recorded(0), &record(1, &hash(9), &hash(1))), "decision_chain_broken");
}

#[test]
fn a_repeat_of_any_decision_is_accepted_without_an_event_and_another_in_its_place_is_refused() {
    let state = recorded(3);
    for number in 1..=3_u8 {
        let again = |own| record(i64::from(number), &hash(number - 1), &hash(own));
        assert_eq!(when(&state, &again(number), 0).unwrap().0, []);
        assert_eq!(code(&state, &again(number + 100)), "decision_rewritten");
    }
}

#[test]
fn each_catalogue_has_a_stream_of_its_own() {
    let stream = StreamId::of(&record(1, "", &hash(1)));
    assert_eq!(stream.as_str(), format!("decisions-stock-{CATALOGUE}"));
    assert_eq!(stream.context(), Some(Context::Platform));
}

proptest! {
    /// Whatever is given, in whatever order: what is recorded is one chain from 1 on.
    #[test]
    fn what_is_recorded_is_a_chain(given_numbers in prop::collection::vec((1_i64..6, 0_u8..4, 1_u8..4), 0..60)) {
        let mut state = State::initial(Context::Platform);
        let mut events = Vec::new();
        for (number, previous, own) in given_numbers {
            let previous = if previous == 0 { String::new() } else { hash(previous) };
            if let Ok((new, after)) = when(&state, &record(number, &previous, &hash(own)), 0) {
                events.extend(new);
                state = after;
            }
        }
        let mut last = String::new();
        for (number, event) in (1..).zip(&events) {
            let Event::DecisionRecorded(event) = event else { panic!("{event:?}") };
            prop_assert_eq!((event.number, &event.previous), (number, &last));
            last.clone_from(&event.hash);
        }
        prop_assert_eq!(given(State::initial(Context::Platform), &events), state);
    }
}
