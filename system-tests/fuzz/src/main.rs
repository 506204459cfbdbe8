//! `make fuzz`: feeds hostile input to every target, prints what it cost, and keeps what broke something.
//!
//! Each target runs in a process of its own, since some of what is looked for (an endless loop, a stack that overflows,
//! memory that is not there) ends the process: the input is made again from its number then.
#![allow(clippy::print_stdout, reason = "the table is what the command is for")]

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Parser;
use fuzz::bounds::{HUNG, MOST_MEMORY, MOST_TIME};
use fuzz::run::{Finding, Report, Share, input, run};
use fuzz::target::Target;

/// Hostile input for every parser and decoder at an edge
#[derive(Debug, Parser)]
struct Settings {
    /// Inputs of each target
    #[arg(long, default_value_t = 1_000_000)]
    inputs: u64,
    /// Only this target; may be given more than once
    #[arg(long)]
    target: Vec<String>,
    /// What the inputs follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first input
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Folder for the inputs that broke something
    #[arg(long, default_value = "target/fuzz")]
    found: PathBuf,
    /// Print the reports as JSON
    #[arg(long)]
    json: bool,
    /// Run one target in this process, with the number of the input under way in this file
    #[arg(long, hide = true)]
    progress: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let settings = Settings::parse();
    let targets = fuzz::all();
    if let Some(unknown) = settings.target.iter().find(|name| !targets.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = targets.iter().map(|(name, _)| *name).collect();
        bail!("there is no target {unknown:?}; there are {}", known.join(", "));
    }
    let wanted = targets
        .into_iter()
        .filter(|(name, _)| settings.target.is_empty() || settings.target.iter().any(|wanted| wanted == name));
    let share = Share { seed: settings.seed, from: settings.from, inputs: settings.inputs };
    if let Some(progress) = &settings.progress {
        for (_, make) in wanted {
            println!("{}", serde_json::to_string(&run(make, share, Some(progress))?)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut reports = Vec::new();
    for (name, make) in wanted {
        let report = apart(name, share)?;
        if !report.findings.is_empty() {
            keep(&settings, make().as_ref(), &report)?;
        }
        reports.push(report);
    }
    if settings.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        print(&reports);
    }
    Ok(if reports.iter().all(|report| report.findings.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a target in a process of its own.
fn apart(name: &str, share: Share) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir()?;
    let progress = folder.path().join("progress");
    let output = Command::new(std::env::current_exe()?)
        .args(["--target", name, "--seed", &share.seed.to_string(), "--from", &share.from.to_string()])
        .args(["--inputs", &share.inputs.to_string(), "--progress"])
        .arg(&progress)
        .stderr(Stdio::inherit())
        .output()?;
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).with_context(|| format!("{name} gives no report"));
    }
    let number = std::fs::read(&progress).ok().and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let Some(number) = number else { bail!("{name} ended before its first input: {}", output.status) };
    let problem = match output.status.code() {
        Some(HUNG) => format!("hung: no answer in many times {MOST_TIME:?}"),
        _ => format!("ended the process: {}", output.status),
    };
    let findings = vec![Finding { number, problem }];
    Ok(Report { target: name.to_owned(), inputs: number - share.from + 1, findings, ..Report::default() })
}

/// Writes the found inputs to files, ready for the regression folder.
fn keep(settings: &Settings, target: &dyn Target, report: &Report) -> anyhow::Result<()> {
    let folder = settings.found.join(target.name());
    std::fs::create_dir_all(&folder)?;
    let corpus = target.corpus();
    for finding in &report.findings {
        let file = folder.join(format!("{}-{}", settings.seed, finding.number));
        std::fs::write(&file, input(target, &corpus, settings.seed, finding.number))?;
        eprintln!("{}: {}\n  {}", target.name(), file.display(), finding.problem);
    }
    Ok(())
}

fn print(reports: &[Report]) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["target", "inputs", "inputs/s", "longest", "most memory", "found"]);
    for report in reports {
        table.add_row([
            report.target.clone(),
            report.inputs.to_string(),
            format!("{:.0}", report.inputs as f64 / report.seconds.max(1e-9)),
            format!("{:.1} ms", report.longest_ms),
            format!("{:.1} MB", report.most_memory as f64 / 1024.0 / 1024.0),
            report.findings.len().to_string(),
        ]);
    }
    println!("{table}");
    println!("bounds: {MOST_TIME:?} and {} MB for one input", MOST_MEMORY / 1024 / 1024);
}
