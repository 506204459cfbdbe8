//! The simulator holds what it promises: the same seed gives the same run, each guard is missed when it is off, and the
//! first seeds pass.

use simulator::campaign::{Campaign, run_campaign};
use simulator::guard::Guard;
use simulator::run;
use simulator::world::Plan;

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        let plan = Plan { seed, ..Plan::default() };
        let (first, second) = (run(&plan), run(&plan));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.stats, second.stats, "seed {seed}");
    }
    assert_ne!(run(&Plan { seed: 1, ..Plan::default() }).hash, run(&Plan { seed: 2, ..Plan::default() }).hash);
}

#[test]
fn each_guard_is_missed_when_it_is_off() {
    for guard in Guard::ALL {
        let campaign =
            Campaign { first: 0, seeds: 4_000, guard_off: Some(guard), most: None, stops_at_failure: true, threads: 2 };
        let report = run_campaign(&campaign, |_| {});
        assert!(!report.failed.is_empty(), "{guard} is off, and nothing was seen in {} seeds", report.run);
    }
}

/// A few runs under `cargo test`, so that a simulator that finds fault with everything is seen without `make simulate`. Seeds
/// that fail there are not kept here: what a seed draws changes with the simulator.
#[test]
fn the_first_seeds_pass() {
    for seed in 1..=4 {
        let verdict = run(&Plan { seed, ..Plan::default() });
        assert_eq!(verdict.violation, None, "seed {seed}");
    }
}
