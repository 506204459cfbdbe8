//! Back-pressure: intake waits while the relay is too far behind.
//!
//! Without a bound a stopped relay shows as reads that are older and older, and its return as a flood. The lag is
//! watched beside the commands, never asked for per command. The gate closes above the bound and opens again at half of
//! it, so that it does not flap. What was taken is decided whatever the gate says.

use std::sync::Arc;
use std::time::Duration;

use event_store::EventStore;
use metrics::gauge;
use telemetry::ComponentHealth;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::INTAKE_HELD;

/// Code of the reason when a command was not taken for it.
pub(crate) const OVERLOADED: &str = "overloaded";
/// How often the lag is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whether commands are taken now. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct IntakeGate {
    /// `None` where nothing is watched.
    is_open: Option<watch::Receiver<bool>>,
    patience: Duration,
}

// === impl IntakeGate ===

impl IntakeGate {
    /// Watches the relay's lag until `shutdown`; without a bound the gate is always open. Who waits for a limited time
    /// waits for `patience`.
    pub(crate) fn watch(
        store: Arc<dyn EventStore>,
        most: Option<u64>,
        patience: Duration,
        shutdown: CancellationToken,
    ) -> Self {
        let Some(most) = most else { return Self { is_open: None, patience } };
        let (tell, is_open) = watch::channel(true);
        tokio::spawn(async move {
            tokio::select! {
                () = look(store, most, tell) => {}
                () = shutdown.cancelled() => {}
            }
        });
        Self { is_open: Some(is_open), patience }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.as_ref().is_none_or(|is_open| *is_open.borrow())
    }

    /// Waits until commands are taken, or until nobody watches any more: then the handler has the last word.
    pub(crate) async fn opened(&self) {
        if let Some(mut is_open) = self.is_open.clone() {
            let _ = is_open.wait_for(|is_open| *is_open).await;
        }
    }

    /// As [`Self::opened`], for a limited time; whether commands are taken then.
    pub(crate) async fn opened_in_time(&self) -> bool {
        tokio::time::timeout(self.patience, self.opened()).await.is_ok()
    }

    /// Tells `/readyz` whether intake is held, until nobody watches any more.
    pub(crate) async fn tell(&self, health: ComponentHealth) {
        health.ready();
        let Some(mut is_open) = self.is_open.clone() else { return };
        loop {
            if *is_open.borrow_and_update() {
                health.ready();
            } else {
                health.degraded("held: no commands are taken until the relay has caught up");
            }
            if is_open.changed().await.is_err() {
                return;
            }
        }
    }
}

async fn look(store: Arc<dyn EventStore>, most: u64, tell: watch::Sender<bool>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // What goes out once more, after the cursor was set back, takes no room that it did not take before.
        let lag = match store.unpublished().await {
            Ok(lag) => lag,
            // A store that does not answer takes no commands either.
            Err(error) => {
                tracing::debug!(%error, "relay lag is not known");
                continue;
            }
        };
        let was_open = *tell.borrow();
        let is_open = if was_open { lag <= most } else { lag <= most / 2 };
        gauge!(INTAKE_HELD).set(if is_open { 0.0 } else { 1.0 });
        if is_open != was_open {
            tracing::warn!(lag, most, is_open, "intake follows the relay's lag");
            tell.send_replace(is_open);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use event_store::{RelayCursor, SqliteEventStore, Topology};
    use schemas::CommandEnvelope;
    use schemas::StorePosition;

    use super::*;
    use crate::handler::{CommandHandler, HandlerSettings};

    async fn comes(gate: &IntakeGate, wanted: bool) {
        let begun = Instant::now();
        while gate.is_open() != wanted {
            assert!(begun.elapsed() < Duration::from_secs(20), "it never comes: {wanted}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn what_goes_out_once_more_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn EventStore> = Arc::new(SqliteEventStore::open(folder.path().join("events.db")).unwrap());
        let topology = store.fix_topology(Topology { partitions: 1 }).await.unwrap();
        let shutdown = CancellationToken::new();
        let settings = HandlerSettings { max_relay_lag: Some(10), ..HandlerSettings::default() };
        let (handler, running) = CommandHandler::start(store.clone(), topology, settings, shutdown.clone());
        let data = serde_json::json!({ "sku": "TEA", "warehouse": "ham-1", "region": "north", "quantity": 1 });
        let receive = |number: u128| {
            let text = serde_json::json!({ "id": uuid::Uuid::from_u128(number), "type": "ReceiveStock", "data": data });
            CommandEnvelope::from_json(text.to_string().as_bytes(), None, 1_700_000_000_000).unwrap()
        };
        handler.handle_all((1..=30).map(receive).collect()).await;
        comes(handler.gate(), false).await;

        let epoch = store.lease_relay().await.unwrap().epoch;
        let end = store.read_committed(StorePosition::default(), 100).await.unwrap().pop().unwrap().position;
        let cursor = RelayCursor { position: end, ..RelayCursor::default() };
        store.save_cursor(epoch, &cursor).await.unwrap();
        store.reset_cursor(epoch, &RelayCursor::default()).await.unwrap();

        assert_eq!(store.relay_lag(0).await.unwrap().0, 30);
        comes(handler.gate(), true).await;
        // What is new is counted as ever.
        handler.handle_all((31..=60).map(receive).collect()).await;
        comes(handler.gate(), false).await;
        shutdown.cancel();
        running.await.unwrap();
    }
}
