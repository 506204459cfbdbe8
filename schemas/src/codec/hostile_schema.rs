//! Writer's schemas that make a short body expensive. A registry hands out schemas of others, so one of them must not be able
//! to hold a projector for ever.
//!
//! Refused: lists whose items take no bytes (a body of a few bytes claims any number of them), schemas that contain
//! themselves (a body nests to any depth, and the stack ends), and those that unfold to very many fields.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{InnerDecimalSchema, Name};

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
}
