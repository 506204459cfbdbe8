//! What is missing before a stage may be entered. Pure.
//!
//! Invariant R1: no stage answers anybody from a candidate whose comparison was not clean, at one position vector and
//! lately, or that was not approved by a named approver other than who started it. A stage that only mirrors reads may
//! be forced; no other one ever.

use humantime::format_duration;
use read_models::generations::{Catalogue, GenerationEntry, GenerationState};
use read_models::process_report::ReadFigures;
use serde::Serialize;
use utoipa::ToSchema;

use crate::evidence::ParityEvidence;
use crate::observed::{MirroredReads, Observed};
use crate::ownership::Ownership;
use crate::plan::{QueryRule, Stage};
use crate::record::{ReplayRecord, is_same_person};

/// By so much the clocks of two machines may differ.
const AHEAD_MS: i64 = 10_000;

/// Something that a gate asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Missing {
    /// For programs.
    pub code: &'static str,
    /// What is missing, and what would do.
    pub sentence: String,
}

/// Which stage somebody wants to enter.
#[derive(Debug, Clone, Copy)]
pub struct Entering<'a> {
    /// `stock` or `search`.
    pub name: &'a str,
    pub generation: u32,
    /// Place in the plan.
    pub stage: usize,
    pub who: &'a str,
    /// Without clean parity, approval and exit criteria.
    pub forced: bool,
    /// Milliseconds since 1970.
    pub now: i64,
}

// === impl Missing ===

impl Missing {
    pub(crate) fn new(code: &'static str, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into() }
    }
}

/// All that is missing; nothing is where the stage may be entered.
pub fn missing(
    catalogue: &Catalogue,
    record: &ReplayRecord,
    observed: &Observed,
    entering: Entering<'_>,
    ownership: &Ownership,
) -> Vec<Missing> {
    let Entering { name, generation, .. } = entering;
    let Some(entry) = catalogue.generations.get(&generation) else {
        return vec![Missing::new("unknown_generation", format!("there is no {name}@{generation}; see `replay list`"))];
    };
    let mut missing: Vec<Missing> = never(catalogue, entry, entering).into_iter().collect();
    let Some(stage) = record.plan.stages.get(entering.stage).filter(|_| missing.is_empty()) else {
        return missing;
    };
    missing.extend(out_of_order(record, entering));
    if !observed.of(generation).is_live {
        let sentence = format!("{name}@{generation} is still being built; `replay status` says how far it is");
        missing.push(Missing::new("rebuilding", sentence));
    }
    if entering.forced {
        missing.extend(force(stage));
        return missing;
    }
    missing.extend(lag(observed, entering, stage));
    missing.extend(parity(catalogue, record, entering));
    missing.extend(approval(record, entering, ownership));
    missing.extend(exit(catalogue, record, observed, entering));
    missing
}

/// What no waiting and no approval changes.
fn never(catalogue: &Catalogue, entry: &GenerationEntry, entering: Entering<'_>) -> Option<Missing> {
    let Entering { name, generation, .. } = entering;
    if entry.state != GenerationState::Fed {
        let sentence = format!("{name}@{generation} is retired; start another replay");
        return Some(Missing::new("retired", sentence));
    }
    if let Some(until) = &entry.until {
        let sentence = format!(
            "{name}@{generation} stands still at {until} for good and can only be asked for by its number; start a \
             replay without `--until`"
        );
        return Some(Missing::new("as_of", sentence));
    }
    if catalogue.serving == generation {
        return Some(Missing::new(
            "serves_already",
            format!("{name}@{generation} serves already; nothing is left to do"),
        ));
    }
    let other = catalogue.candidate.as_ref().map(|candidate| candidate.generation);
    other.filter(|other| *other != generation).map(|other| {
        let sentence = format!("{name}@{other} is on its way to serving; roll it back, or cut it over first");
        Missing::new("other_candidate", sentence)
    })
}

fn out_of_order(record: &ReplayRecord, entering: Entering<'_>) -> Option<Missing> {
    let current = record.stage.as_ref().map(|stage| stage.index);
    let due = current.map_or(0, |index| index + 1);
    let stages = &record.plan.stages;
    if entering.stage == due {
        return None;
    }
    let wanted = stages.get(entering.stage).map_or("", |stage| &stage.name);
    let next = stages.get(due).map_or("", |stage| &stage.name);
    if entering.stage < due {
        let sentence = format!("stage {wanted} is behind it; stage {next} is next, or roll back and begin again");
        return Some(Missing::new("stage_passed", sentence));
    }
    Some(Missing::new("stage_skipped", format!("stage {next} comes before stage {wanted}; enter it first")))
}

fn force(stage: &Stage) -> Option<Missing> {
    let sentence = format!(
        "stage {} answers requests from the candidate, and such a stage is never forced; run `replay verify`, and have \
         it approved",
        stage.name
    );
    stage.answers().then(|| Missing::new("not_forcible", sentence))
}

fn lag(observed: &Observed, entering: Entering<'_>, stage: &Stage) -> Option<Missing> {
    let Entering { name, generation, .. } = entering;
    let most = stage.entry.max_lag_events;
    match observed.of(generation).lag_events {
        Some(lag) if lag <= most => None,
        Some(lag) => {
            let sentence =
                format!("{name}@{generation} is {lag} events behind, at most {most} are allowed; wait for it");
            Some(Missing::new("not_caught_up", sentence))
        }
        None => {
            let sentence = format!(
                "it is not known how far {name}@{generation} is behind; is its projector running, and no partition of \
                 it halted?"
            );
            Some(Missing::new("not_caught_up", sentence))
        }
    }
}

fn parity(catalogue: &Catalogue, record: &ReplayRecord, entering: Entering<'_>) -> Option<Missing> {
    let Entering { name, generation, now, .. } = entering;
    let serving = catalogue.serving;
    let evidence = record
        .parity
        .as_ref()
        .filter(|evidence| evidence.generation == generation && evidence.against == serving)
        .filter(|evidence| !evidence.vector.is_empty());
    let Some(evidence) = evidence else {
        let sentence =
            format!("{name}@{generation} was not compared with {name}@{serving}; run `replay verify {name}`");
        return Some(Missing::new("no_parity", sentence));
    };
    if !evidence.is_clean() {
        let sentence = format!(
            "{}; mend the fold and start another replay, or declare what is meant as a rule, and run `replay verify {name}`",
            differences(evidence)
        );
        return Some(Missing::new("parity_differs", sentence));
    }
    let needs_queries = record.plan.queries.unwrap_or(QueryRule::of(name)) == QueryRule::Required;
    if needs_queries && evidence.queries.as_ref().is_none_or(|queries| queries.queries == 0) {
        let sentence = format!(
            "the comparison asked no query of {name}@{generation}; run `replay verify {name} --queries FILE`, or start \
             the replay with `queries = \"optional\"` in its plan"
        );
        return Some(Missing::new("no_queries", sentence));
    }
    if evidence.at.saturating_sub(now) > AHEAD_MS {
        let sentence = format!(
            "the comparison is dated {} ahead of the clock here, so nobody knows how old it is; mend the clock that is \
             wrong and run `replay verify {name}`",
            whole_seconds(evidence.at.abs_diff(now))
        );
        return Some(Missing::new("parity_ahead", sentence));
    }
    let age = u64::try_from(now.saturating_sub(evidence.at)).unwrap_or(0);
    if u128::from(age) > record.plan.parity_max_age.as_millis() {
        let most = format_duration(record.plan.parity_max_age);
        let sentence = format!(
            "the comparison is {} old, at most {most} are allowed; run `replay verify {name}`",
            whole_seconds(age)
        );
        return Some(Missing::new("parity_old", sentence));
    }
    None
}

/// What a comparison that is not clean found.
pub(crate) fn differences(evidence: &ParityEvidence) -> String {
    let mut sentence = format!("{} of {} keys differ", evidence.differing_keys, evidence.compared_keys);
    // Each of these is one of those that differ.
    let kinds = [
        (evidence.missing_keys, "are missing in the candidate"),
        (evidence.extra_keys, "are in the candidate only"),
        (evidence.parked_keys_differing, "are parked in one of the two only"),
    ];
    let kinds = kinds.iter().filter(|(keys, _)| *keys > 0).map(|(keys, what)| format!("{keys} {what}"));
    let kinds = kinds.collect::<Vec<_>>().join(", ");
    if !kinds.is_empty() {
        sentence += &format!(", of which {kinds}");
    }
    if let Some(queries) = evidence.queries.as_ref().filter(|queries| queries.below_bound > 0) {
        sentence += &format!("; {} of {} queries answer too differently", queries.below_bound, queries.queries);
    }
    sentence
}

fn approval(record: &ReplayRecord, entering: Entering<'_>, ownership: &Ownership) -> Option<Missing> {
    let Entering { name, who, .. } = entering;
    let needed = record.plan.approvals.needed as usize;
    let besides = [record.started_by.as_str(), who];
    // Who approved and is no approver any more does not count any more.
    let given = record.approvals_besides(&besides).filter(|approval| ownership.may_approve(name, &approval.by)).count();
    if given >= needed {
        return None;
    }
    let approvers = ownership.approvers(name).join(", ");
    let approvers = if approvers.is_empty() { "nobody is an approver in ownership.toml".to_owned() } else { approvers };
    let mut sentence = format!(
        "{given} of {needed} approvals of the newest comparison are there; one of these approves with `replay approve \
         {name}`, other than {}",
        record.started_by
    );
    if !is_same_person(&record.started_by, who) {
        sentence += &format!(" and {who}");
    }
    Some(Missing::new("not_approved", format!("{sentence}: {approvers}")))
}

/// What the stage that is left asks for.
fn exit(catalogue: &Catalogue, record: &ReplayRecord, observed: &Observed, entering: Entering<'_>) -> Vec<Missing> {
    let (Some(entered), Some(stage)) = (&record.stage, record.current_stage()) else {
        return Vec::new();
    };
    let mut missing = Vec::new();
    let lasted = u64::try_from(entering.now.saturating_sub(entered.at)).unwrap_or(0);
    if u128::from(lasted) < stage.min_time.as_millis() {
        let least = format_duration(stage.min_time);
        let sentence = format!("stage {} lasts {least} at least, {} are over; wait", stage.name, whole_seconds(lasted));
        missing.push(Missing::new("too_early", sentence));
    }
    let mirrored = observed.mirrored(entering.generation, entered);
    missing.extend(exit_of_mirrored(stage, mirrored, observed.answered(catalogue.serving).minute));
    missing
}

/// What differed counts for as long as the stage lasts: waiting makes nothing good. Errors may be too many over all of
/// it, or of late. How fast reads are is compared over the last minute, with reads of the same minute. Counts are those
/// of the processes that serve now: one that ended takes its own along.
fn exit_of_mirrored(stage: &Stage, mirrored: MirroredReads, live: ReadFigures) -> Vec<Missing> {
    let exit = stage.exit;
    let mut missing = Vec::new();
    let mut miss =
        |code, sentence: String| missing.push(Missing::new(code, format!("stage {}: {sentence}", stage.name)));
    let is_measured = exit.max_error_rate.is_some() || exit.max_differing.is_some() || exit.max_p99_ratio.is_some();
    let (whole, shadow) = (mirrored.whole, mirrored.lately.minute);
    // Of nothing, every bound holds: something must have been measured.
    let least = exit.min_mirrored.max(u64::from(is_measured));
    if whole.requests < least {
        miss("too_few_mirrored", format!("{} of {least} mirrored reads were made; wait for more", whole.requests));
    } else if is_measured && shadow.requests == 0 {
        miss("too_few_mirrored", "no read was mirrored in the last minute; wait for some".to_owned());
    }
    for (when, rate) in [("this stage", whole.error_rate()), ("the last minute", shadow.error_rate())] {
        if let (Some(most), Some(rate)) = (exit.max_error_rate, rate)
            && rate > most
        {
            let sentence =
                format!("{rate:.4} of the mirrored reads of {when} failed, at most {most} may; see the log of `serve`");
            miss("mirror_errors", sentence);
            break;
        }
    }
    if let Some(most) = exit.max_differing
        && whole.differing > most
    {
        let sentence = format!(
            "{} mirrored reads of this stage differed, at most {most} may; `replay status` has samples; once the cause is gone, roll back and begin the stages again",
            whole.differing
        );
        miss("mirror_differs", sentence);
    }
    if let Some(most) = exit.max_p99_ratio
        && live.requests > 0
        && shadow.p99_ms > live.p99_ms * most
    {
        let sentence = format!(
            "p99 of mirrored reads is {:.1} ms beside {:.1} ms, at most {most} times that is allowed",
            shadow.p99_ms, live.p99_ms
        );
        miss("mirror_slow", sentence);
    }
    missing
}

fn whole_seconds(milliseconds: u64) -> humantime::FormattedDuration {
    format_duration(std::time::Duration::from_secs(milliseconds / 1_000))
}

#[cfg(test)]
mod tests;
