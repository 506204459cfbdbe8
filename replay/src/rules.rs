//! Meant differences between two generations, declared in a file: what no rule covers is a difference that the gate
//! refuses.
//!
//! ```toml
//! [[difference]]
//! projection = "stock"
//! field = "updated_at"
//! kind = "new"            # new, removed, within (with tolerance), any
//! reason = "fold 2 tells when a row last changed"
//! ```

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use read_models::generations::meant::{Kind, MeantDifference, unmeant};
use schemas::RegionId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::ReplayError;
use crate::fields::Fields;
use crate::report::RuleUse;
use crate::target::NAMES;

/// The rules of one projection.
#[derive(Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
}

/// One meant difference, and why it is.
#[derive(Debug, Serialize)]
pub struct Rule {
    #[serde(flatten)]
    pub meant: MeantDifference,
    pub reason: String,
    /// Rows that it covered so far.
    #[serde(skip)]
    covered: AtomicU64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default)]
    difference: Vec<RuleEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    projection: String,
    field: String,
    kind: KindName,
    tolerance: Option<f64>,
    #[serde(default)]
    regions: Vec<RegionId>,
    reason: String,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum KindName {
    New,
    Removed,
    Within,
    Any,
}

// === impl Rules ===

impl Rules {
    /// Reads the rules of `projection` from a file; those of others are checked and left out.
    pub fn read(path: &Path, projection: &str) -> Result<Self, ReplayError> {
        let text = std::fs::read_to_string(path).map_err(|error| ReplayError::File {
            path: path.display().to_string(),
            problem: format!("it cannot be read: {error}"),
        })?;
        Self::parse(&text, projection)
            .map_err(|problem| ReplayError::File { path: path.display().to_string(), problem })
    }

    /// `Err` says which rule is wrong, and how.
    pub fn parse(text: &str, projection: &str) -> Result<Self, String> {
        let file: RulesFile = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut rules = Vec::new();
        for (number, entry) in (1..).zip(file.difference) {
            let wrong = |problem: &str| format!("difference {number} ({}): {problem}", entry.field);
            if !NAMES.contains(&entry.projection.as_str()) {
                return Err(wrong(&format!("projection {:?} is none of {}", entry.projection, NAMES.join(", "))));
            }
            if entry.reason.trim().is_empty() {
                return Err(wrong("reason is empty: say why the difference is meant"));
            }
            let kind = match (entry.kind, entry.tolerance) {
                (KindName::Within, Some(tolerance)) if tolerance >= 0.0 => Kind::Within(tolerance),
                (KindName::Within, _) => return Err(wrong("kind \"within\" needs a tolerance of 0 or more")),
                (_, Some(_)) => return Err(wrong("a tolerance is only for kind \"within\"")),
                (KindName::New, None) => Kind::New,
                (KindName::Removed, None) => Kind::Removed,
                (KindName::Any, None) => Kind::Any,
            };
            let is_for_all = |rule: &&Rule| rule.meant.field == entry.field && rule.meant.regions.is_empty();
            if entry.projection == projection && entry.regions.is_empty() && rules.iter().any(|rule| is_for_all(&rule))
            {
                return Err(wrong("another rule covers this field everywhere: one of the two says too much"));
            }
            if entry.projection == projection {
                let RuleEntry { field, regions, reason, .. } = entry;
                let meant = MeantDifference { field, kind, regions };
                rules.push(Rule { meant, reason, covered: AtomicU64::new(0) });
            }
        }
        Ok(Self { rules })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// What they declare, without the reasons.
    pub fn meant(&self) -> Vec<MeantDifference> {
        self.rules.iter().map(|rule| rule.meant.clone()).collect()
    }

    /// What was declared, for the decision that rests on it.
    pub fn as_decided(&self) -> Value {
        json!(self.rules)
    }

    /// Names what was declared, in hex.
    pub fn sha256(&self) -> String {
        let digest = Sha256::digest(self.as_decided().to_string().as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Names of the fields that differ and that no rule covers, and whether a rule covers any.
    pub fn uncovered(&self, region: Option<&RegionId>, live: &Fields, candidate: &Fields) -> (Vec<String>, bool) {
        let mut is_covered = false;
        let uncovered = unmeant(live, candidate, |field, was, is| {
            let rule = self.rules.iter().find(|rule| rule.meant.covers(field, region, was, is));
            if let Some(rule) = rule {
                rule.covered.fetch_add(1, Ordering::Relaxed);
                is_covered = true;
            }
            rule.is_some()
        });
        (uncovered, is_covered)
    }
}

// === impl Rule ===

impl Rule {
    /// Rows that it covered: a rule that covers none is one too many, or names no field.
    pub fn covered(&self) -> u64 {
        self.covered.load(Ordering::Relaxed)
    }

    /// As a report shows it.
    pub(crate) fn in_use(&self) -> RuleUse {
        let (kind, tolerance) = match self.meant.kind {
            Kind::New => ("new", None),
            Kind::Removed => ("removed", None),
            Kind::Within(tolerance) => ("within", Some(tolerance)),
            Kind::Any => ("any", None),
        };
        let MeantDifference { field, regions, .. } = self.meant.clone();
        RuleUse { field, kind, tolerance, regions, reason: self.reason.clone(), covered: self.covered() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Fields {
        crate::fields::of_json(value)
    }

    fn rules(text: &str) -> Rules {
        Rules::parse(text, "stock").unwrap()
    }

    #[test]
    fn only_what_a_rule_names_is_excused() {
        let rules = rules(
            r#"
            [[difference]]
            projection = "stock"
            field = "updated_at"
            kind = "new"
            reason = "fold 2"
            [[difference]]
            projection = "stock"
            field = "price"
            kind = "within"
            tolerance = 1
            regions = ["eu"]
            reason = "rounded"
            "#,
        );
        let eu = RegionId::new("eu").unwrap();
        let live = fields(json!({"on_hand": 5, "price": 100}));
        let new = fields(json!({"on_hand": 5, "price": 101, "updated_at": 7}));
        assert_eq!(rules.uncovered(Some(&eu), &live, &new), (vec![], true));
        assert_eq!(rules.uncovered(None, &live, &new), (vec!["price".to_owned()], true));
        let wrong = fields(json!({"on_hand": 6, "price": 102}));
        assert_eq!(rules.uncovered(Some(&eu), &live, &wrong).0, ["on_hand", "price"]);
        // New is new: a field that the live rows have already may not change.
        let has_it = fields(json!({"on_hand": 5, "price": 100, "updated_at": 6}));
        assert_eq!(rules.uncovered(Some(&eu), &has_it, &new).0, ["updated_at"]);
        assert_eq!(rules.iter().next().unwrap().covered(), 2);
        // Mirrored reads are judged by the same, tolerance and regions with them.
        let price = MeantDifference { field: "price".to_owned(), kind: Kind::Within(1.0), regions: vec![eu] };
        assert_eq!(rules.meant().last(), Some(&price));
        let shown: Vec<String> = rules.iter().map(|rule| rule.in_use().reach()).collect();
        assert_eq!(shown, ["new", "within 1 in eu"]);
    }

    #[test]
    fn other_rules_have_another_name_and_what_they_covered_changes_none() {
        let rule = |tolerance: u32| {
            rules(&format!(
                "[[difference]]\nprojection = \"stock\"\nfield = \"price\"\nkind = \"within\"\n\
                 tolerance = {tolerance}\nreason = \"r\""
            ))
        };
        let (one, two) = (rule(1), rule(2));
        let named = one.sha256();
        assert_ne!(named, two.sha256());
        assert_ne!(named, Rules::default().sha256());
        one.uncovered(None, &fields(json!({"price": 1})), &fields(json!({"price": 2})));
        assert_eq!((one.iter().next().unwrap().covered(), one.sha256()), (1, named));
        assert_eq!(one.as_decided()[0]["kind"], json!({"within": 1.0}));
    }

    #[test]
    fn a_wrong_file_says_which_rule_and_what() {
        let parse = |text: &str| Rules::parse(text, "stock").unwrap_err();
        let entry = |rest: &str| format!("[[difference]]\nprojection = \"stock\"\nfield = \"f\"\n{rest}");
        assert!(parse(&entry("kind = \"new\"\nreason = \" \"")).contains("difference 1 (f): reason is empty"));
        assert!(parse(&entry("kind = \"within\"\nreason = \"r\"")).contains("needs a tolerance"));
        assert!(parse(&entry("kind = \"new\"\ntolerance = 1\nreason = \"r\"")).contains("only for kind"));
        assert!(parse(&entry("kind = \"odd\"\nreason = \"r\"")).contains("odd"));
        assert!(parse(&entry("kind = \"new\"\nreason = \"r\"\nfeild = 1")).contains("feild"));
        let other = "[[difference]]\nprojection = \"shop\"\nfield = \"f\"\nkind = \"new\"\nreason = \"r\"";
        assert!(parse(other).contains("none of stock, search"));
    }
}
