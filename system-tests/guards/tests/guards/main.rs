//! Each guard, on and off: one at a time in this process, on real stores.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod commands;
mod proxy;
mod read_models_alone;
mod relaying;
mod world;

use resilience::guard::Guard;

/// Every guard of the product has a scenario here: a new one that has none fails this test.
#[test]
fn each_guard_has_a_scenario() {
    let sources = [include_str!("commands.rs"), include_str!("read_models_alone.rs"), include_str!("relaying.rs")];
    for guard in Guard::ALL {
        let named = format!("Guard::{guard:?}");
        assert!(sources.iter().any(|source| source.contains(&named)), "no scenario turns {guard} off");
    }
}
