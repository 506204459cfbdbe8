//! What happens without the guard `loads-before-writes`: a transaction takes its id first, and loads and appends then.
//!
//! Nothing of this runs while the guard holds. Another writer that begins later can then commit before the load, so
//! that the higher version of a stream stands at the lower place of the event table, and the relay publishes it first.

use tokio::sync::Mutex;

use super::load;
use super::pool::{Server, Session, within};
use crate::error::EventStoreError;
use crate::store::{LoadRequest, Loaded};

/// The transaction that the last load began, for the append that follows. Dropping the session rolls it back.
#[derive(Default)]
pub(super) struct EarlyTransaction {
    session: Mutex<Option<Session>>,
}

// === impl EarlyTransaction ===

impl EarlyTransaction {
    pub(super) async fn load(&self, server: &Server, request: &LoadRequest) -> Result<Loaded, EventStoreError> {
        let mut begun = self.session.lock().await;
        drop(begun.take());
        let session = server.session().await?;
        let loading = async {
            session.client().batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_current_xact_id()").await?;
            load::load_within(&session, request).await
        };
        let loaded = within(loading).await.map_err(|failure| failure.into_error(server.address()))?;
        *begun = Some(session);
        Ok(loaded)
    }

    pub(super) async fn take(&self) -> Option<Session> {
        self.session.lock().await.take()
    }
}
