//! How generations are told of, by the command line and over HTTP.

use read_models::generations::{Catalogue, GenerationEntry, GenerationState, Share, Source};
use read_models::process_report::{ProcessReport, ThrottleStatus, YieldsTo};
use read_models::{PartitionStatus, ReadModelStatus};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ReplayError;
use crate::next_steps::{instant, next_steps};
use crate::observed::REPORT_MAX_AGE_MS;
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
    /// Why nothing can be told of it.
    pub problem: Option<String>,
    /// Of one that is built beside what serves: whether and by what that is held back; `None` while nobody tells.
    pub throttle: Option<ThrottleView>,
    /// What mirrored reads of its stage showed.
    pub mirror: Option<MirrorView>,
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
    /// Names the newest comparison's report, which an approval is of.
    pub report_sha256: Option<String>,
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
    /// Records that are left; `None` while the log's end was not seen, or where a partition is halted whose topic ends
    /// before what is applied.
    pub lag_events: Option<u64>,
    pub partitions: usize,
    /// Partitions whose reads are answered.
    pub live: usize,
    pub parked_keys: u64,
    /// Time of the newest event in it, milliseconds since 1970; 0 before the first.
    pub newest_event: i64,
}

/// How fast generations may be built that answer nobody; one measure for all of them.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ThrottleView {
    pub is_held_back: bool,
    /// Events a second that the processes that build may take together; `None`: as fast as they can.
    pub events_per_second: Option<f64>,
    /// `live_lag`, `read_p99` or `unseen`.
    pub by: Option<&'static str>,
    /// What it yields to, in words.
    pub yields_to: Option<String>,
    /// That build.
    pub processes: usize,
}

/// Mirrored reads of all processes.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MirrorView {
    /// Since the stage began.
    pub requests: u64,
    pub errors: u64,
    pub differing: u64,
    /// Of the last minute.
    pub p99_ms: f64,
    /// SKUs or queries whose answers differed; a few of them.
    pub samples: Vec<String>,
}

/// Samples that are told of.
const SAMPLES: usize = 20;

// === impl ReplaysView ===

impl ReplaysView {
    /// `now` in milliseconds since 1970.
    pub async fn of(replayed: &Replayed, now: i64) -> Result<Self, ReplayError> {
        let catalogue = replayed.catalogue().await?;
        let reports = replayed.operations().generations().reports(now, REPORT_MAX_AGE_MS).await?;
        let mut generations = Vec::new();
        for (number, entry) in &catalogue.generations {
            let found = match entry.state {
                GenerationState::Fed => replayed.status(*number).await,
                GenerationState::Retired | GenerationState::Removed => Ok(None),
            };
            let (status, problem) = match found {
                Ok(status) => (status, None),
                // Of this one only: the others are shown as they are.
                Err(ReplayError::ReadModel(error)) if !error.is_transient() => (None, Some(error.to_string())),
                Err(error) => return Err(error),
            };
            let progress = status.as_ref().map(|status| ProgressView::of(status, &reports));
            let view = GenerationView::of(replayed.name(), &catalogue, *number, entry, progress)?;
            let throttle = ThrottleView::of(&reports).filter(|_| is_shadow(&catalogue, *number, entry));
            generations.push(GenerationView {
                problem,
                throttle,
                mirror: MirrorView::of(&catalogue, *number, &reports),
                ..view
            });
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
        progress: Option<ProgressView>,
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
            progress,
            problem: None,
            throttle: None,
            mirror: None,
        })
    }
}

/// Whether its projector holds it back, as the projector decides it.
fn is_shadow(catalogue: &Catalogue, number: u32, entry: &GenerationEntry) -> bool {
    entry.state == GenerationState::Fed && projectors::Role::of(catalogue, number) == projectors::Role::Shadow
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
            report_sha256: record.parity.as_ref().map(|parity| parity.report_sha256.clone()),
            approved_by: record.approvals.iter().map(|approval| approval.by.clone()).collect(),
            approvals_needed: record.plan.approvals.needed,
            cut_over_at: record.cut_over.as_ref().map(|cut_over| instant(cut_over.at)),
            started_by: record.started_by,
            reason: record.reason,
        }
    }
}

// === impl ThrottleView ===

impl ThrottleView {
    /// `None` where no process tells that it builds.
    fn of(reports: &[ProcessReport]) -> Option<Self> {
        let told: Vec<&ThrottleStatus> = reports.iter().filter_map(|report| report.throttle.as_ref()).collect();
        let yields_to = told.iter().find_map(|status| status.yields_to);
        (!told.is_empty()).then(|| Self {
            is_held_back: yields_to.is_some(),
            events_per_second: told.iter().map(|status| status.rate).sum(),
            by: yields_to.as_ref().map(YieldsTo::as_str),
            yields_to: yields_to.map(|yields_to| yields_to.to_string()),
            processes: told.len(),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        match (&self.yields_to, self.events_per_second) {
            (Some(yields_to), Some(rate)) => format!("held back to {rate:.0} events/s: {yields_to}"),
            (Some(yields_to), None) => format!("held back in part: {yields_to}"),
            (None, Some(rate)) => format!("not held back, up to {rate:.0} events/s beside live traffic"),
            (None, None) => "not held back".to_owned(),
        }
    }
}

// === impl MirrorView ===

impl MirrorView {
    fn of(catalogue: &Catalogue, number: u32, reports: &[ProcessReport]) -> Option<Self> {
        let candidate = catalogue.candidate.as_ref().filter(|candidate| candidate.generation == number)?;
        let mut view = Self { requests: 0, errors: 0, differing: 0, p99_ms: 0.0, samples: Vec::new() };
        let mirrors = reports.iter().filter_map(|report| report.mirror.as_ref());
        for mirror in mirrors.filter(|mirror| mirror.generation == number && mirror.stage == candidate.since) {
            view.requests += mirror.whole.requests;
            view.errors += mirror.whole.errors;
            view.differing += mirror.whole.differing;
            view.p99_ms = view.p99_ms.max(mirror.lately.minute.p99_ms);
            view.samples.extend(mirror.samples.iter().cloned());
        }
        view.samples.sort();
        view.samples.dedup();
        view.samples.truncate(SAMPLES);
        (view.requests > 0).then_some(view)
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} reads mirrored in this stage, {} failed, {} differed; p99 of the last minute {:.1} ms",
            self.requests, self.errors, self.differing, self.p99_ms
        );
        if !self.samples.is_empty() {
            text += &format!("; differing: {}", self.samples.join(", "));
        }
        text
    }
}

// === impl ProgressView ===

impl ProgressView {
    fn of(status: &ReadModelStatus, reports: &[ProcessReport]) -> Self {
        let partitions = &status.partitions;
        Self {
            records: partitions.iter().map(|partition| partition.checkpoint.next_offset).sum(),
            lag_events: status.known_lag(&status.halted(reports)),
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

#[cfg(test)]
mod tests {
    use read_models::Generation;
    use read_models::generations::Candidate;
    use read_models::process_report::{Lately, MirrorReport, ReadFigures};

    use super::*;

    fn throttled(rate: Option<f64>, yields_to: Option<YieldsTo>) -> ProcessReport {
        ProcessReport { throttle: Some(ThrottleStatus { rate, yields_to }), ..ProcessReport::default() }
    }

    #[test]
    fn the_throttle_of_all_who_build_is_told_with_its_reason() {
        assert_eq!(ThrottleView::of(&[ProcessReport::default()]), None, "who only serves says nothing of it");
        let free = ThrottleView::of(&[throttled(None, None), ProcessReport::default()]).unwrap();
        assert_eq!((free.text().as_str(), free.processes), ("not held back", 1));
        let lags = YieldsTo::LiveLag { events: 3_000, bound: 2_000 };
        let held = ThrottleView::of(&[throttled(Some(700.0), None), throttled(Some(500.0), Some(lags))]).unwrap();
        assert_eq!((held.is_held_back, held.by, held.events_per_second), (true, Some("live_lag"), Some(1_200.0)));
        assert_eq!(held.text(), "held back to 1200 events/s: 3000 events wait for the live side, the bound is 2000");
        let grows = ThrottleView::of(&[throttled(Some(12_500.0), None)]).unwrap();
        assert_eq!(grows.text(), "not held back, up to 12500 events/s beside live traffic");
    }

    #[test]
    fn only_what_answers_nobody_is_held_back_and_mirrored_reads_are_of_the_stage() {
        let of = |number| Generation { name: "stock".to_owned(), number, fold_version: 1, partitions: 4 };
        let mut catalogue = Catalogue::of_built(Some(&of(2)));
        for number in [1, 3, 4] {
            catalogue.generations.insert(number, GenerationEntry::fed(&of(number)));
        }
        catalogue.previous = Some(1);
        let candidate =
            |share, since| Some(Candidate { generation: 3, share, mirror_percent: 100, meant: Vec::new(), since });
        let shadows = |catalogue: &Catalogue| -> Vec<u32> {
            let entries = catalogue.generations.iter();
            entries.filter(|(number, entry)| is_shadow(catalogue, **number, entry)).map(|(number, _)| *number).collect()
        };
        catalogue.candidate = candidate(Share::None, 7);
        assert_eq!(shadows(&catalogue), [3, 4]);
        let whole = ReadFigures { requests: 90, errors: 1, differing: 2, p99_ms: 80.0 };
        let minute = ReadFigures { requests: 40, p99_ms: 9.0, ..ReadFigures::default() };
        let lately = Lately { minute, ..Lately::default() };
        let mirror = MirrorReport { generation: 3, stage: 7, whole, lately, samples: vec!["A".to_owned()] };
        let reports = [ProcessReport { mirror: Some(mirror), ..ProcessReport::default() }];
        let view = MirrorView::of(&catalogue, 3, &reports).unwrap();
        assert!(
            view.text().ends_with("1 failed, 2 differed; p99 of the last minute 9.0 ms; differing: A"),
            "{}",
            view.text()
        );
        assert_eq!(MirrorView::of(&catalogue, 4, &reports), None);

        catalogue.candidate = candidate(Share::Percent(10), 8);
        assert_eq!(shadows(&catalogue), [4]);
        assert_eq!(MirrorView::of(&catalogue, 3, &reports), None, "these were of the stage before");
    }
}
