//! The fault harness: real processes on real servers under a seeded load, one fault after the other, and an oracle that
//! compares everything with a fold of the event table. `make faults`.

mod clock;
mod commands;
mod counters;
mod disk;
mod journal;
mod lateness;
mod load;
mod operator;
mod oracle;
mod probe;
mod process;
mod proxy;
mod report;
mod scenario;
mod scenarios;
mod servers;
mod system;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use report::Verdict;
use scenario::{On, Scenario};
use servers::Servers;
use trial::Settings;

/// Injects faults into Millrace and checks that nothing is lost, doubled or wrongly answered.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    /// Only these: numbers and ranges such as 1,5-9, ids such as 24-files, or `replay` for all that begin so
    #[arg(long, global = true, value_name = "LIST")]
    only: Option<String>,
    /// Events of the load of each fault
    #[arg(long, global = true, value_name = "N", default_value_t = 100_000)]
    events: u64,
    /// Seconds that a load is spread over
    #[arg(long, global = true, value_name = "N", default_value_t = 20)]
    seconds: u64,
    /// Commands a second while a read model is replayed; half of them where everything is killed meanwhile
    #[arg(long, global = true, value_name = "N", default_value_t = 2_000)]
    rate: u64,
    /// Reads a second while a read model is replayed
    #[arg(long, global = true, value_name = "N", default_value_t = 500)]
    reads: u64,
    /// SKUs that the load is about
    #[arg(long, global = true, value_name = "N", default_value_t = 1_000)]
    skus: usize,
    /// Seed of the commands
    #[arg(long, global = true, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Program to test; beside this one unless given
    #[arg(long, global = true, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where the results go as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Bounds are so many times longer: for a machine that does other things, too
    #[arg(long, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    slack: u32,
    /// Keep the folder of a fault that failed
    #[arg(long, global = true)]
    keep: bool,
    /// Print the faults and end
    #[arg(long, global = true)]
    list: bool,
}

#[derive(Subcommand)]
enum What {
    /// Kill a random process, of ours or a server, every few seconds, under load
    Storm {
        /// How long
        #[arg(long, value_name = "N", default_value_t = 10)]
        minutes: u64,
        /// One process on files, instead of one per role on servers
        #[arg(long)]
        files: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let run = run(Cli::parse());
    let ended = tokio::select! {
        ended = run => ended,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command line: its results go to standard output")]
async fn run(cli: Cli) -> anyhow::Result<bool> {
    let (all, storm) = match cli.what {
        Some(What::Storm { minutes, files }) => (vec![scenarios::storm::scenario(minutes, files)], minutes * 60),
        None => (scenarios::all(), 0),
    };
    let chosen: Vec<&Scenario> = match &cli.only {
        Some(list) => chosen(&all, list)?,
        None => all.iter().collect(),
    };
    if cli.list {
        for scenario in chosen {
            println!("{:20} {}", scenario.id(), scenario.fault);
        }
        return Ok(true);
    }
    let binary = match cli.binary {
        Some(binary) => std::fs::canonicalize(&binary).with_context(|| binary.display().to_string())?,
        None => std::env::current_exe()?.with_file_name("millrace"),
    };
    if !binary.exists() {
        bail!("{} is missing: cargo build -p millrace", binary.display());
    }
    let settings = Settings {
        binary,
        seed: cli.seed,
        events: cli.events,
        // A storm has its load spread over all of it.
        seconds: cli.seconds.max(storm),
        rate: cli.rate,
        reads: cli.reads,
        storm: Duration::from_secs(storm),
        skus: cli.skus,
        slack: cli.slack,
        keep: cli.keep,
    };
    let first = chosen.iter().find(|scenario| !matches!(scenario.on, On::Files));
    let needs = first.map_or(servers::Needs { brokers: 1, cluster: false }, |scenario| scenario.needs());
    let mut servers = Servers::start(needs).await?;
    let mut verdicts: Vec<Verdict> = Vec::new();
    for scenario in chosen {
        eprintln!("fault {}: {}", scenario.id(), scenario.fault);
        let verdict = trial::run(scenario, &mut servers, &settings).await;
        let word = if verdict.is_passed() { "right" } else { "WRONG" };
        eprintln!("fault {}: {word}, {:.1} s", verdict.id, verdict.seconds);
        eprint!("{}", verdict.explain());
        verdicts.push(verdict);
        // After each: what was seen stays when a later one hangs.
        if let Some(file) = &cli.json {
            let faults: Vec<_> = verdicts.iter().map(Verdict::to_json).collect();
            let json = serde_json::json!({"seed": cli.seed, "events": cli.events, "faults": faults});
            std::fs::write(file, serde_json::to_vec_pretty(&json)?).with_context(|| file.display().to_string())?;
        }
    }
    println!("{}", report::table(&verdicts));
    if let Some(replays) = report::replays(&verdicts) {
        println!("{replays}");
    }
    let passed = verdicts.iter().filter(|verdict| verdict.is_passed()).count();
    println!("{passed} passed, {} failed", verdicts.len() - passed);
    Ok(passed == verdicts.len())
}

/// The scenarios that a list such as `1,5-9,24-files` names.
fn chosen<'a>(all: &'a [Scenario], list: &str) -> anyhow::Result<Vec<&'a Scenario>> {
    let mut chosen = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let before = chosen.len();
        let range = match part.split_once('-') {
            Some((from, to)) => from.parse::<u32>().ok().zip(to.parse::<u32>().ok()),
            None => part.parse().ok().map(|number: u32| (number, number)),
        };
        match range {
            Some((from, to)) => chosen.extend(all.iter().filter(|one| (from..=to).contains(&one.number))),
            None => chosen.extend(all.iter().filter(|one| one.id() == part)),
        }
        if chosen.len() == before && part.parse::<u32>().is_err() {
            chosen.extend(all.iter().filter(|one| one.id().starts_with(&format!("{part}-"))));
        }
        if chosen.len() == before {
            bail!("--only {part}: no such fault; --list prints them");
        }
    }
    Ok(chosen)
}
