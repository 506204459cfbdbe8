//! The faults, in the order of their list: what is done to the system, and what it must show beside being right.

mod commands;
mod damages;
mod log;
mod projectors;
mod relay;
mod replay;
mod stores;
pub mod storm;

use crate::scenario::Scenario;

pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(relay::scenarios());
    all.extend(log::scenarios());
    all.extend(projectors::scenarios());
    all.extend(stores::scenarios());
    all.extend(commands::scenarios());
    all.sort_by_key(|scenario| (scenario.number, !scenario.variant.is_empty()));
    all.extend(damages::scenarios());
    all.extend(replay::scenarios());
    all
}
