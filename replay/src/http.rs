//! Replays over HTTP: what there is, and the operations. Who acts is the field `by`: there is no identity provider yet, so
//! whoever reaches the address may say any name.
//!
//! What is refused is a 409 with the list of what is missing.

mod body;
mod problem;

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use utoipa::OpenApi;

use crate::decide::CutoverRequest;
use crate::history::History;
use crate::outcome::{Done, Outcome};
use crate::replayed::Replayed;
use crate::target::Target;
use crate::view::{GenerationView, ReplaysView};
use body::{CutoverBody, DecideBody, RetireBody, StartBody};
use problem::Problem;

/// What the routes work with.
pub struct ReplaysApi {
    pub replayed: Vec<Replayed>,
    /// Milliseconds since 1970.
    pub now: fn() -> i64,
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(info(title = "Millrace"), paths(list, show, start, approve, cutover, rollback, retire, abort, history))]
pub struct ReplaysDoc;

type Body<T> = Result<Json<T>, JsonRejection>;

/// Builds the routes.
pub fn router(api: ReplaysApi) -> Router {
    Router::new()
        .route("/v1/replays", get(list).post(start))
        .route("/v1/replays/history", get(history))
        .route("/v1/replays/{name}", get(show))
        .route("/v1/replays/{name}/approve", post(approve))
        .route("/v1/replays/{name}/cutover", post(cutover))
        .route("/v1/replays/{name}/rollback", post(rollback))
        .route("/v1/replays/{name}/retire", post(retire))
        .route("/v1/replays/{name}/abort", post(abort))
        .with_state(Arc::new(api))
}

/// Every generation of each read model
#[utoipa::path(
    get, path = "/v1/replays", tag = "replays",
    responses(
        (status = 200, description = "A list `read_models`", body = [ReplaysView]),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn list(State(api): State<Arc<ReplaysApi>>) -> Result<Response, Problem> {
    let mut views = Vec::new();
    for replayed in &api.replayed {
        views.push(ReplaysView::of(replayed).await?);
    }
    Ok(no_store(Json(json!({ "read_models": views }))))
}

/// One generation: its progress, its gates, its replay
#[utoipa::path(
    get, path = "/v1/replays/{name}", tag = "replays",
    params(("name" = String, Path, description = "`stock@2`, or `stock` for its replay under way")),
    responses(
        (status = 200, body = GenerationView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn show(State(api): State<Arc<ReplaysApi>>, Path(name): Path<String>) -> Result<Response, Problem> {
    let (replayed, target) = api.find(&name)?;
    let number = target.resolve(&replayed.catalogue().await?)?;
    let view = ReplaysView::of(replayed).await?;
    let generation = view.generation(number).ok_or_else(|| problem::unknown(&name))?;
    Ok(no_store(Json(generation)))
}

/// Build a new generation
#[utoipa::path(
    post, path = "/v1/replays", tag = "replays", request_body = StartBody,
    responses(
        (status = 201, body = Done),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn start(State(api): State<Arc<ReplaysApi>>, body: Body<StartBody>) -> Result<Response, Problem> {
    let body = taken(body)?;
    let by = body.by.at(api.now)?;
    let (replayed, _) = api.find(&body.read_model)?;
    let outcome = replayed.operations().start(&body.request(replayed.folds())?, &by).await?;
    told(outcome, StatusCode::CREATED)
}

/// Approve the newest comparison
#[utoipa::path(
    post, path = "/v1/replays/{name}/approve", tag = "replays", params(("name" = String, Path)),
    request_body = DecideBody,
    responses(
        (status = 200, body = Done),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn approve(
    State(api): State<Arc<ReplaysApi>>,
    Path(name): Path<String>,
    body: Body<DecideBody>,
) -> Result<Response, Problem> {
    let by = taken(body)?.by.at(api.now)?;
    let (replayed, target) = api.find(&name)?;
    let number = target.resolve(&replayed.catalogue().await?)?;
    told(replayed.operations().approve(number, &by).await?, StatusCode::OK)
}

/// Enter the next stage
#[utoipa::path(
    post, path = "/v1/replays/{name}/cutover", tag = "replays", params(("name" = String, Path)),
    request_body = CutoverBody,
    responses(
        (status = 200, body = Done),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn cutover(
    State(api): State<Arc<ReplaysApi>>,
    Path(name): Path<String>,
    body: Body<CutoverBody>,
) -> Result<Response, Problem> {
    let body = taken(body)?;
    let by = body.by.at(api.now)?;
    let (replayed, target) = api.find(&name)?;
    let catalogue = replayed.catalogue().await?;
    let generation = target.resolve(&catalogue)?;
    let observed = replayed.observed(&catalogue, (api.now)()).await?;
    let request = CutoverRequest { generation, stage: body.stage, forced: body.force };
    told(replayed.operations().cutover(&request, &observed, &by).await?, StatusCode::OK)
}

/// Answer from the generation before again
#[utoipa::path(
    post, path = "/v1/replays/{name}/rollback", tag = "replays", params(("name" = String, Path)),
    request_body = DecideBody,
    responses(
        (status = 200, body = Done),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn rollback(
    State(api): State<Arc<ReplaysApi>>,
    Path(name): Path<String>,
    body: Body<DecideBody>,
) -> Result<Response, Problem> {
    let by = taken(body)?.by.at(api.now)?;
    let (replayed, target) = api.find(&name)?;
    told(replayed.operations().rollback(target.number, &by).await?, StatusCode::OK)
}

/// Stop feeding a generation that answers nobody, and remove it
#[utoipa::path(
    post, path = "/v1/replays/{name}/retire", tag = "replays", params(("name" = String, Path)),
    request_body = RetireBody,
    responses(
        (status = 200, body = Done),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn retire(
    State(api): State<Arc<ReplaysApi>>,
    Path(name): Path<String>,
    body: Body<RetireBody>,
) -> Result<Response, Problem> {
    let body = taken(body)?;
    let by = body.by.at(api.now)?;
    let (replayed, target) = api.find(&name)?;
    let catalogue = replayed.catalogue().await?;
    let number = match target.number.or(catalogue.previous) {
        Some(number) => number,
        None => target.resolve(&catalogue)?,
    };
    told(replayed.operations().retire(number, body.early.as_deref(), &by).await?, StatusCode::OK)
}

/// Give up a replay that never served
#[utoipa::path(
    post, path = "/v1/replays/{name}/abort", tag = "replays", params(("name" = String, Path)),
    request_body = DecideBody,
    responses(
        (status = 200, body = Done),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
    )
)]
async fn abort(
    State(api): State<Arc<ReplaysApi>>,
    Path(name): Path<String>,
    body: Body<DecideBody>,
) -> Result<Response, Problem> {
    let by = taken(body)?.by.at(api.now)?;
    let (replayed, target) = api.find(&name)?;
    let number = target.resolve(&replayed.catalogue().await?)?;
    told(replayed.operations().abort(number, &by).await?, StatusCode::OK)
}

/// Every decision, and whether their chain is whole
#[utoipa::path(
    get, path = "/v1/replays/history", tag = "replays",
    responses(
        (status = 200, description = "A list `read_models`, each with `decisions` and `tampered`", body = Object),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn history(State(api): State<Arc<ReplaysApi>>) -> Result<Response, Problem> {
    let mut told = Vec::new();
    for replayed in &api.replayed {
        let History { decisions, tampered } = History::read(replayed.operations().generations().as_ref()).await?;
        told.push(json!({ "projection": replayed.name(), "decisions": decisions, "tampered": tampered }));
    }
    Ok(no_store(Json(json!({ "read_models": told }))))
}

fn taken<T>(body: Body<T>) -> Result<T, Problem> {
    body.map(|Json(body)| body).map_err(|error| Problem::unprocessable(error.body_text()))
}

fn told(outcome: Outcome, status: StatusCode) -> Result<Response, Problem> {
    match outcome {
        Outcome::Done(done) => Ok(no_store((status, Json(done)))),
        Outcome::Refused(refused) => Err(Problem::refused(refused.missing)),
    }
}

fn no_store(answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, axum::http::HeaderValue::from_static("no-store"));
    response
}

// === impl ReplaysApi ===

impl ReplaysApi {
    fn find(&self, name: &str) -> Result<(&Replayed, Target), Problem> {
        let target: Target = name.parse().map_err(|_| problem::unknown(name))?;
        let replayed = self.replayed.iter().find(|replayed| replayed.name() == target.name);
        replayed.map(|replayed| (replayed, target)).ok_or_else(|| problem::unknown(name))
    }
}

#[cfg(test)]
mod tests;
