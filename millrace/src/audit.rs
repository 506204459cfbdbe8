//! `millrace audit`: compares event table, topics and read models, beside whatever runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use audit::{AuditSettings, Auditor, Difference, Progress, Report, Since, Verdict};
use axum::Router;
use clap::Args;
use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use schemas::{PositionToken, StorePosition};

use crate::cli::{DataArgs, EventLogArgs, EventStoreArgs, ProjectionName, SearchArgs, StockArgs};
use crate::exit::Exit;
use crate::output;
use crate::roles::parts;
use crate::roles::process::{OnFailure, Process, now};
use crate::stores;

const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Exit code 0: all the same. 3: something differs. 1: it could not be compared, or not all of it.\nExample: millrace audit --since 1h --json"
)]
pub struct AuditArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub event_store: EventStoreArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
    #[command(flatten)]
    pub stock: StockArgs,
    #[command(flatten)]
    pub search: SearchArgs,
    /// Begin there: a position token, or a time such as 2h; rows of keys that nothing changed since are not compared
    #[arg(long, value_name = "TOKEN|TIME", value_parser = since)]
    pub since: Option<SinceArg>,
    /// A read model that is left out, as one that nobody folds; what is not left out must be there
    #[arg(long, value_name = "READ MODEL", value_enum)]
    pub without: Vec<ProjectionName>,
    /// Differences to print
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub show: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Go on in rounds, with metrics, instead of once
    #[arg(long, conflicts_with_all = ["since", "json"])]
    pub watch: bool,
    #[command(flatten)]
    pub rounds: RoundArgs,
    /// Address of health and metrics while it watches; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", env = "MILLRACE_LISTEN", default_value = "127.0.0.1:8085")]
    pub listen: String,
}

/// How an audit that goes on goes about it.
#[derive(Debug, Clone, Args)]
pub struct RoundArgs {
    /// Time from one round of the rolling audit to the next, as in 60s; 0s for none
    #[arg(long, alias = "every", value_name = "TIME", env = "MILLRACE_AUDIT_EVERY", default_value = "60s", value_parser = humantime::parse_duration)]
    pub audit_every: Duration,
    /// Share of one core that the rolling audit may take, from 0.001 to 1
    #[arg(long, value_name = "SHARE", env = "MILLRACE_AUDIT_SHARE", default_value_t = 0.05, value_parser = share)]
    pub audit_share: f64,
}

/// Where to begin, as given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SinceArg {
    Position(StorePosition),
    Ago(Duration),
}

/// A token names the lowest of its positions; anything else is a time.
fn since(text: &str) -> Result<SinceArg, String> {
    if let Ok(token) = text.parse::<PositionToken>() {
        let lowest = token.iter().map(|part| part.position).min();
        return lowest.map(SinceArg::Position).ok_or_else(|| "the token is empty".to_owned());
    }
    humantime::parse_duration(text)
        .map(SinceArg::Ago)
        .map_err(|_| "use a position token, as Millrace-Position gives it, or a time such as 90s or 2h".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.001..=1.0).contains(&share) => Ok(share),
        _ => Err("a number from 0.001 to 1 is needed".to_owned()),
    }
}

pub async fn run(args: AuditArgs) -> anyhow::Result<Exit> {
    let share = if args.watch { args.rounds.audit_share } else { 1.0 };
    let mut auditor = connect(&args, share).await?;
    if args.watch {
        let mut process = Process::start(&args.listen).await?;
        parts::rolling_audit(&mut process, auditor, args.rounds.audit_every, OnFailure::EndProcess);
        output::notice(format!("millrace audit tells what it finds on http://{}/metrics", process.address()?));
        return process.serve(Router::new()).await;
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    let audited = tokio::select! {
        audited = show_progress(auditor.progress(), bar.clone()) => match audited {},
        audited = auditor.audit_once() => audited,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("it was stopped: nothing can be said"),
    };
    bar.finish_and_clear();
    let report = audited.context("the audit could not be made")?;
    if args.json {
        output::json(&report)?;
    } else {
        print(&report, args.show)?;
    }
    Ok(exit_of(report.verdict()))
}

fn exit_of(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Level => Exit::Done,
        Verdict::NotCompared => Exit::Failed,
        Verdict::Differs => Exit::Refused,
    }
}

async fn connect(args: &AuditArgs, share: f64) -> anyhow::Result<Auditor> {
    let store = stores::event_store_to_read(&args.data, &args.event_store).await?;
    let log = stores::event_log_to_read(&args.data, &args.event_log).await?;
    let registry = stores::registry(&args.event_log.registry)?;
    let is_compared = |read_model| !args.without.contains(&read_model);
    let stock = match is_compared(ProjectionName::Stock) {
        true => Some(stores::stock_to_read(&args.data, &args.stock).await?),
        false => None,
    };
    let search = match is_compared(ProjectionName::Search) {
        true => Some(stores::search_to_read(&args.data, &args.search).await?),
        false => None,
    };
    let since = args.since.map(|since| match since {
        SinceArg::Position(position) => Since::Position(position),
        SinceArg::Ago(ago) => Since::Time(now() - i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)),
    });
    Ok(Auditor::new(store, log, registry, stock, search, AuditSettings { share, since }))
}

async fn show_progress(progress: Arc<Progress>, bar: ProgressBar) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        bar.set_message(format!(
            "{} events of the table, {} records of topics, {} rows of read models",
            of(&progress.events),
            of(&progress.records),
            of(&progress.rows)
        ));
        bar.tick();
    }
}

fn print(report: &Report, show: usize) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.set_header(["topic", "events", "on topic", "expired", "duplicates", "differences"]);
    for topic in &report.topics {
        let numbers = [topic.events, topic.on_topic, topic.expired, topic.duplicates, topic.differences];
        let mut cells = vec![format!("{}/{}", topic.topic, topic.partition)];
        cells.extend(numbers.map(|number| number.to_string()));
        table.add_row(cells);
    }
    output::line(table.to_string())?;
    let mut table = Table::new();
    table.set_header(["read model", "partition", "checkpoint", "keys", "rows", "parked keys", "differences"]);
    for model in &report.read_models {
        let mut cells = vec![model.read_model.clone(), format!("{}/{}", model.topic, model.partition)];
        match &model.skipped {
            Some(why) => cells.push(format!("not compared: {why}")),
            None => cells.extend(
                [model.checkpoint, model.keys, model.rows, model.parked_keys, model.differences]
                    .map(|number| number.to_string()),
            ),
        }
        table.add_row(cells);
    }
    output::line(table.to_string())?;
    if let Some(index) = &report.index {
        output::line(match &index.skipped {
            Some(why) => format!("search index: not compared: {why}"),
            None => format!(
                "search index: {} documents for {} products, {} differences",
                index.documents, index.shown, index.differences
            ),
        })?;
    }
    print_differences(report, show)?;
    Ok(())
}

fn print_differences(report: &Report, show: usize) -> anyhow::Result<()> {
    let not_compared = report.not_compared();
    for what in &not_compared {
        output::line(format!("not compared: {what}"))?;
    }
    if report.is_clean() {
        let what = if not_compared.is_empty() { "nothing differs" } else { "nothing differs in the rest" };
        output::line(format!("{what} up to position {}", report.position))?;
        return Ok(());
    }
    for difference in report.differences.iter().take(show) {
        output::line(shown(difference))?;
    }
    output::line("")?;
    let mut remedies = Vec::new();
    for count in &report.counts {
        output::line(format!("{} {} in {}", count.count, count.kind.as_str(), count.place.as_str()))?;
        if !remedies.contains(&count.place) {
            remedies.push(count.place);
        }
    }
    for place in remedies {
        output::line(format!("{}: {}", place.as_str(), place.remedy()))?;
    }
    Ok(())
}

fn shown(difference: &Difference) -> String {
    let mut line = format!("{} {}", difference.kind.as_str(), difference.place.as_str());
    if !difference.partition.is_empty() {
        line.push_str(&format!(" {}", difference.partition));
    }
    if let Some(sequence) = difference.sequence {
        line.push_str(&format!(" sequence {sequence}"));
    }
    if let Some(offset) = difference.offset {
        line.push_str(&format!(" offset {offset}"));
    }
    format!("{line}: {}: {}", difference.what, difference.detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_token_or_a_time() {
        assert_eq!(since("2h"), Ok(SinceArg::Ago(Duration::from_secs(7200))));
        let position = |position| SinceArg::Position(StorePosition { xid: 3, position });
        assert_eq!(since("inventory-1-3.9,pricing-0-3.5"), Ok(position(5)));
        assert!(since("yesterday").unwrap_err().contains("2h"));
    }

    #[test]
    fn what_was_not_compared_is_a_failure_and_what_differs_is_told_first() {
        let exits = [Verdict::Level, Verdict::NotCompared, Verdict::Differs].map(exit_of);
        assert_eq!(exits, [Exit::Done, Exit::Failed, Exit::Refused]);
    }

    #[test]
    fn a_share_is_a_part_of_a_core() {
        assert_eq!(share("0.05"), Ok(0.05));
        for bad in ["0", "1.5", "x"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
