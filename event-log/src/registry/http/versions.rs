//! What a subject holds, held against a contract by ourselves: its versions, and its compatibility level.
//!
//! The registry's own comparison goes by the level of the subject, which goes when the subject is deleted: from then on
//! it takes anything. A contract that could not read what was registered before it is refused whatever the level.

use reqwest::Method;
use schemas::compatibility::{can_read, is_same};
use schemas::{Contract, WriterSchema};
use serde_json::{Value, json};

use super::{Answer, HttpRegistry};
use crate::error::EventLogError;

/// Every version is readable by the newest.
pub(super) const LEVEL: &str = "BACKWARD_TRANSITIVE";
/// Asks for that and for more.
const STRICTER_LEVEL: &str = "FULL_TRANSITIVE";

/// What a subject is to a contract.
pub(super) enum Standing {
    /// There is no such subject yet.
    New,
    /// The contract can read all that was registered before it.
    Readable,
    /// Why it cannot.
    Unreadable(String),
}

// === impl HttpRegistry ===

impl HttpRegistry {
    /// Compares a contract with every version of its subject; with those before it, where it is registered itself.
    pub(super) async fn standing(&self, subject: &str, contract: &Contract) -> Result<Standing, EventLogError> {
        let beside = || self.beside_the_point(format!("the versions of {subject}"));
        let versions = match self.ask(Method::GET, &format!("subjects/{subject}/versions"), None).await? {
            Answer::Found(found) => found.as_array().cloned().ok_or_else(beside)?,
            Answer::NotFound(_) => return Ok(Standing::New),
            Answer::Refused(problem) => return Err(self.refused(subject.to_owned(), problem)),
        };
        let mut versions: Vec<u64> = versions.iter().filter_map(Value::as_u64).collect();
        versions.sort_unstable();
        for version in versions {
            let path = format!("subjects/{subject}/versions/{version}");
            let found = match self.ask(Method::GET, &path, None).await? {
                Answer::Found(found) => found,
                // Deleted meanwhile.
                Answer::NotFound(_) => continue,
                Answer::Refused(problem) => return Err(self.refused(subject.to_owned(), problem)),
            };
            let avsc = found.get("schema").and_then(Value::as_str).ok_or_else(beside)?;
            if is_same(avsc, contract.avsc) {
                break;
            }
            let readable = match WriterSchema::parse(avsc) {
                Ok(_) => can_read(avsc, contract.avsc),
                Err(error) => Err(error.to_string()),
            };
            if let Err(problem) = readable {
                let problem = format!("{} cannot read version {version} there: {problem}", contract.schema);
                return Ok(Standing::Unreadable(problem));
            }
        }
        Ok(Standing::Readable)
    }

    /// What is wrong with the level of a subject that is there.
    pub(super) async fn level_problem(&self, subject: &str) -> Result<Option<String>, EventLogError> {
        let level = match self.ask(Method::GET, &format!("config/{subject}"), None).await? {
            Answer::Found(found) => found.get("compatibilityLevel").and_then(Value::as_str).map(str::to_owned),
            Answer::NotFound(_) => None,
            Answer::Refused(problem) => return Err(self.refused(subject.to_owned(), problem)),
        };
        Ok(match level.as_deref() {
            Some(LEVEL | STRICTER_LEVEL) => None,
            Some(lower) => Some(format!("its compatibility level is {lower}, not {LEVEL}")),
            None => Some(format!("it has no compatibility level of its own, not {LEVEL}")),
        })
    }

    pub(super) async fn set_level(&self, subject: &str) -> Result<(), EventLogError> {
        let level = json!({ "compatibility": LEVEL });
        match self.ask(Method::PUT, &format!("config/{subject}"), Some(level)).await? {
            Answer::Found(_) => Ok(()),
            Answer::NotFound(_) => {
                Err(self.refused(subject.to_owned(), "it cannot set a compatibility level".to_owned()))
            }
            Answer::Refused(problem) => Err(self.refused(subject.to_owned(), problem)),
        }
    }
}
