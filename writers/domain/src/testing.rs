//! Given these events, when this command comes, then these events or that rejection.

use schemas::{Command, Event};

use crate::{Rejection, State, apply, decide};

pub(crate) fn given(mut state: State, events: &[Event]) -> State {
    for event in events {
        apply(&mut state, event);
    }
    state
}

/// Decides and folds: the rejection, or the events and the state they lead to.
pub(crate) fn when(state: &State, command: &Command, now: i64) -> Result<(Vec<Event>, State), Rejection> {
    let events = decide(state, command, now)?;
    let after = given(state.clone(), &events);
    Ok((events, after))
}
