//! Errors as RFC 9457 problem details.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use read_models::ReadModelError;
use serde::Serialize;
use utoipa::ToSchema;

/// Characters of a detail: some repeat what was asked, which may be as long as a head.
const LONGEST_DETAIL: usize = 2_000;

/// An error answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip)]
    retry_after: Option<u32>,
}

// === impl Problem ===

impl Problem {
    pub(crate) fn new(status: StatusCode, title: &'static str) -> Self {
        Self { r#type: "about:blank", title, status: status.as_u16(), detail: None, retry_after: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Request not understood").detail(detail)
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if let Some((end, _)) = detail.char_indices().nth(LONGEST_DETAIL) {
            detail.truncate(end);
            detail.push('…');
        }
        self.detail = Some(detail);
        self
    }

    /// Seconds.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

/// What a caller is told of a read model's error; the log has the inside.
impl From<ReadModelError> for Problem {
    fn from(error: ReadModelError) -> Self {
        match error {
            ReadModelError::Query { problem } => Self::bad_request(problem),
            error @ ReadModelError::UnknownGeneration { .. } => {
                Self::new(StatusCode::NOT_FOUND, "Unknown generation").detail(error.to_string())
            }
            ReadModelError::Rebuilding { name } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "Rebuilding")
                .detail(format!("the {name} read model is being rebuilt and not answered from until it is whole"))
                .retry_after(2),
            ReadModelError::BreakerOpen { name, open } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Read model unavailable")
                    .detail(format!("the store of the {name} read model does not answer and is not asked just now"))
                    .retry_after(open.retry_after_seconds())
            }
            error => {
                tracing::warn!(%error, "read model gives no answer");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "Read model unavailable").retry_after(1)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
