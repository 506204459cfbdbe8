//! The relay's lag, and whether a long transaction holds the horizon (fault 4).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::gauge;

use super::failure::Failure;
use super::pool::Session;
use super::rows::unsigned;
use crate::store::MOST_COUNTED;

const HORIZON_BLOCKED: &str = "millrace_event_store_horizon_blocked_seconds";

/// From here on the session that holds the horizon is named.
const STALLED: Duration = Duration::from_secs(5);
const WARN_EVERY: Duration = Duration::from_secs(30);

/// Watches the horizon whenever the lag is measured.
#[derive(Default)]
pub(super) struct HorizonWatch {
    warned_at: Mutex<Option<Instant>>,
}

// === impl HorizonWatch ===

impl HorizonWatch {
    pub(super) fn new() -> Self {
        metrics::describe_gauge!(
            HORIZON_BLOCKED,
            metrics::Unit::Seconds,
            "Age of the oldest committed event that the relay may not read yet, because an older transaction is open."
        );
        Self::default()
    }

    /// Rows after the relay's cursor, [`MOST_COUNTED`] at most, and the age of the oldest of them in milliseconds.
    pub(super) async fn lag(&self, session: &Session, now: i64) -> Result<(u64, Option<i64>), Failure> {
        let row = session.client().query_one(&session.statements.lag, &[&(MOST_COUNTED as i64)]).await?;
        let age = |time: Option<i64>| time.map(|time| now.saturating_sub(time).max(0));
        let (waiting, oldest, blocked) = (unsigned(&row, 0)?, age(row.try_get(1)?), age(row.try_get(2)?));
        let blocked = Duration::from_millis(blocked.unwrap_or(0) as u64);
        gauge!(HORIZON_BLOCKED).set(blocked.as_secs_f64());
        if blocked >= STALLED && self.may_warn() {
            self.name_the_holder(session, blocked).await?;
        }
        Ok((waiting, oldest))
    }

    async fn name_the_holder(&self, session: &Session, blocked: Duration) -> Result<(), Failure> {
        let (holder, seconds) = holder(session).await?;
        tracing::warn!(blocked_seconds = blocked.as_secs(), holder, open_seconds = seconds, "horizon is held");
        Ok(())
    }

    fn may_warn(&self) -> bool {
        let mut warned_at = self.warned_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = warned_at.is_none_or(|at| at.elapsed() >= WARN_EVERY);
        if due {
            *warned_at = Some(Instant::now());
        }
        due
    }
}

/// Who has the oldest transaction open, and for how many seconds. A user without `pg_read_all_stats` sees only its own
/// sessions, so there may be none to name.
pub(super) async fn holder(session: &Session) -> Result<(String, Option<f64>), Failure> {
    match session.client().query_opt(&session.statements.horizon_holder, &[]).await? {
        Some(row) => Ok((row.try_get(0)?, row.try_get(1)?)),
        None => Ok(("not visible to this user: grant pg_read_all_stats".to_owned(), None)),
    }
}
