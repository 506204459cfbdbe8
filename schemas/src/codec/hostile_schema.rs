//! Writer's schemas that make a short body expensive. A registry hands out schemas of others, so one of them must not be able
//! to hold a projector for ever.
//!
//! Refused: lists whose items take no bytes (a body of a few bytes claims any number of them), schemas that contain
//! themselves (a body nests to any depth, and the stack ends), and those that unfold to very many fields. Those whose
//! attributes the library cannot put into a canonical form are told from ours without it.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{InnerDecimalSchema, Name};
use serde_json::Value;

/// Fields that a schema may unfold to: a named one counts wherever it is used.
const MOST_NODES: usize = 10_000;

/// What is known of the part of a schema that was looked at.
#[derive(Clone, Copy)]
struct Part {
    nodes: usize,
    /// Whether a value may take no bytes at all.
    is_empty: bool,
}

/// Says what is wrong with a schema.
pub(super) fn check(schema: &Schema) -> Result<(), String> {
    part(schema, &mut HashMap::new()).map(drop)
}

/// Whether the canonical form of a schema can be asked for: apache-avro panics over attributes that are called like those of
/// its numbers and hold something else, which Avro allows. No contract of ours has such a one.
pub(super) fn has_canonical_form(schema: &Schema) -> bool {
    fn is_plain(value: &Value) -> bool {
        match value {
            Value::Object(members) => members.iter().all(|(name, value)| match name.as_str() {
                "size" | "precision" | "scale" => match value {
                    Value::String(text) => text.parse::<i64>().is_ok(),
                    _ => value.is_i64(),
                },
                _ => is_plain(value),
            }),
            Value::Array(items) => items.iter().all(is_plain),
            _ => true,
        }
    }
    serde_json::to_value(schema).is_ok_and(|json| is_plain(&json))
}

/// `named` holds what was seen under a name, `None` while it is being looked at.
fn part<'a>(schema: &'a Schema, named: &mut HashMap<&'a Name, Option<Part>>) -> Result<Part, String> {
    let leaf = |is_empty| Ok(Part { nodes: 1, is_empty });
    let found = match schema {
        Schema::Null => return leaf(true),
        Schema::Fixed(fixed) | Schema::Duration(fixed) => {
            let leaf = Part { nodes: 1, is_empty: fixed.size == 0 };
            named.insert(&fixed.name, Some(leaf));
            return Ok(leaf);
        }
        Schema::Decimal(decimal) => match &decimal.inner {
            InnerDecimalSchema::Bytes => return leaf(false),
            InnerDecimalSchema::Fixed(fixed) => {
                let leaf = Part { nodes: 1, is_empty: fixed.size == 0 };
                named.insert(&fixed.name, Some(leaf));
                return Ok(leaf);
            }
        },
        Schema::Enum(kinds) => {
            named.insert(&kinds.name, Some(Part { nodes: 1, is_empty: false }));
            return leaf(false);
        }
        Schema::Ref { name } => match named.get(name) {
            Some(Some(known)) => *known,
            Some(None) => return Err(format!("{name} contains itself, so a body could nest to any depth")),
            // Of a name that nothing defines the library itself has said so.
            None => return leaf(false),
        },
        Schema::Array(array) => {
            let items = part(&array.items, named)?;
            if items.is_empty {
                return Err("a list of items without bytes: a short body could claim any number of them".to_owned());
            }
            Part { nodes: items.nodes.saturating_add(1), is_empty: false }
        }
        Schema::Map(map) => Part { nodes: part(&map.types, named)?.nodes.saturating_add(1), is_empty: false },
        Schema::Union(union) => {
            let mut nodes = 1_usize;
            for variant in union.variants() {
                nodes = nodes.saturating_add(part(variant, named)?.nodes);
            }
            Part { nodes, is_empty: false }
        }
        Schema::Record(record) => {
            named.insert(&record.name, None);
            let mut whole = Part { nodes: 1, is_empty: true };
            for field in &record.fields {
                let field = part(&field.schema, named)?;
                whole.nodes = whole.nodes.saturating_add(field.nodes);
                whole.is_empty &= field.is_empty;
            }
            named.insert(&record.name, Some(whole));
            whole
        }
        _ => return leaf(false),
    };
    if found.nodes > MOST_NODES {
        return Err(format!("it unfolds to more than {MOST_NODES} fields"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(field: &str) -> Option<String> {
        let avsc = format!(r#"{{"type":"record","name":"R","fields":[{{"name":"a","type":{field}}}]}}"#);
        check(&Schema::parse_str(&avsc).unwrap()).err()
    }

    #[test]
    fn a_schema_that_makes_short_bodies_long_is_refused() {
        for (field, said) in [
            (r#"{"type":"array","items":"null"}"#, "without bytes"),
            (r#"{"type":"array","items":{"type":"record","name":"E","fields":[]}}"#, "without bytes"),
            (r#"{"type":"array","items":{"type":"fixed","name":"F","size":0}}"#, "without bytes"),
            (r#"["null","R"]"#, "contains itself"),
            (r#"{"type":"array","items":"R"}"#, "contains itself"),
        ] {
            assert!(problem(field).unwrap().contains(said), "{field}");
        }
        for field in [r#"{"type":"array","items":"string"}"#, r#"{"type":"map","values":"null"}"#, r#"["null","long"]"#]
        {
            assert_eq!(problem(field), None, "{field}");
        }
    }

    #[test]
    fn a_schema_that_unfolds_without_end_is_refused() {
        let mut field = r#"{"type":"record","name":"N0","fields":[]}"#.to_owned();
        for depth in 1..40 {
            let below = depth - 1;
            field = format!(
                r#"{{"type":"record","name":"N{depth}","fields":[{{"name":"a","type":{field}}},{{"name":"b","type":"N{below}"}}]}}"#
            );
        }
        assert!(problem(&field).unwrap().contains("unfolds"));
    }

    #[test]
    fn attributes_called_like_numbers_are_read_without_a_canonical_form() {
        for (attribute, is_there) in [
            (r#""size":"large""#, false),
            (r#""scale":18446744073709551615"#, false),
            (r#""precision":null"#, false),
            (r#""size":"12""#, true),
            (r#""colour":"red""#, true),
        ] {
            let avsc = format!(
                r#"{{"type":"record","name":"R",{attribute},"fields":[{{"name":"a","type":"long",{attribute}}}]}}"#
            );
            let schema = Schema::parse_str(&avsc).unwrap();
            assert_eq!(has_canonical_form(&schema), is_there, "{attribute}");
            let read = crate::codec::WriterSchema::parse(&avsc).unwrap();
            assert_eq!((read.name(), read.known()), ("R", None));
        }
    }
}
