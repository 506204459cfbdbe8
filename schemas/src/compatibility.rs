//! Compatibility of schema versions: BACKWARD_TRANSITIVE, every old version readable by the newest.
//!
//! Source: Avro specification, schema resolution; Confluent Schema Registry, compatibility types.

use apache_avro::Schema;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};

use crate::contract::{CONTRACTS, SchemaRef};

/// A reader that cannot read what a writer wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reader} cannot read {writer}: {problem}")]
pub struct Incompatible {
    pub reader: SchemaRef,
    pub writer: SchemaRef,
    pub problem: String,
}

/// Checks each version of every contract against all its earlier versions.
pub fn check_contracts() -> Vec<Incompatible> {
    let mut found = Vec::new();
    for reader in CONTRACTS {
        let earlier = CONTRACTS
            .iter()
            .filter(|writer| writer.schema.name == reader.schema.name && writer.schema.version < reader.schema.version);
        for writer in earlier {
            if let Err(problem) = can_read(writer.avsc, reader.avsc) {
                found.push(Incompatible { reader: reader.schema, writer: writer.schema, problem });
            }
        }
    }
    found
}

/// Whether data written with one schema can always be read with another.
pub fn can_read(writer_avsc: &str, reader_avsc: &str) -> Result<(), String> {
    let writer = Schema::parse_str(writer_avsc).map_err(|error| error.to_string())?;
    let reader = Schema::parse_str(reader_avsc).map_err(|error| error.to_string())?;
    match SchemaCompatibility::can_read(&writer, &reader) {
        Ok(Compatibility::Full) => Ok(()),
        Ok(Compatibility::Partial) => Err("only some of the values could be read".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether two schemas write the same data, whatever their texts say about defaults and documentation.
pub fn is_same(avsc: &str, other_avsc: &str) -> bool {
    let canonical = |avsc| Schema::parse_str(avsc).map(|schema| schema.canonical_form());
    matches!((canonical(avsc), canonical(other_avsc)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_of_this_build_are_compatible() {
        assert_eq!(check_contracts(), []);
    }

    #[test]
    fn a_new_field_needs_a_default_and_a_type_may_not_change() {
        let old = r#"{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}"#;
        let without =
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"string"},{"name":"b","type":"long"}]}"#;
        let with = r#"{"type":"record","name":"R","fields":[{"name":"a","type":"string"},{"name":"b","type":"long","default":0}]}"#;
        let changed = r#"{"type":"record","name":"R","fields":[{"name":"a","type":"long"}]}"#;
        assert!(can_read(old, with).is_ok());
        assert!(can_read(old, without).is_err());
        assert!(can_read(old, changed).is_err());
    }
}
