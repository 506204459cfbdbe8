//! A row as named fields, however its type nests them: what two generations are compared by, field by field.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Names joined by dots, to values. A field that is null is left out: it is the same as one that is not there.
pub type Fields = BTreeMap<String, Value>;

/// The fields of a row.
pub fn of_row(row: &impl Serialize) -> Fields {
    // A row is numbers, texts and lists of them: it always has a JSON form.
    of_json(serde_json::to_value(row).unwrap_or_default())
}

/// The fields of a row's JSON form. The name of an enum's variant that wraps everything is left out.
pub fn of_json(value: Value) -> Fields {
    let mut fields = Fields::new();
    match value {
        Value::Object(object) if object.len() == 1 && object.keys().all(|name| is_variant(name)) => {
            object.into_values().for_each(|inner| flatten(String::new(), inner, &mut fields));
        }
        other => flatten(String::new(), other, &mut fields),
    }
    fields
}

fn is_variant(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase())
}

fn flatten(name: String, value: Value, fields: &mut Fields) {
    match value {
        Value::Null => {}
        Value::Object(object) => {
            for (inner, value) in object {
                flatten(if name.is_empty() { inner } else { format!("{name}.{inner}") }, value, fields);
            }
        }
        leaf => {
            fields.insert(name, leaf);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_fields_have_dotted_names_and_variants_none() {
        let fields = of_json(json!({"Product": {"product": {"name": "Onion", "brand": null}, "version": 3}}));
        assert_eq!(fields, of_json(json!({"product": {"name": "Onion"}, "version": 3})));
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["product.name", "version"]);
        assert_eq!(of_json(json!({"on_hand": 1})).len(), 1);
    }
}
