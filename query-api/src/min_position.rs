//! Reads that wait for one's own write: the `Millrace-Min-Position` header.

use axum::http::{HeaderMap, StatusCode};
use schemas::PositionToken;

use crate::QuerySettings;
use crate::problem::Problem;

const MIN_POSITION: &str = "millrace-min-position";

/// The position that the caller must see; `None` when it asks for none.
pub(crate) fn min_position(headers: &HeaderMap) -> Result<Option<PositionToken>, Problem> {
    let Some(value) = headers.get(MIN_POSITION) else { return Ok(None) };
    let text = value.to_str().map_err(|_| Problem::bad_request("header Millrace-Min-Position is not text"))?;
    let token: PositionToken =
        text.parse().map_err(|error| Problem::bad_request(format!("header Millrace-Min-Position: {error}")))?;
    Ok(Some(token).filter(|token| !token.is_empty()))
}

/// The answer to a read whose position did not come in time.
pub(crate) fn not_yet(min: &PositionToken, settings: &QuerySettings) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Position not reached")
        .detail(format!("{min} was not reached within {} ms", settings.position_wait.as_millis()))
        .retry_after(1)
}
