//! The operations on a replay: look at the catalogue, decide, write catalogue and decision as one.
//!
//! Each is one compare-and-set. Where somebody else changed the catalogue meanwhile it is decided anew, on what is
//! there then; what was refused or done is the answer of one moment. A process that is killed has written all of it or
//! nothing.

mod repaired;

use std::sync::Arc;

use read_models::generations::{Catalogue, Decision};
use read_models::{Generations, ReadModelError};
use serde_json::Value;

use crate::by::By;
use crate::decide::{self, CutoverRequest, Decided, Leaving, Ruling, StartRequest};
use crate::error::ReplayError;
use crate::evidence::ParityEvidence;
use crate::next_steps::next_steps;
use crate::observed::Observed;
use crate::outcome::{Done, Outcome, Refused};
use crate::ownership::Ownership;
use crate::repair::Selection;
use crate::replayed::Selected;
use crate::rules::Rules;

/// Operations on the generations of one read model. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    generations: Arc<dyn Generations>,
    ownership: Arc<Ownership>,
}

/// Longest evidence of a decision, in bytes: a command carries 100,000 characters at most.
const MAX_EVIDENCE: usize = 100_000;
/// Others change the catalogue a few times a minute; so many times in a row is something else.
const ATTEMPTS: u32 = 20;

// === impl Operations ===

impl Operations {
    pub fn new(generations: Arc<dyn Generations>, ownership: Arc<Ownership>) -> Self {
        Self { generations, ownership }
    }

    pub fn generations(&self) -> &Arc<dyn Generations> {
        &self.generations
    }

    /// For another one that decides by the same owners.
    pub fn shared_ownership(&self) -> Arc<Ownership> {
        Arc::clone(&self.ownership)
    }

    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// `stock` or `search`.
    pub fn name(&self) -> &'static str {
        self.generations.name()
    }

    /// Begins to build a new generation.
    pub async fn start(&self, request: &StartRequest, by: &By) -> Result<Outcome, ReplayError> {
        self.change(|catalogue| decide::start(self.name(), catalogue, request, by)).await
    }

    /// Notes what a comparison showed, and the rules that it was made with. Approvals of an earlier one are void; where
    /// it is not clean, a stage that answers from the generation is taken back.
    pub async fn note_parity(&self, evidence: &ParityEvidence, rules: &Rules, by: &By) -> Result<Outcome, ReplayError> {
        self.change(|catalogue| decide::note_parity(self.name(), catalogue, evidence, rules, by)).await
    }

    /// Approves the newest comparison; only if its digest begins with `report`, where that is said.
    pub async fn approve(&self, generation: u32, report: Option<&str>, by: &By) -> Result<Outcome, ReplayError> {
        self.change(|catalogue| decide::approve(self.name(), catalogue, generation, report, by, &self.ownership)).await
    }

    /// Enters the next stage, or the one that is named, where its gates let it.
    pub async fn cutover(
        &self,
        request: &CutoverRequest,
        observed: &Observed,
        by: &By,
    ) -> Result<Outcome, ReplayError> {
        // Settled once: where somebody else enters the stage meanwhile, this one does not enter the stage behind it.
        let catalogue = self.generations.catalogue().await?;
        let request = CutoverRequest { stage: decide::wanted_stage(&catalogue, request)?, ..request.clone() };
        self.change(|catalogue| decide::cutover(self.name(), catalogue, &request, by, observed, &self.ownership)).await
    }

    /// Takes a generation back: the one that is named, or the candidate, or what serves. Asks for nothing but a name,
    /// where it would go back a second step.
    pub async fn rollback(&self, generation: Option<u32>, by: &By) -> Result<Outcome, ReplayError> {
        self.rollback_because(generation, Value::Null, by).await
    }

    /// [`Operations::rollback`] with the figures that led to it.
    pub(crate) async fn rollback_because(
        &self,
        generation: Option<u32>,
        evidence: Value,
        by: &By,
    ) -> Result<Outcome, ReplayError> {
        // Settled once: where somebody else takes it back meanwhile, this one does not take back what serves then.
        let leaving = match generation {
            Some(generation) => Leaving::Named(generation),
            None => {
                let catalogue = self.generations.catalogue().await?;
                Leaving::Meant(catalogue.candidate.map_or(catalogue.serving, |candidate| candidate.generation))
            }
        };
        self.change(|catalogue| decide::rollback(self.name(), catalogue, leaving, by, evidence.clone())).await
    }

    /// Ends a generation that answers nobody, after the rollback window, or earlier where the approver `early` lets it.
    pub async fn retire(&self, generation: u32, early: Option<&str>, by: &By) -> Result<Outcome, ReplayError> {
        self.change(|catalogue| decide::retire(self.name(), catalogue, generation, early, by, &self.ownership)).await
    }

    /// Ends a replay that never served.
    pub async fn abort(&self, generation: u32, by: &By) -> Result<Outcome, ReplayError> {
        self.change(|catalogue| decide::abort(self.name(), catalogue, generation, by)).await
    }

    /// Notes that keys of the generation that serves are to be folded anew, before their owners are asked.
    pub async fn note_repair(
        &self,
        generation: u32,
        selection: &Selection,
        selected: &Selected,
        by: &By,
    ) -> Result<Outcome, ReplayError> {
        self.change(|catalogue| repaired::repaired(self.name(), catalogue, generation, selection, selected, by)).await
    }

    async fn change(&self, decide: impl Fn(&Catalogue) -> Result<Ruling, ReplayError>) -> Result<Outcome, ReplayError> {
        for _ in 0..ATTEMPTS {
            let catalogue = self.generations.catalogue().await?;
            let decided = match decide(&catalogue)? {
                Ruling::Change(decided) => *decided,
                Ruling::Refuse(missing) => return Ok(Outcome::Refused(Refused { missing })),
            };
            let Decided { to, verdicts, done, reversal } = decided;
            // What is too long to be published would end the chain on the topic.
            if verdicts.iter().any(|verdict| verdict.evidence.to_string().len() > MAX_EVIDENCE) {
                let problem =
                    format!("what it rests on takes more than {MAX_EVIDENCE} bytes; shorten the plan or the names");
                return Err(ReplayError::Setting { key: "evidence", problem });
            }
            let Some((generation, action)) = verdicts.last().map(|last| (last.generation.clone(), last.action)) else {
                return Ok(Outcome::Refused(Refused { missing: Vec::new() }));
            };
            let (to, decisions) = catalogue.decided(to, verdicts);
            match self.generations.change(&to, &decisions).await {
                Ok(()) => {}
                // An answer may be lost on its way: the decision was written, and must not be made a second time.
                Err(error) if is_unsure(&error) => match self.is_written(&to, &decisions).await {
                    Ok(true) => {}
                    Ok(false) if matches!(error, ReadModelError::CatalogueMoved { .. }) => continue,
                    Ok(false) | Err(_) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
            let next = next_steps(self.name(), &to)?;
            return Ok(Outcome::Done(Done {
                generation: generation.to_string(),
                number: generation.number,
                action: action.as_str(),
                done,
                reversal,
                next,
                version: to.version,
            }));
        }
        Err(ReplayError::Contended { name: self.name(), attempts: ATTEMPTS })
    }

    async fn is_written(&self, to: &Catalogue, decisions: &[Decision]) -> Result<bool, ReadModelError> {
        let Some(last) = decisions.last() else {
            return Ok(false);
        };
        let there = self.generations.catalogue().await?;
        if there.id != to.id || there.decisions < last.number {
            return Ok(false);
        }
        let written = self.generations.decisions(last.number - 1, 1).await?;
        Ok(written.first().is_some_and(|written| written.hash == last.hash))
    }
}

fn is_unsure(error: &ReadModelError) -> bool {
    error.is_transient() || matches!(error, ReadModelError::CatalogueMoved { .. })
}

#[cfg(test)]
mod tests;
