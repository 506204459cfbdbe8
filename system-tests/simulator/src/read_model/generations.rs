//! The catalogue of a simulated store. Each change and what follows from it is one step.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use read_models::generations::{Catalogue, Decision, GenerationState, Generations, ReadChoice};
use read_models::process_report::ProcessReport;
use read_models::{Generation, ReadModelError};

use super::{SimulatedReadModel, State, rebuilding};
use crate::projection::Modelled;

/// What a store keeps of its generations beside their rows.
#[derive(Default)]
pub(super) struct Kept {
    catalogue: Option<Catalogue>,
    decisions: Vec<Decision>,
    published: u64,
    reports: BTreeMap<String, ProcessReport>,
    retired: BTreeSet<u32>,
}

// === impl State ===

impl<M: Modelled> State<M> {
    fn catalogue(&self) -> Catalogue {
        match &self.kept.catalogue {
            Some(catalogue) => catalogue.clone(),
            None => Catalogue::of_built(self.serving().ok()),
        }
    }

    pub(super) fn check_fed(&self, generation: &Generation) -> Result<(), ReadModelError> {
        match self.kept.retired.contains(&generation.number) {
            true => Err(ReadModelError::Retired { name: generation.to_string() }),
            false => Ok(()),
        }
    }

    /// The generation that answers a request.
    pub(super) fn chosen(&self, choice: &ReadChoice) -> Result<Generation, ReadModelError> {
        if self.kept.catalogue.is_none() {
            self.serving()?;
        }
        let catalogue = self.catalogue();
        let number = catalogue.choose(M::NAME, choice)?;
        catalogue.generation(M::NAME, number).ok_or_else(|| rebuilding::<M>())
    }

    /// A generation by its number.
    pub(super) fn described(&self, number: u32) -> Result<Generation, ReadModelError> {
        let marked = || self.generations.get(&number).cloned();
        self.catalogue().generation(M::NAME, number).or_else(marked).ok_or_else(|| {
            let there = "no such rows".to_owned();
            ReadModelError::UnknownGeneration { name: M::NAME.to_owned(), wanted: number, there }
        })
    }

    fn replace(&mut self, expected: u64, to: &Catalogue, decisions: &[Decision]) -> Result<(), ReadModelError> {
        let found = self.kept.catalogue.as_ref();
        let follows = found.map_or(expected == 0, |found| found.id == to.id && found.version == expected);
        if !follows {
            let found = found.map_or(0, |found| found.version);
            return Err(ReadModelError::CatalogueMoved { name: M::NAME.to_owned(), expected, found });
        }
        self.kept.catalogue = Some(to.clone());
        self.kept.decisions.extend_from_slice(decisions);
        let gone = to.generations.iter().filter(|(_, entry)| entry.state != GenerationState::Fed);
        self.kept.retired.extend(gone.map(|(number, _)| *number));
        for number in to.generations.keys() {
            if let Some(generation) = to.generation(M::NAME, *number) {
                self.generations.entry(*number).or_insert(generation);
            }
        }
        self.serving = Some(to.serving);
        Ok(())
    }

    fn remove(&mut self, number: u32, limit: usize) -> Result<bool, ReadModelError> {
        if !self.kept.retired.contains(&number) {
            let problem = format!("{}@{number} is not retired", M::NAME);
            return Err(ReadModelError::Permanent { name: M::NAME.to_owned(), problem });
        }
        let Some((at, part)) = self.parts.iter_mut().find(|((generation, _), _)| *generation == number) else {
            return Ok(false);
        };
        let rows: Vec<M::Key> = part.rows.keys().take(limit.max(1)).cloned().collect();
        for key in &rows {
            part.rows.remove(key);
        }
        let at = *at;
        if rows.is_empty() {
            self.parts.remove(&at);
        }
        Ok(true)
    }
}

#[async_trait]
impl<M: Modelled> Generations for SimulatedReadModel<M> {
    fn name(&self) -> &'static str {
        M::NAME
    }

    async fn catalogue(&self) -> Result<Catalogue, ReadModelError> {
        self.at_once("catalogue", |state| Ok(state.catalogue())).await
    }

    async fn replace(&self, expected: u64, to: &Catalogue, decisions: &[Decision]) -> Result<(), ReadModelError> {
        self.at_once("change", |state| state.replace(expected, to, decisions)).await
    }

    async fn decisions(&self, after: u64, limit: usize) -> Result<Vec<Decision>, ReadModelError> {
        self.at_once("decisions", |state| {
            let behind = state.kept.decisions.iter().filter(|decision| decision.number > after);
            Ok(behind.take(limit).cloned().collect())
        })
        .await
    }

    async fn published_decisions(&self) -> Result<u64, ReadModelError> {
        self.at_once("published_decisions", |state| Ok(state.kept.published)).await
    }

    async fn note_published(&self, number: u64) -> Result<(), ReadModelError> {
        self.at_once("note_published", |state| {
            state.kept.published = state.kept.published.max(number);
            Ok(())
        })
        .await
    }

    async fn remove_some(&self, generation: u32, limit: usize) -> Result<bool, ReadModelError> {
        self.at_once("remove_some", |state| state.remove(generation, limit)).await
    }

    async fn note_report(&self, report: &ProcessReport) -> Result<(), ReadModelError> {
        self.at_once("note_report", |state| {
            state.kept.reports.insert(report.process.clone(), report.clone());
            Ok(())
        })
        .await
    }

    async fn reports(&self, now: i64, max_age_ms: i64) -> Result<Vec<ProcessReport>, ReadModelError> {
        self.at_once("read_reports", |state| {
            let since = now.saturating_sub(max_age_ms);
            Ok(state.kept.reports.values().filter(|report| report.at >= since).cloned().collect())
        })
        .await
    }
}
