//! What came of each fault: a table for people, JSON for programs.

use std::path::PathBuf;

use comfy_table::{Cell, ContentArrangement, Table};
use serde_json::{Value, json};

use crate::oracle::Violation;
use crate::oracle::generations::Seen;
use crate::scenario::Scenario;

/// Violations of one verdict that are shown; the JSON has all.
const SHOWN: usize = 12;

/// Measured in one trial.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    pub events: u64,
    pub commands: u64,
    /// Records on the topics beyond the first of each event.
    pub duplicates_seen: u64,
    /// Counted by the projectors.
    pub duplicates_dropped: u64,
    /// Writes of old owners that were refused.
    pub superseded: u64,
    pub answers: usize,
    pub unavailable: usize,
    pub longest_outage_seconds: f64,
    /// The longest time from an acknowledgement to an answer that shows the write.
    pub latest_seconds: f64,
    /// From the end of the fault until a new command is visible in stock and search.
    pub recovery_seconds: f64,
    /// From the end of the fault until all of the load is.
    pub quiet_seconds: f64,
    /// How long the audit at the end took.
    pub audit_seconds: f64,
    /// Where a read model was replayed.
    pub replay: Option<ReplayFigures>,
}

/// Measured while a read model was replayed.
#[derive(Debug, Default, Clone)]
pub struct ReplayFigures {
    pub seen: Seen,
    /// Commands that were given, other than again.
    pub commands_per_second: f64,
    /// Records that the new generation had read when it had caught up, and how many a second.
    pub built_records: u64,
    pub built_per_second: f64,
    /// From a forced stage of a wrong generation until a trigger had rolled it back.
    pub rolled_back_seconds: Option<f64>,
    pub kills: usize,
    /// Looks at the catalogue that found it before or after a flip.
    pub looks: usize,
}

/// What came of one scenario.
#[derive(Debug)]
pub struct Verdict {
    pub id: String,
    pub fault: String,
    pub figures: Figures,
    pub seconds: f64,
    pub violations: Vec<Violation>,
    /// Why it could not run on this machine.
    pub not_run: Option<String>,
    pub logs: Vec<(String, String)>,
    pub kept: Option<PathBuf>,
}

// === impl Verdict ===

impl Verdict {
    pub fn of(scenario: &Scenario) -> Self {
        Self {
            id: scenario.id(),
            fault: scenario.fault.to_owned(),
            figures: Figures::default(),
            seconds: 0.0,
            violations: Vec::new(),
            not_run: None,
            logs: Vec::new(),
            kept: None,
        }
    }

    pub fn is_passed(&self) -> bool {
        self.violations.is_empty() && self.not_run.is_none()
    }

    fn word(&self) -> String {
        match &self.not_run {
            Some(why) => format!("not run: {why}"),
            None if self.violations.is_empty() => "right".to_owned(),
            None => format!("{} violations", self.violations.len()),
        }
    }

    pub fn to_json(&self) -> Value {
        let Figures { events, commands, duplicates_seen, duplicates_dropped, superseded, answers, .. } = self.figures;
        json!({
            "fault": self.id,
            "name": self.fault,
            "verdict": if self.is_passed() { "right" } else if self.not_run.is_some() { "not run" } else { "wrong" },
            "events": events,
            "commands": commands,
            "duplicates_seen": duplicates_seen,
            "duplicates_dropped": duplicates_dropped,
            "writes_superseded": superseded,
            "answers": answers,
            "answers_unavailable": self.figures.unavailable,
            "longest_outage_seconds": self.figures.longest_outage_seconds,
            "latest_visible_seconds": self.figures.latest_seconds,
            "recovery_seconds": self.figures.recovery_seconds,
            "quiet_seconds": self.figures.quiet_seconds,
            "audit_seconds": self.figures.audit_seconds,
            "replay": self.figures.replay.as_ref().map(ReplayFigures::to_json),
            "seconds": self.seconds,
            "violations": self.violations.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "not_run": self.not_run,
        })
    }

    /// What was wrong, for standard error.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        for violation in self.violations.iter().take(SHOWN) {
            text += &format!("    {violation}\n");
        }
        if self.violations.len() > SHOWN {
            text += &format!("    … and {} more\n", self.violations.len() - SHOWN);
        }
        for (name, end) in &self.logs {
            text += &format!("  the end of {name}'s log\n");
            text.extend(end.lines().map(|line| format!("    {}\n", line.chars().take(400).collect::<String>())));
        }
        if let Some(kept) = &self.kept {
            text += &format!("  its folder is kept: {}\n", kept.display());
        }
        text
    }
}

// === impl ReplayFigures ===

impl ReplayFigures {
    fn to_json(&self) -> Value {
        let seen = &self.seen;
        let flips: Vec<Value> = seen
            .flips
            .iter()
            .map(|flip| {
                json!({
                    "what": flip.what,
                    "command_ms": flip.command_ms,
                    "old_answers_after_ms": flip.old_after_ms,
                    "old_answers_since_asked_ms": flip.old_since_asked_ms,
                })
            })
            .collect();
        json!({
            "commands_per_second": self.commands_per_second,
            "reads": seen.reads,
            "reads_per_second": seen.reads_per_second,
            "errors": seen.errors,
            "errors_while_down": seen.errors_while_down,
            "steps_back": seen.steps_back,
            "steps_back_while_unfed": seen.steps_back_while_unfed,
            "mixed": seen.mixed,
            "flips": flips,
            "built_records": self.built_records,
            "built_per_second": self.built_per_second,
            "rolled_back_seconds": self.rolled_back_seconds,
            "kills": self.kills,
            "looks": self.looks,
        })
    }
}

/// For the end of a run, where read models were replayed.
pub fn replays(verdicts: &[Verdict]) -> Option<String> {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "replay",
        "commands/s",
        "reads/s",
        "reads",
        "errors",
        "while down",
        "steps back",
        "unfed",
        "mixed",
        "built/s",
        "flips: old after ms",
        "rolled back s",
        "kills",
        "looks",
    ]);
    for verdict in verdicts {
        let Some(replay) = &verdict.figures.replay else { continue };
        let seen = &replay.seen;
        let flips: Vec<String> =
            seen.flips.iter().map(|flip| format!("{} {:.0}", flip.what, flip.old_after_ms)).collect();
        table.add_row([
            Cell::new(&verdict.id),
            Cell::new(format!("{:.0}", replay.commands_per_second)),
            Cell::new(format!("{:.0}", seen.reads_per_second)),
            Cell::new(seen.reads),
            Cell::new(seen.errors),
            Cell::new(seen.errors_while_down),
            Cell::new(seen.steps_back),
            Cell::new(seen.steps_back_while_unfed),
            Cell::new(seen.mixed),
            Cell::new(format!("{:.0}", replay.built_per_second)),
            Cell::new(flips.join(", ")),
            Cell::new(replay.rolled_back_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1}"))),
            Cell::new(replay.kills),
            Cell::new(replay.looks),
        ]);
    }
    (table.row_count() > 0).then(|| table.to_string())
}

/// For the end of a run.
pub fn table(verdicts: &[Verdict]) -> String {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "fault",
        "what happens",
        "events",
        "twins seen",
        "dropped",
        "late s",
        "recovery s",
        "quiet s",
        "verdict",
    ]);
    for verdict in verdicts {
        let figures = &verdict.figures;
        table.add_row([
            Cell::new(&verdict.id),
            Cell::new(&verdict.fault),
            Cell::new(figures.events),
            Cell::new(figures.duplicates_seen),
            Cell::new(figures.duplicates_dropped),
            Cell::new(format!("{:.1}", figures.latest_seconds)),
            Cell::new(format!("{:.1}", figures.recovery_seconds)),
            Cell::new(format!("{:.1}", figures.quiet_seconds)),
            Cell::new(verdict.word()),
        ]);
    }
    table.to_string()
}
