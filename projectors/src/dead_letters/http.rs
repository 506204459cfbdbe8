//! Dead letters over HTTP, for whoever has the read models at hand: what waits, why, what was done with it, and the
//! requests to redrive or to discard. Only asks; the owner of the partition acts.
//!
//! Each generation parks on its own: `stock@2` names one of them, `stock` the one that serves. What is asked of `stock`
//! is asked of every generation that is fed, or a rollback would undo it.

mod problem;
mod targets;
mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use event_log::{EventDecoder, SchemaRegistry};
use read_models::{
    DeadLetterAction, DeadLetterAnswer, DeadLetterRequest, DeadLetters, Generations, PartitionRef, ReadChoice,
    ReadModelError,
};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi, ToSchema};
use uuid::Uuid;

use problem::Problem;
use targets::{Failed, Target, targets};
use view::{Asked, KeyPage, LetterPage, Requested};

/// What the dead-letter routes work with.
pub struct DeadLettersApi {
    pub projections: Vec<ProjectionLetters>,
    /// Decodes what is shown.
    pub registry: Arc<dyn SchemaRegistry>,
    /// Milliseconds since 1970.
    pub now: fn() -> i64,
}

/// The dead letters of one projection.
pub struct ProjectionLetters {
    /// `stock` or `search`.
    pub name: &'static str,
    /// Which generations there are.
    pub generations: Arc<dyn Generations>,
    /// What is parked in a generation.
    pub of: Box<dyn Fn(u32) -> Arc<dyn DeadLetters> + Send + Sync>,
}

/// What a caller means: a projection, and a generation of it where one is said.
struct Meant<'a> {
    projection: &'a ProjectionLetters,
    generation: Option<u32>,
}

struct Api {
    projections: Vec<ProjectionLetters>,
    decoder: EventDecoder,
    now: fn() -> i64,
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(info(title = "Millrace"), paths(list, show, redrive, discard))]
pub struct DeadLettersDoc;

/// Keys or events of one page at most.
const MAX_PAGE: usize = 1_000;
/// How long `wait=true` waits for the owner, which looks every second or two.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A reason or a name is for people.
const MAX_TEXT: usize = 1_000;

/// Builds the routes.
pub fn router(api: DeadLettersApi) -> Router {
    let decoder = EventDecoder::new(api.registry);
    Router::new()
        .route("/v1/dead-letters", get(list))
        .route("/v1/dead-letters/{projection}/{key}", get(show))
        .route("/v1/dead-letters/{projection}/{key}/redrive", post(redrive))
        .route("/v1/dead-letters/{projection}/{key}/discard", post(discard))
        .with_state(Arc::new(Api { projections: api.projections, decoder, now: api.now }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    /// Only keys of this projection: `stock` or `search`, or of one generation: `stock@2`.
    projection: Option<String>,
    /// Keys on the page, 1 to 1000; 100 unless said otherwise.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShowParams {
    /// Events of the queue to show, 1 to 1000; 100 unless said otherwise.
    limit: Option<usize>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskParams {
    /// Wait some seconds for what becomes of it.
    wait: Option<bool>,
}

/// Why a key is redriven, and who asks.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RedriveBody {
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    by: Option<String>,
}

/// Why events are taken out, and who asks.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiscardBody {
    /// Required, and recorded with each event.
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    by: Option<String>,
    /// Only the first event of the queue, so that the rest can be redriven.
    #[serde(default)]
    first: bool,
}

/// Parked keys
#[utoipa::path(
    get, path = "/v1/dead-letters", tag = "dead letters", params(ListParams),
    responses(
        (status = 200, body = KeyPage),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn list(
    State(api): State<Arc<Api>>,
    params: Result<Query<ListParams>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::bad_request(error.body_text()))?;
    let limit = page_size(params.limit)?;
    let after = params.after.as_deref().map(view::Cursor::parse).transpose().map_err(Problem::bad_request)?;
    let wanted = match &params.projection {
        Some(text) => vec![api.meant(text)?],
        None => api.projections.iter().map(|projection| Meant { projection, generation: None }).collect(),
    };
    let mut page = KeyPage { keys: Vec::new(), next: None };
    let mut is_behind = after.is_none();
    for meant in wanted {
        let label = meant.label();
        if !is_behind && after.as_ref().is_some_and(|cursor| cursor.projection != label) {
            continue;
        }
        let (_, read_model) = meant.shown().await?;
        for partition in read_model.partitions().await? {
            let mut from = None;
            if !is_behind {
                let Some(cursor) = after.as_ref().filter(|cursor| cursor.partition == partition) else { continue };
                (from, is_behind) = (Some(cursor.key.clone()), true);
            }
            let wanted = limit - page.keys.len() + 1;
            for key in read_model.parked_keys(partition, from.as_deref(), wanted).await? {
                if page.keys.len() == limit {
                    page.next = page.keys.last().map(view::Cursor::of);
                    return Ok(no_store(Json(page).into_response()));
                }
                page.keys.push(view::Key::new(&label, partition, key));
            }
        }
    }
    Ok(no_store(Json(page).into_response()))
}

/// The queue of a key, and its history
#[utoipa::path(
    get, path = "/v1/dead-letters/{projection}/{key}", tag = "dead letters",
    params(("projection" = String, Path), ("key" = String, Path), ShowParams),
    responses(
        (status = 200, body = LetterPage),
        (status = 404, description = "Nothing is or was parked under this key", body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn show(
    State(api): State<Arc<Api>>,
    Path((projection, key)): Path<(String, String)>,
    params: Result<Query<ShowParams>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::bad_request(error.body_text()))?;
    let limit = page_size(params.limit)?;
    let meant = api.meant(&projection)?;
    let page = view::letters(&api.decoder, &meant, &key, limit).await?;
    if page.is_empty() {
        return Err(unknown(&meant.label(), &key));
    }
    Ok(no_store(Json(page).into_response()))
}

/// Ask for a redrive
#[utoipa::path(
    post, path = "/v1/dead-letters/{projection}/{key}/redrive", tag = "dead letters",
    params(("projection" = String, Path), ("key" = String, Path), AskParams), request_body = RedriveBody,
    responses(
        (status = 200, description = "Answered, with wait=true", body = Requested),
        (status = 202, description = "Asked for", body = Requested),
        (status = 404, description = "Nothing is parked under this key", body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn redrive(
    State(api): State<Arc<Api>>,
    Path((projection, key)): Path<(String, String)>,
    params: Result<Query<AskParams>, QueryRejection>,
    body: Bytes,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::bad_request(error.body_text()))?;
    // Nothing need be said.
    let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
    let RedriveBody { reason, by } =
        serde_json::from_slice(body).map_err(|error| Problem::unprocessable(error.to_string()))?;
    let note = reason.map(|reason| said("reason", reason)).transpose()?;
    let by = by.map(|by| said("by", by)).transpose()?;
    ask(&api, &projection, key, DeadLetterAction::Redrive, note, by, params.wait).await
}

/// Ask for events to be taken out
#[utoipa::path(
    post, path = "/v1/dead-letters/{projection}/{key}/discard", tag = "dead letters",
    params(("projection" = String, Path), ("key" = String, Path), AskParams), request_body = DiscardBody,
    responses(
        (status = 200, description = "Answered, with wait=true", body = Requested),
        (status = 202, description = "Asked for", body = Requested),
        (status = 404, description = "Nothing is parked under this key", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "No reason is given", body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    )
)]
async fn discard(
    State(api): State<Arc<Api>>,
    Path((projection, key)): Path<(String, String)>,
    params: Result<Query<AskParams>, QueryRejection>,
    body: Result<Json<DiscardBody>, JsonRejection>,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::bad_request(error.body_text()))?;
    let Json(body) = body.map_err(|error| Problem::unprocessable(error.body_text()))?;
    let reason = body.reason.ok_or_else(|| Problem::unprocessable("a discard needs a reason: it is recorded"))?;
    let by = body.by.map(|by| said("by", by)).transpose()?;
    let action = DeadLetterAction::Discard { reason: said("reason", reason)?, first_only: body.first, to: None };
    ask(&api, &projection, key, action, None, by, params.wait).await
}

/// Leaves a request with every partition that has events of the key, search reads several topics, in each generation
/// that is meant.
async fn ask(
    api: &Api,
    projection: &str,
    key: String,
    action: DeadLetterAction,
    note: Option<String>,
    by: Option<String>,
    wait: Option<bool>,
) -> Result<Response, Problem> {
    let meant = api.meant(projection)?;
    let generations = meant.generations().await?;
    let (targets, mut failed) = targets(&meant, &generations, &key, &action).await?;
    let mut asked = Vec::with_capacity(targets.len());
    for Target { generation, read_model, partition, action } in targets {
        let (id, requested_at) = (Uuid::new_v4(), (api.now)());
        let (key, by, note) = (key.clone(), by.clone(), note.clone());
        let request = DeadLetterRequest { id, key, action, by, note, requested_at };
        match read_model.request_dead_letter(partition, &request).await {
            Ok(()) => asked.push(Left { generation, read_model, partition, id }),
            // What was left before is left: who is told of a failure of all asks for it once more.
            Err(error) => failed.push(Failed { generation, partition: Some(partition), error }),
        }
    }
    if asked.is_empty() {
        return Err(failed.pop().map_or_else(|| unknown(&meant.label(), &key), |failed| failed.error.into()));
    }
    let patience = if wait == Some(true) { PATIENCE } else { Duration::ZERO };
    let answers = answers(&asked, patience).await?;
    let is_answered = answers.iter().all(Option::is_some);
    let told = |(left, answer): (Left, _)| Asked::new(left.generation, left.partition, left.id, answer);
    let mut requests: Vec<Asked> = asked.into_iter().zip(answers).map(told).collect();
    requests.extend(failed.into_iter().map(|failed| Asked::failed(failed.generation, failed.partition, &failed.error)));
    // What is shown first, also where it could not be asked: who reads the answer goes by it.
    requests.sort_by_key(|asked| generations.iter().position(|generation| asked.is_of(*generation)));
    let body = Requested { projection: meant.label(), key, requests };
    let status = if is_answered { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok(no_store((status, Json(body)).into_response()))
}

/// A request that was left with a partition's owner.
struct Left {
    generation: u32,
    read_model: Arc<dyn DeadLetters>,
    partition: PartitionRef,
    id: Uuid,
}

async fn answers(asked: &[Left], patience: Duration) -> Result<Vec<Option<DeadLetterAnswer>>, ReadModelError> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut found: Vec<Option<DeadLetterAnswer>> = vec![None; asked.len()];
    loop {
        if tokio::time::Instant::now() >= deadline || found.iter().all(Option::is_some) {
            return Ok(found);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        for (left, answer) in asked.iter().zip(&mut found) {
            if answer.is_none() {
                let newest = left.read_model.dead_letter_answers(left.partition, read_models::KEPT_ANSWERS).await?;
                *answer = newest.into_iter().find(|answer| answer.request.id == left.id);
            }
        }
    }
}

// === impl Api ===

impl Api {
    /// What `stock` or `stock@2` means.
    fn meant(&self, text: &str) -> Result<Meant<'_>, Problem> {
        let (name, number) = text.split_once('@').map_or((text, None), |(name, number)| (name, Some(number)));
        let generation = number.map(str::parse::<u32>).transpose();
        let projection = self.projections.iter().find(|projection| projection.name == name);
        match (projection, generation) {
            (Some(projection), Ok(generation)) => Ok(Meant { projection, generation }),
            _ => {
                let names: Vec<&str> = self.projections.iter().map(|projection| projection.name).collect();
                let detail = format!("it is one of {}, or a generation such as stock@2", names.join(", "));
                Err(Problem::new(StatusCode::NOT_FOUND, "Unknown projection").detail(detail))
            }
        }
    }
}

// === impl Meant ===

impl Meant<'_> {
    /// As the caller says it.
    fn label(&self) -> String {
        match self.generation {
            Some(number) => format!("{}@{number}", self.projection.name),
            None => self.projection.name.to_owned(),
        }
    }

    /// The generations that are asked; the first one is shown.
    async fn generations(&self) -> Result<Vec<u32>, ReadModelError> {
        let catalogue = self.projection.generations.catalogue().await?;
        let Some(wanted) = self.generation else {
            let others = catalogue.fed().filter(|number| *number != catalogue.serving);
            return Ok(std::iter::once(catalogue.serving).chain(others).collect());
        };
        let choice = ReadChoice { generation: Some(wanted), ..ReadChoice::default() };
        Ok(vec![catalogue.choose(self.projection.name, &choice)?])
    }

    /// The generation that is shown.
    async fn shown(&self) -> Result<(u32, Arc<dyn DeadLetters>), ReadModelError> {
        let shown = self.generations().await?[0];
        Ok((shown, (self.projection.of)(shown)))
    }
}

fn unknown(projection: &str, key: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "No dead letter")
        .detail(format!("nothing is parked under {key} in {projection}"))
}

fn page_size(limit: Option<usize>) -> Result<usize, Problem> {
    match limit.unwrap_or(100) {
        limit @ 1..=MAX_PAGE => Ok(limit),
        limit => Err(Problem::bad_request(format!("limit is {limit}, from 1 to {MAX_PAGE} will do"))),
    }
}

fn said(field: &str, text: String) -> Result<String, Problem> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > MAX_TEXT {
        return Err(Problem::unprocessable(format!("{field} has from 1 to {MAX_TEXT} characters")));
    }
    Ok(text.to_owned())
}

fn no_store(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, axum::http::HeaderValue::from_static("no-store"));
    response
}
