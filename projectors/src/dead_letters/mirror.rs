//! Parked events on the topic `<context>.dead-letters`, for monitoring that does not know Millrace.
//!
//! A side effect, at least once: published first, marked in the read model after, so a crash repeats and loses none. It
//! runs beside the fold, which neither waits for it nor learns of its troubles. An engine that is given no mirror, such
//! as one that builds a shadow generation, has no such effect. An event that was redriven or discarded before it was
//! mirrored is not: it waits no more.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use event_log::{EventLog, NewRecord, TopicPartition};
use read_models::{DeadLetters, ParkedEvent, ParkedPlace, PartitionRef};

use crate::error::ProjectorError;

/// How often the read model is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Events of one publish.
const PAGE: usize = 100;

/// Where parked events are mirrored to.
#[derive(Clone)]
pub struct DeadLetterMirror {
    log: Arc<dyn EventLog>,
}

impl std::fmt::Debug for DeadLetterMirror {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DeadLetterMirror")
    }
}

// === impl DeadLetterMirror ===

impl DeadLetterMirror {
    pub fn new(log: Arc<dyn EventLog>) -> Self {
        Self { log }
    }

    /// Follows the parked events of one partition until it is dropped.
    pub(crate) async fn run<M: DeadLetters + ?Sized>(
        self,
        projection: &'static str,
        read_model: Arc<M>,
        partition: PartitionRef,
    ) {
        let mut mark = None;
        let mut is_told = false;
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.follow(projection, read_model.as_ref(), partition, &mut mark).await {
                Ok(()) => is_told = false,
                // Once for each trouble.
                Err(error) if !is_told => {
                    tracing::warn!(%partition, %error, "dead letters are not mirrored for now");
                    is_told = true;
                }
                Err(_) => {}
            }
        }
    }

    async fn follow<M: DeadLetters + ?Sized>(
        &self,
        projection: &'static str,
        read_model: &M,
        partition: PartitionRef,
        mark: &mut Option<ParkedPlace>,
    ) -> Result<(), ProjectorError> {
        if mark.is_none() {
            *mark = read_model.mirrored(partition).await?;
        }
        loop {
            let events = read_model.parked(partition, *mark, PAGE).await?;
            let Some(last) = events.last().map(ParkedEvent::place) else { return Ok(()) };
            let records = events.into_iter().map(|event| mirrored(projection, partition, event)).collect();
            self.log.publish(records).await?;
            read_model.set_mirrored(partition, last).await?;
            *mark = Some(last);
        }
    }
}

fn mirrored(projection: &str, partition: PartitionRef, event: ParkedEvent) -> NewRecord {
    let parked_at = DateTime::from_timestamp_millis(event.parked_at).unwrap_or_default();
    let mut headers = event.headers;
    headers.extend([
        ("millrace-dead-letter-reason".to_owned(), event.reason),
        ("millrace-dead-letter-projection".to_owned(), projection.to_owned()),
        ("millrace-dead-letter-parked-at".to_owned(), parked_at.to_rfc3339_opts(SecondsFormat::Millis, true)),
    ]);
    NewRecord {
        at: TopicPartition::new(partition.context.dead_letters_topic(), partition.partition),
        key: event.key.into_bytes(),
        headers: headers.into_iter().collect(),
        value: event.value,
        timestamp: event.parked_at,
    }
}
