//! Back-pressure: intake waits while the relay is too far behind.
//!
//! Without a bound a stopped relay shows as reads that are older and older, and its return as a flood. The lag is watched
//! beside the commands, never asked for per command. The gate closes above the bound and opens again at half of it, so
//! that it does not flap. What was taken is decided whatever the gate says.

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
        // Only the number counts here, not an age: any time does.
        let lag = match store.relay_lag(0).await {
            Ok((lag, _)) => lag,
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
