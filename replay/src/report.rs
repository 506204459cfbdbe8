//! What a comparison of two generations found: for people, for programs, and as a page of its own.

mod html;

use std::collections::BTreeMap;
use std::fmt::Write;

use read_models::{Checkpoint, PartitionRef};
use schemas::{PositionToken, RegionId, Sku};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::evidence::{ParityEvidence, QueryEvidence};
use crate::fields::Fields;
use crate::queries::QueryParity;

/// Differences that a report lists; beyond them it only counts.
pub const MOST_LISTED: usize = 100_000;

/// Two generations at one position vector.
#[derive(Debug, Clone, Serialize)]
pub struct ParityReport {
    /// `stock` or `search`.
    pub projection: String,
    pub live: u32,
    pub candidate: u32,
    /// When it was made, milliseconds since 1970.
    pub at: i64,
    /// How long it took.
    pub seconds: f64,
    /// One position for each partition: all that is said of a partition is true there.
    #[serde(serialize_with = "as_text")]
    pub vector: PositionToken,
    pub partitions: Vec<PartitionParity>,
    pub rules: Vec<RuleUse>,
    /// Names the rules, in hex.
    pub rules_sha256: String,
    /// Keys that differ in a way that no rule covers.
    pub differing: u64,
    /// Those keys by how they differ.
    pub kinds: BTreeMap<DifferenceKind, u64>,
    /// Those keys, sorted; at most [`MOST_LISTED`].
    pub differences: Vec<KeyDifference>,
    /// Of search: what queries answer.
    pub queries: Option<QueryParity>,
}

/// One partition of a context's topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartitionParity {
    pub partition: PartitionRef,
    pub at: Checkpoint,
    /// Keys that either side has.
    pub compared: u64,
    pub equal: u64,
    /// Keys that differ only as rules allow.
    pub excused: u64,
    pub differing: u64,
    /// Rounds that it took until all held at one checkpoint.
    pub rounds: u32,
}

/// How often a rule was needed, among the keys that were read field by field.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleUse {
    pub field: String,
    pub kind: &'static str,
    /// Of kind "within".
    pub tolerance: Option<f64>,
    /// Only rows of these; empty: of all.
    pub regions: Vec<RegionId>,
    pub reason: String,
    pub covered: u64,
}

/// A key that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeyDifference {
    /// For people: `SKU-1 in ams-1`.
    pub key: String,
    pub sku: Option<Sku>,
    pub partition: String,
    pub kind: DifferenceKind,
    /// The fields that differ and that no rule covers.
    pub fields: Vec<String>,
    /// All fields of each side.
    pub live: Option<Fields>,
    pub candidate: Option<Fields>,
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    Differs,
    /// The live generation has it, the candidate has not.
    Missing,
    /// The candidate has it, the live generation has not.
    Extra,
    /// Its events are parked in the live generation only.
    ParkedInLive,
    /// Its events are parked in the candidate only.
    ParkedInCandidate,
}

// === impl ParityReport ===

impl ParityReport {
    pub fn is_clean(&self) -> bool {
        self.differing == 0 && self.queries.as_ref().is_none_or(QueryParity::is_clean)
    }

    pub fn compared(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.compared).sum()
    }

    pub fn excused(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.excused).sum()
    }

    fn count(&self, kinds: &[DifferenceKind]) -> u64 {
        kinds.iter().filter_map(|kind| self.kinds.get(kind)).sum()
    }

    /// Differing keys by field.
    pub fn by_field(&self) -> BTreeMap<&str, u64> {
        let mut fields = BTreeMap::new();
        for field in self.differences.iter().flat_map(|difference| &difference.fields) {
            *fields.entry(field.as_str()).or_insert(0) += 1;
        }
        fields
    }

    /// Differing keys by the region that either side has them in.
    pub fn by_region(&self) -> BTreeMap<String, u64> {
        let mut regions = BTreeMap::new();
        for difference in &self.differences {
            let row = difference.live.as_ref().or(difference.candidate.as_ref());
            let region = row.and_then(|row| row.get("region")).and_then(|region| region.as_str());
            *regions.entry(region.unwrap_or("-").to_owned()).or_insert(0) += 1;
        }
        regions
    }

    /// What gates look at, with the hash of the whole report.
    pub fn evidence(&self) -> ParityEvidence {
        use DifferenceKind::{Extra, Missing, ParkedInCandidate, ParkedInLive};
        let json = serde_json::to_vec(self).unwrap_or_default();
        ParityEvidence {
            generation: self.candidate,
            against: self.live,
            at: self.at,
            vector: self.vector.to_string(),
            compared_keys: self.compared(),
            differing_keys: self.differing,
            excused_keys: self.excused(),
            missing_keys: self.count(&[Missing]),
            extra_keys: self.count(&[Extra]),
            parked_keys_differing: self.count(&[ParkedInLive, ParkedInCandidate]),
            queries: self.queries.as_ref().map(|queries| QueryEvidence {
                queries: queries.queries.len() as u64,
                worst_overlap: queries.worst_overlap(),
                below_bound: queries.below_bound() as u64,
            }),
            report_sha256: Sha256::digest(&json).iter().map(|byte| format!("{byte:02x}")).collect(),
            rules_sha256: self.rules_sha256.clone(),
        }
    }

    /// As JSON, with `clean`, and at most `most` of the differences.
    pub fn json(&self, most: usize) -> serde_json::Value {
        let shown = self.differences.iter().take(most).cloned().collect();
        let shown = Self {
            projection: self.projection.clone(),
            vector: self.vector.clone(),
            partitions: self.partitions.clone(),
            rules: self.rules.clone(),
            rules_sha256: self.rules_sha256.clone(),
            kinds: self.kinds.clone(),
            differences: shown,
            queries: self.queries.clone(),
            ..*self
        };
        let mut json = serde_json::to_value(shown).unwrap_or_default();
        json["clean"] = self.is_clean().into();
        json
    }

    /// For a terminal; at most `most` of the differences.
    pub fn text(&self, most: usize) -> String {
        let mut text = String::new();
        let verdict = if self.is_clean() { "clean" } else { "NOT CLEAN" };
        let _ = writeln!(
            text,
            "parity of {name}@{} against {name}@{}: {verdict}\n  keys      {} compared, {} differ, {} excused by rules\n  at        {}\n  took      {:.1} s",
            self.candidate,
            self.live,
            self.compared(),
            self.differing,
            self.excused(),
            self.vector,
            self.seconds,
            name = self.projection,
        );
        let _ = writeln!(text, "  report    {}", self.evidence().report_sha256);
        for (field, count) in self.by_field() {
            let _ = writeln!(text, "  field     {field} differs in {count} keys");
        }
        for rule in &self.rules {
            let _ = writeln!(text, "  rule      {} {}: {}", rule.field, rule.reach(), rule.reason);
        }
        for difference in self.differences.iter().take(most) {
            let _ = writeln!(text, "  {}", difference.line());
        }
        let shown = most.min(self.differences.len()) as u64;
        if shown < self.differing {
            let _ = writeln!(text, "  … and {} more: --json or --html has them", self.differing - shown);
        }
        if let Some(queries) = &self.queries {
            text.push_str(&queries.text());
        }
        text
    }

    /// One file that a browser shows, with nothing to fetch.
    pub fn html(&self) -> String {
        html::page(self)
    }
}

// === impl RuleUse ===

impl RuleUse {
    /// What it lets pass, and where: `within 1 in eu, us`.
    pub fn reach(&self) -> String {
        let tolerance = self.tolerance.map(|tolerance| format!(" {tolerance}")).unwrap_or_default();
        let regions: Vec<&str> = self.regions.iter().map(RegionId::as_str).collect();
        let regions = if regions.is_empty() { String::new() } else { format!(" in {}", regions.join(", ")) };
        format!("{}{tolerance}{regions}", self.kind)
    }
}

// === impl KeyDifference ===

impl KeyDifference {
    /// On one line, with both values of each field.
    pub fn line(&self) -> String {
        let what = match self.kind {
            DifferenceKind::Differs => self.values(),
            DifferenceKind::Missing => "is missing in the candidate".to_owned(),
            DifferenceKind::Extra => "is only in the candidate".to_owned(),
            DifferenceKind::ParkedInLive => "is parked in the live generation only".to_owned(),
            DifferenceKind::ParkedInCandidate => "is parked in the candidate only".to_owned(),
        };
        let problem = self.problem.as_ref().map(|problem| format!(" ({problem})")).unwrap_or_default();
        format!("{}: {what}{problem}", self.key)
    }

    fn values(&self) -> String {
        let shown = |fields: &Option<Fields>, field: &String| {
            let value = fields.as_ref().and_then(|fields| fields.get(field));
            value.map_or_else(|| "nothing".to_owned(), ToString::to_string)
        };
        let fields = self.fields.iter().map(|field| {
            format!("{field} {} in live, {} in candidate", shown(&self.live, field), shown(&self.candidate, field))
        });
        fields.collect::<Vec<_>>().join("; ")
    }
}

fn as_text<S: Serializer>(token: &PositionToken, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(token)
}
