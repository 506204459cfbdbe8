//! Expired reservations: released by the command side itself, as commands whose ids follow from the reservation.
//!
//! The timer is set in the transaction of the reservation and cleared in that of its release or shipment. Several
//! processes may run this: the derived id gives one effect.

use std::sync::Arc;
use std::time::Duration;

use event_store::{AppendBatch, EventStore, TimerChange};
use metrics::counter;
use schemas::event::StockUpdated;
use schemas::{CommandEnvelope, OutcomeKind, ReservationId};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::HandlerError;
use crate::handler::CommandHandler;
use crate::metrics::EXPIRED;

/// Names the ids that are derived for releases.
const RELEASE_NAMESPACE: Uuid = Uuid::from_u128(0x8c1f_0a52_4b7e_4f0e_9d8d_5a3c_1e62_7b94);
const DUE_LIMIT: usize = 500;

/// Id of the command that releases the reservation made by version `version` of its stream.
pub fn derived_release_id(timer_key: &str, version: u64) -> Uuid {
    Uuid::new_v5(&RELEASE_NAMESPACE, format!("{timer_key}#{version}").as_bytes())
}

/// The release of a reservation, in the JSON form of commands.
pub(crate) fn release_command(event: &StockUpdated, reservation_id: &ReservationId, key: &str, version: u64) -> String {
    serde_json::json!({
        "id": derived_release_id(key, version),
        "type": "ReleaseReservation",
        "data": {
            "sku": event.sku,
            "warehouse": event.warehouse,
            "reservation_id": reservation_id,
            "reason": "expired",
        },
        "actor": "millrace",
    })
    .to_string()
}

/// Releases what is due, every `every`, until `shutdown`. `now` gives milliseconds since 1970.
pub async fn run_expiry(
    store: Arc<dyn EventStore>,
    handler: CommandHandler,
    every: Duration,
    now: fn() -> i64,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = release_due(store.as_ref(), &handler, now(), &shutdown).await {
            // The timers stay; the next tick finds them again.
            tracing::warn!(%error, "expired reservations wait");
        }
    }
}

/// Every timer that is given is cleared with that, so the loop comes to an end.
async fn release_due(
    store: &dyn EventStore,
    handler: &CommandHandler,
    now: i64,
    shutdown: &CancellationToken,
) -> Result<(), HandlerError> {
    loop {
        let due = store.due_timers(now, DUE_LIMIT).await?;
        let is_last = due.len() < DUE_LIMIT;
        for timer in due {
            if shutdown.is_cancelled() {
                return Ok(());
            }
            let command = match CommandEnvelope::from_json(timer.command.as_bytes(), None, now) {
                Ok(command) => command,
                Err(error) => {
                    tracing::error!(%error, timer = %timer.key, "stored timer is no command; it is cleared");
                    let change = TimerChange::ClearGiven { key: timer.key, command: timer.command };
                    store.append(&AppendBatch { timers: vec![change], ..AppendBatch::default() }).await?;
                    continue;
                }
            };
            let outcome = handler.handle_timer(command, timer).await?;
            match outcome.outcome {
                OutcomeKind::Accepted => counter!(EXPIRED).increment(1),
                // Not decided, so not cleared: the next tick finds it again.
                OutcomeKind::Failed => return Ok(()),
                OutcomeKind::Rejected | OutcomeKind::Invalid => {}
            }
        }
        if is_last {
            return Ok(());
        }
    }
}
