//! Ids of schemas before they are needed: a registry that is away later stops no relay at the first event of a kind
//! that it has not published yet.

use std::convert::Infallible;

use event_log::{EventLogError, SchemaRegistry};
use resilience::Policy;
use schemas::contract::{CONTRACTS, ContractKind};

/// Asks for the id of every contract that a relay publishes, which the registry's client keeps. What is not registered
/// is passed over: it is asked for again when it is needed. While the registry is away it is asked again.
pub(crate) async fn look_up_ahead(registry: &dyn SchemaRegistry) -> Infallible {
    let mut delays = Policy::RESTART.backoff();
    while !look_up_all(registry).await {
        delays.wait().await;
    }
    std::future::pending().await
}

/// Whether the registry answered to the end.
async fn look_up_all(registry: &dyn SchemaRegistry) -> bool {
    for contract in CONTRACTS.iter().filter(|contract| contract.kind != ContractKind::Command) {
        for topic in contract.topics() {
            match registry.id_of(topic, contract.schema).await {
                Ok(_) => {}
                Err(EventLogError::RegistryUnavailable { .. }) => return false,
                Err(error) => tracing::debug!(%error, "schema id is not known ahead"),
            }
        }
    }
    true
}
