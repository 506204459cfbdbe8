//! Expired reservations: released by the command side itself, as commands whose ids follow from the reservation.
//!
//! The timer is set in the transaction of the reservation and cleared in that of its release or shipment. Several
//! processes may run this: the derived id gives one effect. Where a sender gave a command that id before, the release
//! gets one that nobody can know.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use event_store::{AppendBatch, EventStore, Timer, TimerChange};
use futures::{StreamExt, future, stream};
use metrics::{counter, gauge};
use schemas::event::StockUpdated;
use schemas::{CommandEnvelope, Outcome, OutcomeKind, ReservationId};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::HandlerError;
use crate::group::is_reused;
use crate::handler::CommandHandler;
use crate::metrics::{EXPIRED, OVERDUE};

/// Names the ids that are derived for releases.
const RELEASE_NAMESPACE: Uuid = Uuid::from_u128(0x8c1f_0a52_4b7e_4f0e_9d8d_5a3c_1e62_7b94);
/// Timers of one reading.
const DUE_LIMIT: usize = 500;
/// Releases that wait for their outcomes together.
const AT_ONCE: usize = 100;

/// A due timer, and the command that it holds.
struct Release {
    timer: Timer,
    command: CommandEnvelope,
}

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
        if let Err(error) = release_due(store.as_ref(), &handler, now, &shutdown).await {
            // The timers stay; the next tick finds them again.
            tracing::warn!(%error, "expired reservations wait");
        }
    }
}

/// Every timer that is given is cleared with that, or passed over from then on, so the loop comes to an end.
async fn release_due(
    store: &dyn EventStore,
    handler: &CommandHandler,
    clock: fn() -> i64,
    shutdown: &CancellationToken,
) -> Result<(), HandlerError> {
    let now = clock();
    let mut tried = HashSet::new();
    // Streams whose commands are not decided while the store is there: a row of theirs is damaged. The others go on.
    let mut stuck = HashSet::new();
    let mut passed_over = 0;
    loop {
        let limit = DUE_LIMIT + passed_over;
        let due = store.due_timers(now, limit).await?;
        let overdue = due.first().map_or(0, |oldest| clock().saturating_sub(oldest.due_at).max(0));
        gauge!(OVERDUE).set(overdue as f64 / 1000.0);
        let is_last = due.len() < limit;
        // The first of each stream alone: where a stream is stuck, all of its releases would fail one by one.
        let (first, rest): (Vec<Release>, Vec<Release>) = readable(store, due, now)
            .await?
            .into_iter()
            .partition(|release| tried.insert(stream_of(&release.timer).to_owned()));
        passed_over = 0;
        for releases in [first, rest] {
            match release_all(store, handler, releases, &mut stuck, shutdown).await? {
                Some(left) => passed_over += left,
                None => return Ok(()),
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Clears the timers that hold no command.
async fn readable(store: &dyn EventStore, due: Vec<Timer>, now: i64) -> Result<Vec<Release>, HandlerError> {
    let (mut releases, mut cleared) = (Vec::with_capacity(due.len()), Vec::new());
    for timer in due {
        match CommandEnvelope::from_json(timer.command.as_bytes(), None, now) {
            Ok(command) => releases.push(Release { timer, command }),
            Err(error) => {
                tracing::error!(%error, timer = %timer.key, "stored timer is no command; it is cleared");
                cleared.push(TimerChange::ClearGiven { key: timer.key, command: timer.command });
            }
        }
    }
    if !cleared.is_empty() {
        store.append(&AppendBatch { timers: cleared, ..AppendBatch::default() }).await?;
    }
    Ok(releases)
}

/// Releases many at a time, so that they share commits, but nothing of a stuck stream. Returns how many were not
/// decided; `None` when nothing is decided any more.
async fn release_all(
    store: &dyn EventStore,
    handler: &CommandHandler,
    releases: Vec<Release>,
    stuck: &mut HashSet<String>,
    shutdown: &CancellationToken,
) -> Result<Option<usize>, HandlerError> {
    let (skipped, given): (Vec<Release>, Vec<Release>) =
        releases.into_iter().partition(|release| stuck.contains(stream_of(&release.timer)));
    let mut left = skipped.len();
    let mut outcomes = stream::iter(given)
        .take_while(|_| future::ready(!shutdown.is_cancelled()))
        .map(|release| release.decided(handler.clone()))
        .buffer_unordered(AT_ONCE);
    while let Some(decided) = outcomes.next().await {
        let (timer, outcome) = match decided {
            Err(HandlerError::ShuttingDown) => return Ok(None),
            decided => decided?,
        };
        match outcome.outcome {
            OutcomeKind::Accepted => counter!(EXPIRED).increment(1),
            // Not decided, so not cleared: the next tick finds it again.
            OutcomeKind::Failed => {
                left += 1;
                if store.refusal().is_some() || shutdown.is_cancelled() {
                    return Ok(None);
                }
                let stream = stream_of(&timer);
                if !stuck.contains(stream) {
                    store.ping().await?;
                    tracing::error!(
                        stream,
                        "expired reservations of it are not released: its commands are not decided"
                    );
                    stuck.insert(stream.to_owned());
                }
            }
            OutcomeKind::Rejected | OutcomeKind::Invalid => {}
        }
    }
    Ok((!shutdown.is_cancelled()).then_some(left))
}

// === impl Release ===

impl Release {
    async fn decided(self, handler: CommandHandler) -> Result<(Timer, Outcome), HandlerError> {
        let Self { timer, command } = self;
        let mut outcome = handler.handle_timer(command.clone(), timer.clone()).await?;
        if is_reused(&outcome) {
            let command = CommandEnvelope { id: Uuid::new_v4(), ..command };
            outcome = handler.handle_timer(command, timer.clone()).await?;
        }
        Ok((timer, outcome))
    }
}

/// Keys are `<stream>/<reservation>`.
fn stream_of(timer: &Timer) -> &str {
    timer.key.rsplit_once('/').map_or(timer.key.as_str(), |(stream, _)| stream)
}
