//! Errors as RFC 9457 problem details.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use read_models::ReadModelError;
use serde::Serialize;
use utoipa::ToSchema;

/// An error answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

// === impl Problem ===

impl Problem {
    pub(crate) fn new(status: StatusCode, title: &'static str) -> Self {
        Self { r#type: "about:blank", title, status: status.as_u16(), detail: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Request not understood").detail(detail)
    }

    pub(crate) fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Request cannot be taken").detail(detail)
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

/// What a caller is told of a read model's error; the log has the inside.
impl From<ReadModelError> for Problem {
    fn from(error: ReadModelError) -> Self {
        match error {
            ReadModelError::Rebuilding { name } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "Rebuilding")
                .detail(format!("the {name} read model is not there yet")),
            error @ ReadModelError::UnknownGeneration { .. } => {
                Self::new(StatusCode::NOT_FOUND, "Unknown generation").detail(error.to_string())
            }
            error @ ReadModelError::TooManyRequests { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Too many requests wait").detail(error.to_string())
            }
            error => {
                tracing::warn!(%error, "read model gives no answer");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Read model unavailable")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}
