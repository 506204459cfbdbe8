//! `millrace replay start … --into-live`: single keys folded anew into the generation that serves, by the owners of their
//! partitions.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use comfy_table::Table;
use read_models::generations::Until;
use read_models::{DeadLetterAnswer, DeadLetterOutcome};
use replay::ReplayError;
use replay::parity::Progress;
use replay::repair::{self, Asked, Selection};
use serde_json::json;

use super::args::StartArgs;
use super::verify::show;
use super::{connect, decide};
use crate::exit::Exit;
use crate::output;
use crate::roles::process::now;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Longest time without any answer: each is a walk over a partition.
const PATIENCE: Duration = Duration::from_secs(600);

pub async fn run(args: StartArgs) -> anyhow::Result<Exit> {
    let by = decide::by(&args.by)?;
    let selection = selection(&args)?;
    let replayed = connect::read_model(&args.at, args.projection.as_str()).await?;
    let log = connect::log(&args.at, &args.event_log).await?;
    let catalogue = replayed.catalogue().await?;
    let serving = catalogue.serving;
    let Some(entry) = catalogue.generations.get(&serving) else {
        bail!("nothing serves yet; `millrace up` or `millrace project {}` builds it", replayed.name());
    };
    let progress = Progress::default();
    let selected = tokio::select! {
        selected = replayed.select(&log, entry.partitions, &selection, &progress) => selected?,
        never = show(&progress) => match never {},
        _ = tokio::signal::ctrl_c() => bail!("it was stopped: nothing was asked for"),
    };
    let keys: usize = selected.values().map(std::collections::BTreeSet::len).sum();
    ensure!(keys > 0, "the log has no event that these keys, regions and times mean; nothing was asked for");

    let requests = replayed.requests(serving);
    let asked = repair::ask(requests.as_ref(), &selected, by.who(), by.reason(), now()).await?;
    let mut heard = (0, Instant::now());
    let answers = loop {
        let answers = repair::answers(requests.as_ref(), &asked).await?;
        let count = answers.iter().flatten().count();
        if count == asked.len() {
            break answers;
        }
        if count > heard.0 {
            heard = (count, Instant::now());
        }
        ensure!(
            heard.1.elapsed() < PATIENCE,
            "{} of {} requests are not answered for {} s; they wait until `millrace project {}` (or `up`) holds their partitions",
            asked.len() - count,
            asked.len(),
            PATIENCE.as_secs(),
            replayed.name()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let answers: Vec<DeadLetterAnswer> = answers.into_iter().flatten().collect();
    let is_done = answers.iter().all(|answer| answer.outcome == DeadLetterOutcome::Done);
    tell(&args, &format!("{}@{serving}", replayed.name()), keys, &asked, &answers)?;
    Ok(if is_done { Exit::Done } else { Exit::Failed })
}

fn tell(
    args: &StartArgs,
    generation: &str,
    keys: usize,
    asked: &[Asked],
    answers: &[DeadLetterAnswer],
) -> anyhow::Result<()> {
    let state = |answer: &DeadLetterAnswer| match answer.outcome {
        DeadLetterOutcome::Done => "done",
        DeadLetterOutcome::Failed => "failed",
    };
    if args.at.json {
        let results = asked.iter().zip(answers).map(|(asked, answer)| {
            json!({
                "partition": asked.partition.to_string(),
                "keys": asked.keys,
                "request": asked.request,
                "result": state(answer),
                "message": answer.message,
            })
        });
        return output::json(&json!({
            "generation": generation, "keys": keys, "results": results.collect::<Vec<_>>(),
        }));
    }
    let mut table = Table::new();
    table.set_header(["partition", "keys", "result", "message"]);
    for (asked, answer) in asked.iter().zip(answers) {
        let cells =
            [asked.partition.to_string(), asked.keys.to_string(), state(answer).to_owned(), answer.message.clone()];
        table.add_row(cells);
    }
    output::line(format!("{keys} keys of {generation} folded anew"))?;
    output::line(table.to_string())?;
    Ok(())
}

fn selection(args: &StartArgs) -> anyhow::Result<Selection> {
    let until = match &args.until {
        None => None,
        Some(Until::Time(time)) => Some(*time),
        Some(Until::Position(_)) => {
            let problem = "keys are chosen by time, not by position; use a time as in 2026-11-20T14:05:00Z".to_owned();
            return Err(ReplayError::Setting { key: "until", problem }.into());
        }
    };
    Ok(Selection { skus: args.sku.clone(), regions: args.region.clone(), since: args.since, until })
}
