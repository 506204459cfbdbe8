//! `millrace replay approve`, `cutover`, `rollback`, `retire` and `abort`: one decision each, and what it comes to.

use replay::{By, CutoverRequest, NextStep, Outcome};
use serde_json::json;

use super::args::{ApproveArgs, ByArgs, CutoverArgs, DecideArgs, RetireArgs};
use super::connect;
use crate::exit::Exit;
use crate::output;
use crate::roles::process::now;

pub async fn approve(args: ApproveArgs) -> anyhow::Result<Exit> {
    let by = by(&args.by)?;
    let replayed = connect::read_model(&args.at, args.target.name).await?;
    let number = args.target.resolve(&replayed.catalogue().await?)?;
    tell(&replayed.operations().approve(number, args.report.as_deref(), &by).await?, args.at.json)
}

pub async fn cutover(args: CutoverArgs) -> anyhow::Result<Exit> {
    let by = by(&args.by)?;
    let replayed = connect::read_model(&args.at, args.target.name).await?;
    let catalogue = replayed.catalogue().await?;
    let generation = args.target.resolve(&catalogue)?;
    let observed = replayed.observed(&catalogue, now()).await?;
    let request = CutoverRequest { generation, stage: args.stage, forced: args.force };
    tell(&replayed.operations().cutover(&request, &observed, &by).await?, args.at.json)
}

pub async fn rollback(args: DecideArgs) -> anyhow::Result<Exit> {
    let by = by(&args.by)?;
    let replayed = connect::read_model(&args.at, args.target.name).await?;
    tell(&replayed.operations().rollback(args.target.number, &by).await?, args.at.json)
}

pub async fn retire(args: RetireArgs) -> anyhow::Result<Exit> {
    let by = by(&args.by)?;
    let replayed = connect::read_model(&args.at, args.target.name).await?;
    let number = args.target.to_retire(&replayed.catalogue().await?)?;
    tell(&replayed.operations().retire(number, args.early.as_deref(), &by).await?, args.at.json)
}

pub async fn abort(args: DecideArgs) -> anyhow::Result<Exit> {
    let by = by(&args.by)?;
    let replayed = connect::read_model(&args.at, args.target.name).await?;
    let number = args.target.resolve(&replayed.catalogue().await?)?;
    tell(&replayed.operations().abort(number, &by).await?, args.at.json)
}

pub fn by(args: &ByArgs) -> anyhow::Result<By> {
    Ok(By::new(&args.who, &args.reason, now())?)
}

/// Prints what an operation came to: what was done and what is next, or what is missing.
pub fn tell(outcome: &Outcome, is_json: bool) -> anyhow::Result<Exit> {
    let exit = match outcome {
        Outcome::Done(_) => Exit::Done,
        Outcome::Refused(_) => Exit::Refused,
    };
    if is_json {
        output::json(outcome)?;
        return Ok(exit);
    }
    match outcome {
        Outcome::Done(done) => {
            output::line(format!("{} ({})", done.done, done.reversal.as_str()))?;
            tell_next(&done.next)?;
        }
        Outcome::Refused(refused) => {
            output::line("refused; what is missing:")?;
            for missing in &refused.missing {
                output::line(format!("  {}: {}", missing.code, missing.sentence))?;
            }
        }
    }
    Ok(exit)
}

pub fn tell_next(next: &[NextStep]) -> anyhow::Result<()> {
    if next.is_empty() {
        return Ok(());
    }
    output::line("next:")?;
    for step in next {
        let command = format!("millrace replay {}", step.command);
        output::line(format!("  {command:<40} {} ({})", step.effect, step.reversal.as_str()))?;
    }
    Ok(())
}

/// A result of a check, as one JSON document with what the catalogue said to it.
pub fn json_with(outcome: Option<&Outcome>, key: &str, value: &impl serde::Serialize) -> anyhow::Result<()> {
    output::json(&json!({ key: value, "noted": outcome }))
}
