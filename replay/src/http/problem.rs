//! Errors as RFC 9457 problem details.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ReplayError;
use crate::gates::Missing;

/// An error answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// What a gate asks for and does not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<Missing>,
}

pub(super) fn unknown(name: &str) -> Problem {
    let detail = format!("{name} is none of the generations that GET /v1/replays lists");
    Problem::new(StatusCode::NOT_FOUND, "Unknown generation", detail)
}

// === impl Problem ===

impl Problem {
    pub(super) fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        let detail = Some(detail.into());
        Self { r#type: "about:blank", title, status: status.as_u16(), detail, missing: Vec::new() }
    }

    pub(super) fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Request cannot be taken", detail)
    }

    pub(super) fn refused(missing: Vec<Missing>) -> Self {
        let sentences: Vec<&str> = missing.iter().map(|missing| missing.sentence.as_str()).collect();
        let detail = sentences.join("; ");
        Self { missing, ..Self::new(StatusCode::CONFLICT, "Refused", detail) }
    }
}

/// What a caller is told of an error; the log has the inside.
impl From<ReplayError> for Problem {
    fn from(error: ReplayError) -> Self {
        match error {
            error @ (ReplayError::NoReplay { .. } | ReplayError::NotThere { .. }) => {
                Self::new(StatusCode::NOT_FOUND, "Unknown generation", error.to_string())
            }
            error @ ReplayError::Contended { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", error.to_string())
            }
            error => {
                tracing::warn!(%error, "replays give no answer");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Read model unavailable", "its store gives no answer now")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}
