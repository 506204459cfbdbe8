//! What comes of an operation: a change that may be written, with the decisions that make it, or what is missing.

use read_models::Generation;
use read_models::generations::{Action, Catalogue, Verdict};
use serde_json::{Value, json};

use crate::by::By;
use crate::error::ReplayError;
use crate::gates::Missing;
use crate::outcome::Reversal;

/// A change that may be written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decided {
    pub to: Catalogue,
    /// What is decided, in order; the last one says what came of it.
    pub verdicts: Vec<Verdict>,
    pub done: String,
    pub reversal: Reversal,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ruling {
    Change(Box<Decided>),
    Refuse(Vec<Missing>),
}

/// The change that one decision makes; what is ended stays ended.
pub(super) fn change(
    name: &str,
    to: Catalogue,
    number: u32,
    by: &By,
    action: Action,
    evidence: Value,
    done: String,
) -> Result<Ruling, ReplayError> {
    let verdict = verdict(name, &to, number, by, action, evidence);
    let reversal = match action {
        Action::Retired | Action::Aborted => Reversal::ForwardFixOnly,
        _ => Reversal::Reversible,
    };
    Ok(Ruling::Change(Box::new(Decided { to, verdicts: vec![verdict], done, reversal })))
}

pub(super) fn verdict(name: &str, to: &Catalogue, number: u32, by: &By, action: Action, evidence: Value) -> Verdict {
    let generation = to.generation(name, number).unwrap_or(Generation {
        name: name.to_owned(),
        number,
        fold_version: 0,
        partitions: 0,
    });
    Verdict {
        at: by.at(),
        who: by.who().to_owned(),
        action,
        generation,
        reason: by.reason().to_owned(),
        evidence: rounded(evidence),
    }
}

/// A decision's hash is taken of its JSON form, and must be the same once that was read back: of a float with few
/// digits it is, of any other one the last digit may change.
fn rounded(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => json!((float * 1e6).round() / 1e6),
            None => Value::Number(number),
        },
        Value::Array(values) => values.into_iter().map(rounded).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, rounded(value))).collect(),
        other => other,
    }
}

pub(super) fn refuse(code: &'static str, sentence: impl Into<String>) -> Result<Ruling, ReplayError> {
    Ok(Ruling::Refuse(vec![Missing::new(code, sentence)]))
}
