//! `simulate`: runs many seeds, or one with its whole trace. Exit code 1 when an invariant broke, or when one was to
//! break with `--guard-off` and did not.

#![allow(clippy::print_stdout, reason = "a program prints its results")]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use simulator::campaign::{Campaign, Report, run_campaign};
use simulator::guard::Guard;
use simulator::shrink::shrink;
use simulator::world::{Place, Plan};
use simulator::{Verdict, run};

/// Runs Millrace's command handler, relay and projector engine on simulated ports, from a seed, with faults.
#[derive(Debug, Parser)]
struct Flags {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed; a new one each day without it.
    #[arg(long)]
    base: Option<u64>,
    /// Runs this seed alone, and prints its whole trace.
    #[arg(long)]
    seed: Option<u64>,
    /// Switches a guard off: then a violation must be found.
    #[arg(long)]
    guard_off: Option<Guard>,
    /// Begins no further seed after so many seconds.
    #[arg(long)]
    most_seconds: Option<u64>,
    /// Seeds that run at once; one per core without it.
    #[arg(long)]
    threads: Option<usize>,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
    /// Ends with the line `N passed, N failed`, one per seed, for `make test`.
    #[arg(long)]
    counts: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match flags.seed {
        Some(seed) => replay(seed, flags.guard_off),
        None => simulate(&flags),
    }
}

fn replay(seed: u64, guard_off: Option<Guard>) -> ExitCode {
    let verdict = run(&Plan { seed, guard_off, keeps_trace: true, ..Plan::default() });
    for line in &verdict.trace {
        println!("{line}");
    }
    println!("seed {seed}, trace {:016x}", verdict.hash);
    match &verdict.violation {
        Some(violation) => {
            println!("violation of {violation}");
            ExitCode::FAILURE
        }
        None => {
            println!("no violation");
            ExitCode::SUCCESS
        }
    }
}

fn simulate(flags: &Flags) -> ExitCode {
    let first = flags.base.unwrap_or_else(seed_of_today);
    let campaign = Campaign {
        first,
        seeds: flags.seeds,
        guard_off: flags.guard_off,
        most: flags.most_seconds.map(Duration::from_secs),
        stops_at_failure: flags.guard_off.is_some(),
        threads: flags.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
    };
    if !flags.json {
        println!("seeds {first} to {}", first + flags.seeds.saturating_sub(1));
    }
    let bar = ProgressBar::with_draw_target(Some(flags.seeds), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} seeds, {per_sec}, {msg}") {
        bar.set_style(style);
    }
    let report = run_campaign(&campaign, |verdict| {
        bar.inc(1);
        if let Some(violation) = &verdict.violation {
            bar.set_message(format!("seed {} breaks {}", verdict.seed, violation.invariant));
        }
    });
    bar.finish_and_clear();
    if flags.json {
        println!("{:#}", told_as_json(flags, first, &report));
    } else {
        tell(&report);
    }
    if let (Some(failed), false) = (report.failed.first(), flags.json) {
        tell_smallest(failed, flags.guard_off);
    }
    let is_found = !report.failed.is_empty();
    if flags.counts {
        let failed = report.failed.len() as u64;
        println!("{} passed, {failed} failed", report.run - failed);
    }
    match flags.guard_off {
        Some(guard) if !is_found => {
            println!("{guard} is off, and the checker saw nothing in {} seeds", report.run);
            ExitCode::FAILURE
        }
        None if is_found => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Other seeds each day, the same on one day.
fn seed_of_today() -> u64 {
    let day: u64 = chrono::Utc::now().format("%Y%m%d").to_string().parse().unwrap_or_default();
    day * 1_000_000
}

fn tell(report: &Report) {
    let seconds = report.time.as_secs_f64();
    println!("{} seeds in {seconds:.1} s, {:.0} a second", report.run, report.run as f64 / seconds.max(0.001));
    for (name, count) in report.stats.named() {
        println!("  {name:18} {count:>12}");
    }
    for verdict in &report.failed {
        if let Some(violation) = &verdict.violation {
            println!("seed {}: {violation}", verdict.seed);
        }
    }
}

fn told_as_json(flags: &Flags, first: u64, report: &Report) -> serde_json::Value {
    let failed: Vec<_> = report
        .failed
        .iter()
        .filter_map(|verdict| {
            let violation = verdict.violation.as_ref()?;
            Some(serde_json::json!({
                "seed": verdict.seed, "invariant": violation.invariant, "what": violation.what,
            }))
        })
        .collect();
    let mut told = serde_json::json!({
        "first": first,
        "seeds": report.run,
        "guard_off": flags.guard_off.map(|guard| guard.to_string()),
        "seconds": report.time.as_secs_f64(),
        "failed": failed,
    });
    for (name, count) in report.stats.named() {
        told[name] = count.into();
    }
    told
}

/// Makes the failure small, and prints its steps.
fn tell_smallest(failed: &Verdict, guard_off: Option<Guard>) {
    let plan = Plan { seed: failed.seed, guard_off, ..Plan::default() };
    let (smallest, verdict) = shrink(failed, &plan);
    let count = |set: Option<usize>| set.unwrap_or_default();
    println!(
        "\nseed {} made small: {} faults, {} incidents, {} commands",
        failed.seed,
        count(smallest.only_faults.as_ref().map(std::collections::BTreeSet::len)),
        count(smallest.only_incidents.as_ref().map(std::collections::BTreeSet::len)),
        count(smallest.only_commands.as_ref().map(std::collections::BTreeSet::len)),
    );
    for (place, fault) in &verdict.fired {
        let Place { process, operation, count } = place;
        println!("  fault: {process} {operation} #{count} {fault}");
    }
    for line in &verdict.trace {
        println!("{line}");
    }
    if let Some(violation) = &verdict.violation {
        println!("violation of {violation}");
    }
    println!("the whole trace: simulate --seed {}", failed.seed);
}
