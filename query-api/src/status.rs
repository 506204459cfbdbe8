//! `GET /v1/status`: position, lag and freshness of each projection.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use read_models::process_report::Halted;
use read_models::{Generations, PartitionStatus, ReadModelError, ReadModelStatus};
use schemas::PositionToken;
use serde::Serialize;
use utoipa::ToSchema;

use crate::Reads;
use crate::answer::answer;
use crate::problem::Problem;

/// How the read side stands.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Status {
    /// The newest position that any projection has reached, per partition.
    #[schema(value_type = String)]
    head: PositionToken,
    projections: Vec<ProjectionStatus>,
}

/// How one projection stands.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProjectionStatus {
    name: String,
    generation: u32,
    fold_version: u32,
    /// `live`, `rebuilding`, or `unavailable` when its store does not answer.
    state: &'static str,
    /// Events in the log that are not applied; null when the log's end was never seen, and when the log ends before
    /// what is applied: then `halted` says why.
    lag_events: Option<u64>,
    /// How far behind what it shows may be: the age of the oldest event that is not applied is at most this.
    freshness_seconds: Option<f64>,
    /// Partitions that do not go on; the others do.
    halted: Vec<HaltedPartition>,
    parked_keys: u64,
    parked_events: u64,
    #[schema(value_type = String)]
    position: PositionToken,
}

/// A partition whose projector cannot go on.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct HaltedPartition {
    /// As in `inventory.events/0`.
    partition: String,
    why: String,
}

/// In milliseconds. Projectors tell of halted partitions each second: who has not for so long is gone.
const REPORT_MAX_AGE_MS: i64 = 15_000;

/// Position, lag and freshness
#[utoipa::path(get, path = "/v1/status", tag = "operations", responses((status = 200, body = Status)))]
pub(crate) async fn status(State(reads): State<Arc<Reads>>, headers: HeaderMap) -> Result<Response, Problem> {
    let api = &reads.api;
    let now = (api.now)();
    let (stock, search) = tokio::join!(api.stock.status(), api.search.status());
    let (stock_halted, search_halted) = tokio::join!(
        halted(api.stock.as_ref(), stock.as_ref().ok(), now),
        halted(api.search.catalogue(), search.as_ref().ok(), now),
    );
    let stock = (read_models::stock::NAME, stock, stock_halted);
    let search = (read_models::search::NAME, search, search_halted);
    let mut head = PositionToken::default();
    let mut projections = Vec::new();
    for (name, found, halted) in [stock, search] {
        let projection = projection(name, found, halted, now);
        head.merge(&projection.position);
        projections.push(projection);
    }
    let status = Status { head, projections };
    let position = status.head.clone();
    let mut response = answer(&headers, &status, &position);
    // It changes by the clock alone.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What the projectors of a generation told of it. A store that has no answer to that takes nothing from the rest.
async fn halted(generations: &dyn Generations, status: Option<&ReadModelStatus>, now: i64) -> Halted {
    let Some(status) = status else { return Halted::new() };
    match generations.reports(now, REPORT_MAX_AGE_MS).await {
        Ok(reports) => status.halted(&reports),
        Err(error) => {
            tracing::debug!(read_model = %status.name, %error, "halted partitions are not known");
            Halted::new()
        }
    }
}

fn projection(
    name: &str,
    found: Result<ReadModelStatus, ReadModelError>,
    halted: Halted,
    now: i64,
) -> ProjectionStatus {
    let status = match found {
        Ok(status) => status,
        Err(error) => {
            let state = if matches!(error, ReadModelError::Rebuilding { .. }) { "rebuilding" } else { "unavailable" };
            return ProjectionStatus {
                name: name.to_owned(),
                generation: 0,
                fold_version: 0,
                state,
                lag_events: None,
                freshness_seconds: None,
                halted: Vec::new(),
                parked_keys: 0,
                parked_events: 0,
                position: PositionToken::default(),
            };
        }
    };
    let mut position = PositionToken::default();
    for partition in &status.partitions {
        if partition.checkpoint.sequence > 0 {
            position.merge(&partition.partition.token(partition.checkpoint.position));
        }
    }
    ProjectionStatus {
        generation: status.generation,
        fold_version: status.fold_version,
        state: if status.is_live() { "live" } else { "rebuilding" },
        lag_events: status.known_lag(&halted),
        freshness_seconds: freshness_seconds(&status.partitions, &halted, now),
        halted: halted.into_iter().map(|(partition, why)| HaltedPartition { partition, why }).collect(),
        parked_keys: status.partitions.iter().map(|partition| partition.parked_keys).sum(),
        parked_events: status.partitions.iter().map(|partition| partition.parked_events).sum(),
        name: status.name,
        position,
    }
}

/// A partition that is level is as fresh as the last look at the log's end; one that lags is at least as old as the
/// last event that it applied. `None` when a partition lags that has applied nothing, and when the log ends before what
/// is applied: nobody knows how old that is.
fn freshness_seconds(partitions: &[PartitionStatus], halted: &Halted, now: i64) -> Option<f64> {
    let mut worst: Option<f64> = None;
    for partition in partitions {
        let Some(head) = partition.head else { continue };
        if partition.is_beyond_log(halted) {
            return None;
        }
        let is_level = partition.checkpoint.next_offset >= head.next_offset;
        let since = match partition.checkpoint.event_time {
            _ if is_level => head.seen_at,
            0 => return None,
            applied => applied.min(head.seen_at),
        };
        let age = (now - since).max(0) as f64 / 1000.0;
        worst = Some(worst.map_or(age, |worst| worst.max(age)));
    }
    worst
}

#[cfg(test)]
mod tests {
    use read_models::{Checkpoint, Head, PartitionRef};
    use schemas::{Context, StorePosition};

    use super::*;

    fn partition(number: u32, next_offset: u64, event_time: i64, head: Option<Head>) -> PartitionStatus {
        let position = StorePosition { xid: 0, position: next_offset };
        PartitionStatus {
            partition: PartitionRef { context: Context::Inventory, partition: number },
            checkpoint: Checkpoint { sequence: next_offset, next_offset, position, event_time },
            live: true,
            head,
            parked_keys: 1,
            parked_events: 2,
        }
    }

    fn status(partitions: Vec<PartitionStatus>) -> ReadModelStatus {
        ReadModelStatus { name: "stock".to_owned(), generation: 1, fold_version: 1, partitions }
    }

    #[test]
    fn lag_is_the_sum_and_freshness_the_worst() {
        let head = |next_offset| Some(Head { next_offset, seen_at: 99_000 });
        let partitions = vec![partition(0, 10, 50_000, head(10)), partition(1, 5, 60_000, head(12))];
        let found = projection("stock", Ok(status(partitions)), Halted::new(), 100_000);
        assert_eq!(found.lag_events, Some(7));
        assert_eq!(found.freshness_seconds, Some(40.0));
        assert_eq!((found.parked_keys, found.parked_events, found.state), (2, 4, "live"));
        assert_eq!(found.position.to_string(), "inventory-0-0.10,inventory-1-0.5");
    }

    #[test]
    fn a_log_that_was_never_seen_has_no_lag_to_tell() {
        let unseen = status(vec![partition(0, 10, 1, None)]);
        let freshness = |status: &ReadModelStatus| freshness_seconds(&status.partitions, &Halted::new(), 5);
        assert_eq!((unseen.lag_events(), freshness(&unseen)), (None, None));
        let emptied = status(vec![partition(0, 0, 0, Some(Head { next_offset: 7, seen_at: 4 }))]);
        assert_eq!((emptied.lag_events(), freshness(&emptied)), (Some(7), None));
    }

    #[test]
    fn the_lag_of_a_partition_that_has_applied_more_than_its_topic_holds_is_not_known() {
        let head = |next_offset| Some(Head { next_offset, seen_at: 99_000 });
        let found = |end: u64, halted: &Halted| {
            let partitions = vec![partition(0, 10, 50_000, head(end)), partition(1, 5, 60_000, head(12))];
            projection("stock", Ok(status(partitions)), halted.clone(), 100_000)
        };
        let halted = Halted::from([("inventory.events/0".to_owned(), "made anew".to_owned())]);
        let lost = found(4, &halted);
        assert_eq!((lost.lag_events, lost.freshness_seconds), (None, None));
        let told = HaltedPartition { partition: "inventory.events/0".to_owned(), why: "made anew".to_owned() };
        assert_eq!(lost.halted, [told]);
        // Applied since somebody looked where the log ends.
        assert_eq!(found(4, &Halted::new()).lag_events, Some(7));
        // Halted for another reason: what waits can be counted.
        assert_eq!(found(25, &halted).lag_events, Some(22));
    }
}
