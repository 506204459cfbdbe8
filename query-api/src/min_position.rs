//! Reads that wait for one's own write: the `Millrace-Min-Position` header (invariant Q2).

use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode};
use read_models::ReadModelError;
use schemas::PositionToken;

use crate::QuerySettings;
use crate::problem::Problem;

const MIN_POSITION: &str = "millrace-min-position";
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The position that the caller must see; `None` when it asks for none.
pub(crate) fn min_position(headers: &HeaderMap) -> Result<Option<PositionToken>, Problem> {
    let Some(value) = headers.get(MIN_POSITION) else { return Ok(None) };
    let text = value.to_str().map_err(|_| Problem::bad_request("header Millrace-Min-Position is not text"))?;
    let token: PositionToken =
        text.parse().map_err(|error| Problem::bad_request(format!("header Millrace-Min-Position: {error}")))?;
    Ok(Some(token).filter(|token| !token.is_empty()))
}

/// Reads, behind a wait where the caller must see a position. What was waited for and what is read may be two: the
/// pointer, or the build behind it, may have moved in between to one that is a little behind. So the answer's own
/// position is looked at, and the wait goes on.
pub(crate) async fn read_at<'m, A, W, R>(
    min: Option<&'m PositionToken>,
    settings: &QuerySettings,
    wait: impl Fn(&'m PositionToken, Duration) -> W,
    read: impl Fn() -> R,
    is_seen: impl Fn(&A, &PositionToken) -> bool,
) -> Result<A, Problem>
where
    W: Future<Output = Result<bool, ReadModelError>>,
    R: Future<Output = Result<A, ReadModelError>>,
{
    let Some(min) = min else { return Ok(read().await?) };
    let begun = Instant::now();
    loop {
        let left = settings.position_wait.saturating_sub(begun.elapsed());
        if !wait(min, left).await? {
            return Err(not_yet(min, settings));
        }
        let answer = read().await?;
        if is_seen(&answer, min) {
            return Ok(answer);
        }
        if left.is_zero() {
            return Err(not_yet(min, settings));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Whether an answer's position is at `min` or later, as far as both name the same partitions.
pub(crate) fn is_at(position: &PositionToken, min: &PositionToken) -> bool {
    position.iter().all(|at| min.get(at.context, at.partition).is_none_or(|wanted| at.position >= wanted))
}

/// The answer to a read whose position did not come in time.
fn not_yet(min: &PositionToken, settings: &QuerySettings) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Position not reached")
        .detail(format!("{min} was not reached within {} ms", settings.position_wait.as_millis()))
        .retry_after(1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::response::IntoResponse;
    use schemas::{Context, StorePosition};

    use super::*;

    fn at(position: u64) -> PositionToken {
        PositionToken::of(Context::Inventory, 0, StorePosition { xid: 0, position })
    }

    /// What is read is at 3, then at 4, and so on, whatever was waited for.
    async fn read_from_3(min: Option<u64>, position_wait: Duration) -> Result<PositionToken, Problem> {
        let (min, next) = (min.map(at), AtomicU64::new(3));
        let settings = QuerySettings { position_wait, ..QuerySettings::default() };
        let wait = |_: &PositionToken, _| std::future::ready(Ok(true));
        let read = || std::future::ready(Ok(at(next.fetch_add(1, Ordering::Relaxed))));
        read_at(min.as_ref(), &settings, wait, read, is_at).await
    }

    #[tokio::test]
    async fn an_answer_that_is_behind_what_was_waited_for_is_asked_for_again() {
        let wait = Duration::from_secs(60);
        assert_eq!(read_from_3(Some(5), wait).await.unwrap(), at(5));
        assert_eq!(read_from_3(Some(2), wait).await.unwrap(), at(3));
        assert_eq!(read_from_3(None, wait).await.unwrap(), at(3));
    }

    #[tokio::test]
    async fn it_is_not_given_when_the_wait_is_over() {
        let refused = read_from_3(Some(1_000_000), Duration::from_millis(20)).await.unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.headers().contains_key("retry-after"));
    }
}
