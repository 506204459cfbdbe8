//! A share of the inputs of one target, one after the other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::bounds::{self, Cost};
use crate::mutation::{mutate, random};
use crate::target::Target;

/// Findings of one kind tell nothing new after a few.
const MOST_FINDINGS: usize = 10;
/// Stack of a worker thread of the runtime: what a parser may use in production.
const STACK: usize = 2 * 1024 * 1024;

/// Which inputs.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    pub seed: u64,
    /// Number of the first input.
    pub from: u64,
    /// Inputs.
    pub inputs: u64,
}

/// What came of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    pub target: String,
    pub inputs: u64,
    pub seconds: f64,
    /// The longest that one input took, in milliseconds.
    pub longest_ms: f64,
    /// The most that one input held at once, in bytes.
    pub most_memory: usize,
    pub findings: Vec<Finding>,
}

/// An input that broke a promise.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    /// Its number: with seed and target it can be made again.
    pub number: u64,
    pub problem: String,
}

/// Makes the input of a number.
pub fn input(target: &dyn Target, corpus: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    let mut random = random(seed, target.name(), number);
    let generated = if random.random_range(0..3_u32) == 0 { target.generate(&mut random) } else { None };
    let mut input = generated.unwrap_or_else(|| mutate(&mut random, corpus, target.words(), target.largest()));
    input.truncate(target.largest());
    input
}

/// Feeds a share on a thread of its own. `progress` holds the number of the input under way, for whoever outlives us.
pub fn run(make: fn() -> Box<dyn Target>, share: Share, progress: Option<&Path>) -> io::Result<Report> {
    let progress = progress.map(File::create).transpose()?;
    let worker = move || feed_share(make().as_ref(), share, progress.as_ref());
    let worker = std::thread::Builder::new().stack_size(STACK).spawn(worker)?;
    worker.join().map_err(|_| io::Error::other("the target could not be made"))?
}

fn feed_share(target: &dyn Target, share: Share, progress: Option<&File>) -> io::Result<Report> {
    let corpus = target.corpus();
    let mut report = Report { target: target.name().to_owned(), ..Report::default() };
    bounds::watch();
    let (mut longest, mut spent) = (Duration::ZERO, Duration::ZERO);
    for number in share.from..share.from + share.inputs {
        if let Some(progress) = progress {
            progress.write_all_at(&number.to_le_bytes(), 0)?;
        }
        let input = input(target, &corpus, share.seed, number);
        let (Cost { time, memory }, verdict) = bounds::hold(target, &input);
        report.inputs += 1;
        spent += time;
        longest = longest.max(time);
        report.most_memory = report.most_memory.max(memory);
        if let Err(problem) = verdict {
            report.findings.push(Finding { number, problem });
            if report.findings.len() >= MOST_FINDINGS {
                break;
            }
        }
    }
    report.seconds = spent.as_secs_f64();
    report.longest_ms = longest.as_secs_f64() * 1_000.0;
    Ok(report)
}
