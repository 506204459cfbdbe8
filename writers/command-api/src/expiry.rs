//! Expired reservations: released by the command side itself, as commands whose ids follow from the reservation.
//!
//! The timer is set in the transaction of the reservation and cleared in that of its release or shipment. Several
//! processes may run this: the derived id gives one effect. Where a sender gave a command that id before, the release gets
//! one that nobody can know.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use event_store::{AppendBatch, EventStore, Timer, TimerChange};
use metrics::counter;
use schemas::event::StockUpdated;
use schemas::{CommandEnvelope, OutcomeKind, ReservationId};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::HandlerError;
use crate::group::is_reused;
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

/// Every timer that is given is cleared with that, or passed over from then on, so the loop comes to an end.
async fn release_due(
    store: &dyn EventStore,
    handler: &CommandHandler,
    now: i64,
    shutdown: &CancellationToken,
) -> Result<(), HandlerError> {
    // Streams whose commands are not decided while the store is there: a row of theirs is damaged. The others go on.
    let mut stuck: HashSet<String> = HashSet::new();
    let mut passed_over = 0;
    loop {
        let limit = DUE_LIMIT + passed_over;
        let due = store.due_timers(now, limit).await?;
        let is_last = due.len() < limit;
        passed_over = 0;
        for timer in due {
            if stuck.contains(stream_of(&timer)) {
                passed_over += 1;
                continue;
            }
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
            let mut outcome = handler.handle_timer(command.clone(), timer.clone()).await?;
            if is_reused(&outcome) {
                let command = CommandEnvelope { id: Uuid::new_v4(), ..command };
                outcome = handler.handle_timer(command, timer.clone()).await?;
            }
            match outcome.outcome {
                OutcomeKind::Accepted => counter!(EXPIRED).increment(1),
                // Not decided, so not cleared: the next tick finds it again.
                OutcomeKind::Failed => {
                    if store.refusal().is_some() || shutdown.is_cancelled() {
                        return Ok(());
                    }
                    store.ping().await?;
                    let stream = stream_of(&timer);
                    tracing::error!(
                        stream,
                        "expired reservations of it are not released: its commands are not decided"
                    );
                    stuck.insert(stream.to_owned());
                    passed_over += 1;
                }
                OutcomeKind::Rejected | OutcomeKind::Invalid => {}
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Keys are `<stream>/<reservation>`.
fn stream_of(timer: &Timer) -> &str {
    timer.key.rsplit_once('/').map_or(timer.key.as_str(), |(stream, _)| stream)
}
