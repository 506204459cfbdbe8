//! What a comparison leads to: it is noted, approved, or takes a stage back.

use read_models::generations::{Action, Catalogue, Share};
use serde_json::{Value, json};

use super::ruling::{Decided, Ruling, change, refuse, verdict};
use crate::by::By;
use crate::controller::TRIGGER;
use crate::error::ReplayError;
use crate::evidence::ParityEvidence;
use crate::gates;
use crate::outcome::Reversal;
use crate::ownership::Ownership;
use crate::record::{
    Approval, ReplayRecord, begin_again, is_same_person, replay_of, set_record, stage_name, with_record,
};
use crate::rules::Rules;

/// Longest position vector, and longest rules, in a decision's evidence, in bytes: a command carries 100,000 characters
/// at most.
const MAX_VECTOR: usize = 50_000;
const MAX_RULES: usize = 30_000;
/// Digits of a report's digest that name it.
const LEAST_DIGITS: usize = 8;

/// Notes a comparison. One that is not clean takes back the stage that answers from the candidate.
pub(crate) fn note_parity(
    name: &str,
    catalogue: &Catalogue,
    evidence: &ParityEvidence,
    rules: &Rules,
    by: &By,
) -> Result<Ruling, ReplayError> {
    let number = evidence.generation;
    let mut record = match replay_of(name, catalogue, number)? {
        Ok(record) => record,
        Err(missing) => return Ok(Ruling::Refuse(vec![missing])),
    };
    // One of a time that is still to come says that a clock was set back, and not which of the two is newer.
    if record.parity.as_ref().is_some_and(|known| evidence.at < known.at && known.at <= by.at()) {
        let sentence = format!("a newer comparison of {name}@{number} is known; run `replay verify {name}` again");
        return refuse("older_parity", sentence);
    }
    record.approvals.clear();
    record.parity = Some(evidence.clone());
    record.meant = rules.meant();
    let is_clean = evidence.is_clean();
    let done = format!(
        "{name}@{number} was compared with {name}@{} over {} keys: {}",
        evidence.against,
        evidence.compared_keys,
        if is_clean { "nothing differs but what rules cover" } else { "they differ" }
    );
    let to = with_newest_rules(catalogue, number, &mut record)?;
    let answers = catalogue
        .candidate
        .as_ref()
        .is_some_and(|candidate| candidate.generation == number && candidate.share != Share::None);
    if !is_clean && answers && evidence.against == catalogue.serving {
        return taken_back(name, to, record, evidence, noted(evidence, rules), by, &done);
    }
    change(name, to, number, by, Action::Verified, noted(evidence, rules), done)
}

/// What the newest comparison excuses is excused in mirrored reads as well. Where that changes during a stage, its reads
/// are counted anew: those before were judged by other rules.
fn with_newest_rules(catalogue: &Catalogue, number: u32, record: &mut ReplayRecord) -> Result<Catalogue, ReplayError> {
    let mut candidate = catalogue.candidate.clone();
    let of_this = candidate.as_mut().filter(|candidate| candidate.generation == number);
    if let Some(candidate) = of_this.filter(|candidate| candidate.meant != record.meant) {
        let version = catalogue.version + 1;
        candidate.meant.clone_from(&record.meant);
        candidate.since = version;
        if let Some(stage) = &mut record.stage {
            stage.version = version;
        }
    }
    Ok(Catalogue { candidate, ..with_record(catalogue, number, record)? })
}

/// The comparison as its decision keeps it.
fn noted(evidence: &ParityEvidence, rules: &Rules) -> Value {
    let mut noted = json!(evidence);
    if evidence.vector.len() > MAX_VECTOR {
        noted["vector"] = json!("too long to be published; the report has it");
    }
    let rules = rules.as_decided();
    let is_short = rules.to_string().len() <= MAX_RULES;
    noted["rules"] = if is_short { rules } else { json!("too long to be published; the report has them") };
    noted
}

/// The comparison, and the rollback that follows from it, as one change.
fn taken_back(
    name: &str,
    mut to: Catalogue,
    record: ReplayRecord,
    evidence: &ParityEvidence,
    noted: Value,
    by: &By,
    done: &str,
) -> Result<Ruling, ReplayError> {
    let (number, serving) = (evidence.generation, to.serving);
    let stage = stage_name(&to, number)?;
    let verified = verdict(name, &to, number, by, Action::Verified, noted);
    to.candidate = None;
    begin_again(&mut to, number)?;
    // What it found stays to be seen.
    if let Some(begun_again) = ReplayRecord::in_catalogue(&to, number)? {
        set_record(&mut to, number, &ReplayRecord { parity: record.parity, taken_back: true, ..begun_again })?;
    }
    let because = By::new(TRIGGER, &format!("the comparison is not clean: {}", gates::differences(evidence)), by.at())?;
    let figures = json!([{ "bound": "parity", "figures": { "report_sha256": evidence.report_sha256 } }]);
    let of_rollback = json!({"from_stage": stage, "answers": format!("{name}@{serving}"), "because": figures});
    let rolled_back = verdict(name, &to, number, &because, Action::RolledBack, of_rollback);
    let done = format!("{done}; {name}@{serving} answers everything again, {name}@{number} stays fed");
    let verdicts = vec![verified, rolled_back];
    Ok(Ruling::Change(Box::new(Decided { to, verdicts, done, reversal: Reversal::Reversible })))
}

/// Approves the newest comparison. `report` insists on the one that its digest begins with.
pub(crate) fn approve(
    name: &str,
    catalogue: &Catalogue,
    number: u32,
    report: Option<&str>,
    by: &By,
    ownership: &Ownership,
) -> Result<Ruling, ReplayError> {
    let mut record = match replay_of(name, catalogue, number)? {
        Ok(record) => record,
        Err(missing) => return Ok(Ruling::Refuse(vec![missing])),
    };
    let who = by.who();
    if !ownership.may_approve(name, who) {
        let approvers = ownership.approvers(name).join(", ");
        return refuse(
            "no_approver",
            format!("{who} is no approver of {name} in ownership.toml; these are: {approvers}"),
        );
    }
    if is_same_person(who, &record.started_by) {
        let sentence =
            format!("{who} started {name}@{number}, and nobody approves what they started; ask another approver");
        return refuse("self_approved", sentence);
    }
    let Some(parity) = record.parity.as_ref() else {
        let sentence = format!("{name}@{number} was not compared yet; run `replay verify {name}` first");
        return refuse("no_parity", sentence);
    };
    let newest = &parity.report_sha256;
    if let Some(report) = report.map(str::to_lowercase)
        && (report.len() < LEAST_DIGITS || !newest.starts_with(&report))
    {
        let sentence = format!(
            "the newest comparison of {name}@{number} is {newest}, not {report}; read its report, and name at least \
             {LEAST_DIGITS} digits"
        );
        return refuse("other_report", sentence);
    }
    if !parity.is_clean() {
        let sentence =
            format!("the newest comparison of {name}@{number} found differences; there is nothing to approve");
        return refuse("parity_differs", sentence);
    }
    let report_sha256 = newest.clone();
    let evidence = json!({
        "report_sha256": report_sha256,
        "rules_sha256": parity.rules_sha256,
        "compared_at": parity.at,
        "compared_keys": parity.compared_keys,
        "excused_keys": parity.excused_keys,
    });
    if record.approvals.iter().any(|approval| is_same_person(&approval.by, who)) {
        return refuse("approved_already", format!("{who} approved this comparison of {name}@{number} already"));
    }
    let short = report_sha256.chars().take(12).collect::<String>();
    record.approvals.push(Approval { by: who.to_owned(), at: by.at(), reason: by.reason().to_owned(), report_sha256 });
    let needed = record.plan.approvals.needed;
    let given = record.approvals.len();
    let done = format!("{who} approved {name}@{number}, report {short}: {given} of {needed}");
    let to = with_record(catalogue, number, &record)?;
    change(name, to, number, by, Action::Approved, evidence, done)
}
