//! The port to a schema registry: which id stands for which schema.

mod embedded;
mod http;

use std::sync::Arc;

use async_trait::async_trait;
use schemas::{Contract, SchemaRef, WriterSchema};

use crate::error::EventLogError;

pub use embedded::EmbeddedRegistry;
pub use http::HttpRegistry;

/// Ids of schemas, as they stand in the frame of each record.
#[async_trait]
pub trait SchemaRegistry: Send + Sync {
    /// Id of one of our schemas on a topic. One that is not registered is an error that names the remedy
    /// (`millrace contracts register`): the running program never registers.
    async fn id_of(&self, topic: &str, schema: SchemaRef) -> Result<u32, EventLogError>;

    /// The schema behind an id.
    async fn schema(&self, id: u32) -> Result<Arc<WriterSchema>, EventLogError>;

    /// Registers a contract on a topic and sets its subject's compatibility to BACKWARD_TRANSITIVE. One that could not
    /// read what was registered before it is [`EventLogError::Incompatible`], whatever the subject's level was.
    async fn register(&self, topic: &str, contract: &Contract) -> Result<u32, EventLogError>;

    /// Whether a contract goes with what a topic's subject holds: it reads every version before it, by our own
    /// comparison and by the registry's, and the subject's level keeps it so. `Ok(Err(why))` when not.
    async fn check(&self, topic: &str, contract: &Contract) -> Result<Result<(), String>, EventLogError>;

    /// Whether the registry answers; for readiness.
    async fn ping(&self) -> Result<(), EventLogError>;
}
