//! `POST /v1/commands`: one JSON command, or NDJSON for many; `GET /v1/commands/{id}`: the outcome of one.
//!
//! Stop 1 of an event's path. What cannot be read is answered here; all else is the handler's.

mod bulk;
mod lines;
mod problem;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use event_store::EventStoreError;
use schemas::{Command, CommandEnvelope, Outcome, OutcomeKind};
use tracing::Instrument;
use utoipa::{OpenApi, ToSchema};
use uuid::Uuid;

use crate::error::HandlerError;
use crate::group::is_reused;
use crate::handler::{CommandHandler, failed};
use crate::refusal::refused;
use problem::Problem;

/// Largest command, alone or as a line of a bulk body, in bytes.
pub const MAX_COMMAND_BYTES: usize = 64 * 1024;
/// How long a single command waits for a place in the queue before it is told to come back.
const QUEUE_PATIENCE: Duration = Duration::from_secs(2);

/// How long a sender may take for a single command, and for the next piece of a bulk body: one that trickles bytes
/// holds a connection, and nothing else ends that.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Characters of something unreadable that a refusal repeats.
const MOST_SHOWN: usize = 120;
/// When to come back while the relay catches up, in seconds.
const HELD_RETRY_AFTER: u32 = 2;

/// What the routes share.
#[derive(Clone)]
struct Shared {
    handler: CommandHandler,
    /// Milliseconds since 1970.
    now: fn() -> i64,
}

/// Builds the routes of the command API. `now` gives milliseconds since 1970.
pub fn router(handler: CommandHandler, now: fn() -> i64) -> Router {
    Router::new()
        .route("/v1/commands", post(post_commands))
        .route("/v1/commands/{id}", get(get_outcome))
        .method_not_allowed_fallback(method_not_allowed)
        // Bulk bodies are bounded line by line, single ones below.
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::new(Shared { handler, now }))
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(paths(post_commands, get_outcome), components(schemas(CommandBody, Outcome)))]
pub struct CommandApiDoc;

/// A command as it is sent.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body in the OpenAPI document; schemas::CommandEnvelope reads it")]
struct CommandBody {
    /// Chosen by the sender; the same id again returns the first outcome.
    id: Uuid,
    /// Type and data of the command.
    #[schema(inline)]
    #[serde(flatten)]
    command: Command,
    /// Ties together everything that one cause set off.
    correlation_id: Option<String>,
    /// What made the sender send it.
    causation_id: Option<String>,
    /// Who asked.
    actor: Option<String>,
}

/// Give one command, or many
///
/// One JSON command, or `application/x-ndjson` with one command a line and one outcome line each, in the same order,
/// streamed while they are decided. A line is at most 65,536 bytes.
#[utoipa::path(
    post, path = "/v1/commands", tag = "commands",
    request_body(content(
        (CommandBody = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses(
        (status = 200, description = "Accepted, or the first outcome of a repeat; for NDJSON an outcome line per command", body = Outcome),
        (status = 400, description = "Not a command", body = Outcome, content_type = "application/problem+json"),
        (status = 408, description = "The body did not come in time", content_type = "application/problem+json"),
        (status = 409, description = "The id was used for another command", body = Outcome, content_type = "application/problem+json"),
        (status = 413, description = "Larger than 65,536 bytes", content_type = "application/problem+json"),
        (status = 415, description = "Neither JSON nor NDJSON", content_type = "application/problem+json"),
        (status = 422, description = "Refused by a rule; reason says which", body = Outcome, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full or the relay is too far behind; Retry-After says when to come back", content_type = "application/problem+json"),
        (status = 503, description = "Not decided; give it again under the same id after Retry-After", body = Outcome, content_type = "application/problem+json"),
    )
)]
async fn post_commands(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Response {
    let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media_type.as_str() {
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => {
            bulk::respond(shared.handler.clone(), body, traceparent, shared.now)
        }
        "application/json" => one(&shared, body, traceparent).instrument(tracing::debug_span!("route")).await,
        other => Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported content type")
            .detail(format!("{:?} is not taken; send application/json or application/x-ndjson", shown(other)))
            .into_response(),
    }
}

async fn one(shared: &Shared, body: Body, traceparent: Option<String>) -> Response {
    let bytes = match tokio::time::timeout(BODY_PATIENCE, axum::body::to_bytes(body, MAX_COMMAND_BYTES)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "Command too large")
                .detail(format!("a command has at most {MAX_COMMAND_BYTES} bytes; send many as application/x-ndjson"))
                .into_response();
        }
        Err(_) => {
            return Problem::new(StatusCode::REQUEST_TIMEOUT, "Body too slow")
                .detail(format!("the command did not come within {} s", BODY_PATIENCE.as_secs()))
                .into_response();
        }
    };
    let envelope = match CommandEnvelope::from_json(&bytes, traceparent, (shared.now)()) {
        Ok(envelope) => envelope,
        Err(error) => {
            let outcome = refused(readable_id(&bytes), OutcomeKind::Invalid, error.code(), &error.to_string());
            return respond(outcome);
        }
    };
    if !shared.handler.gate().is_open() {
        return Problem::new(StatusCode::TOO_MANY_REQUESTS, "Too many commands")
            .detail("the relay is too far behind; nothing was taken")
            .retry_after(HELD_RETRY_AFTER)
            .into_response();
    }
    if let Some(open) = shared.handler.refusal() {
        return respond_within(failed(envelope.id, &open.to_string()), open.retry_after_seconds());
    }
    match shared.handler.try_handle(envelope, QUEUE_PATIENCE).await {
        Some(outcome) => respond(outcome),
        None => Problem::new(StatusCode::TOO_MANY_REQUESTS, "Too many commands")
            .detail("the command queue is full; nothing was taken")
            .retry_after(1)
            .into_response(),
    }
}

/// Look an outcome up
///
/// For a sender that lost its answer. Outcomes are kept for 7 days unless set otherwise.
#[utoipa::path(
    get, path = "/v1/commands/{id}", tag = "commands",
    params(("id" = Uuid, Path, description = "Command id")),
    responses(
        (status = 200, description = "The outcome", body = Outcome),
        (status = 404, description = "No command of this id was decided", content_type = "application/problem+json"),
        (status = 503, description = "The event store does not answer", content_type = "application/problem+json"),
    )
)]
async fn get_outcome(State(shared): State<Arc<Shared>>, id: Result<Path<String>, PathRejection>) -> Response {
    let not_an_id =
        |problem: String| Problem::new(StatusCode::BAD_REQUEST, "Not a command id").detail(problem).into_response();
    let given = match id {
        Ok(Path(given)) => given,
        Err(error) => return not_an_id(error.body_text()),
    };
    let Ok(id) = given.parse::<Uuid>() else {
        return not_an_id(format!("{:?} is not a UUID", shown(&given)));
    };
    match shared.handler.outcome(id).await {
        Ok(Some(outcome)) => axum::Json(outcome).into_response(),
        Ok(None) => Problem::new(StatusCode::NOT_FOUND, "Unknown command")
            .detail(format!("no outcome of {id} is kept: it was never decided, or longer ago than outcomes are kept"))
            .into_response(),
        Err(HandlerError::Store(EventStoreError::BreakerOpen(open))) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Event store unavailable")
                .retry_after(open.retry_after_seconds())
                .into_response()
        }
        Err(error) => {
            tracing::warn!(%error, "outcome cannot be looked up");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Event store unavailable").retry_after(1).into_response()
        }
    }
}

fn shown(given: &str) -> String {
    given.chars().take(MOST_SHOWN).collect()
}

async fn method_not_allowed() -> Response {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed")
        .detail("commands are given by POST, outcomes asked for by GET under a command id")
        .into_response()
}

/// An outcome alone: its status says what became of the command.
fn respond(outcome: Outcome) -> Response {
    respond_within(outcome, 1)
}

/// As [`respond`]; one that was not decided may come again after `retry_after` seconds.
fn respond_within(outcome: Outcome, retry_after: u32) -> Response {
    let (status, title) = match outcome.outcome {
        OutcomeKind::Accepted => return axum::Json(outcome).into_response(),
        OutcomeKind::Rejected => (StatusCode::UNPROCESSABLE_ENTITY, "Command rejected"),
        OutcomeKind::Invalid if is_reused(&outcome) => (StatusCode::CONFLICT, "Command id reused"),
        OutcomeKind::Invalid => (StatusCode::BAD_REQUEST, "Command invalid"),
        OutcomeKind::Failed => (StatusCode::SERVICE_UNAVAILABLE, "Command not decided"),
    };
    let problem = Problem::new(status, title).outcome(outcome);
    let problem = if status == StatusCode::SERVICE_UNAVAILABLE { problem.retry_after(retry_after) } else { problem };
    problem.into_response()
}

/// The id of something that is no command otherwise, so that its sender can tell which it was.
fn readable_id(json: &[u8]) -> Uuid {
    #[derive(serde::Deserialize)]
    struct OnlyId {
        id: Uuid,
    }
    serde_json::from_slice::<OnlyId>(json).map_or(Uuid::nil(), |only| only.id)
}

#[cfg(test)]
mod tests;
