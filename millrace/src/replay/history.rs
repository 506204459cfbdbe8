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
        history.compare(&catalogue, recorded, published.min(arrived));
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
        table.set_header(["number", "at", "who", "action", "generation", "reason", "hash"]);
        for decision in &history.decisions {
            let at = DateTime::from_timestamp_millis(decision.at).unwrap_or_default();
            table.add_row([
                decision.number.to_string(),
                at.to_rfc3339_opts(SecondsFormat::Secs, true),
                decision.who.clone(),
                decision.action.clone(),
                decision.generation.clone(),
                decision.reason.clone(),
                decision.hash.chars().take(12).collect(),
            ]);
        }
        output::line(table.to_string())?;
    }
    for tampered in &history.tampered {
        output::line(format!("{name}: TAMPERED WITH: {tampered}"))?;
    }
    if history.tampered.is_empty() {
        output::line(format!("{name}: the chain of {} decisions is whole", history.decisions.len()))?;
    }
    Ok(())
}
