//! From stored rows to records: partition, sequence, envelope.
//!
//! The sequence is computed only from the stored order and the saved counters, so the same event gets the same
//! sequence after any crash (invariant P1).

use std::collections::HashMap;
use std::num::NonZeroUsize;

use event_log::{EventEnvelope, NewRecord, TopicPartition, frame::frame};
use event_store::{RelayCursor, StoredEvent, StreamId, Topology};
use lru::LruCache;

use crate::error::RelayError;

/// Streams whose last version is remembered; an evicted one is taken up again at its next event.
const REMEMBERED_STREAMS: NonZeroUsize = NonZeroUsize::new(200_000).expect("not zero");

/// Stamps rows one after the other.
pub(crate) struct Stamper {
    topology: Topology,
    cursor: RelayCursor,
    versions: LruCache<StreamId, u64>,
}

/// A batch that is ready to publish, and the cursor to save once it is.
pub(crate) struct Stamped {
    pub(crate) records: Vec<NewRecord>,
    pub(crate) cursor: RelayCursor,
}

impl Stamper {
    /// Goes on from a saved cursor.
    pub(crate) fn new(topology: Topology, cursor: RelayCursor) -> Self {
        Self { topology, cursor, versions: LruCache::new(REMEMBERED_STREAMS) }
    }

    /// Stamps a batch. `schema_id` gives the registry id of an event's schema on the event's topic.
    pub(crate) fn stamp(
        &mut self,
        events: &[StoredEvent],
        schema_id: impl Fn(&StoredEvent) -> u32,
    ) -> Result<Stamped, RelayError> {
        let mut records = Vec::with_capacity(events.len());
        let mut touched = HashMap::new();
        for event in events {
            self.check_version(event)?;
            let (partition, sequence) = self.cursor.advance(event, self.topology);
            touched.insert((event.topic.clone(), partition), sequence);
            records.push(record_of(event, partition, sequence, schema_id(event)));
        }
        Ok(Stamped { records, cursor: RelayCursor { position: self.cursor.position, sequences: touched } })
    }

    fn check_version(&mut self, event: &StoredEvent) -> Result<(), RelayError> {
        let last = self.versions.put(event.stream.clone(), event.version);
        match last {
            Some(last) if event.version != last + 1 => {
                Err(RelayError::VersionsOutOfOrder { stream: event.stream.clone(), last, found: event.version })
            }
            _ => Ok(()),
        }
    }
}

/// The record that a row is published as.
pub(crate) fn record_of(event: &StoredEvent, partition: u32, sequence: u64, schema_id: u32) -> NewRecord {
    let context = event.topic.split('.').next().unwrap_or_default();
    let envelope = EventEnvelope {
        id: event.id,
        source: format!("/millrace/{context}"),
        event_type: event.schema.name.to_owned(),
        time: event.time,
        subject: event.stream.to_string(),
        partition_key: event.key.clone(),
        sequence,
        stream_version: event.version,
        position: event.position,
        correlation_id: event.correlation_id.clone(),
        causation_id: event.causation_id.clone(),
        traceparent: event.traceparent.clone(),
    };
    NewRecord {
        at: TopicPartition::new(event.topic.clone(), partition),
        key: event.key.clone().into_bytes(),
        headers: envelope.to_headers(),
        value: frame(schema_id, &event.body),
        timestamp: event.time,
    }
}

#[cfg(test)]
mod tests {
    use schemas::{SchemaRef, StorePosition};
    use uuid::Uuid;

    use super::*;

    fn event(position: u64, sku: &str, version: u64) -> StoredEvent {
        StoredEvent {
            position: StorePosition { xid: 0, position },
            topic: "pricing.events".to_owned(),
            stream: StreamId::from_stored(format!("price-{sku}@eu")),
            version,
            key: sku.to_owned(),
            id: Uuid::from_u128(u128::from(position)),
            schema: SchemaRef { name: "millrace.pricing.PriceSet", version: 1 },
            body: vec![1, 2],
            time: 1_000,
            correlation_id: None,
            causation_id: None,
            actor: None,
            traceparent: None,
        }
    }

    fn sequences(stamped: &Stamped) -> Vec<(u32, String)> {
        let sequence = |record: &NewRecord| record.headers.get("ce_sequence").unwrap().to_owned();
        stamped.records.iter().map(|record| (record.at.partition, sequence(record))).collect()
    }

    #[test]
    fn sequences_are_gapless_per_partition_and_the_same_after_a_crash() {
        let events: Vec<StoredEvent> = (1..=40).map(|n| event(n, &format!("S{}", n % 7), (n - 1) / 7 + 1)).collect();
        let topology = Topology { partitions: 3 };
        let whole = Stamper::new(topology, RelayCursor::default()).stamp(&events, |_| 9).unwrap();

        // The relay saves after 10, publishes 15 more, and dies before it saves those.
        let mut first = Stamper::new(topology, RelayCursor::default());
        let saved = first.stamp(&events[..10], |_| 9).unwrap();
        first.stamp(&events[10..25], |_| 9).unwrap();
        let again = Stamper::new(topology, saved.cursor.clone()).stamp(&events[10..], |_| 9).unwrap();

        let mut after_crash = sequences(&saved);
        after_crash.extend(sequences(&again));
        assert_eq!(after_crash, sequences(&whole));
        for partition in 0..3 {
            let found: Vec<u64> = sequences(&whole)
                .iter()
                .filter(|(at, _)| *at == partition)
                .map(|(_, sequence)| sequence.parse().unwrap())
                .collect();
            assert_eq!(found, (1..=found.len() as u64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_version_out_of_order_halts() {
        let mut stamper = Stamper::new(Topology { partitions: 1 }, RelayCursor::default());
        let error = stamper.stamp(&[event(1, "A", 1), event(2, "A", 3)], |_| 9).err().unwrap();
        assert!(matches!(error, RelayError::VersionsOutOfOrder { last: 1, found: 3, .. }), "{error}");
    }
}
