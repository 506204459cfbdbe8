//! The one door to all aggregates: the state of a stream, and `decide` and `apply` on it.

use schemas::{Command, Context, Event};
use serde::{Deserialize, Serialize};

use crate::catalogue::{self, ProductState};
use crate::inventory::{self, StockState};
use crate::platform::{self, DecisionsState};
use crate::pricing::{self, PriceState};
use crate::rejection::Rejection;

/// What a stream's events have come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum State {
    Product(ProductState),
    Stock(StockState),
    Price(PriceState),
    Decisions(DecisionsState),
}

/// Decides a command: the events that it causes, or why it is refused.
///
/// No event means accepted without effect: what was asked for is already so. `now` is the command's time in
/// milliseconds since 1970.
pub fn decide(state: &State, command: &Command, now: i64) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (State::Product(state), command) => catalogue::decide(state, command),
        (State::Stock(state), command) => inventory::decide(state, command, now),
        (State::Price(state), command) => pricing::decide(state, command),
        (State::Decisions(state), command) => platform::decide(state, command),
    }
}

/// Folds an event into the state. An event of another aggregate changes nothing.
pub fn apply(state: &mut State, event: &Event) {
    match state {
        State::Product(state) => catalogue::apply(state, event),
        State::Stock(state) => inventory::apply(state, event),
        State::Price(state) => pricing::apply(state, event),
        State::Decisions(state) => platform::apply(state, event),
    }
}

// === impl State ===

impl State {
    /// The state of a stream that has no event yet.
    pub fn initial(context: Context) -> Self {
        match context {
            Context::Catalogue => State::Product(ProductState::default()),
            Context::Inventory => State::Stock(StockState::default()),
            Context::Pricing => State::Price(PriceState::default()),
            Context::Platform => State::Decisions(DecisionsState::default()),
        }
    }
}

/// A command that reached the wrong aggregate: the routing by [`crate::StreamId::of`] makes that impossible,
/// and a refusal is still safer than a panic.
pub(crate) fn misrouted(command: &Command) -> Rejection {
    Rejection::new("misrouted_command", format!("{} does not belong to this stream", command.command_type()))
}
