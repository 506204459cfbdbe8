//! What the catalogue must say, by the decisions that led to it.
//!
//! The chain shows that nobody changed a decision; the catalogue itself could still be written by hand: another
//! generation serves, an approval stands that nobody gave. Only what follows from the decisions is held against it.
//! Behind one that brought a lost catalogue back, or that this program does not know, no more than what comes after it
//! follows.

use std::collections::BTreeMap;

use read_models::generations::{Action, Catalogue, Decision, GenerationState, UnknownAction};
use serde_json::{Value, json};

use crate::record::ReplayRecord;

/// Figures of a comparison that its decision has as the catalogue has them; a vector may have been too long for it.
const FIGURES: [&str; 9] = [
    "against",
    "at",
    "compared_keys",
    "differing_keys",
    "excused_keys",
    "missing_keys",
    "extra_keys",
    "parked_keys_differing",
    "report_sha256",
];

/// `None` is always what does not follow.
#[derive(Default)]
struct Derived {
    serving: Option<u32>,
    candidate: Option<Option<(u32, Value)>>,
    generations: BTreeMap<u32, DerivedGeneration>,
    /// Nothing is missing at the beginning: what was not started is not there.
    is_from_the_first: bool,
}

#[derive(Default)]
struct DerivedGeneration {
    is_started: bool,
    is_ended: bool,
    has_served: bool,
    parity: Option<Option<Value>>,
    /// Who approved which report.
    approvals: Option<Vec<(String, String)>>,
}

/// What the catalogue says against its own decisions, in sentences; nothing where it is as they made it.
pub(super) fn contradictions(name: &str, catalogue: &Catalogue, decisions: &[Decision]) -> Vec<String> {
    // The list may have grown since the catalogue was read.
    let led_to_it = decisions.iter().filter(|decision| decision.number <= catalogue.decisions);
    let mut derived = Derived { candidate: Some(None), is_from_the_first: true, ..Derived::default() };
    for decision in led_to_it {
        derived.follow(decision);
    }
    derived.against(name, catalogue)
}

// === impl Derived ===

impl Derived {
    fn follow(&mut self, decision: &Decision) {
        let Some(number) = number_of(&decision.generation) else { return self.begin_anew(None) };
        let evidence = &decision.evidence;
        let generation = self.generations.entry(number).or_default();
        match decision.action.parse::<Action>() {
            Ok(Action::Started) => {
                *generation = DerivedGeneration {
                    is_started: true,
                    parity: Some(None),
                    approvals: Some(Vec::new()),
                    ..DerivedGeneration::default()
                }
            }
            Ok(Action::Verified) => {
                generation.parity = Some(Some(evidence.clone()));
                generation.approvals = Some(Vec::new());
            }
            Ok(Action::Approved) => {
                let report = evidence["report_sha256"].as_str().unwrap_or_default();
                if let Some(approvals) = &mut generation.approvals {
                    approvals.push((decision.who.clone(), report.to_owned()));
                }
            }
            Ok(Action::StageEntered) => self.candidate = Some(Some((number, evidence["share"].clone()))),
            Ok(Action::CutOver) => {
                generation.has_served = true;
                self.serving = Some(number);
                self.candidate = Some(None);
            }
            Ok(Action::RolledBack) => self.roll_back(number, evidence),
            Ok(Action::Retired | Action::Aborted | Action::Removed) => generation.is_ended = true,
            // It is folded anew in what serves.
            Ok(Action::Repaired) => self.serving = Some(number),
            Ok(Action::RestoredAfterLoss) => self.begin_anew(Some(number)),
            // Of a newer release: it may have changed anything, and what it changed must not look tampered with.
            Err(UnknownAction { .. }) => self.begin_anew(None),
        }
    }

    fn roll_back(&mut self, number: u32, evidence: &Value) {
        let answers = evidence["answers"].as_str().and_then(number_of);
        let is_of_parity = evidence["because"][0]["bound"] == "parity";
        if self.candidate.is_none() {
            // It took back what was the candidate, too, and which one that was is not known.
            for generation in self.generations.values_mut() {
                (generation.parity, generation.approvals) = (None, None);
            }
        }
        let candidate = self.candidate.take().flatten().map(|(candidate, _)| candidate);
        for left in [Some(number), candidate].into_iter().flatten() {
            let generation = self.generations.entry(left).or_default();
            generation.approvals = Some(Vec::new());
            // What it found stays to be seen.
            if !is_of_parity {
                generation.parity = Some(None);
            }
        }
        if let Some(answers) = answers {
            self.generations.entry(answers).or_default().has_served = true;
        }
        self.serving = answers;
        self.candidate = Some(None);
    }

    fn begin_anew(&mut self, serving: Option<u32>) {
        *self = Self { serving, ..Self::default() };
    }

    fn against(&self, name: &str, catalogue: &Catalogue) -> Vec<String> {
        let mut found = Vec::new();
        let serves = catalogue.serving;
        match self.serving {
            Some(serving) if serving != serves => found.push(format!(
                "the catalogue says that {name}@{serves} serves; by the decisions it is {name}@{serving}"
            )),
            None if self.generations.get(&serves).is_some_and(|begun| begun.is_started && !begun.has_served) => {
                found.push(format!("the catalogue says that {name}@{serves} serves; no decision cut over to it"));
            }
            _ => {}
        }
        if let Some(wanted) = &self.candidate {
            let there = catalogue.candidate.as_ref().map(|candidate| (candidate.generation, json!(candidate.share)));
            if *wanted != there {
                let said = |candidate: &Option<(u32, Value)>| match candidate {
                    None => "nothing is being cut over to".to_owned(),
                    Some((number, share)) => format!("{name}@{number} is given {share}"),
                };
                found.push(format!("the catalogue says that {}; by the decisions {}", said(&there), said(wanted)));
            }
        }
        for (number, generation) in &self.generations {
            found.extend(generation.against(&format!("{name}@{number}"), *number, catalogue));
        }
        for (number, entry) in &catalogue.generations {
            let is_started = self.generations.get(number).is_some_and(|generation| generation.is_started);
            if self.is_from_the_first && !entry.replay.is_null() && !is_started {
                found.push(format!("the catalogue says that a replay builds {name}@{number}; no decision started it"));
            }
        }
        found
    }
}

// === impl DerivedGeneration ===

impl DerivedGeneration {
    fn against(&self, generation: &str, number: u32, catalogue: &Catalogue) -> Vec<String> {
        let Some(entry) = catalogue.generations.get(&number) else {
            return match self.is_started {
                true => vec![format!("{generation} was started, and the catalogue does not have it")],
                false => Vec::new(),
            };
        };
        let mut found = Vec::new();
        match (entry.state == GenerationState::Fed, self.is_ended) {
            (true, true) => found.push(format!("{generation} was ended, and the catalogue says that it is fed")),
            (false, false) => {
                found.push(format!("the catalogue says that {generation} is ended; no decision ended it"))
            }
            _ => {}
        }
        // One that cannot be read is told of by whoever needs it.
        let Ok(Some(record)) = ReplayRecord::of(entry) else { return found };
        if let Some(wanted) = &self.parity {
            let there = record.parity.as_ref().map(|parity| json!(parity));
            let is_same = match (wanted, &there) {
                (None, None) => true,
                (Some(wanted), Some(there)) => {
                    FIGURES.iter().all(|figure| wanted[figure].is_null() || wanted[figure] == there[figure])
                }
                _ => false,
            };
            if !is_same {
                found.push(format!(
                    "the comparison of {generation} in the catalogue is not the one that was noted last"
                ));
            }
        }
        if let Some(wanted) = &self.approvals {
            let there = record.approvals.iter();
            let there: Vec<_> = there.map(|approval| (approval.by.clone(), approval.report_sha256.clone())).collect();
            let named = |approvals: &[(String, String)], besides: &[(String, String)]| {
                let others = approvals.iter().filter(|approval| !besides.contains(approval));
                others.map(|(by, _)| by.clone()).collect::<Vec<_>>().join(", ")
            };
            let (given_by_nobody, lost) = (named(&there, wanted), named(wanted, &there));
            if !given_by_nobody.is_empty() {
                found.push(format!(
                    "the catalogue has an approval of {generation} by {given_by_nobody}; nobody gave it"
                ));
            }
            if !lost.is_empty() {
                found.push(format!("the catalogue does not have the approval of {generation} by {lost}"));
            }
        }
        found
    }
}

/// 2 of `stock@2`.
fn number_of(generation: &str) -> Option<u32> {
    generation.rsplit_once('@').and_then(|(_, number)| number.parse().ok())
}
