//! `millrace replay history`: every decision, and whether what is told of them is what was decided.

use anyhow::Context as _;
use chrono::{DateTime, SecondsFormat};
use comfy_table::Table;
use event_log::{EventDecoder, TopicPartition};
use replay::{History, Replayed};
use schemas::event::DecisionRecorded;
use schemas::{Context, Event};
use serde_json::json;

use super::args::HistoryArgs;
use super::connect;
use crate::cli::ProjectionName;
use crate::exit::Exit;
use crate::output;
use crate::stores;

const PAGE: usize = 2_000;
const HEADER: [&str; 7] = ["number", "at", "who", "action", "generation", "reason", "hash"];
const OF_ANOTHER: &str = "the store that decided these was emptied or replaced, or, of search, is another machine's: each \
                          directory of search has its own";

pub async fn run(args: HistoryArgs) -> anyhow::Result<Exit> {
    let recorded = match args.against_log {
        true => Some(recorded(&args).await?),
        false => None,
    };
    let mut is_whole = true;
    let mut told = Vec::new();
    for replayed in connect::read_models(&args.at, args.projection.map(ProjectionName::as_str)).await? {
        let history = history(&replayed, recorded.as_deref()).await?;
        is_whole &= history.tampered.is_empty();
        if args.at.json {
            told.push(json!({
                "projection": replayed.name(),
                "decisions": history.decisions,
                "tampered": history.tampered,
                "elsewhere": history.elsewhere,
            }));
        } else {
            print(replayed.name(), &history)?;
        }
    }
    if args.at.json {
        output::json(&json!({ "read_models": told }))?;
    }
    Ok(if is_whole { Exit::Done } else { Exit::Refused })
}

async fn history(replayed: &Replayed, recorded: Option<&[DecisionRecorded]>) -> anyhow::Result<History> {
    let generations = replayed.operations().generations();
    // First: what is published later need not have been on the log when it was read.
    let published = generations.published_decisions().await?;
    let catalogue = replayed.catalogue().await?;
    let mut history = History::read(generations.as_ref()).await?;
    if let Some(recorded) = recorded {
        // A published decision is a command that was sent: its event may still be on its way.
        let arrived = recorded.iter().filter(|event| event.catalogue_id == catalogue.id);
        let arrived = arrived.filter_map(|event| u64::try_from(event.number).ok()).max().unwrap_or(0);
        history.compare(replayed.name(), &catalogue, recorded, published.min(arrived));
    }
    Ok(history)
}

/// All that `platform.events` says of decisions.
async fn recorded(args: &HistoryArgs) -> anyhow::Result<Vec<DecisionRecorded>> {
    let log = stores::event_log_to_read(&args.at.data, &args.event_log).await?;
    let decoder = EventDecoder::new(stores::registry(&args.event_log.registry)?);
    let topic = Context::Platform.events_topic();
    let mut recorded = Vec::new();
    for ends in log.ends(topic).await.with_context(|| format!("{topic} cannot be read"))? {
        let at = TopicPartition::new(topic, ends.partition);
        let mut next = ends.first;
        while next < ends.next {
            let records = log.read(&at, next, PAGE).await?;
            let Some(last) = records.last() else { break };
            next = last.offset + 1;
            for record in &records {
                let decoded = decoder.decode(record).await.with_context(|| format!("{at} offset {}", record.offset))?;
                if let Event::DecisionRecorded(event) = decoded.event {
                    recorded.push(event);
                }
            }
        }
    }
    Ok(recorded)
}

fn print(name: &str, history: &History) -> anyhow::Result<()> {
    if history.decisions.is_empty() {
        output::line(format!("{name}: nothing was decided yet"))?;
    } else {
        let mut table = Table::new();
        table.set_header(HEADER);
        for decision in &history.decisions {
            let (said, why) = ([&decision.who, &decision.action, &decision.generation], &decision.reason);
            table.add_row(cells(decision.number, decision.at, said, why, &decision.hash));
        }
        output::line(table.to_string())?;
    }
    for other in &history.elsewhere {
        output::line(format!("{name}: platform.events has decisions of another catalogue, {}:", other.catalogue_id))?;
        let mut table = Table::new();
        table.set_header(HEADER);
        for decision in &other.decisions {
            let number = u64::try_from(decision.number).unwrap_or_default();
            let (said, why) = ([&decision.who, &decision.action, &decision.generation], &decision.reason);
            table.add_row(cells(number, decision.at, said, why, &decision.hash));
        }
        output::line(table.to_string())?;
        output::line(OF_ANOTHER)?;
    }
    for tampered in &history.tampered {
        output::line(format!("{name}: TAMPERED WITH: {tampered}"))?;
    }
    if history.tampered.is_empty() {
        output::line(format!("{name}: the chain of {} decisions is whole", history.decisions.len()))?;
    }
    Ok(())
}

/// `said` is who, what and on which generation.
fn cells(number: u64, at: i64, said: [&String; 3], why: &str, hash: &str) -> Vec<String> {
    let at = DateTime::from_timestamp_millis(at).unwrap_or_default();
    let mut cells = vec![number.to_string(), at.to_rfc3339_opts(SecondsFormat::Secs, true)];
    cells.extend(said.map(String::clone));
    cells.extend([why.to_owned(), hash.chars().take(12).collect()]);
    cells
}
