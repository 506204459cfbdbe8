//! The digest of a row's named fields, by which rows are told apart before anything reads them field by field.

use std::hash::{DefaultHasher, Hasher};

pub use read_models::generations::fields::{Fields, of_json, of_row};

/// Two rows of equal digest have equal fields, but for one chance in 2^64 for each pair.
pub fn digest(fields: &Fields) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, value) in fields {
        hasher.write(name.as_bytes());
        hasher.write_u8(0xff);
        hasher.write(value.to_string().as_bytes());
        hasher.write_u8(0xfe);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_digest_tells_values_and_names_apart() {
        let digest = |value| super::digest(&of_json(value));
        assert_eq!(digest(json!({"a": 1, "b": 2})), digest(json!({"b": 2, "a": 1, "c": null})));
        assert_ne!(digest(json!({"a": 1, "b": 2})), digest(json!({"a": 2, "b": 1})));
        assert_ne!(digest(json!({"a": "1"})), digest(json!({"a": 1})));
    }
}
