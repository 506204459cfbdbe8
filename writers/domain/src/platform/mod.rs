//! Platform: the decisions on a read model's generations, recorded as one chain without gap or fork.
//!
//! Each decision names the hash of the one before. What was recorded so stands against what a read model's own store
//! says of its past: a decision that was changed, removed or slipped in there does not fit the chain here.

use schemas::command::RecordDecision;
use schemas::event::DecisionRecorded;
use schemas::{Command, Event};
use serde::{Deserialize, Serialize};

use crate::aggregate::misrouted;
use crate::rejection::Rejection;

/// The chain so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DecisionsState {
    /// Hashes of the decisions 1, 2, 3 …
    pub hashes: Vec<String>,
}

pub(crate) fn decide(state: &DecisionsState, command: &Command) -> Result<Vec<Event>, Rejection> {
    let Command::RecordDecision(data) = command else { return Err(misrouted(command)) };
    let (recorded, number) = (state.hashes.len() as i64, data.number);
    if let Some(hash) = state.hash_of(number) {
        // Whoever forwards decisions may not know how far it was, and gives some again.
        return if *hash == data.hash {
            Ok(Vec::new())
        } else {
            Err(Rejection::new(
                "decision_rewritten",
                format!("decision {number} of {} is recorded as {hash}, not as {}", data.projection, data.hash),
            ))
        };
    }
    if number != recorded + 1 {
        return Err(Rejection::new(
            "decision_gap",
            format!("decision {number} of {} came, {} is next", data.projection, recorded + 1),
        ));
    }
    let last = state.hashes.last().map_or("", String::as_str);
    if data.previous != last {
        return Err(Rejection::new(
            "decision_chain_broken",
            format!("decision {number} of {} follows {:?}, not {last:?}", data.projection, data.previous),
        ));
    }
    Ok(vec![Event::DecisionRecorded(recorded_as(data))])
}

pub(crate) fn apply(state: &mut DecisionsState, event: &Event) {
    if let Event::DecisionRecorded(event) = event {
        state.hashes.push(event.hash.clone());
    }
}

fn recorded_as(data: &RecordDecision) -> DecisionRecorded {
    let data = data.clone();
    DecisionRecorded {
        projection: data.projection,
        catalogue_id: data.catalogue_id,
        number: data.number,
        at: data.at,
        who: data.who,
        action: data.action,
        generation: data.generation,
        reason: data.reason,
        evidence: data.evidence,
        previous: data.previous,
        hash: data.hash,
    }
}

// === impl DecisionsState ===

impl DecisionsState {
    fn hash_of(&self, number: i64) -> Option<&String> {
        self.hashes.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }
}

#[cfg(test)]
mod tests;
