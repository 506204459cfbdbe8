//! `millrace replay dry-run`: what a fold would make of the log, without writing anything.

use anyhow::bail;
use replay::DryRunReport;
use replay::parity::Progress;
use replay::rules::Rules;

use super::args::DryRunArgs;
use super::connect;
use super::verify::show;
use crate::exit::Exit;
use crate::output;

pub async fn run(args: DryRunArgs) -> anyhow::Result<Exit> {
    let name = args.projection.as_str();
    let rules = args.rules.as_deref().map(|file| Rules::read(file, name)).transpose()?.unwrap_or_default();
    let replayed = connect::read_model(&args.at, name).await?;
    let log = connect::log(&args.at, &args.event_log).await?;
    let folds = replayed.folds();
    let fold = args.fold.or(folds.last().copied()).unwrap_or_default();
    if !folds.contains(&fold) {
        let known: Vec<String> = folds.iter().map(u32::to_string).collect();
        eprintln!("millrace: --fold {fold}: this program has fold {} of {name}", known.join(", "));
        return Ok(Exit::Usage);
    }
    let catalogue = replayed.catalogue().await?;
    let progress = Progress::default();
    let report = tokio::select! {
        report = replayed.dry_run(&catalogue, fold, &log, &rules, &progress) => report?,
        never = show(&progress) => match never {},
        _ = tokio::signal::ctrl_c() => bail!("it was stopped: nothing can be said"),
    };
    if args.at.json {
        output::json(&report)?;
    } else {
        print(&report, args.show)?;
    }
    Ok(if report.is_clean() { Exit::Done } else { Exit::Refused })
}

fn print(report: &DryRunReport, show: usize) -> anyhow::Result<()> {
    let verdict = if report.is_clean() { "clean" } else { "NOT CLEAN" };
    output::line(format!(
        "dry run of fold {} of {name} against {name}@{}: {verdict}",
        report.fold,
        report.live,
        name = report.projection
    ))?;
    output::line(format!(
        "  events    {} folded, {} failed, {} duplicates, {} records of nobody",
        report.events, report.failed_events, report.duplicates, report.foreign
    ))?;
    output::line(format!("  parked    {} keys with {} events would wait", report.parked_keys, report.parked_events))?;
    output::line(format!("  rows      {}, {} differ in a way that no rule covers", report.rows, report.differing))?;
    output::line(format!(
        "  cost      {:.1} s, {:.0} events/s on one core, without writing",
        report.fold_seconds, report.events_per_second
    ))?;
    for failure in report.failures.iter().take(show) {
        output::line(format!(
            "  {} sequence {} {} of {}: {}",
            failure.partition, failure.sequence, failure.event_type, failure.key, failure.reason
        ))?;
    }
    for difference in report.differences.iter().take(show) {
        output::line(format!("  {}", difference.line()))?;
    }
    Ok(())
}
