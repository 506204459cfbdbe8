//! Rows that come back from the log, at the places that they had: one transaction.

use super::append::{CommandRows, TimerRows};
use super::event_rows::storable;
use super::failure::Failure;
use super::pool::Session;
use crate::error::EventStoreError;
use crate::outcome_row::outcome_text;
use crate::store::{AppendBatch, RestoredRows};

/// Transaction ids that a restore may pass over: some seconds of work.
const MOST_PASSED_OVER: u64 = 2_000_000;

pub(super) async fn restore(session: &Session, rows: &RestoredRows) -> Result<(), Failure> {
    let client = session.client();
    let highest = rows.events.iter().map(|event| event.position.xid).max().unwrap_or(0);
    pass_over(session, highest).await?;
    client.batch_execute("BEGIN").await?;
    match restore_in_transaction(session, rows).await {
        Ok(()) => Ok(client.batch_execute("COMMIT").await?),
        Err(Failure::Refused(refused)) => {
            client.batch_execute("ROLLBACK").await?;
            Err(refused.into())
        }
        // The session is closed with its transaction.
        Err(failure) => Err(failure),
    }
}

/// A server that was itself restored to an earlier point hands out the transaction ids of the lost events again. Rows above
/// them would be beyond every snapshot's horizon, and new ones would sort before them: so its counter goes past them first.
async fn pass_over(session: &Session, highest: u64) -> Result<(), Failure> {
    let client = session.client();
    let next = client.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?;
    let next = next.try_get::<_, String>(0)?.parse::<u64>().unwrap_or(u64::MAX);
    let missing = (highest + 1).saturating_sub(next);
    if missing > MOST_PASSED_OVER {
        let problem = format!(
            "the lost events have transaction ids up to {highest}, this cluster is at {next}; stop it and raise its counter \
             (pg_resetwal -x), then restore again"
        );
        return Err(EventStoreError::Permanent { problem }.into());
    }
    if missing > 0 {
        let pass = "PERFORM pg_current_xact_id(); COMMIT;";
        client.batch_execute(&format!("DO $$ BEGIN FOR step IN 1..{missing} LOOP {pass} END LOOP; END $$")).await?;
    }
    Ok(())
}

async fn restore_in_transaction(session: &Session, rows: &RestoredRows) -> Result<(), Failure> {
    let client = session.client();
    let statements = &session.statements;
    let events = &rows.events;
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
    client
        .execute(
            &statements.restore_events,
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
        .await?;
    let last = positions.iter().copied().max().unwrap_or(0);
    client.query_one(&statements.raise_positions, &[&last]).await?;
    // A warehouse that is known stays in its region.
    let (warehouses, regions): (Vec<&str>, Vec<&str>) =
        rows.claims.iter().map(|claim| (claim.warehouse.as_str(), claim.region.as_str())).unzip();
    client.execute(&statements.insert_claims, &[&warehouses, &regions]).await?;
    let timers = TimerRows::of(&AppendBatch { timers: rows.timers.clone(), ..AppendBatch::default() });
    client.execute(&statements.set_timers, &[&timers.keys, &timers.due_at, &timers.commands]).await?;
    client.execute(&statements.clear_timers, &[&timers.cleared]).await?;
    client.execute(&statements.clear_given_timers, &[&timers.given.0, &timers.given.1]).await?;
    let outcomes = outcomes(rows)?;
    client
        .execute(
            &statements.insert_commands,
            &[&outcomes.ids, &outcomes.digests, &outcomes.outcomes, &outcomes.received_at],
        )
        .await?;
    Ok(())
}

fn outcomes(rows: &RestoredRows) -> Result<CommandRows, EventStoreError> {
    let mut commands = CommandRows::default();
    for restored in &rows.outcomes {
        commands.ids.push(restored.id);
        // The log does not tell the body.
        commands.digests.push(Vec::new());
        commands.outcomes.push(outcome_text(restored.id, &restored.outcome)?);
        commands.received_at.push(restored.received_at);
    }
    Ok(commands)
}
