//! Every input that once broke something, and a share of new ones.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeSet;

use fuzz::run::{Share, run};
use fuzz::{bounds, regressions};

/// Inputs of each target in an unoptimised build; `make fuzz` takes a million.
const SHARE: u64 = 2_000;

/// One test: the bounds are those of the whole process.
#[test]
fn hostile_input_breaks_nothing() {
    let targets = fuzz::all();
    let names: BTreeSet<&str> = targets.iter().map(|(name, _)| *name).collect();
    for kept in std::fs::read_dir(regressions::folder()).unwrap() {
        let kept = kept.unwrap().file_name();
        assert!(names.contains(kept.to_str().unwrap()), "{kept:?} is no target");
    }
    let mut broken = Vec::new();
    for (name, make) in targets {
        let target = make();
        assert_eq!(target.name(), name);
        for (file, input) in regressions::of(name).unwrap() {
            bounds::watch();
            if let (_, Err(problem)) = bounds::hold(target.as_ref(), &input) {
                broken.push(format!("{}: {problem}", file.display()));
            }
        }
        drop(target);
        let begun = std::time::Instant::now();
        let report = run(make, Share { seed: 1, from: 0, inputs: SHARE }, None).unwrap();
        eprintln!("{name}: {} inputs in {:?}", report.inputs, begun.elapsed());
        broken.extend(report.findings.iter().map(|found| format!("{name}, input {}: {}", found.number, found.problem)));
    }
    // The panic hook notes panics and prints none.
    eprintln!("{}", broken.join("\n"));
    assert!(broken.is_empty(), "{} inputs broke something", broken.len());
}
