//! What happens to the world apart from single calls: processes that die or freeze, rebalances, stores that lose their
//! last second or everything, records of strangers, and a program of another version.

use std::fmt;
use std::time::Duration;

use crate::world::mixed;

/// Something that happens once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incident {
    Crash(&'static str),
    Freeze(&'static str, Duration),
    Rebalance,
    /// The store loses its unsynced writes, in the partitions that the mask names.
    RollBack(Model, Duration, u32),
    Wipe(Model),
    /// A record that is no event, on an event topic.
    StrangeEvent(u32),
    /// A record that is no command, on a command topic.
    StrangeCommand(u32),
    /// A projector whose fold is another one joins the group.
    OtherVersion,
}

/// A read model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    Stock,
    Search,
}

/// The processes of a simulated system.
pub const PROCESSES: [&str; 7] = ["writer-1", "writer-2", "relay-1", "relay-2", "stock-1", "stock-2", "search-1"];

/// When the faults end.
pub const FAULTS_END: Duration = Duration::from_secs(25);

/// The incidents of a seed, each with its time.
pub fn incidents(seed: u64) -> Vec<(Duration, Incident)> {
    let mut dice = fastrand::Rng::with_seed(mixed(seed, "incidents", 0));
    let count = if dice.u8(..8) == 0 { 0 } else { dice.usize(1..16) };
    let may_wipe = dice.bool();
    let mut incidents: Vec<(Duration, Incident)> = Vec::with_capacity(count);
    for _ in 0..count {
        let at = Duration::from_millis(dice.u64(..FAULTS_END.as_millis() as u64));
        let process = PROCESSES[dice.usize(..PROCESSES.len())];
        let model = if dice.u8(..3) == 0 { Model::Search } else { Model::Stock };
        let incident = match dice.u8(..16) {
            0..4 => Incident::Crash(process),
            4..8 => Incident::Freeze(process, Duration::from_millis(dice.u64(200..12_000))),
            8..10 => Incident::Rebalance,
            10..12 => Incident::RollBack(model, Duration::from_millis(dice.u64(1..1_000)), dice.u32(..)),
            12 if may_wipe => Incident::Wipe(model),
            13 => Incident::StrangeEvent(dice.u32(..)),
            14 => Incident::StrangeCommand(dice.u32(..)),
            // Over an empty store the other version would be the right one.
            15 if !may_wipe => Incident::OtherVersion,
            _ => Incident::Crash(process),
        };
        incidents.push((at, incident));
    }
    incidents.sort_by_key(|(at, _)| *at);
    incidents
}

impl fmt::Display for Incident {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Incident::Crash(process) => write!(formatter, "{process} is killed"),
            Incident::Freeze(process, time) => write!(formatter, "{process} freezes for {} ms", time.as_millis()),
            Incident::Rebalance => formatter.write_str("the groups share their partitions anew"),
            Incident::RollBack(model, lost, _) => {
                write!(formatter, "the {model:?} store loses its last {} ms in some partitions", lost.as_millis())
            }
            Incident::Wipe(model) => write!(formatter, "the {model:?} store is emptied"),
            Incident::StrangeEvent(_) => formatter.write_str("a stranger writes to an event topic"),
            Incident::StrangeCommand(_) => formatter.write_str("a stranger writes to a command topic"),
            Incident::OtherVersion => formatter.write_str("a projector with another fold joins"),
        }
    }
}
