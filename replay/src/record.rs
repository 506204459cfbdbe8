//! What a replay keeps of itself, in the catalogue's entry of the generation that it builds: every process that looks
//! at the catalogue sees the same, and a killed one forgets nothing.
//!
//! What the generation is built of (until when, from which source) is in the entry itself.

use read_models::generations::meant::MeantDifference;
use read_models::generations::{Catalogue, GenerationEntry, GenerationState};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::by::By;
use crate::decide::StartRequest;
use crate::error::ReplayError;
use crate::evidence::ParityEvidence;
use crate::gates::Missing;
use crate::plan::{Plan, Stage};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayRecord {
    pub started_by: String,
    /// Milliseconds since 1970, like all times here.
    pub started_at: i64,
    pub reason: String,
    pub plan: Plan,
    /// Whether stages are entered by themselves once their gates let them.
    pub automatic: bool,
    /// Bounds at which the build yields; what the program was told otherwise.
    #[serde(default)]
    pub throttle: Option<ThrottleBounds>,
    /// The newest comparison.
    #[serde(default)]
    pub parity: Option<ParityEvidence>,
    /// What its rules declared: mirrored answers may differ so, too.
    #[serde(default, alias = "excused_fields")]
    pub meant: Vec<MeantDifference>,
    /// For that comparison: a newer one voids them.
    #[serde(default)]
    pub approvals: Vec<Approval>,
    /// The stage it is in; `None` before the first, and after a rollback.
    #[serde(default)]
    pub stage: Option<EnteredStage>,
    /// The cutover to all, while it stands.
    #[serde(default)]
    pub cut_over: Option<CutOver>,
    /// Whether it ever served all.
    #[serde(default)]
    pub has_served: bool,
    /// Whether a rollback left it, and nothing was entered since.
    #[serde(default)]
    pub taken_back: bool,
}

/// When a build yields to the live side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ThrottleBounds {
    /// Events that may wait for the generation that serves.
    pub live_lag_events: u64,
    /// 99th percentile of reads, milliseconds.
    pub read_p99_ms: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub by: String,
    pub at: i64,
    pub reason: String,
    /// Names the report that was approved.
    pub report_sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnteredStage {
    /// Place in the plan.
    pub index: usize,
    pub at: i64,
    /// Version of the catalogue that began it: mirrored reads are counted from there.
    pub version: u64,
    /// Without its gates; only ever one that answers nobody.
    pub forced: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutOver {
    pub at: i64,
    /// What served before: where a rollback goes.
    pub from: u32,
}

// === impl ReplayRecord ===

impl ReplayRecord {
    /// Of a replay that begins.
    pub(crate) fn new(request: &StartRequest, by: &By) -> Self {
        Self {
            started_by: by.who().to_owned(),
            started_at: by.at(),
            reason: by.reason().to_owned(),
            plan: request.plan.clone(),
            automatic: request.automatic,
            throttle: request.throttle,
            parity: None,
            meant: Vec::new(),
            approvals: Vec::new(),
            stage: None,
            cut_over: None,
            has_served: false,
            taken_back: false,
        }
    }

    /// Of a generation; `None` for one that no replay built.
    pub fn of(entry: &GenerationEntry) -> Result<Option<Self>, ReplayError> {
        if entry.replay.is_null() {
            return Ok(None);
        }
        let record = serde_json::from_value(entry.replay.clone());
        record.map(Some).map_err(|error| ReplayError::Damaged { problem: error.to_string() })
    }

    /// Of the generation of that number; `None` also where the catalogue has none.
    pub fn in_catalogue(catalogue: &Catalogue, number: u32) -> Result<Option<Self>, ReplayError> {
        catalogue.generations.get(&number).map_or(Ok(None), Self::of)
    }

    /// As the catalogue keeps it.
    pub fn to_value(&self) -> Result<Value, ReplayError> {
        serde_json::to_value(self).map_err(|error| ReplayError::Damaged { problem: error.to_string() })
    }

    /// The stage that it is in.
    pub fn current_stage(&self) -> Option<&Stage> {
        self.plan.stages.get(self.stage.as_ref()?.index)
    }

    /// Approvals of the newest comparison by persons other than these.
    pub fn approvals_besides<'r>(&'r self, persons: &'r [&str]) -> impl Iterator<Item = &'r Approval> {
        let report = self.parity.as_ref().map(|parity| parity.report_sha256.as_str());
        let counts = move |approval: &&Approval| {
            Some(approval.report_sha256.as_str()) == report
                && !persons.iter().any(|person| is_same_person(person, &approval.by))
        };
        self.approvals.iter().filter(counts)
    }

    /// Takes back all that a second cutover needs anew.
    pub(crate) fn begin_again(&mut self) {
        self.stage = None;
        self.cut_over = None;
        self.parity = None;
        self.approvals.clear();
        self.automatic = false;
    }
}

/// Whether two names are one person's: nobody approves what `Ann` started as `ann`.
pub fn is_same_person(one: &str, other: &str) -> bool {
    one.trim().to_lowercase() == other.trim().to_lowercase()
}

/// The replays that an operation may mean when it names none: the candidate's alone, or, the newest first, those that
/// may still come to serve.
pub fn current_replays(catalogue: &Catalogue) -> Vec<u32> {
    let may_serve = |entry: &GenerationEntry| {
        entry.state == GenerationState::Fed && entry.until.is_none() && !entry.replay.is_null()
    };
    if let Some(candidate) = &catalogue.candidate {
        return vec![candidate.generation];
    }
    let newer = catalogue.generations.range(catalogue.serving + 1..).rev();
    newer.filter(|(_, entry)| may_serve(entry)).map(|(number, _)| *number).collect()
}

/// Whether a rollback left a generation, and nothing was entered since.
pub(crate) fn was_taken_back(catalogue: &Catalogue, number: u32) -> bool {
    let record = ReplayRecord::in_catalogue(catalogue, number).ok().flatten();
    record.is_some_and(|record| record.taken_back)
}

/// The cutovers that a rollback, or several, would take back to `number`: of each fed generation that took over from
/// it.
pub fn ways_back_to(catalogue: &Catalogue, number: u32) -> Result<Vec<(CutOver, ReplayRecord)>, ReplayError> {
    let mut ways = Vec::new();
    for entry in catalogue.generations.values().filter(|entry| entry.state == GenerationState::Fed) {
        let Some(record) = ReplayRecord::of(entry)? else { continue };
        if let Some(cut_over) = record.cut_over.clone().filter(|cut_over| cut_over.from == number) {
            ways.push((cut_over, record));
        }
    }
    Ok(ways)
}

/// Where a rollback of what serves would go, while that is still fed, and the cutover that led away from it.
pub fn way_back(catalogue: &Catalogue) -> Result<Option<(CutOver, ReplayRecord)>, ReplayError> {
    let Some(record) = ReplayRecord::in_catalogue(catalogue, catalogue.serving)? else { return Ok(None) };
    let is_fed = |cut_over: &CutOver| catalogue.fed_entry(cut_over.from).is_some();
    Ok(record.cut_over.clone().filter(is_fed).map(|cut_over| (cut_over, record)))
}

/// The record of a generation that a replay builds and that is still fed.
pub(crate) fn replay_of(
    name: &str,
    catalogue: &Catalogue,
    number: u32,
) -> Result<Result<ReplayRecord, Missing>, ReplayError> {
    let Some(entry) = catalogue.generations.get(&number) else {
        let there: Vec<String> = catalogue.fed().map(|number| format!("{name}@{number}")).collect();
        let sentence = format!("there is no {name}@{number}; there is {}", there.join(", "));
        return Ok(Err(Missing::new("unknown_generation", sentence)));
    };
    if entry.state != GenerationState::Fed {
        let sentence = format!("{name}@{number} is retired; start another replay");
        return Ok(Err(Missing::new("retired", sentence)));
    }
    let none = || Missing::new("no_replay", format!("{name}@{number} is not built by a replay; start one"));
    Ok(ReplayRecord::of(entry)?.ok_or_else(none))
}

pub(crate) fn stage_name(catalogue: &Catalogue, number: u32) -> Result<Option<String>, ReplayError> {
    let record = ReplayRecord::in_catalogue(catalogue, number)?;
    Ok(record.and_then(|record| record.current_stage().map(|stage| stage.name.clone())))
}

/// A generation that was rolled back needs a comparison and an approval of its own for a second cutover.
pub(crate) fn begin_again(to: &mut Catalogue, number: u32) -> Result<(), ReplayError> {
    let Some(mut record) = ReplayRecord::in_catalogue(to, number)? else { return Ok(()) };
    record.begin_again();
    set_record(to, number, &record)
}

pub(crate) fn note_taken_back(to: &mut Catalogue, number: u32) -> Result<(), ReplayError> {
    let Some(record) = ReplayRecord::in_catalogue(to, number)? else { return Ok(()) };
    set_record(to, number, &ReplayRecord { taken_back: true, ..record })
}

/// A newer generation that is still fed, and that a rollback left: who says `rollback` then must name what he means.
pub(crate) fn taken_back(catalogue: &Catalogue) -> Result<Option<u32>, ReplayError> {
    for (number, entry) in catalogue.generations.range(catalogue.serving + 1..) {
        let is_left = ReplayRecord::of(entry)?.is_some_and(|record| record.taken_back);
        if is_left && entry.state == GenerationState::Fed {
            return Ok(Some(*number));
        }
    }
    Ok(None)
}

pub(crate) fn with_record(catalogue: &Catalogue, number: u32, record: &ReplayRecord) -> Result<Catalogue, ReplayError> {
    let mut to = catalogue.clone();
    set_record(&mut to, number, record)?;
    Ok(to)
}

pub(crate) fn set_record(to: &mut Catalogue, number: u32, record: &ReplayRecord) -> Result<(), ReplayError> {
    if let Some(entry) = to.generations.get_mut(&number) {
        entry.replay = record.to_value()?;
    }
    Ok(())
}
