//! The contracts this build carries: every Avro schema file, by name and version, and where each is used.
//!
//! A contract is never edited once released; a change is a new version beside the old ones. `contracts
//! check` holds every version readable by the newest.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::context::Context;

/// Names a schema in our own terms, independent of any registry: registry ids differ between
/// environments, stored events do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SchemaRef {
    /// Full Avro name, such as `millrace.inventory.StockUpdated`.
    pub name: &'static str,
    /// 1, 2, 3 …
    pub version: u32,
}

/// What travels under a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContractKind {
    Event,
    Command,
    Outcome,
}

/// One schema file and where it is used.
#[derive(Debug, Clone, Copy)]
pub struct Contract {
    pub schema: SchemaRef,
    pub kind: ContractKind,
    /// Owning context; an outcome travels on the outcome topic of every context.
    pub context: Option<Context>,
    /// The `.avsc` text, as in the repository.
    pub avsc: &'static str,
    /// Path of that file below `schemas/avro`.
    pub file: &'static str,
}

macro_rules! contract {
    ($kind:ident, $context:expr, $name:literal, $version:literal, $file:literal) => {
        Contract {
            schema: SchemaRef { name: $name, version: $version },
            kind: ContractKind::$kind,
            context: $context,
            avsc: include_str!(concat!("../avro/", $file)),
            file: $file,
        }
    };
}

/// Every contract, oldest version of a name first. The order is part of the embedded log's wire format
/// (see [`embedded_id`]): append, never reorder.
pub static CONTRACTS: &[Contract] = &[
    contract!(
        Event,
        Some(Context::Catalogue),
        "millrace.catalogue.ProductRegistered",
        1,
        "catalogue/ProductRegistered.v1.avsc"
    ),
    contract!(
        Event,
        Some(Context::Catalogue),
        "millrace.catalogue.ProductRegistered",
        2,
        "catalogue/ProductRegistered.v2.avsc"
    ),
    contract!(
        Event,
        Some(Context::Catalogue),
        "millrace.catalogue.ProductRevised",
        1,
        "catalogue/ProductRevised.v1.avsc"
    ),
    contract!(
        Event,
        Some(Context::Catalogue),
        "millrace.catalogue.ProductDiscontinued",
        1,
        "catalogue/ProductDiscontinued.v1.avsc"
    ),
    contract!(Event, Some(Context::Inventory), "millrace.inventory.StockUpdated", 1, "inventory/StockUpdated.v1.avsc"),
    contract!(Event, Some(Context::Pricing), "millrace.pricing.PriceSet", 1, "pricing/PriceSet.v1.avsc"),
    contract!(Outcome, None, "millrace.platform.CommandOutcome", 1, "platform/CommandOutcome.v1.avsc"),
    contract!(
        Command,
        Some(Context::Catalogue),
        "millrace.catalogue.commands.RegisterProduct",
        1,
        "commands/catalogue/RegisterProduct.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Catalogue),
        "millrace.catalogue.commands.ReviseProduct",
        1,
        "commands/catalogue/ReviseProduct.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Catalogue),
        "millrace.catalogue.commands.DiscontinueProduct",
        1,
        "commands/catalogue/DiscontinueProduct.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Inventory),
        "millrace.inventory.commands.ReceiveStock",
        1,
        "commands/inventory/ReceiveStock.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Inventory),
        "millrace.inventory.commands.AdjustStock",
        1,
        "commands/inventory/AdjustStock.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Inventory),
        "millrace.inventory.commands.CountStock",
        1,
        "commands/inventory/CountStock.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Inventory),
        "millrace.inventory.commands.ReserveStock",
        1,
        "commands/inventory/ReserveStock.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Inventory),
        "millrace.inventory.commands.ReleaseReservation",
        1,
        "commands/inventory/ReleaseReservation.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Inventory),
        "millrace.inventory.commands.ShipReservation",
        1,
        "commands/inventory/ShipReservation.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Pricing),
        "millrace.pricing.commands.SetPrice",
        1,
        "commands/pricing/SetPrice.v1.avsc"
    ),
    contract!(
        Event,
        Some(Context::Platform),
        "millrace.platform.DecisionRecorded",
        1,
        "platform/DecisionRecorded.v1.avsc"
    ),
    contract!(
        Command,
        Some(Context::Platform),
        "millrace.platform.commands.RecordDecision",
        1,
        "commands/platform/RecordDecision.v1.avsc"
    ),
];

// === impl SchemaRef ===

impl SchemaRef {
    /// Finds a contract of this build by stored name and version.
    pub fn find(name: &str, version: u32) -> Option<SchemaRef> {
        CONTRACTS.iter().map(|contract| contract.schema).find(|schema| schema.name == name && schema.version == version)
    }

    /// The newest version of a name in this build.
    pub fn newest(name: &str) -> Option<SchemaRef> {
        CONTRACTS.iter().map(|contract| contract.schema).filter(|schema| schema.name == name).max()
    }

    pub fn contract(self) -> &'static Contract {
        CONTRACTS.iter().find(|contract| contract.schema == self).unwrap_or(&CONTRACTS[0])
    }
}

impl fmt::Display for SchemaRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} v{}", self.name, self.version)
    }
}

// === impl Contract ===

impl Contract {
    /// Topics that carry this contract.
    pub fn topics(&self) -> Vec<&'static str> {
        match (self.kind, self.context) {
            (ContractKind::Event, Some(context)) => vec![context.events_topic()],
            (ContractKind::Command, Some(context)) => vec![context.commands_topic()],
            (_, None) | (ContractKind::Outcome, _) => Context::ALL.map(Context::outcomes_topic).to_vec(),
        }
    }

    /// Registry subject under TopicRecordNameStrategy: `<topic>-<full record name>`.
    pub fn subject(&self, topic: &str) -> String {
        subject(topic, self.schema.name)
    }
}

/// Registry subject of a record on a topic (TopicRecordNameStrategy).
pub fn subject(topic: &str, record_name: &str) -> String {
    format!("{topic}-{record_name}")
}

/// Registry id of a contract where there is no registry: its place in [`CONTRACTS`], counted from 1.
pub fn embedded_id(schema: SchemaRef) -> u32 {
    CONTRACTS.iter().position(|contract| contract.schema == schema).map_or(0, |index| index as u32 + 1)
}

/// The contract behind an id that [`embedded_id`] gave.
pub fn by_embedded_id(id: u32) -> Option<&'static Contract> {
    CONTRACTS.get((id as usize).checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_file_parses_and_carries_its_name() {
        for contract in CONTRACTS {
            let schema = apache_avro::Schema::parse_str(contract.avsc)
                .unwrap_or_else(|error| panic!("{}: {error}", contract.file));
            assert_eq!(schema.name().unwrap().fullname(None), contract.schema.name, "{}", contract.file);
            assert!(contract.file.ends_with(&format!(".v{}.avsc", contract.schema.version)), "{}", contract.file);
        }
    }

    #[test]
    fn no_schema_file_is_forgotten() {
        fn walk(folder: &std::path::Path, found: &mut Vec<String>, root: &std::path::Path) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found, root);
                } else {
                    found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("avro");
        let mut found = Vec::new();
        walk(&root, &mut found, &root);
        found.sort();
        let mut listed: Vec<String> = CONTRACTS.iter().map(|contract| contract.file.to_owned()).collect();
        listed.sort();
        assert_eq!(found, listed);
    }

    #[test]
    fn embedded_ids_lead_back() {
        for contract in CONTRACTS {
            assert_eq!(by_embedded_id(embedded_id(contract.schema)).unwrap().schema, contract.schema);
        }
        assert!(by_embedded_id(0).is_none());
    }
}
