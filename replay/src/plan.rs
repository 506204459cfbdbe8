//! The plan of a cutover: its stages, what lets a stage be entered and left, what rolls back by itself, and until when.
//!
//! ```toml
//! [[stage]]
//! name = "tenth"
//! share = { percent = 10 }    # "none" (mirrored reads only), { percent = n }, { regions = ["eu"] } or "all"
//! ```
//! The last stage gives all, and no stage takes back what an earlier one gave. A plan is kept with its replay: a file
//! that changes later changes no replay that has begun.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use read_models::generations::Share;
use read_models::search;
use schemas::RegionId;
use serde::{Deserialize, Serialize};

use crate::error::ReplayError;

/// How a generation comes to serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// In their order; the last gives all.
    #[serde(rename = "stage", default = "all_at_once")]
    pub stages: Vec<Stage>,
    /// What rolls back by itself.
    #[serde(default)]
    pub triggers: TriggerBounds,
    #[serde(default)]
    pub rollback: RollbackWindow,
    #[serde(default)]
    pub approvals: ApprovalRule,
    /// A stage is not entered on a comparison that is older.
    #[serde(with = "duration_text", default = "an_hour")]
    pub parity_max_age: Duration,
    /// Whether a comparison must have asked queries; unless said it must where it can: of search.
    #[serde(default)]
    pub queries: Option<QueryRule>,
}

/// Whether a comparison without queries lets a stage be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryRule {
    Required,
    Optional,
}

/// One step on the way to all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    pub name: String,
    pub share: StageShare,
    /// Percent of the requests that are not answered from the candidate and are read from it too, for comparison.
    #[serde(default)]
    pub mirror_percent: u8,
    /// How long it lasts at least.
    #[serde(with = "duration_text", default)]
    pub min_time: Duration,
    #[serde(default)]
    pub entry: Entry,
    #[serde(default)]
    pub exit: Exit,
}

/// What a stage answers from the candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageShare {
    /// Nothing: reads are mirrored only.
    None,
    Percent(u8),
    Regions(Vec<RegionId>),
    All,
}

/// What must hold before a stage begins, beside clean parity and approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Entry {
    /// Events that the candidate may be behind the log.
    pub max_lag_events: u64,
}

/// What must hold before a stage is left for the next one. All of it is measured on mirrored reads of this stage.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Exit {
    pub min_mirrored: u64,
    /// Share of mirrored reads that failed: 0.01 is one of a hundred.
    pub max_error_rate: Option<f64>,
    /// Mirrored reads whose answer differed.
    pub max_differing: Option<u64>,
    /// The candidate's 99th percentile, in those of what serves.
    pub max_p99_ratio: Option<f64>,
}

/// Bounds that roll back by themselves once they are passed for long enough.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TriggerBounds {
    /// Events that the new generation is behind the log.
    pub max_lag_events: Option<u64>,
    /// Share of requests, mirrored ones or answered ones, that failed.
    pub max_error_rate: Option<f64>,
    /// Mirrored reads of the stage whose answer differed.
    pub max_differing: Option<u64>,
    /// 99th percentile of reads, mirrored ones or answered ones, in milliseconds.
    pub max_p99_ms: Option<f64>,
    #[serde(with = "duration_text")]
    pub holds_for: Duration,
}

/// How long the old generation is kept for a way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RollbackWindow {
    /// Counted from the cutover to all.
    #[serde(with = "duration_text")]
    pub window: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalRule {
    /// How many persons, of those whom `ownership.toml` names and other than who started the replay.
    pub needed: u32,
}

/// Longest time that a trigger may wait: what goes wrong is rolled back within 60 s.
const MAX_HOLDS_FOR: Duration = Duration::from_secs(45);
const MAX_STAGES: usize = 50;
/// A comparison that is older says nothing of today's events.
const MAX_PARITY_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Nobody notices within less that a rollback is due; and a generation that is kept for longer is kept for ever.
const ROLLBACK_WINDOW: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(90 * 24 * 60 * 60);
/// Generations that are further apart are not compared either.
const MAX_ENTRY_LAG: u64 = 100_000;
/// A trigger beyond it fires for nobody.
const MAX_TRIGGER_LAG: u64 = 10_000_000;
const MAX_P99_MS: f64 = 60_000.0;
const MAX_P99_RATIO: f64 = 100.0;
const MAX_MIN_TIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const MAX_MIN_MIRRORED: u64 = 10_000_000;
const MAX_APPROVALS: u32 = 20;

// === impl Plan ===

impl Default for Plan {
    /// All at once, after clean parity and one approval.
    fn default() -> Self {
        Self {
            stages: all_at_once(),
            triggers: TriggerBounds::default(),
            rollback: RollbackWindow::default(),
            approvals: ApprovalRule::default(),
            parity_max_age: an_hour(),
            queries: None,
        }
    }
}

impl Plan {
    /// Reads a stages file.
    pub fn read(path: &Path) -> Result<Self, ReplayError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ReplayError::File { path: file.clone(), problem: error.to_string() })?;
        Self::parse(&file, &text)
    }

    /// Reads the text of a stages file; `file` is for the error, which names the key and what would do.
    pub fn parse(file: &str, text: &str) -> Result<Self, ReplayError> {
        let refused = |problem| ReplayError::File { path: file.to_owned(), problem };
        let plan: Plan = toml::from_str(text).map_err(|error| refused(error.to_string().trim().replace('\n', " ")))?;
        plan.check().map_err(refused)?;
        Ok(plan)
    }

    /// The place of a stage.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.stages.iter().position(|stage| stage.name == name)
    }

    fn check(&self) -> Result<(), String> {
        if self.stages.len() > MAX_STAGES {
            return Err(format!("{} stages; at most {MAX_STAGES} fit", self.stages.len()));
        }
        let mut names = BTreeSet::new();
        for stage in &self.stages {
            let of = |problem: String| format!("stage {:?}: {problem}", stage.name);
            if stage.name.trim().is_empty() || stage.name.len() > 64 {
                return Err(of("name: use 1 to 64 characters".to_owned()));
            }
            if !names.insert(&stage.name) {
                return Err(of("name: another stage has it; each needs its own".to_owned()));
            }
            stage.check().map_err(of)?;
        }
        match self.stages.split_last() {
            Some((last, before)) if last.share == StageShare::All => {
                if let Some(stage) = before.iter().find(|stage| stage.share == StageShare::All) {
                    return Err(format!("stage {:?}: share: only the last stage gives \"all\"", stage.name));
                }
            }
            Some((last, _)) => return Err(format!("stage {:?}: share: the last stage needs \"all\"", last.name)),
            None => return Err("stage: at least one is needed, with share = \"all\"".to_owned()),
        }
        for (index, stage) in self.stages.iter().enumerate() {
            let Some(wider) = self.stages[..index].iter().find(|before| before.share.is_taken_back_by(&stage.share))
            else {
                continue;
            };
            return Err(format!(
                "stage {:?}: share: {} is less than the {} of stage {:?}; shares may only grow",
                stage.name, stage.share, wider.share, wider.name
            ));
        }
        self.check_bounds()
    }

    fn check_bounds(&self) -> Result<(), String> {
        let rate = self.triggers.max_error_rate;
        if rate.is_some_and(|rate| !(0.0..=1.0).contains(&rate)) {
            return Err("triggers.max_error_rate: use a share between 0.0 and 1.0".to_owned());
        }
        if self.triggers.max_p99_ms.is_some_and(|p99| !(p99 > 0.0 && p99 <= MAX_P99_MS)) {
            return Err(format!("triggers.max_p99_ms: use milliseconds above 0, {MAX_P99_MS} at most"));
        }
        if self.triggers.max_lag_events.is_some_and(|lag| !(1..=MAX_TRIGGER_LAG).contains(&lag)) {
            return Err(format!("triggers.max_lag_events: use 1 to {MAX_TRIGGER_LAG} events"));
        }
        if self.triggers.holds_for > MAX_HOLDS_FOR {
            return Err("triggers.holds_for: use at most 45s, so that it rolls back within 60 s".to_owned());
        }
        if self.approvals.needed == 0 {
            return Err("approvals.needed: use 1 or more; nothing is cut over without approval".to_owned());
        }
        if self.approvals.needed > MAX_APPROVALS {
            return Err(format!("approvals.needed: use {MAX_APPROVALS} at most"));
        }
        if self.parity_max_age.is_zero() || self.parity_max_age > MAX_PARITY_AGE {
            return Err("parity_max_age: use a time such as 1h, 24h at most".to_owned());
        }
        if !ROLLBACK_WINDOW.contains(&self.rollback.window) {
            return Err("rollback.window: use 1m to 90days, such as 24h".to_owned());
        }
        Ok(())
    }
}

// === impl QueryRule ===

impl QueryRule {
    /// Where a plan says nothing: rows that are level say little of what a search finds and in which order.
    pub fn of(read_model: &str) -> Self {
        if read_model == search::NAME { QueryRule::Required } else { QueryRule::Optional }
    }
}

// === impl Stage ===

impl Stage {
    /// Whether requests are answered from the candidate in it.
    pub fn answers(&self) -> bool {
        self.share != StageShare::None
    }

    fn check(&self) -> Result<(), String> {
        match &self.share {
            StageShare::Percent(percent) if !(1..=99).contains(percent) => {
                return Err(format!("share.percent: {percent} is not 1 to 99; use \"none\" or \"all\" beyond"));
            }
            StageShare::Regions(regions) if regions.is_empty() => {
                return Err("share.regions: name one at least, such as [\"eu\"]".to_owned());
            }
            StageShare::All if self.mirror_percent > 0 => {
                return Err("mirror_percent: nothing is left to mirror where share is \"all\"; leave it out".to_owned());
            }
            StageShare::All if self.exit != Exit::default() || !self.min_time.is_zero() => {
                return Err("exit, min_time: the last stage is not left; leave them out".to_owned());
            }
            StageShare::None if self.mirror_percent == 0 => {
                return Err("mirror_percent: a stage that answers nothing needs 1 to 100".to_owned());
            }
            _ => {}
        }
        if self.mirror_percent > 100 {
            return Err(format!("mirror_percent: {} is not 0 to 100", self.mirror_percent));
        }
        if self.mirror_percent == 0 && self.exit != Exit::default() {
            return Err("exit: it is measured on mirrored reads; set mirror_percent too".to_owned());
        }
        if self.exit.max_error_rate.is_some_and(|rate| !(0.0..=1.0).contains(&rate)) {
            return Err("exit.max_error_rate: use a share between 0.0 and 1.0".to_owned());
        }
        if self.exit.max_p99_ratio.is_some_and(|ratio| !(ratio > 0.0 && ratio <= MAX_P99_RATIO)) {
            return Err(format!("exit.max_p99_ratio: use a number above 0, such as 1.5, {MAX_P99_RATIO} at most"));
        }
        if self.exit.min_mirrored > MAX_MIN_MIRRORED {
            return Err(format!("exit.min_mirrored: use {MAX_MIN_MIRRORED} at most"));
        }
        if self.entry.max_lag_events > MAX_ENTRY_LAG {
            return Err(format!("entry.max_lag_events: use {MAX_ENTRY_LAG} at most"));
        }
        if self.min_time > MAX_MIN_TIME {
            return Err("min_time: use 30days at most".to_owned());
        }
        Ok(())
    }
}

// === impl StageShare ===

impl StageShare {
    /// For the catalogue; `None` where the candidate serves then.
    pub fn partial(&self) -> Option<Share> {
        match self {
            StageShare::None => Some(Share::None),
            StageShare::Percent(percent) => Some(Share::Percent(*percent)),
            StageShare::Regions(regions) => Some(Share::Regions(regions.clone())),
            StageShare::All => None,
        }
    }

    /// Whether a later stage of that share would surely give less. A percentage and a region do not compare.
    fn is_taken_back_by(&self, later: &StageShare) -> bool {
        match (self, later) {
            (StageShare::Percent(before), StageShare::Percent(after)) => after < before,
            (StageShare::Regions(before), StageShare::Regions(after)) => {
                !before.iter().all(|region| after.contains(region))
            }
            (StageShare::Percent(_) | StageShare::Regions(_) | StageShare::All, StageShare::None) => true,
            _ => false,
        }
    }
}

impl fmt::Display for StageShare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StageShare::None => formatter.write_str("mirrored reads only"),
            StageShare::Percent(percent) => write!(formatter, "{percent} %"),
            StageShare::Regions(regions) => {
                let names: Vec<&str> = regions.iter().map(RegionId::as_str).collect();
                write!(formatter, "requests for {}", names.join(", "))
            }
            StageShare::All => formatter.write_str("all"),
        }
    }
}

// === Defaults ===

fn all_at_once() -> Vec<Stage> {
    vec![Stage {
        name: "all".to_owned(),
        share: StageShare::All,
        mirror_percent: 0,
        min_time: Duration::ZERO,
        entry: Entry::default(),
        exit: Exit::default(),
    }]
}

fn an_hour() -> Duration {
    Duration::from_secs(60 * 60)
}

impl Default for Entry {
    fn default() -> Self {
        Self { max_lag_events: 1_000 }
    }
}

impl Default for TriggerBounds {
    fn default() -> Self {
        Self {
            max_lag_events: None,
            max_error_rate: None,
            max_differing: None,
            max_p99_ms: None,
            holds_for: Duration::from_secs(10),
        }
    }
}

impl Default for RollbackWindow {
    fn default() -> Self {
        Self { window: Duration::from_secs(24 * 60 * 60) }
    }
}

impl Default for ApprovalRule {
    fn default() -> Self {
        Self { needed: 1 }
    }
}

/// A time as `10s`, `24h`.
mod duration_text {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map_err(|error| D::Error::custom(format!("{text:?} is not a time such as 10s or 24h: {error}")))
    }
}

#[cfg(test)]
mod tests;
