//! The connection to a single Redis server.
//!
//! The client's own manager connects again after an error of input or output, and after no other: a greeting that fails
//! in another way (cut off inside TLS, a password that is refused, an answer that is none) is kept, and told for every
//! later call. Where that happens a new manager takes its place.

use std::sync::{PoisonError, RwLock};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, ConnectionInfo, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};

pub(super) struct Node {
    client: Client,
    config: ConnectionManagerConfig,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    /// Of those that were made.
    number: u64,
    manager: ConnectionManager,
}

// === impl Node ===

impl Node {
    pub(super) async fn connect(info: ConnectionInfo, config: ConnectionManagerConfig) -> RedisResult<Self> {
        let client = Client::open(info)?;
        let manager = ConnectionManager::new_with_config(client.clone(), config.clone()).await?;
        Ok(Self { client, config, current: RwLock::new(Current { number: 0, manager }) })
    }

    pub(super) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        let Current { number, mut manager } = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let answer = command.query_async(&mut manager).await;
        if answer.as_ref().is_err_and(is_of_the_connection) {
            self.replace(number);
        }
        answer
    }

    /// By the first of the calls that found it so. The new one connects with the next call.
    fn replace(&self, number: u64) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.number != number {
            return;
        }
        match self.client.get_connection_manager_lazy(self.config.clone()) {
            Ok(manager) => *current = Current { number: number + 1, manager },
            Err(error) => tracing::warn!(%error, "the connection to Redis is not made anew"),
        }
    }
}

/// Whether the connection failed, in a way that the client does not come back from, and not the call.
pub(super) fn is_of_the_connection(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Parse | ErrorKind::AuthenticationFailed | ErrorKind::Client | ErrorKind::RESP3NotSupported => true,
        // The greeting's SELECT: a server with too many clients refuses it, for one.
        ErrorKind::Server(ServerErrorKind::ResponseError) => error.to_string().contains("refused to switch database"),
        _ => false,
    }
}
