//! What replays have of a process: their routes, who goes on by itself, and who publishes what was decided.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use event_log::{EventDecoder, EventLog, SchemaRegistry};
use read_models::stock;
use replay::http::ReplaysApi;
use replay::{LogReader, Replayed, publish_decisions, run_controller};
use tokio_util::sync::CancellationToken;

use super::process::{OnFailure, Process, now};

/// How often decisions are looked for that are not on `platform.commands` yet.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// The routes of replays, over the read models at hand. Without a log nothing is compared.
pub fn routes(replayed: Vec<Replayed>, log: Option<LogReader>) -> Router {
    replay::http::router(ReplaysApi { replayed, log, now })
}

/// The log as comparisons read it.
pub fn reader(log: &Arc<dyn EventLog>, registry: &Arc<dyn SchemaRegistry>) -> LogReader {
    LogReader { log: Arc::clone(log), decoder: Arc::new(EventDecoder::new(Arc::clone(registry))) }
}

/// Triggers and automatic stages of a read model, and the way of its decisions to the log. `partitions` is of each
/// topic.
pub fn watch(
    process: &mut Process,
    replayed: Replayed,
    log: &Arc<dyn EventLog>,
    partitions: u32,
    on_failure: OnFailure,
) {
    let name = match replayed.name() {
        stock::NAME => "stock replays",
        _ => "search replays",
    };
    let health = process.health.component(name);
    // It has no start of its own: what cannot be reached now is looked at again in a second.
    health.ready();
    let (log, shutdown) = (Arc::clone(log), process.shutdown.clone());
    process.spawn_component(name, health, on_failure, async move {
        let operations = replayed.operations().clone();
        let generations = Arc::clone(operations.generations());
        let ownership = operations.shared_ownership();
        let statuses = |catalogue| {
            let replayed = replayed.clone();
            async move { replayed.statuses(&catalogue).await }
        };
        let controller = run_controller(generations, ownership, statuses, now, shutdown.clone());
        tokio::join!(controller, publish(&replayed, log.as_ref(), partitions, shutdown));
        Ok(())
    });
}

async fn publish(replayed: &Replayed, log: &dyn EventLog, partitions: u32, shutdown: CancellationToken) {
    let generations = replayed.operations().generations();
    let mut ticks = tokio::time::interval(PUBLISH_EVERY);
    let mut told: Option<String> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        match publish_decisions(generations.as_ref(), log, partitions, now()).await {
            Ok(_) => told = None,
            // Once for each trouble, not once a second.
            Err(error) if told.as_ref() != Some(&error.to_string()) => {
                tracing::warn!(read_model = replayed.name(), %error, "decisions wait to be published");
                told = Some(error.to_string());
            }
            Err(_) => {}
        }
    }
}
