//! `millrace contracts check|register|export`.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use event_log::{EventLogError, SchemaRegistry};
use schemas::compatibility;
use schemas::contract::CONTRACTS;
use serde::Serialize;

use crate::address::StoreUrl;
use crate::cli::{ContractsAction, ContractsArgs, ExportFormat};
use crate::exit::Exit;
use crate::output;
use crate::roles::{EVERY_API, openapi_document};

/// One finding of a check.
#[derive(Serialize)]
struct Finding {
    schema: String,
    against: String,
    problem: String,
}

/// One registered schema.
#[derive(Serialize)]
struct Registered {
    subject: String,
    version: u32,
    id: u32,
}

pub async fn run(args: ContractsArgs) -> anyhow::Result<Exit> {
    match args.action {
        ContractsAction::Check { schema_registry, json } => check(schema_registry.as_ref(), json).await,
        ContractsAction::Register { schema_registry: Some(url), json } => register(&url, json).await,
        // Not left to the parser: a flag that is required does not look into the settings file.
        ContractsAction::Register { schema_registry: None, .. } => {
            eprintln!(
                "millrace: contracts register needs a registry: give --schema-registry URL, MILLRACE_SCHEMA_REGISTRY or \
                 schema-registry in the settings file"
            );
            Ok(Exit::Usage)
        }
        ContractsAction::Export { format, out } => export(format, out.as_deref()),
    }
}

async fn check(registry: Option<&StoreUrl>, json: bool) -> anyhow::Result<Exit> {
    let mut findings: Vec<Finding> = compatibility::check_contracts()
        .into_iter()
        .map(|found| Finding {
            schema: found.reader.to_string(),
            against: found.writer.to_string(),
            problem: found.problem,
        })
        .collect();
    if let Some(url) = registry {
        let registry = connect(url)?;
        for contract in newest() {
            for topic in contract.topics() {
                if let Err(problem) = registry.check(topic, contract).await? {
                    let against = format!("{} at {url}", contract.subject(topic));
                    findings.push(Finding { schema: contract.schema.to_string(), against, problem });
                }
            }
        }
    }
    if json {
        output::json(&serde_json::json!({ "checked": CONTRACTS.len(), "findings": findings }))?;
    } else {
        for finding in &findings {
            output::line(format!("{} does not go with {}: {}", finding.schema, finding.against, finding.problem))?;
        }
        output::line(format!("{} schemas checked, {} findings", CONTRACTS.len(), findings.len()))?;
    }
    Ok(if findings.is_empty() { Exit::Done } else { Exit::Refused })
}

async fn register(url: &StoreUrl, json: bool) -> anyhow::Result<Exit> {
    let registry = connect(url)?;
    let mut registered = Vec::new();
    // Oldest version first: the registry compares each with those before it.
    for contract in CONTRACTS {
        for topic in contract.topics() {
            let id = match registry.register(topic, contract).await {
                Ok(id) => id,
                Err(refused @ (EventLogError::Incompatible { .. } | EventLogError::Refused { .. })) => {
                    eprintln!("millrace: {refused}");
                    return Ok(Exit::Refused);
                }
                Err(error) => return Err(error.into()),
            };
            registered.push(Registered { subject: contract.subject(topic), version: contract.schema.version, id });
        }
    }
    if json {
        output::json(&registered)?;
    } else {
        for one in &registered {
            output::line(format!("{} v{} is schema {}", one.subject, one.version, one.id))?;
        }
        output::line(format!("{} schemas registered at {url}", registered.len()))?;
    }
    Ok(Exit::Done)
}

fn export(format: ExportFormat, out: Option<&Path>) -> anyhow::Result<Exit> {
    let document = match format {
        ExportFormat::Asyncapi => schemas::asyncapi::document(env!("CARGO_PKG_VERSION")),
        ExportFormat::Openapi => openapi_document(&EVERY_API),
    };
    let text = serde_json::to_string_pretty(&document)?;
    match out {
        Some(path) => {
            std::fs::write(path, format!("{text}\n"))
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
        None => output::line(text)?,
    }
    Ok(Exit::Done)
}

fn connect(url: &StoreUrl) -> anyhow::Result<Arc<dyn SchemaRegistry>> {
    Ok(event_log::connect_registry(Some(url.expose()), None)?)
}

/// The newest version of each contract: what is about to be published.
fn newest() -> impl Iterator<Item = &'static schemas::Contract> {
    CONTRACTS.iter().filter(|contract| schemas::SchemaRef::newest(contract.schema.name) == Some(contract.schema))
}
