//! Rows that come back from the log, at the places that they had: one transaction.
//!
//! However many they are, no statement meets the session's time limit: each brings a part of them, and the limits are
//! those of one statement.

use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use super::append::{CommandRows, TimerRows};
use super::event_rows::storable;
use super::failure::Failure;
use super::pool::{Session, within};
use super::rows::position;
use crate::error::EventStoreError;
use crate::outcome_row::outcome_text;
use crate::store::{AppendBatch, Claim, RestoredOutcome, RestoredRows, StoredEvent};

/// Rows of one statement.
const ROWS_AT_ONCE: usize = 5_000;
/// Transaction ids that a restore may pass over: a minute of work.
const MOST_PASSED_OVER: u64 = 2_000_000;
/// Transaction ids that one statement passes over.
const PASSED_AT_ONCE: u64 = 20_000;

pub(super) async fn restore(session: &Session, rows: &RestoredRows) -> Result<(), Failure> {
    let highest = rows.events.iter().map(|event| event.position.xid).max().unwrap_or(0);
    pass_over(session, highest).await?;
    run(session, "BEGIN").await?;
    match restore_in_transaction(session, rows).await {
        Ok(()) => run(session, "COMMIT").await,
        Err(Failure::Refused(refused)) => {
            run(session, "ROLLBACK").await?;
            Err(refused.into())
        }
        // The session is closed with its transaction.
        Err(failure) => Err(failure),
    }
}

/// A server that was itself restored to an earlier point hands out the transaction ids of the lost events again. Rows
/// above them would be beyond every snapshot's horizon, and new ones would sort before them: so its counter goes past
/// them first.
async fn pass_over(session: &Session, highest: u64) -> Result<(), Failure> {
    const NEXT: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
    let next = within(async { Ok(session.client().query_one(NEXT, &[]).await?) }).await?;
    let next = next.try_get::<_, String>(0)?.parse::<u64>().unwrap_or(u64::MAX);
    let missing = (highest + 1).saturating_sub(next);
    if missing > MOST_PASSED_OVER {
        let problem = format!(
            "the lost events have transaction ids up to {highest}, this cluster is at {next}; stop it and raise its counter \
             (pg_resetwal -x), then restore again"
        );
        return Err(EventStoreError::Permanent { problem }.into());
    }
    for count in portions(missing) {
        let pass = "PERFORM pg_current_xact_id(); COMMIT;";
        run(session, &format!("DO $$ BEGIN FOR step IN 1..{count} LOOP {pass} END LOOP; END $$")).await?;
    }
    Ok(())
}

fn portions(missing: u64) -> impl Iterator<Item = u64> {
    (0..missing).step_by(PASSED_AT_ONCE as usize).map(move |done| PASSED_AT_ONCE.min(missing - done))
}

async fn restore_in_transaction(session: &Session, rows: &RestoredRows) -> Result<(), Failure> {
    let statements = &session.statements;
    if let Some(behind) = rows.behind {
        // Whoever appends now waits, and finds the restored versions taken; whoever has appended is seen.
        run(session, "LOCK TABLE events IN EXCLUSIVE MODE").await?;
        let row = within(async { Ok(session.client().query_opt(&statements.table_end, &[]).await?) }).await?;
        let end = row.map(|row| position(&row, 0, 1)).transpose()?.unwrap_or_default();
        if end > behind {
            return Err(EventStoreError::TableWentOn { behind, end }.into());
        }
    }
    for events in rows.events.chunks(ROWS_AT_ONCE) {
        restore_events(session, events).await?;
    }
    let last = rows.events.iter().map(|event| event.position.position as i64).max().unwrap_or(0);
    within(async { Ok(session.client().query_one(&statements.raise_positions, &[&last]).await?) }).await?;
    // A warehouse that is known stays in its region.
    for claims in rows.claims.chunks(ROWS_AT_ONCE) {
        let (warehouses, regions): (Vec<&str>, Vec<&str>) = claims.iter().map(names).unzip();
        execute(session, &statements.insert_claims, &[&warehouses, &regions]).await?;
    }
    // Of all changes together: the last one of a key holds.
    let timers = TimerRows::of(&AppendBatch { timers: rows.timers.clone(), ..AppendBatch::default() });
    let set = timers.keys.chunks(ROWS_AT_ONCE).zip(timers.due_at.chunks(ROWS_AT_ONCE));
    for ((keys, due_at), commands) in set.zip(timers.commands.chunks(ROWS_AT_ONCE)) {
        execute(session, &statements.set_timers, &[&keys, &due_at, &commands]).await?;
    }
    for keys in timers.cleared.chunks(ROWS_AT_ONCE) {
        execute(session, &statements.clear_timers, &[&keys]).await?;
    }
    for (keys, commands) in timers.given.0.chunks(ROWS_AT_ONCE).zip(timers.given.1.chunks(ROWS_AT_ONCE)) {
        execute(session, &statements.clear_given_timers, &[&keys, &commands]).await?;
    }
    for outcomes in rows.outcomes.chunks(ROWS_AT_ONCE) {
        let CommandRows { ids, digests, outcomes, received_at } = command_rows(outcomes)?;
        execute(session, &statements.insert_commands, &[&ids, &digests, &outcomes, &received_at]).await?;
    }
    Ok(())
}

async fn restore_events(session: &Session, events: &[StoredEvent]) -> Result<(), Failure> {
    let xids: Vec<String> = events.iter().map(|event| event.position.xid.to_string()).collect();
    let positions: Vec<i64> = events.iter().map(|event| event.position.position as i64).collect();
    let streams: Vec<&str> = events.iter().map(|event| event.stream.as_str()).collect();
    let versions: Vec<i64> = events.iter().map(|event| event.version as i64).collect();
    let topics: Vec<&str> = events.iter().map(|event| event.topic.as_str()).collect();
    let keys: Vec<_> = events.iter().map(|event| storable(&event.key)).collect();
    let ids: Vec<_> = events.iter().map(|event| event.id).collect();
    let schemas: Vec<&str> = events.iter().map(|event| event.schema.name).collect();
    let schema_versions: Vec<i32> = events.iter().map(|event| event.schema.version as i32).collect();
    let bodies: Vec<&[u8]> = events.iter().map(|event| event.body.as_slice()).collect();
    let times: Vec<i64> = events.iter().map(|event| event.time).collect();
    let correlation_ids: Vec<_> = events.iter().map(|event| event.correlation_id.as_deref().map(storable)).collect();
    let causation_ids: Vec<_> = events.iter().map(|event| event.causation_id.as_deref().map(storable)).collect();
    let actors: Vec<_> = events.iter().map(|event| event.actor.as_deref().map(storable)).collect();
    let traceparents: Vec<_> = events.iter().map(|event| event.traceparent.as_deref().map(storable)).collect();
    execute(
        session,
        &session.statements.restore_events,
        &[
            &xids,
            &positions,
            &streams,
            &versions,
            &topics,
            &keys,
            &ids,
            &schemas,
            &schema_versions,
            &bodies,
            &times,
            &correlation_ids,
            &causation_ids,
            &actors,
            &traceparents,
        ],
    )
    .await
}

fn names(claim: &Claim) -> (&str, &str) {
    (claim.warehouse.as_str(), claim.region.as_str())
}

fn command_rows(outcomes: &[RestoredOutcome]) -> Result<CommandRows, EventStoreError> {
    let mut commands = CommandRows::default();
    for restored in outcomes {
        commands.ids.push(restored.id);
        // The log does not tell the body.
        commands.digests.push(Vec::new());
        commands.outcomes.push(outcome_text(restored.id, &restored.outcome)?);
        commands.received_at.push(restored.received_at);
    }
    Ok(commands)
}

async fn execute(session: &Session, statement: &Statement, parameters: &[&(dyn ToSql + Sync)]) -> Result<(), Failure> {
    within(async { Ok(session.client().execute(statement, parameters).await.map(drop)?) }).await
}

async fn run(session: &Session, sql: &str) -> Result<(), Failure> {
    within(async { Ok(session.client().batch_execute(sql).await?) }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_ids_are_passed_over_in_portions() {
        for missing in [0, 1, PASSED_AT_ONCE, PASSED_AT_ONCE + 1, MOST_PASSED_OVER] {
            let portions: Vec<u64> = portions(missing).collect();
            assert_eq!(portions.iter().sum::<u64>(), missing);
            assert!(portions.iter().all(|count| (1..=20_000).contains(count)), "{missing}");
        }
    }
}
