//! Differences between two generations that are meant, and the one judgement of what they cover: a comparison of all
//! rows and mirrored reads excuse the same.

use schemas::RegionId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::Fields;

/// One meant difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct MeantDifference {
    /// As [`fields`](super::fields) name it.
    pub field: String,
    pub kind: Kind,
    /// Only rows of these regions; empty: of all.
    pub regions: Vec<RegionId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The candidate has the field, the live generation has not.
    New,
    /// The live generation has the field, the candidate has not.
    Removed,
    /// Both are numbers, at most this far apart.
    Within(f64),
    /// Whatever it is: the last resort.
    Any,
}

/// As stores have it: older programs kept the name of a field alone, whose differences all were meant.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Field(String),
    Whole { field: String, kind: Kind, regions: Vec<RegionId> },
}

/// Names of the fields that differ in a way that is not meant, sorted. `is_meant` is asked of each field that differs,
/// with what the live generation and what the candidate has.
pub fn unmeant(
    live: &Fields,
    candidate: &Fields,
    mut is_meant: impl FnMut(&str, Option<&Value>, Option<&Value>) -> bool,
) -> Vec<String> {
    let names = live.keys().chain(candidate.keys().filter(|name| !live.contains_key(*name)));
    let differing = names.filter(|name| {
        let (was, is) = (live.get(*name), candidate.get(*name));
        was != is && !is_meant(name, was, is)
    });
    let mut differing: Vec<String> = differing.cloned().collect();
    differing.sort();
    differing
}

// === impl MeantDifference ===

impl MeantDifference {
    /// Whether it covers what became of a field in a row of `region`.
    pub fn covers(
        &self,
        field: &str,
        region: Option<&RegionId>,
        live: Option<&Value>,
        candidate: Option<&Value>,
    ) -> bool {
        self.is_of(field, region)
            && match (self.kind, live, candidate) {
                (Kind::Any, ..) | (Kind::New, None, Some(_)) | (Kind::Removed, Some(_), None) => true,
                (Kind::Within(tolerance), Some(live), Some(candidate)) => match (live.as_f64(), candidate.as_f64()) {
                    (Some(live), Some(candidate)) => (live - candidate).abs() <= tolerance,
                    _ => false,
                },
                _ => false,
            }
    }

    /// Whether it says anything of a field in rows of `region`.
    pub fn is_of(&self, field: &str, region: Option<&RegionId>) -> bool {
        let is_here = self.regions.is_empty() || region.is_some_and(|region| self.regions.contains(region));
        self.field == field && is_here
    }
}

impl From<Stored> for MeantDifference {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Field(field) => Self { field, kind: Kind::Any, regions: Vec::new() },
            Stored::Whole { field, kind, regions } => Self { field, kind, regions },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Candidate, fields};
    use super::*;

    fn meant(field: &str, kind: Kind, regions: &[&str]) -> MeantDifference {
        let regions = regions.iter().map(|region| RegionId::new(*region).unwrap()).collect();
        MeantDifference { field: field.to_owned(), kind, regions }
    }

    #[test]
    fn a_tolerance_and_a_region_bound_what_is_meant() {
        let (eu, us) = (RegionId::new("eu").unwrap(), RegionId::new("us").unwrap());
        let rule = meant("price", Kind::Within(1.0), &["eu"]);
        let unmeant = |region, live, candidate| {
            let (live, candidate) = (fields::of_json(live), fields::of_json(candidate));
            unmeant(&live, &candidate, |field, was, is| rule.covers(field, Some(region), was, is))
        };
        assert!(unmeant(&eu, json!({"price": 5, "a": 1}), json!({"price": 6, "a": 1})).is_empty());
        assert_eq!(unmeant(&eu, json!({"price": 5}), json!({"price": 7})), ["price"]);
        assert_eq!(unmeant(&us, json!({"price": 5}), json!({"price": 6})), ["price"]);
        assert_eq!(unmeant(&eu, json!({"price": 5}), json!({"a": 1})), ["a", "price"]);
    }

    #[test]
    fn what_an_older_program_stored_is_read() {
        let older = json!({
            "generation": 2, "share": "none", "mirror_percent": 5, "excused_fields": ["updated_at"], "since": 3,
        });
        let candidate: Candidate = serde_json::from_value(older).unwrap();
        assert_eq!(candidate.meant, [meant("updated_at", Kind::Any, &[])]);
        let oldest = json!({"generation": 2, "share": "none", "mirror_percent": 5});
        assert!(serde_json::from_value::<Candidate>(oldest).unwrap().meant.is_empty());
        let newer = Candidate { meant: vec![meant("price", Kind::Within(0.5), &["eu"])], ..candidate };
        assert_eq!(serde_json::from_value::<Candidate>(json!(newer)).unwrap(), newer);
    }
}
