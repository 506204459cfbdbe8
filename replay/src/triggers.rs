//! What rolls a new generation back by itself: bounds on its lag, on errors, on differing answers and on latency, each
//! passed for long enough. Pure: what was seen and when are arguments.
//!
//! Watched is the candidate in every stage, also in one that answers nobody, and what serves, until its rollback window
//! is over: also while the next candidate is on its way. Each is judged by its own reads, of the last seconds and of
//! the last minute: what is sudden is seen at once and what is rare is seen, and what is over is no reason any more.
//! What cannot be seen just now passes no bound: a report that is late is no reason to switch. But for lag that is told
//! of what would answer instead, and not of this one: that is how a generation looks that nobody feeds.

use std::collections::BTreeMap;

use read_models::generations::Catalogue;
use read_models::process_report::{Lately, ReadFigures};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::error::ReplayError;
use crate::observed::Observed;
use crate::plan::TriggerBounds;
use crate::record::{EnteredStage, ReplayRecord, way_back};

/// A generation that may still be rolled back, and its bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    pub generation: u32,
    pub bounds: TriggerBounds,
    /// The stage of the candidate; `None` of what serves.
    pub stage: Option<EnteredStage>,
    /// What would answer in its place.
    pub instead: u32,
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

/// Since when which bounds of which generations are passed without a break.
#[derive(Debug, Default)]
pub struct TriggerWatch {
    generations: BTreeMap<u32, (Watched, Since)>,
}

type Since = BTreeMap<&'static str, Instant>;

/// A rate of fewer requests says nothing: of one request, one error is all.
const LEAST_REQUESTS: u64 = 20;

/// What is to be watched now: what serves, within its rollback window, and the candidate. What serves comes first:
/// taking it back takes the candidate back too.
pub fn watched(catalogue: &Catalogue, now: i64) -> Result<Vec<Watched>, ReplayError> {
    let mut watched = Vec::new();
    if let Some((cut_over, record)) = way_back(catalogue)? {
        let open_for = u64::try_from(now.saturating_sub(cut_over.at)).unwrap_or(0);
        if u128::from(open_for) < record.plan.rollback.window.as_millis() {
            let (generation, instead) = (catalogue.serving, cut_over.from);
            watched.push(Watched { generation, bounds: record.plan.triggers, stage: None, instead });
        }
    }
    if let Some(candidate) = &catalogue.candidate
        && let Some(record) = ReplayRecord::in_catalogue(catalogue, candidate.generation)?
    {
        let (generation, instead) = (candidate.generation, catalogue.serving);
        watched.push(Watched { generation, bounds: record.plan.triggers, stage: record.stage, instead });
    }
    Ok(watched)
}

/// The bounds that are passed at this moment.
pub fn passed(watched: &Watched, observed: &Observed) -> Vec<Passed> {
    let Watched { generation, bounds, stage, instead } = watched;
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
            // While the log cannot be reached nobody tells it of any generation, and another one would be no better.
            None if observed.of(*instead).lag_events.is_none() => {}
            // Nor is it while the log has lost what is applied: the other one has not halted yet.
            None if observed.of(*generation).is_beyond_log => {}
            None => pass(
                "max_lag_events",
                "nobody tells how far it is behind: it seems that it is not fed".to_owned(),
                json!({"lag_events": null, "bound": most}),
            ),
        }
    }
    let mirrored = stage.as_ref().map(|stage| observed.mirrored(*generation, stage).lately).unwrap_or_default();
    for (which, lately) in [("mirrored", mirrored), ("answered", observed.answered(*generation))] {
        let spans = [("10 s", lately.seconds), ("minute", lately.minute)];
        // Of fewer requests neither says anything.
        let spans = spans.into_iter().filter(|(_, figures)| figures.requests >= LEAST_REQUESTS);
        let spans: Vec<(&str, ReadFigures)> = spans.collect();
        if let Some(most) = bounds.max_error_rate
            && let Some((span, figures)) = spans.iter().find(|(_, figures)| figures.error_rate() > Some(most))
        {
            let ReadFigures { requests, errors, .. } = *figures;
            let sentence =
                format!("{errors} of {requests} {which} reads of the last {span} failed, more than a share of {most}");
            let figures = json!({"reads": which, "span": span, "requests": requests, "errors": errors, "bound": most});
            pass("max_error_rate", sentence, figures);
        }
        if let Some(most) = bounds.max_p99_ms
            && let Some((span, figures)) = spans.iter().find(|(_, figures)| figures.p99_ms > most)
        {
            let p99_ms = figures.p99_ms;
            let sentence = format!("p99 of {which} reads of the last {span} is {p99_ms:.1} ms, more than {most} ms");
            pass("max_p99_ms", sentence, json!({"reads": which, "span": span, "p99_ms": p99_ms, "bound": most}));
        }
    }
    let Lately { minute: ReadFigures { requests, differing, .. }, .. } = mirrored;
    if let Some(most) = bounds.max_differing
        && differing > most
    {
        let sentence = format!("{differing} of {requests} mirrored reads of the last minute differ, more than {most}");
        pass("max_differing", sentence, json!({"requests": requests, "differing": differing, "bound": most}));
    }
    passed
}

// === impl TriggerWatch ===

impl TriggerWatch {
    /// The bounds that are passed for long enough now, of the first generation that passes any. Another stage begins
    /// anew. How long is measured by no clock that could be set (fault 15).
    pub fn fired(&mut self, watched: &[Watched], observed: &Observed, now: Instant) -> Option<(Watched, Vec<Passed>)> {
        self.generations.retain(|_, (known, _)| watched.contains(known));
        let mut fired = None;
        for watched in watched {
            let known = self.generations.entry(watched.generation);
            let (_, since) = known.or_insert_with(|| (watched.clone(), Since::new()));
            let passed = passed(watched, observed);
            since.retain(|bound, _| passed.iter().any(|passed| passed.bound == *bound));
            let mut has_held = |passed: &Passed| {
                now.duration_since(*since.entry(passed.bound).or_insert(now)) >= watched.bounds.holds_for
            };
            let held: Vec<Passed> = passed.into_iter().filter(|passed| has_held(passed)).collect();
            if fired.is_none() && !held.is_empty() {
                fired = Some((watched.clone(), held));
            }
        }
        fired
    }
}

#[cfg(test)]
mod tests;
