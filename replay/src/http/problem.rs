//! Errors as RFC 9457 problem details.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ReplayError;
use crate::gates::Missing;

/// An error answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ReplayProblem)] // other APIs have a `Problem` in the same document
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

/// What a caller may hear of an error, and whether it is less than the log has: what stores and the log say of
/// themselves names addresses and files.
pub(super) fn outside(error: &ReplayError) -> (String, bool) {
    match error {
        ReplayError::ReadModel(_) | ReplayError::Projector(_) if error.is_transient() => {
            ("its store gives no answer now".to_owned(), true)
        }
        ReplayError::Log(_) | ReplayError::Decode(_) if error.is_transient() => {
            ("the log gives no answer now".to_owned(), true)
        }
        ReplayError::ReadModel(_)
        | ReplayError::Projector(_)
        | ReplayError::Log(_)
        | ReplayError::Decode(_)
        | ReplayError::File { .. }
        | ReplayError::Ownership { .. } => {
            ("it cannot be answered, and trying again does not help: the log of this process says why".to_owned(), true)
        }
        ReplayError::Damaged { .. } => (
            format!("{error}; trying again does not help: `millrace replay history` tells whether it was altered"),
            true,
        ),
        _ => (error.to_string(), false),
    }
}

impl From<ReplayError> for Problem {
    fn from(error: ReplayError) -> Self {
        let (detail, is_inside) = outside(&error);
        if is_inside {
            tracing::warn!(%error, "replays give no answer");
        }
        let (status, title) = match &error {
            ReplayError::NoReplay { .. } | ReplayError::NotThere { .. } => {
                (StatusCode::NOT_FOUND, "Unknown generation")
            }
            ReplayError::SeveralReplays { .. } | ReplayError::NothingBefore { .. } => (StatusCode::CONFLICT, "Refused"),
            ReplayError::Setting { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "Request cannot be taken"),
            ReplayError::Contended { .. } => (StatusCode::SERVICE_UNAVAILABLE, "Busy"),
            ReplayError::Damaged { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "Replay is damaged"),
            error if error.is_transient() => (StatusCode::SERVICE_UNAVAILABLE, "Read model unavailable"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "Replays give no answer"),
        };
        Self::new(status, title, detail)
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
