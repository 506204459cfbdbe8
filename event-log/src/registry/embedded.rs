//! The registry of one machine: the compiled-in schemas, numbered by their place in [`schemas::contract::CONTRACTS`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use schemas::contract::{by_embedded_id, embedded_id};
use schemas::{Contract, SchemaRef, WriterSchema};

use super::SchemaRegistry;
use crate::error::EventLogError;

const ADDRESS: &str = "(compiled in)";

/// Needs no server. Its ids hold for embedded logs only.
#[derive(Default)]
pub struct EmbeddedRegistry {
    parsed: Mutex<HashMap<u32, Arc<WriterSchema>>>,
}

#[async_trait]
impl SchemaRegistry for EmbeddedRegistry {
    async fn id_of(&self, topic: &str, schema: SchemaRef) -> Result<u32, EventLogError> {
        match embedded_id(schema) {
            0 => Err(EventLogError::NotRegistered { topic: topic.to_owned(), schema, address: ADDRESS.to_owned() }),
            id => Ok(id),
        }
    }

    async fn schema(&self, id: u32) -> Result<Arc<WriterSchema>, EventLogError> {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(schema) = parsed.get(&id) {
            return Ok(schema.clone());
        }
        let contract =
            by_embedded_id(id).ok_or_else(|| EventLogError::UnknownSchemaId { id, address: ADDRESS.to_owned() })?;
        let schema = WriterSchema::parse(contract.avsc).map_err(|source| EventLogError::Schema { id, source })?;
        let schema = Arc::new(schema);
        parsed.insert(id, schema.clone());
        Ok(schema)
    }

    async fn register(&self, topic: &str, contract: &Contract) -> Result<u32, EventLogError> {
        self.id_of(topic, contract.schema).await
    }

    async fn check(&self, _topic: &str, contract: &Contract) -> Result<Result<(), String>, EventLogError> {
        let problems: Vec<String> = schemas::compatibility::check_contracts()
            .into_iter()
            .filter(|found| found.reader == contract.schema)
            .map(|found| format!("cannot read {}: {}", found.writer, found.problem))
            .collect();
        Ok(if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) })
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        Ok(())
    }
}
