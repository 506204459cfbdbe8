//! The decisions on a read model, and whether they still say what was decided.
//!
//! Three things are held against each other: the chain of the decisions itself, the catalogue that names its end, and
//! `platform.events`, which whoever changes the store does not reach.

use read_models::Generations;
use read_models::generations::{Catalogue, Decision, check_chain, check_chain_after};
use schemas::event::DecisionRecorded;
use serde::Serialize;

use crate::error::ReplayError;

/// All decisions, in order, and what is wrong with them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct History {
    pub decisions: Vec<Decision>,
    /// Nothing where the past is as it was.
    pub tampered: Vec<String>,
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
        Ok(Self { tampered: broken(&catalogue, &decisions), decisions })
    }

    /// Reads `limit` decisions at most, those after number `after`. Whoever reads page after page checks all of the chain.
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

    /// Holds it against the events of this catalogue on `platform.events`, in any order. What is not recorded yet may
    /// still be on its way, so only those up to `published` must be there.
    pub fn compare(&mut self, catalogue: &Catalogue, recorded: &[DecisionRecorded], published: u64) {
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
