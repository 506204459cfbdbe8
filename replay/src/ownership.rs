//! Who owns what the program has, whom to call, and who may approve: `ownership.toml`.
//!
//! ```toml
//! [[owner]]
//! kind = "projection"                # context, topic, projection or contract
//! name = ["stock", "search"]         # or one name
//! owner = "team-storefront"
//! escalation = "storefront-oncall@example.org"
//! approvers = ["ann", "bob"]
//! ```
//! What has no owner, escalation contact or approver is refused at startup, everything that is missing at once; so is
//! an entry for something that the program does not have, which is most likely a slip of the pen.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use projectors::{Projection, SearchProjection, StockProjection};
use schemas::Context;
use schemas::contract::CONTRACTS;
use serde::Deserialize;

use crate::error::ReplayError;
use crate::record::is_same_person;

/// Owners of everything, as the file names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    file: String,
    rows: BTreeMap<(OwnedKind, String), Owner>,
}

/// Owner of one thing. What the file leaves out is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub owner: String,
    /// Whom to call, and how.
    pub escalation: String,
    /// Names, as people sign in; [`ANYBODY`] in the embedded default.
    pub approvers: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnedKind {
    Context,
    Topic,
    Projection,
    Contract,
}

/// Approver of the embedded default: whoever has its data directory, but for the person who started the replay.
pub const ANYBODY: &str = "*";

const EMBEDDED: &str = include_str!("../../deploy/ownership.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnershipFile {
    #[serde(default)]
    owner: Vec<OwnerRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnerRow {
    kind: OwnedKind,
    name: Names,
    #[serde(default)]
    owner: String,
    #[serde(default)]
    escalation: String,
    #[serde(default)]
    approvers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a name or a list of names")]
enum Names {
    One(String),
    Several(Vec<String>),
}

// === impl Ownership ===

impl Ownership {
    /// Of a program on its own data directory: one owner for all, and anybody but who started a replay approves it.
    pub fn embedded() -> Result<Self, ReplayError> {
        Self::from_toml("the compiled-in ownership.toml", EMBEDDED)
    }

    pub fn read(path: &Path) -> Result<Self, ReplayError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ReplayError::File { path: file.clone(), problem: error.to_string() })?;
        Self::parse(&file, &text)
    }

    /// Reads the text of a file; `file` is for the error. [`ANYBODY`] is refused: approvers have names.
    pub fn parse(file: &str, text: &str) -> Result<Self, ReplayError> {
        let ownership = Self::from_toml(file, text)?;
        let anybody = ownership.rows.iter().filter(|(_, owner)| owner.approvers.iter().any(|name| name == ANYBODY));
        let problems: Vec<String> = anybody
            .map(|((kind, name), _)| format!("{kind} {name}: approvers: \"{ANYBODY}\" names nobody; list persons"))
            .collect();
        if problems.is_empty() { Ok(ownership) } else { Err(ownership.refused(problems)) }
    }

    fn from_toml(file: &str, text: &str) -> Result<Self, ReplayError> {
        let parsed: OwnershipFile = toml::from_str(text).map_err(|error| ReplayError::File {
            path: file.to_owned(),
            problem: error.to_string().trim().replace('\n', " "),
        })?;
        let mut ownership = Self { file: file.to_owned(), rows: BTreeMap::new() };
        let mut twice = Vec::new();
        for row in parsed.owner {
            let trimmed = |name: String| name.trim().to_owned();
            let approvers = row.approvers.into_iter().map(trimmed).filter(|name| !name.is_empty()).collect();
            let owner = Owner { owner: trimmed(row.owner), escalation: trimmed(row.escalation), approvers };
            let names = match row.name {
                Names::One(name) => vec![name],
                Names::Several(names) => names,
            };
            for name in names {
                if ownership.rows.insert((row.kind, name.clone()), owner.clone()).is_some() {
                    twice.push(format!("{} {name} has two entries; keep one", row.kind));
                }
            }
        }
        if twice.is_empty() { Ok(ownership) } else { Err(ownership.refused(twice)) }
    }

    /// Refuses what has no owner, escalation contact or approver, and what the program does not have.
    pub fn check(
        &self,
        contexts: &[&str],
        topics: &[&str],
        projections: &[&str],
        contracts: &[&str],
    ) -> Result<(), ReplayError> {
        let kinds = [
            (OwnedKind::Context, contexts),
            (OwnedKind::Topic, topics),
            (OwnedKind::Projection, projections),
            (OwnedKind::Contract, contracts),
        ];
        let mut problems = Vec::new();
        for (kind, names) in kinds {
            for name in names {
                let lacks = match self.of(kind, name) {
                    None => vec!["owner", "escalation", "approvers"],
                    Some(owner) => owner.lacks(),
                };
                if !lacks.is_empty() {
                    problems.push(format!("{kind} {name} has no {}", lacks.join(", ")));
                }
            }
        }
        for (kind, name) in self.rows.keys() {
            let known = kinds.iter().any(|(of, names)| of == kind && names.contains(&name.as_str()));
            if !known {
                problems.push(format!("{kind} {name} is not of this program; take the entry out"));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(self.refused(problems)) }
    }

    /// [`Ownership::check`] with all that this program has.
    pub fn check_program(&self) -> Result<(), ReplayError> {
        let contexts = Context::ALL.map(Context::as_str);
        let topics: Vec<&str> = Context::ALL
            .into_iter()
            .flat_map(|context| {
                [
                    context.events_topic(),
                    context.commands_topic(),
                    context.outcomes_topic(),
                    context.dead_letters_topic(),
                ]
            })
            .collect();
        let mut contracts: Vec<&str> = CONTRACTS.iter().map(|contract| contract.schema.name).collect();
        // All versions of a contract have one owner.
        contracts.sort_unstable();
        contracts.dedup();
        self.check(&contexts, &topics, &[StockProjection::NAME, SearchProjection::NAME], &contracts)
    }

    pub fn of(&self, kind: OwnedKind, name: &str) -> Option<&Owner> {
        self.rows.get(&(kind, name.to_owned()))
    }

    /// Whether a person may approve a cutover of a projection, or an early retirement.
    pub fn may_approve(&self, projection: &str, person: &str) -> bool {
        self.approvers(projection).iter().any(|name| name == ANYBODY || is_same_person(name, person))
    }

    /// For a sentence: who may approve.
    pub fn approvers(&self, projection: &str) -> &[String] {
        self.of(OwnedKind::Projection, projection).map_or(&[], |owner| &owner.approvers)
    }

    fn refused(&self, problems: Vec<String>) -> ReplayError {
        ReplayError::Ownership { file: self.file.clone(), problems }
    }
}

// === impl Owner ===

impl Owner {
    fn lacks(&self) -> Vec<&'static str> {
        let fields = [
            ("owner", self.owner.is_empty()),
            ("escalation", self.escalation.is_empty()),
            ("approvers", self.approvers.is_empty()),
        ];
        fields.into_iter().filter(|(_, lacks)| *lacks).map(|(field, _)| field).collect()
    }
}

impl fmt::Display for OwnedKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            OwnedKind::Context => "context",
            OwnedKind::Topic => "topic",
            OwnedKind::Projection => "projection",
            OwnedKind::Contract => "contract",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = "[[owner]]\nkind = \"projection\"\nname = [\"stock\", \"search\"]\nowner = \"shop\"\n\
                       escalation = \"oncall\"\napprovers = [\"Ann\", \"bob\"]\n";

    #[test]
    fn the_embedded_default_owns_everything_that_the_program_has() {
        let ownership = Ownership::embedded().unwrap();
        ownership.check_program().unwrap();
        assert!(ownership.may_approve("stock", "anyone") && ownership.may_approve("search", "anyone"));
    }

    #[test]
    fn all_that_is_not_owned_is_named_at_once() {
        let text = ROW.replace("escalation = \"oncall\"\n", "").replace("[\"Ann\", \"bob\"]", "[\" \"]");
        let ownership = Ownership::parse("o.toml", &text).unwrap();
        let refused = ownership.check(&["inventory"], &["inventory.events"], &["stock", "search"], &["c"]);
        assert_eq!(
            refused.unwrap_err().to_string(),
            "o.toml: context inventory has no owner, escalation, approvers; topic inventory.events has no owner, \
             escalation, approvers; projection stock has no escalation, approvers; projection search has no \
             escalation, approvers; contract c has no owner, escalation, approvers"
        );
    }

    #[test]
    fn what_the_program_does_not_have_is_refused() {
        let ownership = Ownership::parse("o.toml", ROW).unwrap();
        ownership.check(&[], &[], &["stock", "search"], &[]).unwrap();
        let refused = ownership.check(&[], &["search"], &["stock"], &[]).unwrap_err().to_string();
        assert!(refused.contains("topic search has no owner"), "{refused}");
        assert!(refused.contains("projection search is not of this program"), "{refused}");
    }

    #[test]
    fn slips_of_the_pen_are_refused() {
        let refusal = |text: &str| Ownership::parse("o.toml", text).unwrap_err().to_string();
        assert!(refusal(&ROW.replace("escalation", "escalate")).contains("escalate"));
        assert!(refusal(&ROW.replace("\"projection\"", "\"stream\"")).contains("context"));
        assert!(refusal(&ROW.replace("[\"stock\", \"search\"]", "7")).contains("a name or a list of names"));
        assert!(refusal(&(ROW.to_owned() + ROW)).contains("projection stock has two entries"));
        assert!(refusal(&ROW.replace("\"Ann\"", "\"*\"")).contains("list persons"));
    }

    #[test]
    fn approvers_are_those_of_the_projection() {
        let ownership = Ownership::parse("o.toml", ROW).unwrap();
        assert!(ownership.may_approve("stock", "ann") && ownership.may_approve("search", "BOB "));
        assert!(!ownership.may_approve("stock", "eve") && !ownership.may_approve("orders", "ann"));
    }
}
