//! What can be done next with the generations of a read model, and whether it can be taken back.

use humantime::{format_duration, format_rfc3339_seconds};
use read_models::generations::Catalogue;

use crate::error::ReplayError;
use crate::outcome::{NextStep, Reversal};
use crate::record::{ReplayRecord, current_replays, taken_back, way_back};

/// In the order in which one thinks of them. Whether the gates let one do it is another question.
pub fn next_steps(name: &str, catalogue: &Catalogue) -> Result<Vec<NextStep>, ReplayError> {
    let mut steps = Vec::new();
    let replays = current_replays(catalogue);
    for number in &replays {
        let target = if replays.len() == 1 { name.to_owned() } else { format!("{name}@{number}") };
        steps.extend(of_replay(name, &target, catalogue, *number)?);
    }
    let serving = catalogue.serving;
    match way_back(catalogue)? {
        Some((cut_over, record)) => {
            let from = cut_over.from;
            if catalogue.candidate.is_none() {
                let effect = format!("{name}@{from} serves again; it was fed all the time");
                let target = match taken_back(catalogue)? {
                    None => name.to_owned(),
                    Some(_) => format!("{name}@{serving}"),
                };
                steps.push(NextStep::new(format!("rollback {target}"), effect, Reversal::Reversible));
            }
            let window = record.plan.rollback.window;
            let effect = format!(
                "{name}@{from} is removed, {} after the cutover of {} at the earliest; then only a forward fix is left",
                format_duration(window),
                instant(cut_over.at)
            );
            steps.push(NextStep::new(format!("retire {name}@{from}"), effect, Reversal::ForwardFixOnly));
        }
        None if steps.is_empty() => {
            let effect = format!(
                "nothing leads back behind {name}@{serving}: what is wrong is mended in a new version of the fold, and \
                 built beside it"
            );
            steps.push(NextStep::new(format!("start {name}"), effect, Reversal::ForwardFixOnly));
        }
        None => {}
    }
    Ok(steps)
}

/// `target`: what commands name it by.
fn of_replay(name: &str, target: &str, catalogue: &Catalogue, number: u32) -> Result<Vec<NextStep>, ReplayError> {
    let Some(entry) = catalogue.fed_entry(number) else { return Ok(Vec::new()) };
    let Some(record) = ReplayRecord::of(entry)? else { return Ok(Vec::new()) };
    let mut steps = Vec::new();
    let serving = catalogue.serving;
    let approvals = record.approvals_besides(&[&record.started_by]).count();
    match &record.parity {
        None => {
            let effect = format!("compares {name}@{number} with {name}@{serving} at one position");
            steps.push(NextStep::new(format!("verify {target}"), effect, Reversal::Reversible));
        }
        Some(parity) if !parity.is_clean() => {
            let effect = "compares again, with rules for the differences that are meant".to_owned();
            steps.push(NextStep::new(format!("verify {target}"), effect, Reversal::Reversible));
        }
        Some(_) if approvals < record.plan.approvals.needed as usize => {
            let effect = format!("an approver other than {} takes the comparison as good", record.started_by);
            steps.push(NextStep::new(format!("approve {target}"), effect, Reversal::Reversible));
        }
        Some(_) => {}
    }
    let due = record.stage.as_ref().map_or(0, |stage| stage.index + 1);
    if let Some(stage) = record.plan.stages.get(due) {
        let effect = format!("enters stage {}: {}", stage.name, stage.share);
        steps.push(NextStep::new(format!("cutover {target}"), effect, Reversal::Reversible));
    }
    if catalogue.candidate.is_some() {
        let effect = format!("{name}@{serving} answers everything again; {name}@{number} stays fed");
        steps.push(NextStep::new(format!("rollback {target}"), effect, Reversal::Reversible));
    }
    let end = if record.has_served { "retire" } else { "abort" };
    let effect = format!("{name}@{number} is removed; another replay may be started");
    steps.push(NextStep::new(format!("{end} {name}@{number}"), effect, Reversal::ForwardFixOnly));
    Ok(steps)
}

/// Milliseconds since 1970, as RFC 3339.
pub(crate) fn instant(at: i64) -> String {
    let since = std::time::Duration::from_millis(u64::try_from(at).unwrap_or(0));
    std::time::UNIX_EPOCH.checked_add(since).map_or_else(String::new, |time| format_rfc3339_seconds(time).to_string())
}
