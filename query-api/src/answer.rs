//! An answer: JSON, the position it is true at, and a tag by which a caller asks whether it has changed.

use std::hash::{DefaultHasher, Hasher};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat};
use schemas::PositionToken;
use serde::Serialize;

use crate::problem::Problem;

pub(crate) static POSITION: HeaderName = HeaderName::from_static("millrace-position");
pub(crate) static GENERATION: HeaderName = HeaderName::from_static("millrace-generation");

/// Writes an answer, or 304 when the caller has it already.
pub(crate) fn answer(request: &HeaderMap, body: &impl Serialize, position: &PositionToken) -> Response {
    let Ok(json) = serde_json::to_vec(body) else {
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Answer cannot be written").into_response();
    };
    let tag = entity_tag(&json);
    let is_known = request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|known| known.trim() == tag || known.trim() == "*");
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], json).into_response()
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    with_position(response, position)
}

/// Names the generations that an answer was read from.
pub(crate) fn with_generation(mut response: Response, generations: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(generations) {
        response.headers_mut().insert(GENERATION.clone(), value);
    }
    response
}

/// Names the position that an answer, or a refusal, is true at.
pub(crate) fn with_position(mut response: Response, position: &PositionToken) -> Response {
    if let Ok(value) = HeaderValue::from_str(&position.to_string()) {
        response.headers_mut().insert(POSITION.clone(), value);
    }
    response
}

/// Weak: two answers of one tag say the same, whatever position each was read at.
fn entity_tag(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    format!("W/\"{:016x}\"", hasher.finish())
}

/// A time in milliseconds since 1970 as RFC 3339 in UTC, `2023-11-14T22:13:20.007Z`; `None` where no calendar reaches.
pub(crate) fn moment(milliseconds: i64) -> Option<String> {
    Some(DateTime::from_timestamp_millis(milliseconds)?.to_rfc3339_opts(SecondsFormat::Millis, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_answer_is_not_sent_again() {
        let position: PositionToken = "inventory-1-0.5".parse().unwrap();
        let first = answer(&HeaderMap::new(), &serde_json::json!({"a": 1}), &position);
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()[&POSITION], "inventory-1-0.5");
        let mut request = HeaderMap::new();
        request.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        let second = answer(&request, &serde_json::json!({"a": 1}), &position);
        assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
        let changed = answer(&request, &serde_json::json!({"a": 2}), &position);
        assert_eq!(changed.status(), StatusCode::OK);
    }

    #[test]
    fn a_moment_has_milliseconds_and_one_beyond_the_calendar_is_left_out() {
        assert_eq!(moment(0).as_deref(), Some("1970-01-01T00:00:00.000Z"));
        assert_eq!(moment(1_700_000_000_007).as_deref(), Some("2023-11-14T22:13:20.007Z"));
        assert_eq!(moment(i64::MAX), None);
    }
}
