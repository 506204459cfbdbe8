//! Decisions on their way to `platform.events`: each is sent as a command `RecordDecision`, in order.
//!
//! Exactly once: the command's id is made of the catalogue, the number and the hash of the decision, so a repeat after
//! a crash has the outcome that the first one had and makes no second event. What was sent is noted afterwards only.

use event_log::{EventLog, NewRecord, TopicPartition};
use read_models::Generations;
use read_models::generations::Decision;
use schemas::command::RecordDecision;
use schemas::id::ProjectionId;
use schemas::{Command, Context, partition_of};
use uuid::Uuid;

use crate::error::ReplayError;

/// As many decisions at once.
const BATCH: usize = 100;
/// Of the ids of these commands; a constant, as every other one would make other ids.
const NAMESPACE: Uuid = uuid::uuid!("3f0f0a3e-6a0c-5d3b-9a55-6d0e2c7a4b11");
const SOURCE: &str = "/millrace/replay";

/// Sends the decisions that were not sent yet, and says how many these were. `partitions` is of `platform.commands`,
/// `now` in milliseconds since 1970.
pub async fn publish_decisions(
    generations: &dyn Generations,
    log: &dyn EventLog,
    partitions: u32,
    now: i64,
) -> Result<u64, ReplayError> {
    let mut sent = 0;
    loop {
        // The catalogue is read before its decisions: those belong to it, or to a later version of it.
        let catalogue = generations.catalogue().await?;
        let after = generations.published_decisions().await?;
        let mut decisions = generations.decisions(after, BATCH).await?;
        // A list that somebody wrote to by hand may say an old one again: it would be sent again without end.
        decisions.retain(|decision| decision.number > after);
        let Some(last) = decisions.last().map(|decision| decision.number) else {
            return Ok(sent);
        };
        let records: Result<Vec<_>, _> = decisions
            .iter()
            .map(|decision| record(generations.name(), catalogue.id, decision, partitions, now))
            .collect();
        log.publish(records?).await?;
        generations.note_published(last).await?;
        sent += decisions.len() as u64;
    }
}

/// The id of the command that records a decision.
pub fn command_id(catalogue: Uuid, decision: &Decision) -> Uuid {
    let name = format!("{catalogue}/{}/{}", decision.number, decision.hash);
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

fn record(
    projection: &str,
    catalogue: Uuid,
    decision: &Decision,
    partitions: u32,
    now: i64,
) -> Result<NewRecord, ReplayError> {
    let damaged = |problem: String| ReplayError::Damaged { problem };
    let command = Command::RecordDecision(RecordDecision {
        projection: ProjectionId::new(projection).map_err(|error| damaged(error.to_string()))?,
        catalogue_id: catalogue,
        number: i64::try_from(decision.number).map_err(|error| damaged(error.to_string()))?,
        at: decision.at,
        who: decision.who.clone(),
        action: decision.action.clone(),
        generation: decision.generation.clone(),
        reason: decision.reason.clone(),
        evidence: decision.evidence.to_string(),
        previous: decision.previous.clone(),
        hash: decision.hash.clone(),
    });
    let json = serde_json::to_value(&command).map_err(|error| damaged(error.to_string()))?;
    let headers = [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", command_id(catalogue, decision).to_string()),
        ("ce_type", command.full_name()),
        ("ce_source", SOURCE.to_owned()),
        ("content-type", "application/json".to_owned()),
    ];
    let key = command.key().as_bytes();
    Ok(NewRecord {
        at: TopicPartition::new(Context::Platform.commands_topic(), partition_of(key, partitions)),
        key: key.to_vec(),
        headers: headers.into_iter().collect(),
        value: json["data"].to_string().into_bytes(),
        timestamp: now,
    })
}

#[cfg(test)]
mod tests;
