//! The decisions on a read model, and whether they still say what was decided.
//!
//! Three things are held against each other: the chain of the decisions itself, the catalogue that names its end and
//! that must say what follows from them, and `platform.events`, which whoever changes the store does not reach.

mod derived;

use read_models::Generations;
use read_models::generations::{Action, Catalogue, Decision, check_chain, check_chain_after};
use schemas::event::DecisionRecorded;
use serde::Serialize;
use uuid::Uuid;

use crate::error::ReplayError;

/// All decisions, in order, and what is wrong with them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct History {
    pub decisions: Vec<Decision>,
    /// Nothing where the past is as it was.
    pub tampered: Vec<String>,
    /// Of other catalogues of this read model, what `platform.events` has and this one does not; the oldest first.
    pub elsewhere: Vec<OtherCatalogue>,
}

/// Another catalogue of the same read model, by what `platform.events` recorded of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OtherCatalogue {
    pub catalogue_id: Uuid,
    /// Those that the catalogue of now does not have: it has them where it was brought back after a loss.
    pub decisions: Vec<DecisionRecorded>,
}

/// Some decisions in order, and what is wrong with these and with how they follow on those before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HistoryPage {
    pub decisions: Vec<Decision>,
    /// Nothing where this part of the past is as it was.
    pub tampered: Vec<String>,
    /// The number after which the next page begins; `None` on the last one.
    pub next: Option<u64>,
}

const PAGE: usize = 500;

// === impl History ===

impl History {
    /// Reads all of it. Decisions that are made meanwhile may or may not be among them.
    pub async fn read(generations: &dyn Generations) -> Result<Self, ReplayError> {
        let catalogue = generations.catalogue().await?;
        let mut decisions: Vec<Decision> = Vec::new();
        loop {
            let after = decisions.last().map_or(0, |decision| decision.number);
            let page = generations.decisions(after, PAGE).await?;
            // A page that does not go on would be read for ever.
            if page.last().is_none_or(|last| last.number <= after) {
                break;
            }
            decisions.extend(page);
        }
        let mut tampered = broken(&catalogue, &decisions);
        // From a broken chain nothing follows.
        if tampered.is_empty() {
            tampered = derived::contradictions(generations.name(), &catalogue, &decisions);
        }
        Ok(Self { decisions, tampered, elsewhere: Vec::new() })
    }

    /// Reads `limit` decisions at most, those after number `after`. Whoever reads page after page checks all of the
    /// chain.
    pub async fn page(generations: &dyn Generations, after: u64, limit: usize) -> Result<HistoryPage, ReplayError> {
        let catalogue = generations.catalogue().await?;
        let before = match after.checked_sub(1) {
            None => None,
            Some(before) => generations.decisions(before, 1).await?.into_iter().next(),
        };
        let mut decisions = generations.decisions(after, limit).await?;
        decisions.truncate(limit);
        let mut tampered = Vec::new();
        if after > 0 && after <= catalogue.decisions && before.as_ref().is_none_or(|before| before.number != after) {
            tampered.push(format!("decision {after}: it is missing, or out of order"));
        } else if let Err(broken) = check_chain_after(before.as_ref(), &decisions) {
            tampered.push(broken.to_string());
        }
        let last = decisions.last().or(before.as_ref());
        let reached = last.map_or(0, |last| last.number);
        if let Some(last) = last.filter(|last| last.number == catalogue.decisions)
            && last.hash != catalogue.last_hash
        {
            tampered.push(format!("decision {}: it is not the one that the catalogue names", last.number));
        }
        if decisions.is_empty() && after < catalogue.decisions {
            tampered.push(format!("decision {}: it is missing at the end", catalogue.decisions));
        }
        let next = (!decisions.is_empty() && reached < catalogue.decisions).then_some(reached);
        Ok(HistoryPage { decisions, tampered, next })
    }

    /// Holds it against the events of read model `name` on `platform.events`, in any order. What is not recorded yet
    /// may still be on its way, so only those up to `published` must be there.
    ///
    /// What another catalogue decided, and this one does not have, was decided in a store that was emptied or replaced.
    /// That is found in [`Self::elsewhere`], and counts as tampered with where a read model has one store only.
    pub fn compare(&mut self, name: &str, catalogue: &Catalogue, recorded: &[DecisionRecorded], published: u64) {
        self.elsewhere = self.of_others(name, catalogue, recorded);
        if has_one_store(name) {
            self.tampered.extend(self.elsewhere.iter().map(OtherCatalogue::is_gone));
        }
        let of_this = |number: u64| {
            recorded.iter().find(|event| {
                event.catalogue_id == catalogue.id && u64::try_from(event.number).is_ok_and(|event| event == number)
            })
        };
        for decision in &self.decisions {
            match of_this(decision.number) {
                Some(event) if event.hash != decision.hash => {
                    self.tampered.push(format!("decision {}: platform.events recorded another one", decision.number))
                }
                Some(_) => {}
                None if decision.number <= published => {
                    self.tampered.push(format!("decision {}: platform.events does not have it", decision.number));
                }
                None => {}
            }
        }
        let last = self.decisions.last().map_or(0, |decision| decision.number);
        let later = recorded.iter().filter(|event| event.catalogue_id == catalogue.id);
        for event in later.filter(|event| u64::try_from(event.number).is_ok_and(|number| number > last)) {
            self.tampered.push(format!("decision {}: platform.events has it, the store does not", event.number));
        }
    }

    fn of_others(&self, name: &str, catalogue: &Catalogue, recorded: &[DecisionRecorded]) -> Vec<OtherCatalogue> {
        let mut others: Vec<OtherCatalogue> = Vec::new();
        for event in recorded {
            if event.projection.as_str() != name || event.catalogue_id == catalogue.id {
                continue;
            }
            // A hash is of all that was decided, and of all before it. Who brought a catalogue back decided nothing.
            let is_here = self.decisions.iter().any(|decision| decision.hash == event.hash);
            if is_here || event.action == Action::RestoredAfterLoss.as_str() {
                continue;
            }
            match others.iter_mut().find(|other| other.catalogue_id == event.catalogue_id) {
                Some(other) => other.decisions.push(event.clone()),
                None => {
                    others.push(OtherCatalogue { catalogue_id: event.catalogue_id, decisions: vec![event.clone()] })
                }
            }
        }
        for other in &mut others {
            other.decisions.sort_by_key(|decision| decision.number);
        }
        others.sort_by_key(|other| other.decisions.first().map(|first| first.at));
        others
    }
}

// === impl OtherCatalogue ===

impl OtherCatalogue {
    fn is_gone(&self) -> String {
        format!(
            "{} decisions of an earlier catalogue, {}, are on platform.events and not in the store: it was emptied or \
             replaced, and no process brought its catalogue back",
            self.decisions.len(),
            self.catalogue_id
        )
    }
}

/// Whether all processes share one store, and so one catalogue; otherwise others on the topic are of other machines,
/// and a lost one cannot be told from these.
fn has_one_store(name: &str) -> bool {
    name != read_models::search::NAME
}

fn broken(catalogue: &Catalogue, decisions: &[Decision]) -> Vec<String> {
    let mut tampered = Vec::new();
    if let Err(broken) = check_chain(decisions) {
        tampered.push(broken.to_string());
    }
    // The list may have grown since the catalogue was read.
    let end = catalogue.decisions.checked_sub(1).map(|index| decisions.get(index as usize));
    match end {
        Some(None) => tampered.push(format!("decision {}: it is missing at the end", catalogue.decisions)),
        Some(Some(last)) if last.hash != catalogue.last_hash => {
            tampered.push(format!("decision {}: it is not the one that the catalogue names", last.number));
        }
        _ => {}
    }
    tampered
}

#[cfg(test)]
mod tests;
