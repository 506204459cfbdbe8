//! Makes a failing run smaller: leaves out faults, incidents and commands while the same invariant still breaks.
//!
//! Delta debugging (Zeller and Hildebrandt, 2002), on one list of all three: halves first, then smaller and smaller
//! pieces, until nothing can be left out alone or the runs are used up.

use std::collections::BTreeSet;

use crate::incident::incidents;
use crate::scenario::{Verdict, run};
use crate::workload::commands;
use crate::world::{Place, Plan};

/// Something that a run has and may do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Fault(Place),
    Incident(usize),
    Command(usize),
}

/// Most runs that one failure is worth.
const MOST_RUNS: usize = 600;

/// The smallest run found that breaks the same invariant, and its verdict with the trace.
pub fn shrink(failed: &Verdict, plan: &Plan) -> (Plan, Verdict) {
    let invariant = failed.violation.as_ref().map(|violation| violation.invariant);
    let faults = failed.fired.iter().map(|(place, _)| Piece::Fault(*place));
    let incidents = (0..incidents(plan.seed).len()).map(Piece::Incident);
    let commands = (0..commands(plan.seed).map_or(0, |commands| commands.len())).map(Piece::Command);
    let mut pieces: Vec<Piece> = faults.chain(incidents).chain(commands).collect();
    let mut runs = 0;
    let mut fails = |pieces: &[Piece]| {
        runs += 1;
        let verdict = run(&with(plan, pieces, false));
        verdict.violation.map(|violation| violation.invariant) == invariant && runs <= MOST_RUNS
    };
    let mut chunk = pieces.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut has_shrunk = false;
        while at < pieces.len() {
            let end = (at + chunk).min(pieces.len());
            let rest: Vec<Piece> = pieces[..at].iter().chain(&pieces[end..]).copied().collect();
            if fails(&rest) {
                pieces = rest;
                has_shrunk = true;
            } else {
                at = end;
            }
        }
        if chunk == 1 && !has_shrunk {
            break;
        }
        chunk = chunk.div_ceil(2);
    }
    let smallest = with(plan, &pieces, true);
    let verdict = run(&smallest);
    (smallest, verdict)
}

fn with(plan: &Plan, pieces: &[Piece], keeps_trace: bool) -> Plan {
    let mut small = Plan {
        only_faults: Some(BTreeSet::new()),
        only_incidents: Some(BTreeSet::new()),
        only_commands: Some(BTreeSet::new()),
        keeps_trace,
        ..plan.clone()
    };
    for piece in pieces {
        match piece {
            Piece::Fault(place) => small.only_faults.get_or_insert_default().insert(*place),
            Piece::Incident(number) => small.only_incidents.get_or_insert_default().insert(*number),
            Piece::Command(number) => small.only_commands.get_or_insert_default().insert(*number),
        };
    }
    small
}
