//! What was given and what was answered: the half of the oracle that lies outside Millrace.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use schemas::{Command, Outcome, OutcomeKind, PositionToken};
use uuid::Uuid;

use crate::commands::Given;

/// A command and what became of it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub command: Command,
    /// The first acknowledged outcome.
    pub outcome: Option<Outcome>,
    /// Answers with this outcome, the first one included.
    pub acknowledged: u32,
    /// Answers that said something else than the first.
    pub contradictions: Vec<String>,
    /// Given on a command topic: the outcome goes out on the outcome topic.
    pub by_topic: bool,
}

/// An acknowledged write that a reader must see.
#[derive(Debug, Clone)]
pub struct Seen {
    pub position: PositionToken,
    pub stream: String,
    pub version: u64,
}

#[derive(Debug, Default)]
pub struct Entries {
    pub commands: HashMap<Uuid, Entry>,
    /// The newest acknowledged write to the stock of each SKU.
    pub latest: HashMap<String, Seen>,
    /// Events of acknowledged commands.
    pub events: u64,
}

/// Shared by all who give commands.
#[derive(Default)]
pub struct Journal(Mutex<Entries>);

// === impl Journal ===

impl Journal {
    pub fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before it is sent: what may have had an effect must be known.
    pub fn given(&self, given: &Given, by_topic: bool) {
        let mut entries = self.entries();
        entries.commands.entry(given.id).or_insert_with(|| Entry {
            command: given.command.clone(),
            outcome: None,
            acknowledged: 0,
            contradictions: Vec::new(),
            by_topic,
        });
    }

    /// An answer. `false` when it decides nothing and the command is to be given again.
    pub fn answered(&self, outcome: Outcome) -> bool {
        if outcome.outcome == OutcomeKind::Failed {
            return false;
        }
        let mut entries = self.entries();
        let Entries { commands, latest, events } = &mut *entries;
        let Some(entry) = commands.get_mut(&outcome.id) else { return false };
        entry.acknowledged += 1;
        match &entry.outcome {
            None => {
                if outcome.outcome == OutcomeKind::Accepted {
                    *events += 1;
                    note_latest(latest, &entry.command, &outcome);
                }
                entry.outcome = Some(outcome);
            }
            Some(first) if *first != outcome => {
                let told = format!("first {first:?}, then {outcome:?}");
                entry.contradictions.push(told);
            }
            Some(_) => {}
        }
        true
    }
}

fn note_latest(latest: &mut HashMap<String, Seen>, command: &Command, outcome: &Outcome) {
    let (Some(position), Some(stream), Some(version)) = (&outcome.position, &outcome.stream, outcome.version) else {
        return;
    };
    if !stream.starts_with("stock-") {
        return;
    }
    let seen = Seen { position: position.clone(), stream: stream.clone(), version };
    latest.insert(command.key().to_owned(), seen);
}
