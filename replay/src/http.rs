//! Replays over HTTP: what there is, and the operations. Who acts is the field `by`: there is no identity provider yet,
//! so whoever reaches the address may say any name.
//!
//! What is refused is a 409 with the list of what is missing.

mod body;
mod comparisons;
mod problem;

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, OpenApi, ToSchema};

use crate::decide::CutoverRequest;
use crate::gates::Missing;
use crate::history::{History, HistoryPage};
use crate::log_reader::LogReader;
use crate::outcome::{Done, Outcome};
use crate::record::ReplayRecord;
use crate::replayed::Replayed;
use crate::report::MOST_LISTED;
use crate::target::Target;
use crate::view::{GenerationView, ReplaysView};
use body::{ApproveBody, CutoverBody, DecideBody, RetireBody, StartBody, VerifyBody};
use comparisons::{Comparisons, ParityView};
use problem::Problem;

/// What the routes work with.
pub struct ReplaysApi {
    pub replayed: Vec<Replayed>,
    /// What comparisons read; `None` in a process that has no log at hand, which then compares nothing.
    pub log: Option<LogReader>,
    /// Milliseconds since 1970.
    pub now: fn() -> i64,
}

/// What the routes share.
struct Shared {
    replayed: Vec<Replayed>,
    log: Option<LogReader>,
    now: fn() -> i64,
    comparisons: Comparisons,
}

/// Decisions of a page unless said otherwise, and at most.
const PAGE: usize = 500;
const MAX_PAGE: usize = 2_000;
/// Differing keys of a report unless said otherwise.
const SHOWN: usize = 100;

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(
    info(title = "Millrace"),
    paths(list, show, start, verify, parity, approve, cutover, rollback, retire, abort, history)
)]
pub struct ReplaysDoc;

type Body<T> = Result<Json<T>, JsonRejection>;

/// Builds the routes.
pub fn router(api: ReplaysApi) -> Router {
    let ReplaysApi { replayed, log, now } = api;
    let shared = Shared { replayed, log, now, comparisons: Comparisons::default() };
    Router::new()
        .route("/v1/replays", get(list).post(start))
        .route("/v1/replays/history", get(history))
        .route("/v1/replays/{name}", get(show))
        .route("/v1/replays/{name}/verify", post(verify))
        .route("/v1/replays/{name}/parity", get(parity))
        .route("/v1/replays/{name}/approve", post(approve))
        .route("/v1/replays/{name}/cutover", post(cutover))
        .route("/v1/replays/{name}/rollback", post(rollback))
        .route("/v1/replays/{name}/retire", post(retire))
        .route("/v1/replays/{name}/abort", post(abort))
        .with_state(Arc::new(shared))
}

/// What `GET /v1/replays` answers.
#[derive(Serialize, ToSchema)]
struct ReplayList {
    /// Those that answer.
    read_models: Vec<ReplaysView>,
    /// Those that do not; empty where all answer.
    problems: Vec<ReadModelProblem>,
}

/// A read model that nothing can be told of.
#[derive(Serialize, ToSchema)]
struct ReadModelProblem {
    /// `stock` or `search`.
    projection: &'static str,
    /// Why it gives no answer.
    problem: String,
}

/// Every generation of each read model
///
/// A read model that gives no answer is under `problems`; only where none answers, neither does this.
#[utoipa::path(
    get, path = "/v1/replays", tag = "replays",
    responses(
        (status = 200, body = ReplayList),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn list(State(api): State<Arc<Shared>>) -> Result<Response, Problem> {
    let mut list = ReplayList { read_models: Vec::new(), problems: Vec::new() };
    let mut unanswered = None;
    for replayed in &api.replayed {
        match ReplaysView::of(replayed, (api.now)()).await {
            Ok(view) => list.read_models.push(view),
            // It does not hide the other one. The log gets what callers do not hear.
            Err(error) => {
                let (problem, _) = problem::outside(&error);
                list.problems.push(ReadModelProblem { projection: replayed.name(), problem });
                unanswered = Some(Problem::from(error));
            }
        }
    }
    match unanswered {
        Some(problem) if list.read_models.is_empty() => Err(problem),
        _ => Ok(no_store(Json(list))),
    }
}

/// One generation: its progress, its gates, its replay
#[utoipa::path(
    get, path = "/v1/replays/{name}", tag = "replays",
    params(("name" = String, Path, description = "`stock@2`, or `stock` for its replay under way")),
    responses(
        (status = 200, body = GenerationView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Several replays are under way", body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn show(State(api): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Response, Problem> {
    let (replayed, target) = api.find(&name)?;
    let number = target.resolve(&replayed.catalogue().await?)?;
    let view = ReplaysView::of(replayed, (api.now)()).await?;
    let generation = view.generation(number).ok_or_else(|| problem::unknown(&name))?;
    Ok(no_store(Json(generation)))
}

/// Build a new generation
#[utoipa::path(
    post, path = "/v1/replays", tag = "replays", request_body = StartBody,
    responses(
        (status = 201, body = Done),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn start(State(api): State<Arc<Shared>>, body: Body<StartBody>) -> Result<Response, Problem> {
    let body = taken(body)?;
    let by = body.by(api.now)?;
    let (replayed, target) = api.find(&body.read_model)?;
    // Who names a generation means that one, and would get yet another.
    if target.number.is_some() {
        let name = replayed.name();
        return Err(Problem::unprocessable(format!(
            "read_model: {target} names a generation, and a new one gets its number by itself; use {name}"
        )));
    }
    let outcome = replayed.operations().start(&body.request(replayed.folds())?, &by).await?;
    respond(outcome, StatusCode::CREATED)
}

/// Compare a generation with the one that serves, every key, at one position
///
/// It is made beside this request: `GET /v1/replays/{name}/parity` tells how far it is, and gives the report.
#[utoipa::path(
    post, path = "/v1/replays/{name}/verify", tag = "replays", params(("name" = String, Path)),
    request_body = VerifyBody,
    responses(
        (status = 202, description = "It is made; `Location` names where it is told of", body = ParityView),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 501, description = "This process has no event log", body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn verify(
    State(api): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Body<VerifyBody>,
) -> Result<Response, Problem> {
    let body = taken(body)?;
    let (replayed, target) = api.find(&name)?;
    let comparing = body.comparing(replayed.name(), api.now)?;
    let Some(log) = api.log.clone() else {
        let detail = format!(
            "this process reads no event log: ask `millrace up` or `millrace project {}`, or use `millrace replay verify`",
            replayed.name()
        );
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "Nothing is compared here", detail));
    };
    let catalogue = replayed.catalogue().await?;
    let number = target.resolve(&catalogue)?;
    let entry = catalogue.fed_entry(number);
    entry.ok_or_else(|| problem::unknown(&format!("{}@{number}", replayed.name())))?;
    if number == catalogue.serving {
        let sentence = format!("{}@{number} serves, and nothing is compared with itself", replayed.name());
        return Err(Problem::refused(vec![Missing::new("serves_already", sentence)]));
    }
    if !api.comparisons.begin(replayed, catalogue, number, log, comparing, api.now) {
        let sentence = format!("a comparison of {} is being made; wait for it", replayed.name());
        return Err(Problem::refused(vec![Missing::new("comparison_runs", sentence)]));
    }
    let location = format!("/v1/replays/{}@{number}/parity", replayed.name());
    let view = api.parity_of(replayed, number, SHOWN).await?;
    Ok(no_store((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(view))))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ParityParams {
    /// Differing keys to list; 100 unless said, 100,000 at most.
    show: Option<usize>,
}

/// The newest comparison of a generation
#[utoipa::path(
    get, path = "/v1/replays/{name}/parity", tag = "replays", params(("name" = String, Path), ParityParams),
    responses(
        (status = 200, body = ParityView),
        (status = 404, description = "It was not compared", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Several replays are under way", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn parity(
    State(api): State<Arc<Shared>>,
    Path(name): Path<String>,
    params: Result<Query<ParityParams>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::unprocessable(error.body_text()))?;
    let (replayed, target) = api.find(&name)?;
    let number = target.resolve(&replayed.catalogue().await?)?;
    let most = params.show.unwrap_or(SHOWN).min(MOST_LISTED);
    let view = api.parity_of(replayed, number, most).await?;
    if view.evidence.is_none() && view.comparison.is_none() {
        let detail = format!("{} was not compared yet: POST /v1/replays/{}/verify", view.generation, view.generation);
        return Err(Problem::new(StatusCode::NOT_FOUND, "Not compared yet", detail));
    }
    Ok(no_store(Json(view)))
}

/// Approve the newest comparison
#[utoipa::path(
    post, path = "/v1/replays/{name}/approve", tag = "replays", params(("name" = String, Path)),
    request_body = ApproveBody,
    responses(
        (status = 200, body = Done),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn approve(
    State(api): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Body<ApproveBody>,
) -> Result<Response, Problem> {
    let body = taken(body)?;
    let by = body.by(api.now)?;
    let (replayed, target) = api.find(&name)?;
    let number = target.resolve(&replayed.catalogue().await?)?;
    respond(replayed.operations().approve(number, body.report.as_deref(), &by).await?, StatusCode::OK)
}

/// Enter the next stage
#[utoipa::path(
    post, path = "/v1/replays/{name}/cutover", tag = "replays", params(("name" = String, Path)),
    request_body = CutoverBody,
    responses(
        (status = 200, body = Done),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn cutover(
    State(api): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Body<CutoverBody>,
) -> Result<Response, Problem> {
    let body = taken(body)?;
    let by = body.by(api.now)?;
    let (replayed, target) = api.find(&name)?;
    let catalogue = replayed.catalogue().await?;
    let generation = target.resolve(&catalogue)?;
    let observed = replayed.observed(&catalogue, (api.now)()).await?;
    let request = CutoverRequest { generation, stage: body.stage, forced: body.force };
    respond(replayed.operations().cutover(&request, &observed, &by).await?, StatusCode::OK)
}

/// Answer from the generation before again
#[utoipa::path(
    post, path = "/v1/replays/{name}/rollback", tag = "replays", params(("name" = String, Path)),
    request_body = DecideBody,
    responses(
        (status = 200, body = Done),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn rollback(
    State(api): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Body<DecideBody>,
) -> Result<Response, Problem> {
    let by = taken(body)?.by(api.now)?;
    let (replayed, target) = api.find(&name)?;
    respond(replayed.operations().rollback(target.number, &by).await?, StatusCode::OK)
}

/// Stop feeding a generation that answers nobody, and remove it
#[utoipa::path(
    post, path = "/v1/replays/{name}/retire", tag = "replays", params(("name" = String, Path)),
    request_body = RetireBody,
    responses(
        (status = 200, body = Done),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn retire(
    State(api): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Body<RetireBody>,
) -> Result<Response, Problem> {
    let body = taken(body)?;
    let by = body.by(api.now)?;
    let (replayed, target) = api.find(&name)?;
    let number = target.to_retire(&replayed.catalogue().await?)?;
    respond(replayed.operations().retire(number, body.early.as_deref(), &by).await?, StatusCode::OK)
}

/// Give up a replay that never served
#[utoipa::path(
    post, path = "/v1/replays/{name}/abort", tag = "replays", params(("name" = String, Path)),
    request_body = DecideBody,
    responses(
        (status = 200, body = Done),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Refused, with `missing`", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn abort(
    State(api): State<Arc<Shared>>,
    Path(name): Path<String>,
    body: Body<DecideBody>,
) -> Result<Response, Problem> {
    let by = taken(body)?.by(api.now)?;
    let (replayed, target) = api.find(&name)?;
    let number = target.resolve(&replayed.catalogue().await?)?;
    respond(replayed.operations().abort(number, &by).await?, StatusCode::OK)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct HistoryParams {
    /// Only of this read model.
    projection: Option<String>,
    /// Decisions behind this number; from the first on unless said.
    after: Option<u64>,
    /// At most so many of each read model: 500 unless said, 2,000 at most.
    limit: Option<usize>,
}

/// The decisions page by page, and whether their chain is whole
#[utoipa::path(
    get, path = "/v1/replays/history", tag = "replays", params(HistoryParams),
    responses(
        (status = 200, description = "A list `read_models`, each with `decisions`, `tampered`, of this page, and `next`, the `after` of the next one", body = Object),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 500, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn history(
    State(api): State<Arc<Shared>>,
    params: Result<Query<HistoryParams>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::unprocessable(error.body_text()))?;
    let limit = params.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::unprocessable(format!("limit {limit} is not between 1 and {MAX_PAGE}")));
    }
    let is_wanted = |replayed: &&Replayed| params.projection.as_ref().is_none_or(|name| name == replayed.name());
    let mut read_models = Vec::new();
    for replayed in api.replayed.iter().filter(is_wanted) {
        let generations = replayed.operations().generations();
        let page = History::page(generations.as_ref(), params.after.unwrap_or(0), limit).await?;
        let HistoryPage { decisions, tampered, next } = page;
        read_models.push(json!({
            "projection": replayed.name(), "decisions": decisions, "tampered": tampered, "next": next,
        }));
    }
    if let (true, Some(name)) = (read_models.is_empty(), &params.projection) {
        return Err(problem::unknown(name));
    }
    Ok(no_store(Json(json!({ "read_models": read_models }))))
}

fn taken<T>(body: Body<T>) -> Result<T, Problem> {
    body.map(|Json(body)| body).map_err(|error| Problem::unprocessable(error.body_text()))
}

fn respond(outcome: Outcome, status: StatusCode) -> Result<Response, Problem> {
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

// === impl Shared ===

impl Shared {
    fn find(&self, name: &str) -> Result<(&Replayed, Target), Problem> {
        let target: Target = name.parse().map_err(|_| problem::unknown(name))?;
        let replayed = self.replayed.iter().find(|replayed| replayed.name() == target.name);
        replayed.map(|replayed| (replayed, target)).ok_or_else(|| problem::unknown(name))
    }

    async fn parity_of(&self, replayed: &Replayed, number: u32, most: usize) -> Result<ParityView, Problem> {
        // First: what is noted by the comparison is there once the comparison says so.
        let comparison = self.comparisons.newest(replayed.name(), number, most);
        let catalogue = replayed.catalogue().await?;
        let record = ReplayRecord::in_catalogue(&catalogue, number)?;
        let evidence = record.and_then(|record| record.parity);
        Ok(ParityView { generation: format!("{}@{number}", replayed.name()), evidence, comparison })
    }
}

#[cfg(test)]
mod tests;
