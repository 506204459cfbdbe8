//! The parts that roles are made of. Each is spawned on a process and ends with it. Where a part may be one among
//! others, the role says what its failure means.

use std::sync::Arc;
use std::time::{Duration, Instant};

use audit::{Auditor, RollingSettings};
use axum::routing::get;
use axum::{Json, Router};
use command_api::http::CommandApiDoc;
use command_api::{CommandHandler, HandlerSettings, TopicIntakeSettings};
use event_log::{EventLog, SchemaRegistry};
use event_store::{EventStore, Topology};
use outbox_relay::{Relay, RelaySettings};
use projectors::dead_letters;
use projectors::dead_letters::http::{DeadLettersApi, DeadLettersDoc, ProjectionLetters};
use query_api::{QueryApi, QueryApiDoc, QuerySettings};
use read_models::search::SearchReader;
use read_models::stock::SharedStock;
use read_models::{ReadModelError, ReadModelStatus};
use replay::http::ReplaysDoc;
use utoipa::OpenApi as _;
use utoipa::openapi::{OpenApi, Paths};

use super::process::{OnFailure, Process, now};
use crate::cli::IntakeArgs;

const EXPIRY_EVERY: Duration = Duration::from_secs(1);
/// How often a store is asked how it stands, for `/readyz`.
const WATCH_EVERY: Duration = Duration::from_secs(2);
const FORGET_EVERY: Duration = Duration::from_secs(60);
const FORGET_AT_ONCE: usize = 10_000;

/// Describes the routes of one API.
pub type ApiDoc = fn() -> OpenApi;

pub const COMMANDS: ApiDoc = CommandApiDoc::openapi;
pub const QUERIES: ApiDoc = QueryApiDoc::openapi;
pub const DEAD_LETTERS: ApiDoc = DeadLettersDoc::openapi;
pub const REPLAYS: ApiDoc = ReplaysDoc::openapi;
pub const EVERY_API: [ApiDoc; 4] = [COMMANDS, QUERIES, DEAD_LETTERS, REPLAYS];

/// Command handler, HTTP routes, expiry of reservations and forgetting of old outcomes.
pub fn command_side(
    process: &mut Process,
    store: &Arc<dyn EventStore>,
    topology: Topology,
    intake: &IntakeArgs,
) -> (CommandHandler, Router) {
    let settings = HandlerSettings {
        group_commands: intake.group_commands,
        queue: intake.command_queue,
        max_relay_lag: Some(intake.max_relay_lag_events),
        snapshot_every: intake.snapshot_every as u64,
        ..HandlerSettings::default()
    };
    let (handler, running) = CommandHandler::start(Arc::clone(store), topology, settings, process.shutdown.clone());
    process.spawn("command handler", async move { Ok(running.await?) });
    let expiry =
        command_api::run_expiry(Arc::clone(store), handler.clone(), EXPIRY_EVERY, now, process.shutdown.clone());
    process.spawn("reservation expiry", async move {
        expiry.await;
        Ok(())
    });
    let forget = forget_outcomes(Arc::clone(store), intake.outcome_retention, process.shutdown.clone());
    process.spawn("outcome retention", async move {
        forget.await;
        Ok(())
    });
    watch_store(process, store);
    let (intake, taking) = (process.health.component("command intake"), handler.clone());
    process.spawn("command intake", async move {
        taking.tell_intake(intake).await;
        Ok(())
    });
    let routes = command_api::http::router(handler.clone(), now);
    (handler, routes)
}

/// Takes commands from the command topics, too.
pub fn command_topics(
    process: &mut Process,
    handler: CommandHandler,
    store: &Arc<dyn EventStore>,
    log: &Arc<dyn EventLog>,
    registry: &Arc<dyn SchemaRegistry>,
    settings: TopicIntakeSettings,
    on_failure: OnFailure,
) {
    let health = process.health.component("command topics");
    let of_part = health.clone();
    let intake = command_api::run_topic_intake(
        handler,
        Arc::clone(store),
        Arc::clone(log),
        Arc::clone(registry),
        settings,
        health,
        now,
        process.shutdown.clone(),
    );
    process.spawn_component("command topics", of_part, on_failure, async move { Ok(intake.await?) });
}

pub fn relay(
    process: &mut Process,
    store: &Arc<dyn EventStore>,
    log: &Arc<dyn EventLog>,
    registry: &Arc<dyn SchemaRegistry>,
    topology: Topology,
    settings: RelaySettings,
    on_failure: OnFailure,
) {
    let health = process.health.component("relay");
    let of_part = health.clone();
    let relay = Relay::new(Arc::clone(store), Arc::clone(log), Arc::clone(registry), topology, settings, health);
    let shutdown = process.shutdown.clone();
    process.spawn_component("relay", of_part, on_failure, async move { Ok(relay.run(shutdown).await?) });
}

pub fn query_routes(
    process: &mut Process,
    stock: &SharedStock,
    search: &Arc<SearchReader>,
    settings: QuerySettings,
) -> Router {
    let (stock_answers, search_answers) =
        (process.health.component("stock answers"), process.health.component("search answers"));
    let (stock_store, reader, shutdown) = (Arc::clone(stock), Arc::clone(search), process.shutdown.clone());
    process.spawn("answers watch", async move {
        let mut ticks = tokio::time::interval(WATCH_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            let (stock, search) = (live(stock_store.status().await), live(reader.status().await));
            // One read model that fails takes the other's readers away from nobody (fault 18).
            let answers_something = stock.is_ok() || search.is_ok();
            for (found, health) in [(stock, &stock_answers), (search, &search_answers)] {
                match found {
                    Ok(()) => health.ready(),
                    Err(why) if answers_something => health.degraded(why),
                    Err(why) => health.not_ready(why),
                }
            }
        }
    });
    let api = QueryApi { stock: Arc::clone(stock), search: Arc::clone(search), settings, now };
    let (routes, watch) = query_api::router(api);
    let shutdown = process.shutdown.clone();
    process.spawn("read watch", async move {
        watch.run(shutdown).await;
        Ok(())
    });
    routes
}

/// What waits in the read models' dead letters, and the requests to redrive or discard it.
pub fn dead_letter_routes(
    stock: &SharedStock,
    search: &Arc<SearchReader>,
    registry: &Arc<dyn SchemaRegistry>,
) -> Router {
    let (stock, search) = (Arc::clone(stock), Arc::clone(search));
    let of_stock = ProjectionLetters {
        name: read_models::stock::NAME,
        generations: Arc::clone(&stock) as _,
        of: Box::new(move |number| stock.of_generation(number)),
    };
    let of_search = ProjectionLetters {
        name: read_models::search::NAME,
        generations: Arc::new(search.catalogue().clone()),
        of: Box::new(move |number| Arc::new(search.of_generation(number))),
    };
    let projections = vec![of_stock, of_search];
    dead_letters::http::router(DeadLettersApi { projections, registry: Arc::clone(registry), now })
}

/// The audit in rounds. A difference is told by metrics, log lines and `/readyz`; the process goes on, and stays ready.
pub fn rolling_audit(process: &mut Process, auditor: Auditor, every: Duration, on_failure: OnFailure) {
    let health = process.health.component("audit");
    health.ready();
    let settings = RollingSettings { every, ..RollingSettings::default() };
    let told = health.clone();
    let rounds = audit::run_rolling(auditor, settings, process.shutdown.clone(), move |round| match round {
        Ok(report) if report.counts.is_empty() => told.ready(),
        Ok(report) => told.degraded(differences_in_words(report)),
        Err(problem) => told.degraded(format!("the last round is not whole: {problem}")),
    });
    process.spawn_component("audit", health, on_failure, async move {
        rounds.await;
        Ok(())
    });
}

fn differences_in_words(report: &audit::Report) -> String {
    let in_words =
        |found: &audit::KindCount| format!("{} {} in {}", found.count, found.kind.as_str(), found.place.as_str());
    let found: Vec<String> = report.counts.iter().map(in_words).collect();
    format!("{}; `millrace audit` shows them, docs/runbooks/audit-differs.md what to do", found.join(", "))
}

/// `/openapi.json` of what a process serves.
pub fn openapi(served: &[ApiDoc]) -> Router {
    let document = openapi_document(served);
    Router::new().route("/openapi.json", get(move || std::future::ready(Json(document.clone()))))
}

pub fn openapi_document(served: &[ApiDoc]) -> serde_json::Value {
    // The query API says what all of it is.
    let mut document = OpenApi::new(QUERIES().info, Paths::new());
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    for api in served {
        document.merge(api());
    }
    serde_json::to_value(document).unwrap_or_default()
}

fn watch_store(process: &mut Process, store: &Arc<dyn EventStore>) {
    let ready = process.health.component("event store");
    let store = Arc::clone(store);
    let shutdown = process.shutdown.clone();
    process.spawn("event store watch", async move {
        watch(shutdown, || async { store.ping().await.map_err(|error| error.to_string()) }, ready).await;
        Ok(())
    });
}

/// A read model that is rebuilt is answered from once all of it is live.
pub(super) fn live(status: Result<ReadModelStatus, ReadModelError>) -> Result<(), String> {
    let status = status.map_err(|error| error.to_string())?;
    if status.is_live() {
        return Ok(());
    }
    let live = status.partitions.iter().filter(|partition| partition.live).count();
    Err(format!("rebuilding: {live} of {} partitions are live", status.partitions.len()))
}

/// Asks a store whether it answers, for `/readyz`.
pub(super) async fn watch<F: Future<Output = Result<(), String>>>(
    shutdown: tokio_util::sync::CancellationToken,
    ping: impl Fn() -> F,
    health: telemetry::ComponentHealth,
) {
    let mut ticks = tokio::time::interval(WATCH_EVERY);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        match ping().await {
            Ok(()) => health.ready(),
            Err(why) => health.not_ready(why),
        }
    }
}

async fn forget_outcomes(
    store: Arc<dyn EventStore>,
    retention: Duration,
    shutdown: tokio_util::sync::CancellationToken,
) {
    let mut ticks = tokio::time::interval(FORGET_EVERY);
    let begun = (Instant::now(), now());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let before = forgotten_before(begun.1, begun.0.elapsed(), now(), retention);
        loop {
            match store.forget_outcomes(before, FORGET_AT_ONCE).await {
                Ok(forgotten) if forgotten as usize >= FORGET_AT_ONCE => continue,
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "old outcomes stay for now");
                    break;
                }
            }
        }
    }
}

/// Outcomes of commands that came before this may go. A clock that jumps ahead would forget them all at once, and a
/// command that is repeated would be done twice: so no more time counts than this process has run since `begun_at`.
fn forgotten_before(begun_at: i64, runs_for: Duration, now: i64, retention: Duration) -> i64 {
    let milliseconds = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    now.min(begun_at.saturating_add(milliseconds(runs_for))).saturating_sub(milliseconds(retention))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_describes_what_is_served_and_nothing_else() {
        for (served, own) in [(COMMANDS, "/v1/commands"), (DEAD_LETTERS, "/v1/dead-letters"), (REPLAYS, "/v1/replays")]
        {
            let document = openapi_document(&[served]);
            let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
            assert!(!paths.is_empty() && paths.iter().all(|path| path.starts_with(own)), "{paths:?}");
            assert_eq!(document["info"]["title"], "Millrace");
            assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        }
        let all = openapi_document(&EVERY_API);
        let listed = &all["paths"]["/v1/replays"]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(listed["$ref"], "#/components/schemas/ReplayList");
        assert_eq!(all["components"]["schemas"]["ReplayList"]["properties"]["read_models"]["type"], "array");
    }

    #[test]
    fn no_schema_takes_the_name_of_another_apis() {
        let all = openapi_document(&EVERY_API);
        for served in EVERY_API {
            let own = openapi_document(&[served]);
            for (name, schema) in own["components"]["schemas"].as_object().unwrap() {
                assert_eq!(all["components"]["schemas"][name], *schema, "{name}");
            }
        }
    }

    #[test]
    fn a_clock_that_jumps_ahead_forgets_nothing_early() {
        let (hour, week) = (Duration::from_secs(3_600), Duration::from_secs(7 * 86_400));
        let (start, ran) = (1_700_000_000_000, 3_600_000);
        let kept = week.as_millis() as i64;
        assert_eq!(forgotten_before(start, hour, start + ran, week), start + ran - kept);
        assert_eq!(forgotten_before(start, hour, start + 10 * kept, week), start + ran - kept);
        assert_eq!(forgotten_before(start, hour, start - kept, week), start - 2 * kept, "and back: later");
    }
}
