//! Ids that callers choose: one grammar for all of them, checked where they enter.
//!
//! The grammar keeps ids safe inside stream names, partition keys, Redis keys, URLs and file names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest id in characters (all of them ASCII, so also in bytes).
pub const MAX_ID_LENGTH: usize = 64;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {given:?} is not an id: use 1 to {MAX_ID_LENGTH} of the characters A-Z a-z 0-9 . _ -")]
pub struct IdError {
    /// Which id was asked for: `sku`, `warehouse`, `region`, `reservation_id`, `projection`.
    pub kind: &'static str,
    /// The refused text, cut to 80 characters.
    pub given: String,
}

/// Whether `text` follows the grammar `[A-Za-z0-9._-]{1,64}`.
pub fn is_id(text: &str) -> bool {
    (1..=MAX_ID_LENGTH).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[schema(value_type = String, pattern = "^[A-Za-z0-9._-]{1,64}$")]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes a text that follows the grammar.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                if is_id(&text) {
                    Ok(Self(text))
                } else {
                    Err(IdError { kind: $kind, given: text.chars().take(80).collect() })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(
    /// Stock keeping unit: what is sold, and the partition key of everything that is said about it.
    Sku,
    "sku"
);
id!(
    /// A place that holds stock; each lies in one region.
    WarehouseId,
    "warehouse"
);
id!(
    /// A sales region with its own currency and warehouses.
    RegionId,
    "region"
);
id!(
    /// A promise of stock, named by whoever asked for it.
    ReservationId,
    "reservation_id"
);

id!(
    /// A read model by the name of what folds it, such as `stock`.
    ProjectionId,
    "projection"
);

/// A UUID as text, in Avro too, whose library would give it as bytes.
pub(crate) mod uuid_text {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;
    use uuid::Uuid;

    pub(crate) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_grammar_are_taken_and_others_are_named_in_the_error() {
        for good in ["a", "SKU-1.2_3", &"x".repeat(64)] {
            assert_eq!(Sku::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a/b", "ä", "a@b", &"x".repeat(65)] {
            let error = Sku::new(bad).unwrap_err();
            assert_eq!(error.kind, "sku");
            assert!(error.to_string().contains("1 to 64"), "{error}");
        }
    }

    #[test]
    fn deserializing_checks_the_grammar() {
        assert!(serde_json::from_str::<WarehouseId>("\"w-1\"").is_ok());
        assert!(serde_json::from_str::<WarehouseId>("\"w 1\"").is_err());
    }
}
