//! How generations are told of, by the command line and over HTTP.

use read_models::generations::{Catalogue, GenerationEntry, GenerationState, Share, Source};
use read_models::{PartitionStatus, ReadModelStatus};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ReplayError;
use crate::next_steps::{instant, next_steps};
use crate::outcome::NextStep;
use crate::record::ReplayRecord;
use crate::replayed::Replayed;

/// The generations of one read model.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ReplaysView {
    /// `stock` or `search`.
    pub projection: &'static str,
    /// `stock@1`: answers what no stage gives to another one.
    pub serving: String,
    pub generations: Vec<GenerationView>,
    /// What may be done next.
    pub next: Vec<NextStep>,
    /// Of the catalogue.
    pub version: u64,
}

/// One generation.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct GenerationView {
    /// `stock@2`
    pub generation: String,
    #[serde(skip)]
    pub number: u32,
    pub role: Role,
    /// Version of the fold that builds it.
    pub fold: u32,
    /// `log` or `event_table`: where its events come from.
    pub source: &'static str,
    /// Where it stands still for good.
    pub until: Option<String>,
    /// What is answered from it.
    pub answers: String,
    /// Percent of the other requests that are read from it too, for comparison.
    pub mirror_percent: u8,
    /// Of the replay that builds it; none built the first generation.
    pub replay: Option<ReplayView>,
    /// `None` where nothing of it is there, yet or any more.
    pub progress: Option<ProgressView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Serving,
    /// It is being cut over to.
    Candidate,
    /// It served before, and is what a rollback goes back to.
    Previous,
    /// Built beside, and answers nobody who does not ask for it.
    Beside,
    /// Of the past: it stands still.
    AsOf,
    /// Its rows are being removed.
    Retired,
    Removed,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ReplayView {
    pub started_by: String,
    pub started_at: String,
    pub reason: String,
    /// Whether stages are entered by themselves.
    pub automatic: bool,
    /// All of the plan, in order.
    pub stages: Vec<String>,
    /// The one that it is in.
    pub stage: Option<String>,
    /// The newest comparison: whether nothing differs but what rules cover.
    pub parity_clean: Option<bool>,
    pub parity_at: Option<String>,
    pub compared_keys: Option<u64>,
    /// Who approved the newest comparison.
    pub approved_by: Vec<String>,
    pub approvals_needed: u32,
    pub cut_over_at: Option<String>,
}

/// How far it is built.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ProgressView {
    /// Records of the log that were read.
    pub records: u64,
    /// Records that are left; `None` while the log's end was not seen.
    pub lag_events: Option<u64>,
    pub partitions: usize,
    /// Partitions whose reads are answered.
    pub live: usize,
    pub parked_keys: u64,
    /// Time of the newest event in it, milliseconds since 1970; 0 before the first.
    pub newest_event: i64,
}

// === impl ReplaysView ===

impl ReplaysView {
    pub async fn of(replayed: &Replayed) -> Result<Self, ReplayError> {
        let catalogue = replayed.catalogue().await?;
        let mut generations = Vec::new();
        for (number, entry) in &catalogue.generations {
            let status = match entry.state {
                GenerationState::Fed => replayed.status(*number).await?,
                GenerationState::Retired | GenerationState::Removed => None,
            };
            generations.push(GenerationView::of(replayed.name(), &catalogue, *number, entry, status.as_ref())?);
        }
        Ok(Self {
            projection: replayed.name(),
            serving: format!("{}@{}", replayed.name(), catalogue.serving),
            generations,
            next: next_steps(replayed.name(), &catalogue)?,
            version: catalogue.version,
        })
    }

    pub fn generation(&self, number: u32) -> Option<&GenerationView> {
        self.generations.iter().find(|generation| generation.number == number)
    }
}

// === impl GenerationView ===

impl GenerationView {
    pub fn is_fed(&self) -> bool {
        !matches!(self.role, Role::Retired | Role::Removed)
    }

    fn of(
        name: &str,
        catalogue: &Catalogue,
        number: u32,
        entry: &GenerationEntry,
        status: Option<&ReadModelStatus>,
    ) -> Result<Self, ReplayError> {
        let candidate = catalogue.candidate.as_ref();
        let own = candidate.filter(|candidate| candidate.generation == number);
        let answers = match (own, candidate) {
            (Some(own), _) => share_text(&own.share),
            (None, Some(candidate)) if catalogue.serving == number => match &candidate.share {
                Share::None => "all".to_owned(),
                share => format!("all but {}", share_text(share)),
            },
            (None, _) if catalogue.serving == number => "all".to_owned(),
            (None, _) => "nothing".to_owned(),
        };
        Ok(Self {
            generation: format!("{name}@{number}"),
            number,
            role: Role::of(catalogue, number, entry),
            fold: entry.fold_version,
            source: match entry.source {
                Source::Log => "log",
                Source::EventTable => "event_table",
            },
            until: entry.until.as_ref().map(ToString::to_string),
            answers,
            mirror_percent: own.map_or(0, |own| own.mirror_percent),
            replay: ReplayRecord::of(entry)?.map(ReplayView::of),
            progress: status.map(ProgressView::of),
        })
    }
}

fn share_text(share: &Share) -> String {
    match share {
        Share::None => "nothing".to_owned(),
        Share::Percent(percent) => format!("{percent} %"),
        Share::Regions(regions) => {
            let names: Vec<&str> = regions.iter().map(|region| region.as_str()).collect();
            format!("requests for {}", names.join(", "))
        }
    }
}

// === impl Role ===

impl Role {
    fn of(catalogue: &Catalogue, number: u32, entry: &GenerationEntry) -> Self {
        let is_candidate = catalogue.candidate.as_ref().is_some_and(|candidate| candidate.generation == number);
        match entry.state {
            GenerationState::Retired => Role::Retired,
            GenerationState::Removed => Role::Removed,
            GenerationState::Fed if catalogue.serving == number => Role::Serving,
            GenerationState::Fed if is_candidate => Role::Candidate,
            GenerationState::Fed if entry.until.is_some() => Role::AsOf,
            GenerationState::Fed if catalogue.previous == Some(number) => Role::Previous,
            GenerationState::Fed => Role::Beside,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Serving => "serving",
            Role::Candidate => "candidate",
            Role::Previous => "previous",
            Role::Beside => "beside",
            Role::AsOf => "as of",
            Role::Retired => "retired",
            Role::Removed => "removed",
        }
    }
}

// === impl ReplayView ===

impl ReplayView {
    fn of(record: ReplayRecord) -> Self {
        let stage = record.current_stage().map(|stage| stage.name.clone());
        Self {
            started_at: instant(record.started_at),
            automatic: record.automatic,
            stages: record.plan.stages.iter().map(|stage| stage.name.clone()).collect(),
            stage,
            parity_clean: record.parity.as_ref().map(|parity| parity.is_clean()),
            parity_at: record.parity.as_ref().map(|parity| instant(parity.at)),
            compared_keys: record.parity.as_ref().map(|parity| parity.compared_keys),
            approved_by: record.approvals.iter().map(|approval| approval.by.clone()).collect(),
            approvals_needed: record.plan.approvals.needed,
            cut_over_at: record.cut_over.as_ref().map(|cut_over| instant(cut_over.at)),
            started_by: record.started_by,
            reason: record.reason,
        }
    }
}

// === impl ProgressView ===

impl ProgressView {
    fn of(status: &ReadModelStatus) -> Self {
        let partitions = &status.partitions;
        Self {
            records: partitions.iter().map(|partition| partition.checkpoint.next_offset).sum(),
            lag_events: status.lag_events(),
            partitions: partitions.len(),
            live: partitions.iter().filter(|partition| partition.live).count(),
            parked_keys: partitions.iter().map(|partition| partition.parked_keys).sum(),
            newest_event: partitions.iter().map(newest_event).max().unwrap_or(0),
        }
    }

    /// Whether all of it is answered from and nothing is left.
    pub fn is_caught_up(&self) -> bool {
        self.partitions > 0 && self.live == self.partitions && self.lag_events == Some(0)
    }
}

fn newest_event(partition: &PartitionStatus) -> i64 {
    partition.checkpoint.event_time
}
