use event_log::{SqliteEventLog, TopicSpec};

use super::*;

const TOPIC: &str = "pricing.events";

fn record(sequence: u64) -> NewRecord {
    let envelope = EventEnvelope {
        id: Uuid::from_u128(sequence.into()),
        source: "/millrace/pricing".to_owned(),
        event_type: "PriceSet".to_owned(),
        time: 0,
        subject: "price-a".to_owned(),
        partition_key: "a".to_owned(),
        sequence,
        stream_version: sequence,
        position: StorePosition { xid: 0, position: sequence },
        correlation_id: None,
        causation_id: None,
        traceparent: None,
    };
    NewRecord {
        at: TopicPartition::new(TOPIC, 0),
        key: Vec::new(),
        headers: envelope.to_headers(),
        value: vec![0],
        timestamp: 0,
    }
}

#[tokio::test]
async fn a_gap_that_was_filled_behind_it_is_none() {
    let both = |one: &[u64], two: &[u64]| [one, two].concat();
    for (sequences, wanted) in [
        (vec![], false),
        (vec![1, 2, 3, 2, 3, 4], false),
        (vec![2, 3], true),
        (vec![1, 2, 5, 6], true),
        // What `reconcile` makes of it.
        (both(&[1, 2, 5, 6], &[3, 4, 5, 6]), false),
        (both(&[1, 2, 5, 6], &[3, 4, 5]), true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let log = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
        log.ensure_topics(&[TopicSpec { name: TOPIC.to_owned(), partitions: 1 }]).await.unwrap();
        log.publish(sequences.iter().map(|sequence| record(*sequence)).collect()).await.unwrap();
        assert_eq!(has_gap(&log, &TopicPartition::new(TOPIC, 0)).await.unwrap(), wanted, "{sequences:?}");
    }
}
