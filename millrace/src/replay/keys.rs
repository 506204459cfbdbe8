//! `millrace replay start … --into-live`: single keys folded anew into the generation that serves, by the owners of
//! their partitions.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use comfy_table::Table;
use read_models::generations::Until;
use read_models::{DeadLetterAnswer, DeadLetterOutcome, DeadLetters};
use replay::parity::Progress;
use replay::repair::{self, Asked, Selection};
use replay::{Outcome, Refused, ReplayError};
use schemas::Sku;
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

/// What came of it.
struct Told {
    generation: String,
    /// SKUs that were named, and that have no event of the regions and times that were named.
    not_selected: Vec<Sku>,
    asked: Vec<Asked>,
    /// In the order asked.
    answers: Vec<DeadLetterAnswer>,
}

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
    let not_selected = selection.not_in(&selected);
    if let Some(missing) = selection.missing(&selected) {
        return decide::tell(&Outcome::Refused(Refused { missing: vec![missing] }), args.at.json);
    }
    // Before anything is asked for: what is written to the rows has a name and a reason, also where this ends now.
    let noted = replayed.operations().note_repair(serving, &selection, &selected, &by).await?;
    if noted.done().is_none() {
        return decide::tell(&noted, args.at.json);
    }

    let requests = replayed.requests(serving);
    let asked = repair::ask(requests.as_ref(), &selected, by.who(), by.reason(), now()).await?;
    let answers = answers(requests.as_ref(), &asked, replayed.name()).await?;
    let told = Told { generation: format!("{}@{serving}", replayed.name()), not_selected, asked, answers };
    told.print(args.at.json)?;
    Ok(told.exit())
}

async fn answers(
    requests: &dyn DeadLetters,
    asked: &[Asked],
    projection: &str,
) -> anyhow::Result<Vec<DeadLetterAnswer>> {
    let mut heard = (0, Instant::now());
    loop {
        let answers = repair::answers(requests, asked).await?;
        let count = answers.iter().flatten().count();
        if count == asked.len() {
            return Ok(answers.into_iter().flatten().collect());
        }
        if count > heard.0 {
            heard = (count, Instant::now());
        }
        ensure!(
            heard.1.elapsed() < PATIENCE,
            "{} of {} requests are not answered for {} s; they wait until `millrace project {projection}` (or `up`) holds their partitions",
            asked.len() - count,
            asked.len(),
            PATIENCE.as_secs(),
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

// === impl Told ===

impl Told {
    fn keys(&self) -> usize {
        self.asked.iter().map(|asked| asked.keys).sum()
    }

    fn folded(&self) -> usize {
        self.asked.iter().zip(&self.answers).map(|(asked, answer)| repair::folded(asked, answer)).sum()
    }

    fn exit(&self) -> Exit {
        let is_done = self.answers.iter().all(|answer| answer.outcome == DeadLetterOutcome::Done);
        if is_done { Exit::Done } else { Exit::Failed }
    }

    fn headline(&self) -> String {
        let (keys, folded, generation) = (self.keys(), self.folded(), &self.generation);
        match keys.saturating_sub(folded) {
            0 => format!("{folded} keys of {generation} folded anew"),
            left => {
                format!("{folded} of {keys} keys of {generation} folded anew, {left} NOT: their rows are as they were")
            }
        }
    }

    fn print(&self, is_json: bool) -> anyhow::Result<()> {
        let state = |answer: &DeadLetterAnswer| match answer.outcome {
            DeadLetterOutcome::Done => "done",
            DeadLetterOutcome::Failed => "failed",
        };
        let pairs = || self.asked.iter().zip(&self.answers);
        if is_json {
            let results = pairs().map(|(asked, answer)| {
                json!({
                    "partition": asked.partition.to_string(),
                    "keys": asked.keys,
                    "folded": repair::folded(asked, answer),
                    "request": asked.request,
                    "result": state(answer),
                    "message": answer.message,
                })
            });
            return output::json(&json!({
                "generation": self.generation,
                "keys": self.keys(),
                "folded": self.folded(),
                "not_selected": self.not_selected,
                "results": results.collect::<Vec<_>>(),
            }));
        }
        let mut table = Table::new();
        table.set_header(["partition", "keys", "folded", "result", "message"]);
        for (asked, answer) in pairs() {
            let (keys, folded) = (asked.keys.to_string(), repair::folded(asked, answer).to_string());
            table.add_row([
                asked.partition.to_string(),
                keys,
                folded,
                state(answer).to_owned(),
                answer.message.clone(),
            ]);
        }
        output::line(self.headline())?;
        if !self.not_selected.is_empty() {
            let named: Vec<&str> = self.not_selected.iter().map(Sku::as_str).collect();
            output::line(format!("no such event of {}: left as they are", named.join(", ")))?;
        }
        output::line(table.to_string())?;
        Ok(())
    }
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
    let selection = Selection { skus: args.sku.clone(), regions: args.region.clone(), since: args.since, until };
    selection.check()?;
    Ok(selection)
}

#[cfg(test)]
mod tests {
    use read_models::{DeadLetterAction, DeadLetterRequest, PartitionRef};
    use schemas::Context;
    use uuid::Uuid;

    use super::*;

    fn told(of: &[(usize, DeadLetterOutcome, u64)]) -> Told {
        let mut told =
            Told { generation: "stock@1".to_owned(), not_selected: Vec::new(), asked: Vec::new(), answers: Vec::new() };
        for (keys, outcome, left) in of {
            let partition = PartitionRef { context: Context::Inventory, partition: 0 };
            told.asked.push(Asked { partition, request: Uuid::nil(), keys: *keys });
            let request = DeadLetterRequest {
                id: Uuid::nil(),
                key: "A".to_owned(),
                action: DeadLetterAction::Refold { keys: vec!["A".to_owned()] },
                by: None,
                note: None,
                requested_at: 0,
            };
            let message = String::new();
            let (outcome, left) = (*outcome, *left);
            told.answers.push(DeadLetterAnswer { request, outcome, message, resolved: 0, left, answered_at: 0 });
        }
        told
    }

    #[test]
    fn what_was_not_folded_is_not_told_as_folded() {
        use DeadLetterOutcome::{Done, Failed};
        let all = told(&[(2, Done, 0), (3, Done, 0)]);
        assert_eq!((all.headline().as_str(), all.exit()), ("5 keys of stock@1 folded anew", Exit::Done));
        let some = told(&[(2, Done, 0), (3, Failed, 1)]);
        assert_eq!(
            (some.headline().as_str(), some.exit()),
            ("4 of 5 keys of stock@1 folded anew, 1 NOT: their rows are as they were", Exit::Failed)
        );
        // By an owner that does not say what it left out.
        let none = told(&[(5, Failed, 0)]);
        assert!(none.headline().starts_with("0 of 5 keys"), "{}", none.headline());
        assert_eq!(none.exit(), Exit::Failed);
    }
}
