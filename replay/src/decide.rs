//! What an operation makes of a catalogue: the next one and the decision that leads to it, or what is missing. Pure.
//!
//! Invariant R2: [`rollback`] asks for nothing but a generation that is still fed, and only ever leads back to one that
//! served before; the way forward is [`cutover`]'s alone.

mod compared;
mod ruling;

use projectors::{Projection, SearchProjection, StockProjection};
use read_models::generations::{Action, Candidate, Catalogue, GenerationEntry, GenerationState, Source, Until};
use serde_json::{Value, json};

use crate::by::By;
use crate::error::ReplayError;
use crate::gates::{Entering, Missing, missing};
use crate::next_steps::instant;
use crate::observed::Observed;
use crate::ownership::Ownership;
use crate::plan::Plan;
use crate::record::{
    CutOver, EnteredStage, ReplayRecord, ThrottleBounds, begin_again, is_same_person, note_taken_back, replay_of,
    set_record, stage_name, taken_back, way_back, ways_back_to,
};
pub(crate) use compared::{approve, note_parity};
pub(crate) use ruling::{Decided, Ruling};
use ruling::{change, refuse};

/// What a new replay is to build, and how it comes to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct StartRequest {
    pub fold_version: u32,
    /// Versions of the fold that this program contains.
    pub known_folds: Vec<u32>,
    pub until: Option<Until>,
    pub source: Source,
    pub plan: Plan,
    /// Whether stages are entered by themselves.
    pub automatic: bool,
    pub throttle: Option<ThrottleBounds>,
}

/// What a cutover is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CutoverRequest {
    pub generation: u32,
    /// By its name; the next one otherwise.
    pub stage: Option<String>,
    pub forced: bool,
}

pub(crate) fn start(name: &str, catalogue: &Catalogue, request: &StartRequest, by: &By) -> Result<Ruling, ReplayError> {
    if !request.known_folds.contains(&request.fold_version) {
        let known: Vec<String> = request.known_folds.iter().map(u32::to_string).collect();
        let sentence =
            format!("this program has no fold {} of {name}; it has {}", request.fold_version, known.join(", "));
        return refuse("unknown_fold", sentence);
    }
    let Some(serving) = catalogue.generations.get(&catalogue.serving) else {
        let sentence = format!("nothing serves yet; start `millrace project {name}` once, which builds {name}@1");
        return refuse("nothing_serves", sentence);
    };
    let unnamed = match &request.until {
        Some(Until::Position(token)) => {
            let contexts = match name {
                read_models::search::NAME => SearchProjection::CONTEXTS,
                _ => StockProjection::CONTEXTS,
            };
            let named = token.of_contexts(contexts).iter().count();
            if named == 0 {
                let mut topics: Vec<String> = contexts.iter().map(|context| format!("{context}.events")).collect();
                topics.sort();
                let sentence = format!(
                    "{token} names no partition of {}: {name} would stand still before its first event; use a token of \
                     an answer of {name}, or a time",
                    topics.join(", ")
                );
                return refuse("until_nothing", sentence);
            }
            (contexts.len() * serving.partitions as usize).saturating_sub(named)
        }
        _ => 0,
    };
    let number = catalogue.next_number();
    let record = ReplayRecord::new(request, by);
    let entry = GenerationEntry {
        fold_version: request.fold_version,
        partitions: serving.partitions,
        state: GenerationState::Fed,
        until: request.until.clone(),
        source: request.source,
        replay: record.to_value()?,
    };
    let mut to = catalogue.clone();
    to.generations.insert(number, entry);
    let stages: Vec<&str> = request.plan.stages.iter().map(|stage| stage.name.as_str()).collect();
    let evidence = json!({
        "fold_version": request.fold_version,
        "until": request.until.as_ref().map(Until::to_string),
        "source": request.source,
        "automatic": request.automatic,
        "stages": stages,
    });
    let from = match request.source {
        Source::Log => "",
        Source::EventTable => ", from the event table up to where the topics begin",
    };
    let done = match &request.until {
        None => {
            let (serving, fold) = (catalogue.serving, request.fold_version);
            format!("{name}@{number} is built beside {name}@{serving}, with fold {fold}{from}")
        }
        Some(until) => {
            let stays_empty = match unnamed {
                0 => String::new(),
                unnamed => format!("; {unnamed} partitions that the token does not name stay empty"),
            };
            format!("{name}@{number} is built up to {until}{from}, to be asked for by its number{stays_empty}")
        }
    };
    change(name, to, number, by, Action::Started, evidence, done)
}

pub(crate) fn cutover(
    name: &str,
    catalogue: &Catalogue,
    request: &CutoverRequest,
    by: &By,
    observed: &Observed,
    ownership: &Ownership,
) -> Result<Ruling, ReplayError> {
    let number = request.generation;
    let mut record = match replay_of(name, catalogue, number)? {
        Ok(record) => record,
        Err(missing) => return Ok(Ruling::Refuse(vec![missing])),
    };
    if request.forced && by.reason().is_empty() {
        return refuse("no_reason", "a stage is only forced with a reason; add `--reason`");
    }
    let stages: Vec<&str> = record.plan.stages.iter().map(|stage| stage.name.as_str()).collect();
    let wanted = wanted_stage(catalogue, request)?;
    let Some(index) = wanted.as_deref().and_then(|wanted| record.plan.position(wanted)) else {
        let wanted = wanted.unwrap_or_default();
        return refuse("unknown_stage", format!("there is no stage {wanted:?}; use one of {}", stages.join(", ")));
    };
    let entering =
        Entering { name, generation: number, stage: index, who: by.who(), forced: request.forced, now: by.at() };
    let missing = missing(catalogue, &record, observed, entering, ownership);
    let stage = record.plan.stages.get(index).cloned();
    let Some(stage) = stage.filter(|_| missing.is_empty()) else {
        return Ok(Ruling::Refuse(missing));
    };

    let before = record.stage.clone();
    record.taken_back = false;
    record.stage = Some(EnteredStage { index, at: by.at(), version: catalogue.version + 1, forced: request.forced });
    let serving = catalogue.serving;
    let mut to = catalogue.clone();
    let (action, done) = match stage.share.partial() {
        Some(share) => {
            to.candidate = Some(Candidate {
                generation: number,
                share,
                mirror_percent: stage.mirror_percent,
                meant: record.meant.clone(),
                since: catalogue.version + 1,
            });
            (Action::StageEntered, format!("{name}@{number} is in stage {}: {}", stage.name, stage.share))
        }
        None => {
            to.candidate = None;
            to.previous = Some(serving);
            to.serving = number;
            record.cut_over = Some(CutOver { at: by.at(), from: serving });
            record.has_served = true;
            (Action::CutOver, format!("{name}@{number} serves; {name}@{serving} is still fed"))
        }
    };
    let mirrored = before.map(|stage| observed.mirrored(number, &stage));
    let evidence = json!({
        "stage": stage.name,
        "share": stage.share,
        "forced": request.forced,
        "lag_events": observed.of(number).lag_events,
        "report_sha256": record.parity.as_ref().map(|parity| &parity.report_sha256),
        "approved_by": record.approvals.iter().map(|approval| &approval.by).collect::<Vec<_>>(),
        "mirrored": mirrored.map(|mirrored| json!({
            "whole_stage": mirrored.whole, "last_minute": mirrored.lately.minute,
        })),
    });
    set_record(&mut to, number, &record)?;
    change(name, to, number, by, action, evidence, done)
}

/// Which generation is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    Named(u32),
    /// What was under way when nobody named one.
    Meant(u32),
}

/// Takes a generation back: the candidate, or what serves.
pub(crate) fn rollback(
    name: &str,
    catalogue: &Catalogue,
    leaving: Leaving,
    by: &By,
    evidence: Value,
) -> Result<Ruling, ReplayError> {
    let (Leaving::Named(number) | Leaving::Meant(number)) = leaving;
    let (is_named, leaving) = (matches!(leaving, Leaving::Named(_)), number);
    let candidate = catalogue.candidate.as_ref().map(|candidate| candidate.generation);
    let serving = catalogue.serving;
    let mut to = catalogue.clone();
    let (answers, done) = if candidate == Some(leaving) {
        (serving, format!("{name}@{serving} answers everything again; {name}@{leaving} stays fed"))
    } else if leaving == serving {
        let Some((cut_over, _)) = way_back(catalogue)? else {
            return refuse("no_way_back", no_way_back(name, catalogue)?);
        };
        // Of a newer one that was just taken back: who says so twice does not mean two steps.
        if let Some(newer) = taken_back(catalogue)?.filter(|_| !is_named && candidate.is_none()) {
            let sentence = format!(
                "{name}@{newer} answers nobody; this would go a step further back, from {name}@{serving} to {name}@{}; \
                 if that is meant: `replay rollback {name}@{serving}`",
                cut_over.from
            );
            return refuse("name_it", sentence);
        }
        to.serving = cut_over.from;
        to.previous = Some(serving);
        // It was on its way to replace what is left now.
        if let Some(candidate) = candidate {
            begin_again(&mut to, candidate)?;
        }
        (cut_over.from, format!("{name}@{} serves again; {name}@{serving} stays fed", cut_over.from))
    } else {
        let sentence = format!("{name}@{leaving} answers nobody; {name}@{serving} serves");
        return refuse("nothing_to_roll_back", sentence);
    };
    let stage = stage_name(catalogue, leaving)?;
    to.candidate = None;
    begin_again(&mut to, leaving)?;
    note_taken_back(&mut to, leaving)?;
    let evidence = json!({"from_stage": stage, "answers": format!("{name}@{answers}"), "because": evidence});
    change(name, to, leaving, by, Action::RolledBack, evidence, done)
}

/// Ends a generation that answers nobody. `early` names an approver who lets it happen within the rollback window.
pub(crate) fn retire(
    name: &str,
    catalogue: &Catalogue,
    number: u32,
    early: Option<&str>,
    by: &By,
    ownership: &Ownership,
) -> Result<Ruling, ReplayError> {
    if let Some(missing) = still_answers(name, catalogue, number, "retired") {
        return Ok(Ruling::Refuse(vec![missing]));
    }
    let ways_back = ways_back_to(catalogue, number)?;
    for (cut_over, record) in &ways_back {
        let window = i64::try_from(record.plan.rollback.window.as_millis()).unwrap_or(i64::MAX);
        let ends = cut_over.at.saturating_add(window);
        let is_let = |approver: &str| {
            let is_other = !is_same_person(approver, by.who()) && !is_same_person(approver, &record.started_by);
            is_other && ownership.may_approve(name, approver)
        };
        match early {
            _ if by.at() >= ends => {}
            Some(approver) if is_let(approver) => {}
            Some(approver) => {
                let sentence = format!(
                    "{approver} may not let {name}@{number} go early: use an approver of ownership.toml other than {} \
                     and {}",
                    by.who(),
                    record.started_by
                );
                return refuse("not_approved", sentence);
            }
            None => {
                let sentence = format!(
                    "{name}@{number} is the way back until {}; wait, or name an approver with `--early`",
                    instant(ends)
                );
                return refuse("rollback_window", sentence);
            }
        }
    }
    let mut to = catalogue.clone();
    end(&mut to, number);
    let done = if ways_back.is_empty() {
        format!("{name}@{number} is removed")
    } else {
        format!(
            "{name}@{number} is removed; nothing leads back to it from {name}@{} any more: only a forward fix is left",
            catalogue.serving
        )
    };
    let evidence = json!({"serving": format!("{name}@{}", catalogue.serving), "early": early});
    change(name, to, number, by, Action::Retired, evidence, done)
}

/// Ends a replay that never served.
pub(crate) fn abort(name: &str, catalogue: &Catalogue, number: u32, by: &By) -> Result<Ruling, ReplayError> {
    let record = match replay_of(name, catalogue, number)? {
        Ok(record) => record,
        Err(missing) => return Ok(Ruling::Refuse(vec![missing])),
    };
    if record.has_served {
        let sentence = format!("{name}@{number} has served; use `replay retire {name}@{number}`");
        return refuse("has_served", sentence);
    }
    if let Some(missing) = still_answers(name, catalogue, number, "aborted") {
        return Ok(Ruling::Refuse(vec![missing]));
    }
    let mut to = catalogue.clone();
    end(&mut to, number);
    let done = format!("{name}@{number} is removed; it never served");
    change(name, to, number, by, Action::Aborted, json!({}), done)
}

/// The stage that is asked for by name, or the one that is next; at the end of the plan, its last.
pub(crate) fn wanted_stage(catalogue: &Catalogue, request: &CutoverRequest) -> Result<Option<String>, ReplayError> {
    if request.stage.is_some() {
        return Ok(request.stage.clone());
    }
    let record = ReplayRecord::in_catalogue(catalogue, request.generation)?;
    Ok(record.and_then(|record| {
        let due = record.stage.as_ref().map_or(0, |stage| stage.index + 1);
        record.plan.stages.get(due).or(record.plan.stages.last()).map(|stage| stage.name.clone())
    }))
}

// === What they are made of ===

fn still_answers(name: &str, catalogue: &Catalogue, number: u32, wanted: &str) -> Option<Missing> {
    let state = catalogue.generations.get(&number).map(|entry| entry.state);
    let Some(GenerationState::Fed) = state else {
        let sentence = match state {
            None => format!("there is no {name}@{number}; see `replay list`"),
            Some(_) => format!("{name}@{number} is retired already"),
        };
        return Some(Missing::new(if state.is_none() { "unknown_generation" } else { "retired" }, sentence));
    };
    if catalogue.serving == number {
        let sentence =
            format!("{name}@{number} serves and cannot be {wanted}; roll back, or cut another one over first");
        return Some(Missing::new("serves", sentence));
    }
    let is_candidate = catalogue.candidate.as_ref().is_some_and(|candidate| candidate.generation == number);
    is_candidate.then(|| {
        let sentence = format!("{name}@{number} is being cut over and cannot be {wanted}; roll it back first");
        Missing::new("candidate", sentence)
    })
}

fn no_way_back(name: &str, catalogue: &Catalogue) -> Result<String, ReplayError> {
    let serving = catalogue.serving;
    let cut_over = ReplayRecord::in_catalogue(catalogue, serving)?.and_then(|record| record.cut_over);
    Ok(match cut_over {
        Some(cut_over) => format!(
            "{name}@{}, which served before, is retired: only a forward fix is left; mend the fold and start another replay",
            cut_over.from
        ),
        None => format!("{name}@{serving} serves and no cutover led to it; there is nothing to roll back"),
    })
}

fn end(to: &mut Catalogue, number: u32) {
    if let Some(entry) = to.generations.get_mut(&number) {
        entry.state = GenerationState::Retired;
    }
    to.previous = to.previous.filter(|previous| *previous != number);
}
