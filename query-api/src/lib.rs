//! The query API: thin HTTP reads of the read models, each true at a position that it names. Stop 10.
//!
//! Reads never touch the event store or the event log.

mod answer;
mod hit_marks;
mod latency;
mod marks;
mod metrics;
mod min_position;
mod mirror;
mod problem;
mod product;
mod search;
mod status;
mod step_back;
mod stock;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use read_models::search::SearchReader;
use read_models::stock::SharedStock;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use utoipa::OpenApi;

pub use metrics::describe_metrics;
use problem::Problem;

use crate::hit_marks::HitMarks;
use crate::marks::Marks;
use crate::watch::{Stores, Watch};

/// What the query API reads, and its bounds.
#[derive(Clone)]
pub struct QueryApi {
    pub stock: SharedStock,
    pub search: Arc<SearchReader>,
    pub settings: QuerySettings,
    /// Milliseconds since 1970.
    pub now: fn() -> i64,
}

/// Bounds of a read.
#[derive(Debug, Clone)]
pub struct QuerySettings {
    /// How long a read waits for the position that it must see.
    pub position_wait: Duration,
    /// How long a read may take, waiting included.
    pub deadline: Duration,
}

impl Default for QuerySettings {
    fn default() -> Self {
        Self { position_wait: Duration::from_secs(2), deadline: Duration::from_secs(5) }
    }
}

/// The OpenAPI description of these routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Millrace",
        description = "Commands in, reads out. Every read names the position it is true at in Millrace-Position; a read with Millrace-Min-Position waits for one."
    ),
    paths(stock::one, stock::many, product::page, search::search, search::suggest, status::status)
)]
pub struct QueryApiDoc;

/// What the routes share.
pub(crate) struct Reads {
    pub(crate) api: QueryApi,
    pub(crate) marks: Marks,
    /// Pages show rows, searches the index that is made of them: what one has told the other may not have yet.
    pub(crate) page_marks: HitMarks,
    pub(crate) search_marks: HitMarks,
    pub(crate) stock_watch: Arc<Watch>,
    pub(crate) search_watch: Arc<Watch>,
}

/// Follows the catalogues, and reports what reads cost while a replay is under way.
pub struct ReadWatch {
    reads: Arc<Reads>,
}

/// Builds the routes of the query API, and the watch that runs beside them.
pub fn router(api: QueryApi) -> (Router, ReadWatch) {
    let deadline = api.settings.deadline;
    let stock_stores = if api.stock.is_one_server() { Stores::Shared } else { Stores::Own };
    let reads = Arc::new(Reads {
        api,
        marks: Marks::default(),
        page_marks: HitMarks::default(),
        search_marks: HitMarks::default(),
        stock_watch: Arc::new(Watch::new(stock_stores)),
        search_watch: Arc::new(Watch::new(Stores::Own)),
    });
    let routes = Router::new()
        .route("/v1/stock/{sku}", get(stock::one))
        .route("/v1/stock", get(stock::many))
        .route("/v1/products/{sku}", get(product::page))
        .route("/v1/search", get(search::search))
        .route("/v1/suggest", get(search::suggest))
        .route("/v1/status", get(status::status))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(move |request, next| within(deadline, request, next)))
        .with_state(Arc::clone(&reads));
    (routes, ReadWatch { reads })
}

// === impl ReadWatch ===

impl ReadWatch {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let now = self.reads.api.now;
        let (stock, search) = (self.reads.api.stock.as_ref(), self.reads.api.search.catalogue());
        tokio::join!(
            self.reads.stock_watch.run(stock, now, shutdown.clone()),
            self.reads.search_watch.run(search, now, shutdown),
        );
    }
}

async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed").detail("reads are asked for by GET")
}

/// A read that takes too long is given up, so that a slow store does not pile requests up.
async fn within(deadline: Duration, request: Request, next: Next) -> Response {
    let path = request
        .extensions()
        .get::<axum::extract::MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let started = std::time::Instant::now();
    let span = tracing::debug_span!("read", path);
    let response = tokio::time::timeout(deadline, next.run(request).instrument(span)).await.unwrap_or_else(|_| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Read took too long")
            .detail(format!("no answer within {} ms", deadline.as_millis()))
            .retry_after(1)
            .into_response()
    });
    metrics::read(&path, response.status(), started.elapsed());
    response
}
