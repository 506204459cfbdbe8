//! `millrace relay reconcile`: event table, topics and cursor level again.

use anyhow::Context;
use comfy_table::Table;
use event_log::EventLog;
use event_store::{EventStore, Topology};
use indicatif::{ProgressBar, ProgressStyle};
use outbox_relay::{Finding, PublishAgain, ReconcileOptions, ReconcileReport, Step};

use crate::cli::ReconcileArgs;
use crate::exit::Exit;
use crate::output;
use crate::stores::{self, Connector};

pub async fn run(args: ReconcileArgs) -> anyhow::Result<Exit> {
    let mut connector = Connector::new(args.data.clone());
    let store = connector.event_store(&args.event_store).await?;
    let log = connector.event_log(&args.event_log).await?;
    let registry = stores::registry(&args.event_log.registry)?;
    let topology = match store.topology().await? {
        Some(fixed) => fixed,
        None => lost_topology(&*store, &*log, &args).await?,
    };
    let again = match (args.from_start, args.from_sequence) {
        (true, _) => PublishAgain::From(1),
        (false, Some(sequence)) => PublishAgain::From(sequence),
        (false, None) => PublishAgain::NotWhatRetentionRemoved,
    };
    let options = ReconcileOptions { again, restore: args.restore_from_log, dry_run: args.dry_run };
    // Drawn on standard error, and only where somebody looks.
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} {human_pos}, {per_sec}, {elapsed}")?);
    let progress = |step: Step, taken: u64| {
        bar.set_message(match step {
            Step::Table => "reads the event table:",
            Step::Log => "reads the topics:",
        });
        bar.inc(taken);
    };
    let also = |events| command_api::restored_rows(topology, events);
    let report = outbox_relay::reconcile(&*store, &*log, &*registry, topology, options, also, progress).await;
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        output::json(&report)?;
    } else {
        print(&report, &args)?;
    }
    drop(connector.into_held());
    Ok(if report.is_open() { Exit::Refused } else { Exit::Done })
}

/// Of a store that was lost and is begun anew: as many partitions as the topics have.
async fn lost_topology(store: &dyn EventStore, log: &dyn EventLog, args: &ReconcileArgs) -> anyhow::Result<Topology> {
    let partitions = stores::partitions_of_log(log)
        .await
        .context("the event store was never set up, and nothing was published; check --event-store and --data")?;
    let topology = Topology { partitions };
    if args.restore_from_log && !args.dry_run {
        return Ok(store.fix_topology(topology).await?);
    }
    Ok(topology)
}

fn print(report: &ReconcileReport, args: &ReconcileArgs) -> std::io::Result<()> {
    let mut table = Table::new();
    table.set_header(["partition", "stored", "published", "on topic", "missing", "only on topic", "differs at"]);
    for partition in &report.partitions {
        let on_topic = match partition.highest {
            0 => "-".to_owned(),
            highest => format!("{} to {highest}", partition.lowest),
        };
        table.add_row([
            format!("{}/{}", partition.topic, partition.partition),
            partition.stored.to_string(),
            partition.published.to_string(),
            on_topic,
            partition.missing.to_string(),
            partition.only_on_topic.to_string(),
            partition.differs_at.map_or_else(|| "-".to_owned(), |sequence| sequence.to_string()),
        ]);
    }
    output::line(table.to_string())?;
    output::line(verdict(report, args))
}

fn verdict(report: &ReconcileReport, args: &ReconcileArgs) -> String {
    let restored = match report.restored_events {
        0 => String::new(),
        count => format!("{count} events are back in the event table. "),
    };
    let text = match report.finding {
        Finding::Level => "Event table and topics are level.".to_owned(),
        Finding::LogIsBehind if report.repaired => format!(
            "Published events are not on their topics. The cursor went from {} to {}: start the relay, and it publishes them again.",
            report.cursor, report.cursor_after
        ),
        Finding::LogIsBehind => format!(
            "Published events are not on their topics. Without --dry-run the cursor goes from {} to {}, and the relay publishes them again.",
            report.cursor, report.cursor_after
        ),
        Finding::TableIsBehind if args.restore_from_log => {
            "The topics hold events that the event table does not. Without --dry-run they are put back.".to_owned()
        }
        Finding::TableIsBehind => {
            "The topics hold events that the event table does not: it was restored to an earlier point. Stop all writers and run this again with --restore-from-log (docs/operations.md, \"Restore the event store\").".to_owned()
        }
        Finding::HistoriesDiffer => {
            "Some sequences stand for one event in the event table and for another on their topic. Nothing was changed: this needs new topics and rebuilt read models (docs/operations.md, \"Restore the event store\").".to_owned()
        }
    };
    restored + &text
}
