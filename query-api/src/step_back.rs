//! The wait of an answer that would step back: another generation has told of something newer, so that it is asked for
//! again until its own generation is there too, for a while.

use std::time::{Duration, Instant};

use read_models::ReadModelError;

/// How long an answer that would step back waits for its generation.
const STEP_BACK_WAIT: Duration = Duration::from_secs(1);

/// Reads until `take` takes the answer. `take` hears whether the answer has waited long enough, and takes it then
/// whatever it says. The first wait takes `pause`, each following one twice as long, up to `most_pause`.
pub(crate) async fn never_behind<A, R>(
    mut pause: Duration,
    most_pause: Duration,
    read: impl Fn() -> R,
    take: impl Fn(&A, bool) -> bool,
) -> Result<A, ReadModelError>
where
    R: Future<Output = Result<A, ReadModelError>>,
{
    let begun = Instant::now();
    loop {
        let answer = read().await?;
        let is_late = begun.elapsed() > STEP_BACK_WAIT;
        if take(&answer, is_late) {
            return Ok(answer);
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(most_pause);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const PAUSE: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn an_answer_that_is_not_taken_is_asked_for_again() {
        let next = AtomicU64::new(3);
        let read = || std::future::ready(Ok(next.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(never_behind(PAUSE, PAUSE, read, |found: &u64, _| *found == 5).await.unwrap(), 5);
    }

    #[tokio::test]
    async fn one_that_has_waited_long_enough_is_late() {
        let read = || std::future::ready(Ok(3));
        assert_eq!(never_behind(PAUSE, 20 * PAUSE, read, |_: &u64, is_late| is_late).await.unwrap(), 3);
    }
}
