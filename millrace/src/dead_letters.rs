//! `millrace dead-letters`: what waits because it cannot be folded, and what is to be done with it. Asks a query API;
//! the projector that owns the partition acts.

mod args;
mod client;

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use comfy_table::Table;
use read_models::{FOREIGN_KEY, search, stock};
use replay::Target;
use reqwest::Method;
use serde_json::json;

pub use args::DeadLettersArgs;
use args::{AtArgs, DeadLettersAction, DiscardArgs, RedriveArgs, ShowArgs};
use client::{Api, Key, Letter, Letters, Outcome};

use crate::exit::Exit;
use crate::output;

/// Of a text in a table.
const CELL: usize = 60;

pub async fn run(args: DeadLettersArgs) -> anyhow::Result<Exit> {
    match args.action {
        DeadLettersAction::List(args) => list(&args.at).await,
        DeadLettersAction::Show(args) => show(&args).await,
        DeadLettersAction::Redrive(args) => redrive(&args).await,
        DeadLettersAction::Discard(args) => discard(&args).await,
    }
}

async fn list(at: &AtArgs) -> anyhow::Result<Exit> {
    let keys = Api::new(at)?.keys(at.projection.as_ref()).await?;
    if at.json {
        output::json(&json!({ "keys": keys }))?;
        return Ok(Exit::Done);
    }
    if keys.is_empty() {
        output::line("nothing is parked")?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new();
    table.set_header(["projection", "key", "partition", "events", "first sequence", "parked at", "reason"]);
    for key in keys {
        let key: Key = serde_json::from_value(key)?;
        table.add_row([
            key.projection,
            key.key,
            key.partition,
            key.events.to_string(),
            key.first_sequence.to_string(),
            key.parked_at,
            short(&key.first_reason),
        ]);
    }
    output::line(table.to_string())?;
    Ok(Exit::Done)
}

async fn show(args: &ShowArgs) -> anyhow::Result<Exit> {
    let api = Api::new(&args.at)?;
    let limit = args.events.to_string();
    let mut is_known = false;
    for projection in projections(args.at.projection.as_ref()) {
        let url = api.url(&[&projection, &args.key], &[("limit", &limit)])?;
        let Some(body) = api.known(Method::GET, url, None).await? else { continue };
        is_known = true;
        if args.at.json {
            output::json(&body)?;
            continue;
        }
        let letters: Letters = serde_json::from_value(body).context("the query API gave no queue")?;
        output::line(format!("{projection}: {}", args.key))?;
        let mut table = Table::new();
        table.set_header(["partition", "sequence", "reason", "event"]);
        for letter in letters.events {
            let shown = shown(&letter);
            table.add_row([letter.partition, letter.sequence.to_string(), short(&letter.reason), shown]);
        }
        output::line(table.to_string())?;
        if letters.more {
            output::line("more wait behind them (--events)")?;
        }
        for asked in letters.history.requests {
            output::line(format!(
                "{} {} by {}: {} {}",
                asked.requested_at.unwrap_or_default(),
                asked.action.unwrap_or_default(),
                asked.by.as_deref().unwrap_or("somebody"),
                asked.state,
                asked.message.unwrap_or_default()
            ))?;
        }
        for discarded in letters.history.discarded {
            output::line(format!(
                "{} discarded by {}, sequence {}: {}",
                discarded.discarded_at,
                discarded.by.as_deref().unwrap_or("somebody"),
                discarded.letter.sequence,
                discarded.reason
            ))?;
        }
    }
    ensure!(is_known, "nothing is or was parked under {}", args.key);
    Ok(Exit::Done)
}

async fn redrive(args: &RedriveArgs) -> anyhow::Result<Exit> {
    let api = Api::new(&args.at)?;
    let only = args.at.projection.as_ref();
    let wanted: Vec<(String, String)> = match &args.key {
        Some(key) => projections(only).into_iter().map(|projection| (projection, key.clone())).collect(),
        None => {
            let mut keys = BTreeSet::new();
            for key in api.keys(only).await? {
                let key: Key = serde_json::from_value(key)?;
                // Records of nobody have no place in the order; they can only be discarded.
                if key.key != FOREIGN_KEY {
                    keys.insert((key.projection, key.key));
                }
            }
            keys.into_iter().collect()
        }
    };
    let body = json!({ "reason": args.reason, "by": args.by });
    let results = api.ask("redrive", &wanted, &body).await?;
    if let Some(key) = &args.key {
        ensure!(!results.is_empty(), "nothing is parked under {key}");
    }
    tell(&results, args.at.json)?;
    let mut shown = results.iter().filter(|result| result.is_shown);
    if shown.clone().any(|result| result.state == "waiting") {
        return Ok(Exit::Failed);
    }
    let is_level = shown.all(|result| result.state == "done" && result.left == 0);
    Ok(if is_level { Exit::Done } else { Exit::Refused })
}

async fn discard(args: &DiscardArgs) -> anyhow::Result<Exit> {
    let api = Api::new(&args.at)?;
    let wanted = projections(args.at.projection.as_ref()).into_iter().map(|projection| (projection, args.key.clone()));
    let wanted: Vec<_> = wanted.collect();
    let body = json!({ "reason": args.reason, "by": args.by, "first": args.first });
    let results = api.ask("discard", &wanted, &body).await?;
    ensure!(!results.is_empty(), "nothing is parked under {}", args.key);
    tell(&results, args.at.json)?;
    let mut shown = results.iter().filter(|result| result.is_shown);
    Ok(if shown.all(|result| result.state == "done") { Exit::Done } else { Exit::Failed })
}

fn tell(results: &[Outcome], is_json: bool) -> anyhow::Result<()> {
    if is_json {
        return output::json(&json!({ "results": results }));
    }
    if results.is_empty() {
        output::line("nothing is parked")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.set_header(["projection", "key", "partition", "result", "resolved", "left", "message"]);
    for result in results {
        let projection = match result.generation {
            Some(number) => format!("{}@{number}", result.projection),
            None => result.projection.clone(),
        };
        table.add_row([
            &projection,
            &result.key,
            &result.partition,
            &result.state,
            &result.resolved.to_string(),
            &result.left.to_string(),
            &result.message,
        ]);
    }
    output::line(table.to_string())?;
    Ok(())
}

/// As the routes name them.
fn projections(only: Option<&Target>) -> Vec<String> {
    match only {
        Some(only) => vec![only.to_string()],
        None => [stock::NAME, search::NAME].map(str::to_owned).to_vec(),
    }
}

/// What the event says, or why nobody can tell.
fn shown(letter: &Letter) -> String {
    match (&letter.event, &letter.error) {
        (Some(event), _) => short(&event.to_string()),
        (None, Some(error)) => short(error),
        (None, None) => String::new(),
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(CELL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
