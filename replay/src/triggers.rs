//! What rolls a new generation back by itself: bounds on its lag, on errors, on differing answers and on latency, each
//! passed for long enough. Pure: what was seen and when are arguments.
//!
//! Watched is the candidate in every stage, also in one that answers nobody; then what serves, until its rollback window
//! is over. What cannot be seen just now passes no bound: a report that is late is no reason to switch.

use std::collections::BTreeMap;

use read_models::generations::Catalogue;
use serde_json::{Value, json};

use crate::error::ReplayError;
use crate::observed::{Observed, ReadSums};
use crate::plan::TriggerBounds;
use crate::record::{EnteredStage, ReplayRecord, way_back};

/// A generation that may still be rolled back, and its bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    pub generation: u32,
    pub bounds: TriggerBounds,
    /// The stage of the candidate; `None` of what serves.
    pub stage: Option<EnteredStage>,
}

/// A bound that is passed.
#[derive(Debug, Clone, PartialEq)]
pub struct Passed {
    /// Of the setting.
    pub bound: &'static str,
    /// For the decision's reason.
    pub sentence: String,
    /// For its evidence.
    pub figures: Value,
}

/// Since when which bounds are passed without a break.
#[derive(Debug, Default)]
pub struct TriggerWatch {
    watched: Option<Watched>,
    since: BTreeMap<&'static str, i64>,
}

/// A rate of fewer requests says nothing: of one request, one error is all.
const LEAST_REQUESTS: u64 = 20;

/// What is to be watched now, if anything.
pub fn watched(catalogue: &Catalogue, now: i64) -> Result<Option<Watched>, ReplayError> {
    if let Some(candidate) = &catalogue.candidate {
        let entry = catalogue.generations.get(&candidate.generation);
        let Some(record) = entry.map(ReplayRecord::of).transpose()?.flatten() else {
            return Ok(None);
        };
        let generation = candidate.generation;
        return Ok(Some(Watched { generation, bounds: record.plan.triggers, stage: record.stage }));
    }
    let Some((cut_over, record)) = way_back(catalogue)? else {
        return Ok(None);
    };
    let open_for = u64::try_from(now.saturating_sub(cut_over.at)).unwrap_or(0);
    let is_open = u128::from(open_for) < record.plan.rollback.window.as_millis();
    let serving = Watched { generation: catalogue.serving, bounds: record.plan.triggers, stage: None };
    Ok(is_open.then_some(serving))
}

/// The bounds that are passed at this moment.
pub fn passed(watched: &Watched, observed: &Observed) -> Vec<Passed> {
    let Watched { generation, bounds, stage } = watched;
    let mut passed = Vec::new();
    let mut pass = |bound, sentence, figures| passed.push(Passed { bound, sentence, figures });
    if let Some(most) = bounds.max_lag_events {
        match observed.of(*generation).lag_events {
            Some(lag) if lag <= most => {}
            Some(lag) => pass(
                "max_lag_events",
                format!("it is {lag} events behind, more than {most}"),
                json!({"lag_events": lag, "bound": most}),
            ),
            None => pass(
                "max_lag_events",
                "nobody tells how far it is behind: it seems that it is not fed".to_owned(),
                json!({"lag_events": null, "bound": most}),
            ),
        }
    }
    let mirrored = stage.as_ref().map(|stage| observed.mirrored(*generation, stage)).unwrap_or_default();
    for (which, sums) in [("mirrored", mirrored), ("answered", observed.answered())] {
        if let (Some(most), Some(rate)) = (bounds.max_error_rate, rate_of(sums))
            && rate > most
        {
            let sentence =
                format!("{} of {} {which} reads failed, more than a share of {most}", sums.errors, sums.requests);
            pass(
                "max_error_rate",
                sentence,
                json!({"reads": which, "requests": sums.requests, "errors": sums.errors, "bound": most}),
            );
        }
        if let Some(most) = bounds.max_p99_ms
            && sums.requests >= LEAST_REQUESTS
            && sums.p99_ms > most
        {
            let sentence = format!("p99 of {which} reads is {:.1} ms, more than {most} ms", sums.p99_ms);
            pass("max_p99_ms", sentence, json!({"reads": which, "p99_ms": sums.p99_ms, "bound": most}));
        }
    }
    if let Some(most) = bounds.max_differing
        && mirrored.differing > most
    {
        let sentence =
            format!("{} of {} mirrored reads differ, more than {most}", mirrored.differing, mirrored.requests);
        pass(
            "max_differing",
            sentence,
            json!({"requests": mirrored.requests, "differing": mirrored.differing, "bound": most}),
        );
    }
    passed
}

fn rate_of(sums: ReadSums) -> Option<f64> {
    sums.error_rate().filter(|_| sums.requests >= LEAST_REQUESTS)
}

// === impl TriggerWatch ===

impl TriggerWatch {
    /// The bounds that are passed for long enough now. Another generation or stage begins anew.
    pub fn fired(&mut self, watched: Option<&Watched>, observed: &Observed, now: i64) -> Vec<Passed> {
        if self.watched.as_ref() != watched {
            self.since.clear();
            self.watched = watched.cloned();
        }
        let Some(watched) = watched else {
            return Vec::new();
        };
        let passed = passed(watched, observed);
        self.since.retain(|bound, _| passed.iter().any(|passed| passed.bound == *bound));
        let holds_for = i64::try_from(watched.bounds.holds_for.as_millis()).unwrap_or(i64::MAX);
        let mut has_held =
            |passed: &Passed| now.saturating_sub(*self.since.entry(passed.bound).or_insert(now)) >= holds_for;
        passed.into_iter().filter(|passed| has_held(passed)).collect()
    }
}

#[cfg(test)]
mod tests;
