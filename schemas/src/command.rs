//! Commands: what services ask for, as JSON (HTTP, command topics) or Avro (command topics).
//!
//! A command is read strictly (an unknown field is an error, since a dropped one would change its meaning) and
//! checked for sizes and ranges here, so that aggregates see only well-formed ones.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::context::Context;
use crate::id::{RegionId, ReservationId, Sku, WarehouseId};

/// Longest name, brand, reason, tag or category, in characters.
pub const MAX_TEXT: usize = 500;
/// Longest description, in characters.
pub const MAX_DESCRIPTION: usize = 10_000;
/// Most tags, and most levels of a category path.
pub const MAX_ITEMS: usize = 32;
/// Largest quantity, count or price: far above any warehouse, far below an overflow of their sums.
pub const MAX_NUMBER: i64 = 1_000_000_000_000;

/// A command with what is known about its sending.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandEnvelope {
    /// Chosen by the sender; one id has one effect.
    pub id: Uuid,
    /// Ties together everything that one cause set off.
    pub correlation_id: Option<String>,
    /// What made the sender send it: an event or command id.
    pub causation_id: Option<String>,
    /// Who asked.
    pub actor: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// When it came in, milliseconds since 1970: the only time that a decision may use.
    pub received_at: i64,
    pub command: Command,
}

/// Any command of any context.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", content = "data")]
pub enum Command {
    RegisterProduct(RegisterProduct),
    ReviseProduct(ReviseProduct),
    DiscontinueProduct(DiscontinueProduct),
    ReceiveStock(ReceiveStock),
    AdjustStock(AdjustStock),
    CountStock(CountStock),
    ReserveStock(ReserveStock),
    ReleaseReservation(ReleaseReservation),
    ShipReservation(ShipReservation),
    SetPrice(SetPrice),
}

macro_rules! data {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

data!(
    /// Enter a product into the catalogue.
    RegisterProduct {
        sku: Sku,
        name: String,
        #[serde(default)] brand: Option<String>,
        /// From the widest to the narrowest.
        #[serde(default)] category_path: Vec<String>,
        #[serde(default)] description: Option<String>,
        /// As printed on the pack, such as `500 g`.
        #[serde(default)] pack_size: Option<String>,
        #[serde(default)] tags: Vec<String>,
    }
);
data!(
    /// Change a product; what is absent or null stays as it is.
    ReviseProduct {
        sku: Sku,
        #[serde(default)] name: Option<String>,
        #[serde(default)] brand: Option<String>,
        #[serde(default)] category_path: Option<Vec<String>>,
        #[serde(default)] description: Option<String>,
        #[serde(default)] pack_size: Option<String>,
        #[serde(default)] tags: Option<Vec<String>>,
    }
);
data!(
    /// Take a product out of the catalogue.
    DiscontinueProduct {
        sku: Sku,
        #[serde(default)] reason: Option<String>,
    }
);
data!(
    /// Add delivered units.
    ReceiveStock {
        sku: Sku,
        warehouse: WarehouseId,
        /// Needed the first time a warehouse is named.
        #[serde(default)] region: Option<RegionId>,
        quantity: i64,
    }
);
data!(
    /// Correct the stock by a signed difference.
    AdjustStock {
        sku: Sku,
        warehouse: WarehouseId,
        delta: i64,
        reason: String,
    }
);
data!(
    /// Set the stock to what was counted.
    CountStock {
        sku: Sku,
        warehouse: WarehouseId,
        /// Needed the first time a warehouse is named.
        #[serde(default)] region: Option<RegionId>,
        counted: i64,
    }
);
data!(
    /// Promise units to a reservation.
    ReserveStock {
        sku: Sku,
        warehouse: WarehouseId,
        reservation_id: ReservationId,
        quantity: i64,
        /// Milliseconds since 1970, or RFC 3339 in JSON; the reservation is released then by itself.
        #[serde(deserialize_with = "instant::deserialize")] expires_at: i64,
    }
);
data!(
    /// Give reserved units back.
    ReleaseReservation {
        sku: Sku,
        warehouse: WarehouseId,
        reservation_id: ReservationId,
        #[serde(default)] reason: Option<String>,
    }
);
data!(
    /// Ship reserved units.
    ShipReservation {
        sku: Sku,
        warehouse: WarehouseId,
        reservation_id: ReservationId,
    }
);
data!(
    /// Set the price of a SKU in a region.
    SetPrice {
        sku: Sku,
        region: RegionId,
        /// ISO 4217 code, three capital letters.
        currency: String,
        /// Price of one pack in minor units.
        amount_minor: i64,
    }
);

/// Why something is not a command. The text is for its sender.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommandError {
    #[error("not a command: {0}")]
    Malformed(String),
    #[error("unknown command type {given:?}: use one of {}", Command::TYPES.join(", "))]
    UnknownType { given: String },
    #[error("{command_type}: {problem}")]
    Data { command_type: &'static str, problem: String },
    #[error("{command_type}: field {field}: {problem}")]
    Field { command_type: &'static str, field: &'static str, problem: String },
}

// === impl CommandError ===

impl CommandError {
    /// Short code for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            CommandError::Malformed(_) => "malformed_command",
            CommandError::UnknownType { .. } => "unknown_command_type",
            CommandError::Data { .. } => "invalid_data",
            CommandError::Field { .. } => "invalid_field",
        }
    }
}

// === impl CommandEnvelope ===

/// A command as it is written in JSON: one HTTP body, or one line of a bulk body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandJson<'a> {
    id: Uuid,
    r#type: String,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(default)]
    correlation_id: Option<String>,
    #[serde(default)]
    causation_id: Option<String>,
    #[serde(default)]
    actor: Option<String>,
}

impl CommandEnvelope {
    /// Reads one JSON command. `received_at` is in milliseconds since 1970.
    pub fn from_json(json: &[u8], traceparent: Option<String>, received_at: i64) -> Result<Self, CommandError> {
        let parsed: CommandJson<'_> =
            serde_json::from_slice(json).map_err(|error| CommandError::Malformed(error.to_string()))?;
        let command = Command::from_json(&parsed.r#type, parsed.data.get().as_bytes())?;
        let envelope = Self {
            id: parsed.id,
            correlation_id: parsed.correlation_id,
            causation_id: parsed.causation_id,
            actor: parsed.actor,
            traceparent,
            received_at,
            command,
        };
        envelope.check()?;
        Ok(envelope)
    }

    /// Checks what came beside the command itself; [`Command`] is checked when it is read.
    pub fn check(&self) -> Result<(), CommandError> {
        for (field, text) in [
            ("correlation_id", &self.correlation_id),
            ("causation_id", &self.causation_id),
            ("actor", &self.actor),
            ("traceparent", &self.traceparent),
        ] {
            if let Some(text) = text {
                check_text("command", field, text, 1, MAX_TEXT)?;
            }
        }
        Ok(())
    }
}

// === impl Command ===

impl Command {
    pub const TYPES: [&'static str; 10] = [
        "RegisterProduct",
        "ReviseProduct",
        "DiscontinueProduct",
        "ReceiveStock",
        "AdjustStock",
        "CountStock",
        "ReserveStock",
        "ReleaseReservation",
        "ShipReservation",
        "SetPrice",
    ];

    /// Reads the `data` of a command of the given short type, and checks it.
    pub fn from_json(command_type: &str, data_json: &[u8]) -> Result<Self, CommandError> {
        let command_type = Self::known_type(command_type)?;
        let data = |error: serde_json::Error| CommandError::Data { command_type, problem: error.to_string() };
        let command = match command_type {
            "RegisterProduct" => Command::RegisterProduct(serde_json::from_slice(data_json).map_err(data)?),
            "ReviseProduct" => Command::ReviseProduct(serde_json::from_slice(data_json).map_err(data)?),
            "DiscontinueProduct" => Command::DiscontinueProduct(serde_json::from_slice(data_json).map_err(data)?),
            "ReceiveStock" => Command::ReceiveStock(serde_json::from_slice(data_json).map_err(data)?),
            "AdjustStock" => Command::AdjustStock(serde_json::from_slice(data_json).map_err(data)?),
            "CountStock" => Command::CountStock(serde_json::from_slice(data_json).map_err(data)?),
            "ReserveStock" => Command::ReserveStock(serde_json::from_slice(data_json).map_err(data)?),
            "ReleaseReservation" => Command::ReleaseReservation(serde_json::from_slice(data_json).map_err(data)?),
            "ShipReservation" => Command::ShipReservation(serde_json::from_slice(data_json).map_err(data)?),
            "SetPrice" => Command::SetPrice(serde_json::from_slice(data_json).map_err(data)?),
            other => return Err(CommandError::UnknownType { given: other.to_owned() }),
        };
        command.checked()
    }

    /// The listed name of a short type (`ReceiveStock`) or a full one (`millrace.inventory.commands.ReceiveStock`).
    pub fn known_type(given: &str) -> Result<&'static str, CommandError> {
        Self::TYPES
            .into_iter()
            .find(|known| *known == given || Self::full_name_of(known) == given)
            .ok_or_else(|| CommandError::UnknownType { given: given.chars().take(120).collect() })
    }

    /// Short type, as in the JSON form.
    pub const fn command_type(&self) -> &'static str {
        match self {
            Command::RegisterProduct(_) => "RegisterProduct",
            Command::ReviseProduct(_) => "ReviseProduct",
            Command::DiscontinueProduct(_) => "DiscontinueProduct",
            Command::ReceiveStock(_) => "ReceiveStock",
            Command::AdjustStock(_) => "AdjustStock",
            Command::CountStock(_) => "CountStock",
            Command::ReserveStock(_) => "ReserveStock",
            Command::ReleaseReservation(_) => "ReleaseReservation",
            Command::ShipReservation(_) => "ShipReservation",
            Command::SetPrice(_) => "SetPrice",
        }
    }

    pub fn context(&self) -> Context {
        Self::context_of(self.command_type())
    }

    /// Full name, as in `ce_type` and in the Avro schema: `millrace.inventory.commands.ReceiveStock`.
    pub fn full_name(&self) -> String {
        Self::full_name_of(self.command_type())
    }

    fn full_name_of(command_type: &str) -> String {
        format!("millrace.{}.commands.{command_type}", Self::context_of(command_type))
    }

    fn context_of(command_type: &str) -> Context {
        match command_type {
            "RegisterProduct" | "ReviseProduct" | "DiscontinueProduct" => Context::Catalogue,
            "SetPrice" => Context::Pricing,
            _ => Context::Inventory,
        }
    }

    /// The SKU that the command is about: the partition key of all that follows from it.
    pub fn sku(&self) -> &Sku {
        match self {
            Command::RegisterProduct(data) => &data.sku,
            Command::ReviseProduct(data) => &data.sku,
            Command::DiscontinueProduct(data) => &data.sku,
            Command::ReceiveStock(data) => &data.sku,
            Command::AdjustStock(data) => &data.sku,
            Command::CountStock(data) => &data.sku,
            Command::ReserveStock(data) => &data.sku,
            Command::ReleaseReservation(data) => &data.sku,
            Command::ShipReservation(data) => &data.sku,
            Command::SetPrice(data) => &data.sku,
        }
    }

    /// SHA-256 of type and data: tells a repeat of a command from another command under its id.
    /// The same for the JSON and the Avro form of one command.
    pub fn digest(&self) -> [u8; 32] {
        let canonical = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(&canonical).into()
    }

    /// The command, when its sizes and ranges are right.
    pub(crate) fn checked(self) -> Result<Self, CommandError> {
        self.check().map(|()| self)
    }

    fn check(&self) -> Result<(), CommandError> {
        let command_type = self.command_type();
        let text = |field, text: &str, least, most| check_text(command_type, field, text, least, most);
        let optional =
            |field, value: &Option<String>, most| value.as_deref().map_or(Ok(()), |value| text(field, value, 1, most));
        let list = |field, values: &[String]| {
            if values.len() > MAX_ITEMS {
                return Err(CommandError::Field {
                    command_type,
                    field,
                    problem: format!("has {} items, at most {MAX_ITEMS} fit", values.len()),
                });
            }
            values.iter().try_for_each(|value| text(field, value, 1, MAX_TEXT))
        };
        let number = |field, value: i64, least: i64| {
            if (least..=MAX_NUMBER).contains(&value) {
                Ok(())
            } else {
                Err(CommandError::Field {
                    command_type,
                    field,
                    problem: format!("{value} is not between {least} and {MAX_NUMBER}"),
                })
            }
        };
        match self {
            Command::RegisterProduct(data) => {
                text("name", &data.name, 1, MAX_TEXT)?;
                optional("brand", &data.brand, MAX_TEXT)?;
                list("category_path", &data.category_path)?;
                optional("description", &data.description, MAX_DESCRIPTION)?;
                optional("pack_size", &data.pack_size, MAX_TEXT)?;
                list("tags", &data.tags)
            }
            Command::ReviseProduct(data) => {
                optional("name", &data.name, MAX_TEXT)?;
                optional("brand", &data.brand, MAX_TEXT)?;
                data.category_path.as_deref().map_or(Ok(()), |path| list("category_path", path))?;
                optional("description", &data.description, MAX_DESCRIPTION)?;
                optional("pack_size", &data.pack_size, MAX_TEXT)?;
                data.tags.as_deref().map_or(Ok(()), |tags| list("tags", tags))
            }
            Command::DiscontinueProduct(data) => optional("reason", &data.reason, MAX_TEXT),
            Command::ReceiveStock(data) => number("quantity", data.quantity, 1),
            Command::AdjustStock(data) => {
                text("reason", &data.reason, 1, MAX_TEXT)?;
                if data.delta == 0 {
                    return Err(CommandError::Field {
                        command_type,
                        field: "delta",
                        problem: "0 changes nothing".to_owned(),
                    });
                }
                number("delta", data.delta, -MAX_NUMBER)
            }
            Command::CountStock(data) => number("counted", data.counted, 0),
            Command::ReserveStock(data) => number("quantity", data.quantity, 1),
            Command::ReleaseReservation(data) => optional("reason", &data.reason, MAX_TEXT),
            Command::ShipReservation(_) => Ok(()),
            Command::SetPrice(data) => {
                number("amount_minor", data.amount_minor, 0)?;
                let is_code = data.currency.len() == 3 && data.currency.bytes().all(|byte| byte.is_ascii_uppercase());
                if !is_code {
                    let problem = format!("{:?} is not three capital letters (ISO 4217)", data.currency);
                    return Err(CommandError::Field { command_type, field: "currency", problem });
                }
                Ok(())
            }
        }
    }
}

fn check_text(
    command_type: &'static str,
    field: &'static str,
    text: &str,
    least: usize,
    most: usize,
) -> Result<(), CommandError> {
    let length = text.chars().count();
    let problem = if length < least || text.trim().is_empty() {
        "is empty".to_owned()
    } else if length > most {
        format!("has {length} characters, at most {most} fit")
    } else if text.chars().any(|character| character.is_control() && !matches!(character, '\n' | '\r' | '\t')) {
        "has a control character".to_owned()
    } else {
        return Ok(());
    };
    Err(CommandError::Field { command_type, field, problem })
}

/// An instant as milliseconds since 1970 (Avro, JSON) or RFC 3339 (JSON).
mod instant {
    use std::fmt;

    use chrono::DateTime;
    use serde::de::{Deserializer, Error, Visitor};

    struct InstantVisitor;

    impl Visitor<'_> for InstantVisitor {
        type Value = i64;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an instant: RFC 3339 such as 2030-01-31T12:00:00Z, or milliseconds since 1970")
        }

        fn visit_i64<E: Error>(self, milliseconds: i64) -> Result<i64, E> {
            // Outside this range no calendar date can be printed for it.
            DateTime::from_timestamp_millis(milliseconds)
                .map(|_| milliseconds)
                .ok_or_else(|| E::custom(format!("{milliseconds} is out of range for an instant")))
        }

        fn visit_u64<E: Error>(self, milliseconds: u64) -> Result<i64, E> {
            let milliseconds = i64::try_from(milliseconds).map_err(E::custom)?;
            self.visit_i64(milliseconds)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<i64, E> {
            DateTime::parse_from_rfc3339(text)
                .map(|instant| instant.timestamp_millis())
                .map_err(|error| E::custom(format!("{text:?} is not an RFC 3339 instant ({error})")))
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        deserializer.deserialize_any(InstantVisitor)
    }
}

#[cfg(test)]
mod tests;
