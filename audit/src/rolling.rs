//! The audit that always runs: a round every so often, slowly, with metrics and one log line for each difference it
//! finds.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::auditor::Auditor;
use crate::metrics::round_ended;
use crate::report::{Difference, Report, Verdict};

/// How the rolling audit goes about it.
#[derive(Debug, Clone)]
pub struct RollingSettings {
    /// From the beginning of one round to that of the next; a round that takes longer is followed at once.
    pub every: Duration,
    /// Partitions of read models that a round compares, each in its turn.
    pub partitions: usize,
    /// How often everything is read again, from the first event: a round alone does not see what changed on a topic
    /// where it has been.
    pub anew_every: Duration,
}

/// Log lines of one round.
const LINES: usize = 20;

impl Default for RollingSettings {
    fn default() -> Self {
        Self { every: Duration::from_secs(60), partitions: 4, anew_every: Duration::from_secs(6 * 60 * 60) }
    }
}

/// Audits until `shutdown`. What cannot be reached now is tried again in the next round; `after_round` hears of each:
/// what it found, or why nothing can be said, or nothing of a part.
pub async fn run_rolling(
    mut auditor: Auditor,
    settings: RollingSettings,
    shutdown: CancellationToken,
    after_round: impl Fn(Result<&Report, String>) + Send,
) {
    let mut told: HashSet<Difference> = HashSet::new();
    let mut events = 0;
    let mut anew_at = Instant::now() + settings.anew_every;
    while !shutdown.is_cancelled() {
        let begun = Instant::now();
        if begun >= anew_at {
            auditor.begin_anew();
            anew_at = begun + settings.anew_every;
            events = 0;
        }
        let round = tokio::select! {
            round = auditor.round(settings.partitions) => round,
            () = shutdown.cancelled() => return,
        };
        match round {
            Ok(report) => {
                round_ended(&report, report.events.saturating_sub(events));
                events = report.events;
                tell(&report, &mut told);
                after_round(told_of(&report));
            }
            Err(error) => {
                tracing::warn!(%error, "audit round not made");
                after_round(Err(error.to_string()));
            }
        }
        tokio::select! {
            () = tokio::time::sleep_until(begun + settings.every) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Silence about what was not compared would say that it is right.
fn told_of(report: &Report) -> Result<&Report, String> {
    match report.verdict() {
        Verdict::NotCompared => Err(format!("not compared: {}", report.not_compared().join("; "))),
        Verdict::Level | Verdict::Differs => Ok(report),
    }
}

/// One line for each difference that was not there before.
fn tell(report: &Report, told: &mut HashSet<Difference>) {
    let now: HashSet<Difference> = report.differences.iter().cloned().collect();
    let new: Vec<&Difference> = report.differences.iter().filter(|difference| !told.contains(difference)).collect();
    for difference in new.iter().take(LINES) {
        tracing::error!(
            kind = difference.kind.as_str(),
            place = difference.place.as_str(),
            partition = difference.partition,
            sequence = difference.sequence,
            what = difference.what,
            detail = difference.detail,
            "audit found a difference"
        );
    }
    if new.len() > LINES {
        tracing::error!(more = new.len() - LINES, "audit found more differences");
    }
    *told = now;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{World, sku_in};

    #[tokio::test]
    async fn a_round_that_left_something_out_says_so() {
        let world = World::new().await;
        world.append(&sku_in(0), 1..=2).await;
        let mut auditor = world.auditor().await;
        let report = auditor.round(1).await.unwrap();
        assert_eq!(told_of(&report), Err("not compared: stock inventory.events/0: it is being built".to_owned()));
        assert_eq!(report.left_out(), 1);
        world.prepare(1).await;
        let report = auditor.round(2).await.unwrap();
        assert_eq!((told_of(&report), report.left_out()), (Ok(&report), 0));
    }
}
