//! The routes that every role serves: `/healthz`, `/readyz` and `/metrics`.

use axum::Json;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::health::Health;

/// Seconds: from a store's half millisecond to a request that waits.
const SECONDS_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be set up: {0}")]
pub struct MetricsError(String);

/// Installs the process-wide metrics recorder.
pub fn install_metrics() -> Result<PrometheusHandle, MetricsError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
        .map_err(|error| MetricsError(error.to_string()))?
        .install_recorder()
        .map_err(|error| MetricsError(error.to_string()))
}

/// `/healthz` says that the process runs, `/readyz` whether it can do its work, `/metrics` what it did.
pub fn router(health: Health, metrics: PrometheusHandle) -> Router {
    let readyz = move || std::future::ready(readiness(&health));
    let metrics = move || {
        // Histograms keep their samples until drained; a scrape is the moment to do it.
        metrics.run_upkeep();
        std::future::ready(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()))
    };
    Router::new()
        .route("/healthz", get(|| std::future::ready(Json(serde_json::json!({ "status": "up" })))))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

fn readiness(health: &Health) -> Response {
    let report = health.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}
