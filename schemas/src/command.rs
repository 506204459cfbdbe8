//! Commands: what services ask for, as JSON (HTTP, command topics) or Avro (command topics).
//!
//! A command is read strictly (an unknown field is an error, since a dropped one would change its meaning) and
//! checked for sizes and ranges here, so that aggregates see only well-formed ones.

macro_rules! data {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

mod catalogue;
mod check;
mod instant;
mod inventory;
mod platform;
mod pricing;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use uuid::Uuid;

pub use self::catalogue::{DiscontinueProduct, RegisterProduct, ReviseProduct};
use self::check::Check;
pub use self::check::{MAX_DESCRIPTION, MAX_EVIDENCE, MAX_ITEMS, MAX_NUMBER, MAX_TEXT};
pub use self::inventory::{AdjustStock, CountStock, ReceiveStock, ReleaseReservation, ReserveStock, ShipReservation};
pub use self::platform::RecordDecision;
pub use self::pricing::SetPrice;
use crate::context::Context;

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
    RecordDecision(RecordDecision),
}

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
                Check::of("command").text(field, text, MAX_TEXT)?;
            }
        }
        Ok(())
    }
}

// === impl Command ===

impl Command {
    pub const TYPES: [&'static str; 11] = [
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
        "RecordDecision",
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
            "RecordDecision" => Command::RecordDecision(serde_json::from_slice(data_json).map_err(data)?),
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
            Command::RecordDecision(_) => "RecordDecision",
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
            "RecordDecision" => Context::Platform,
            _ => Context::Inventory,
        }
    }

    /// The partition key of all that follows from the command: the SKU that it is about, or the projection.
    pub fn key(&self) -> &str {
        match self {
            Command::RegisterProduct(data) => data.sku.as_str(),
            Command::ReviseProduct(data) => data.sku.as_str(),
            Command::DiscontinueProduct(data) => data.sku.as_str(),
            Command::ReceiveStock(data) => data.sku.as_str(),
            Command::AdjustStock(data) => data.sku.as_str(),
            Command::CountStock(data) => data.sku.as_str(),
            Command::ReserveStock(data) => data.sku.as_str(),
            Command::ReleaseReservation(data) => data.sku.as_str(),
            Command::ShipReservation(data) => data.sku.as_str(),
            Command::SetPrice(data) => data.sku.as_str(),
            Command::RecordDecision(data) => data.projection.as_str(),
        }
    }

    /// SHA-256 of type and data: tells a repeat of a command from another command under its id.
    /// The same for the JSON and the Avro form of one command.
    pub fn digest(&self) -> [u8; 32] {
        let canonical = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(&canonical).into()
    }

    /// The command, when its sizes and ranges are right.
    pub fn checked(self) -> Result<Self, CommandError> {
        let check = Check::of(self.command_type());
        match &self {
            Command::RegisterProduct(data) => data.check(check),
            Command::ReviseProduct(data) => data.check(check),
            Command::DiscontinueProduct(data) => data.check(check),
            Command::ReceiveStock(data) => data.check(check),
            Command::AdjustStock(data) => data.check(check),
            Command::CountStock(data) => data.check(check),
            Command::ReserveStock(data) => data.check(check),
            Command::ReleaseReservation(data) => data.check(check),
            Command::ShipReservation(_) => Ok(()),
            Command::SetPrice(data) => data.check(check),
            Command::RecordDecision(data) => data.check(check),
        }?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
