//! `millrace replay start`: a whole new generation.

use replay::{Outcome, Plan, StartRequest};

use super::args::StartArgs;
use super::{connect, decide};
use crate::exit::Exit;
use crate::output;

pub async fn run(args: StartArgs) -> anyhow::Result<Exit> {
    let by = decide::by(&args.by)?;
    let plan = args.plan.as_deref().map(Plan::read).transpose()?.unwrap_or_default();
    let replayed = connect::read_model(&args.at, args.projection.as_str()).await?;
    let known_folds = replayed.folds().to_vec();
    let request = StartRequest {
        fold_version: args.fold.or(known_folds.last().copied()).unwrap_or_default(),
        known_folds,
        until: args.until.clone(),
        source: args.from.into(),
        plan,
        automatic: args.auto,
        throttle: None,
    };
    let outcome = replayed.operations().start(&request, &by).await?;
    if args.at.json || outcome.done().is_none() {
        return decide::tell(&outcome, args.at.json);
    }
    if let Outcome::Done(done) = &outcome {
        output::line(&done.generation)?;
        output::line(format!("{} ({})", done.done, done.reversal.as_str()))?;
        output::line(format!(
            "the projectors that run feed it (`millrace up` or `millrace project {}`); `millrace replay status {} --watch` follows",
            replayed.name(),
            done.generation
        ))?;
        decide::tell_next(&done.next)?;
    }
    Ok(Exit::Done)
}
