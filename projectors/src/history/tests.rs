//! Where a checkpoint stands on a log that is as it was, was made anew, lost records, or was published again.

use async_trait::async_trait;
use event_log::{EventLog, Headers, NewRecord, Record, SqliteEventLog, Subscription, TopicSpec};
use schemas::StorePosition;

use super::*;

const TOPIC: &str = "pricing.events";

fn at() -> TopicPartition {
    TopicPartition::new(TOPIC, 0)
}

/// Event `sequence` of history `history`.
fn event(history: u128, sequence: u64) -> NewRecord {
    let envelope = EventEnvelope {
        id: Uuid::from_u128((history << 64) | u128::from(sequence)),
        source: "/millrace/pricing".to_owned(),
        event_type: "millrace.pricing.PriceSet".to_owned(),
        time: history as i64 * 1_000_000 + sequence as i64,
        subject: "price-a@north".to_owned(),
        partition_key: "a".to_owned(),
        sequence,
        stream_version: sequence,
        position: StorePosition { xid: 0, position: sequence * 2 },
        correlation_id: None,
        causation_id: None,
        traceparent: None,
    };
    NewRecord { at: at(), key: Vec::new(), headers: envelope.to_headers(), value: Vec::new(), timestamp: 0 }
}

fn foreign() -> NewRecord {
    NewRecord { at: at(), key: Vec::new(), headers: Headers::default(), value: vec![1], timestamp: 0 }
}

fn checkpoint(sequence: u64, next_offset: u64) -> Checkpoint {
    let (position, event_time) = (StorePosition { xid: 0, position: sequence * 2 }, 1_000_000 + sequence as i64);
    Checkpoint { sequence, next_offset, position, event_time }
}

/// A log that holds these records.
async fn log_of(records: Vec<NewRecord>) -> (tempfile::TempDir, SqliteEventLog) {
    let folder = tempfile::tempdir().unwrap();
    let log = SqliteEventLog::open(folder.path().join("log.db")).unwrap();
    log.ensure_topics(&[TopicSpec { name: TOPIC.to_owned(), partitions: 1 }]).await.unwrap();
    log.publish(records).await.unwrap();
    (folder, log)
}

async fn place(records: Vec<NewRecord>, checkpoint: Checkpoint, after_halt: bool) -> Result<u64, ProjectorError> {
    let (_folder, log) = log_of(records).await;
    place_of(&log, &at(), &checkpoint, after_halt).await
}

fn events(sequences: std::ops::RangeInclusive<u64>) -> Vec<NewRecord> {
    sequences.map(|sequence| event(1, sequence)).collect()
}

#[tokio::test]
async fn a_log_as_it_was_goes_on_at_the_offset() {
    assert_eq!(place(events(1..=50), checkpoint(30, 30), false).await.unwrap(), 30);
    assert_eq!(place(events(1..=50), checkpoint(50, 50), false).await.unwrap(), 50);
    assert_eq!(place(events(1..=50), checkpoint(0, 0), false).await.unwrap(), 0);
    assert_eq!(place(vec![foreign()], checkpoint(0, 1), false).await.unwrap(), 1);
}

#[tokio::test]
async fn twins_and_foreign_records_may_stand_before_the_offset() {
    let mut records = events(1..=30);
    records.extend(events(5..=20));
    records.extend((0..200).map(|_| foreign()));
    let next_offset = records.len() as u64;
    assert_eq!(place(records, checkpoint(30, next_offset), false).await.unwrap(), next_offset);
}

#[tokio::test]
async fn a_log_of_another_history_is_refused() {
    let other = |count: u64| (1..=count).map(|sequence| event(2, sequence)).collect::<Vec<_>>();
    for (count, offset) in [(50, 30), (30, 30), (50, 80), (30, 30_000)] {
        let refused = place(other(count), checkpoint(30, offset), false).await;
        assert!(matches!(refused, Err(ProjectorError::HistoryDiffers { sequence: 30, .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn the_same_events_at_other_offsets_go_on_by_sequence() {
    // Made anew, and published again without the records that stood between.
    assert_eq!(place(events(1..=50), checkpoint(30, 45), false).await.unwrap(), 30);
    assert_eq!(place(events(1..=30), checkpoint(30, 4_000), false).await.unwrap(), 30);
    let mut late = vec![foreign(); 100];
    late.extend(events(1..=50));
    assert_eq!(place(late, checkpoint(30, 30), false).await.unwrap(), 130);
}

#[tokio::test]
async fn a_log_that_lost_what_follows_is_waited_for() {
    for (records, offset) in [(events(1..=20), 30), (Vec::new(), 30), (events(40..=50), 90), (events(1..=10), 5)] {
        let lost = place(records, checkpoint(30, offset), false).await;
        assert!(matches!(lost, Err(ProjectorError::NotOnLog { wanted: 31, .. })), "{lost:?}");
        assert!(lost.unwrap_err().may_come_back());
    }
}

#[tokio::test]
async fn a_missing_sequence_is_found_where_it_was_published_again() {
    let mut records = events(1..=30);
    records.extend(events(33..=40));
    let next = records.len() as u64;
    let missing = place(records.clone(), checkpoint(30, 30), true).await;
    assert!(matches!(missing, Err(ProjectorError::NotOnLog { wanted: 31, highest: 40, .. })), "{missing:?}");
    records.extend(events(31..=40));
    assert_eq!(place(records, checkpoint(30, 30), true).await.unwrap(), next);
}

/// A partition from which retention has removed everything before this offset.
struct Emptied(u64);

#[async_trait]
impl EventLog for Emptied {
    async fn ensure_topics(&self, _topics: &[TopicSpec]) -> Result<(), EventLogError> {
        unreachable!("a place is looked for, nothing is made")
    }

    async fn publish(&self, _records: Vec<NewRecord>) -> Result<(), EventLogError> {
        unreachable!("a place is looked for, nothing is published")
    }

    async fn ends(&self, _topic: &str) -> Result<Vec<PartitionEnds>, EventLogError> {
        Ok(vec![PartitionEnds { partition: 0, first: self.0, next: self.0 }])
    }

    async fn subscribe(&self, _group: &str, _topics: &[&str]) -> Result<Box<dyn Subscription>, EventLogError> {
        unreachable!("a place is looked for without a group")
    }

    async fn read(&self, at: &TopicPartition, from: u64, _limit: usize) -> Result<Vec<Record>, EventLogError> {
        if from == self.0 {
            return Ok(Vec::new());
        }
        Err(EventLogError::OffsetOutOfRange { at: at.clone(), asked: from, first: self.0, next: self.0 })
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_level_partition_that_retention_emptied_goes_on_at_its_end() {
    for after_halt in [false, true] {
        let level = place_of(&Emptied(50), &at(), &checkpoint(30, 50), after_halt).await;
        assert_eq!(level.unwrap(), 50);
        let only_foreign = place_of(&Emptied(50), &at(), &checkpoint(0, 50), after_halt).await;
        assert_eq!(only_foreign.unwrap(), 50);
    }
}

/// Fault 19: whether they were twins or events, the next event says.
#[tokio::test]
async fn a_partition_that_retention_emptied_of_what_was_not_read_says_so() {
    for after_halt in [false, true] {
        let refused = place_of(&Emptied(50), &at(), &checkpoint(30, 40), after_halt).await;
        let Err(error @ ProjectorError::NotOnLog { wanted: 31, .. }) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("--from-start"), "{error}");
    }
}

/// Fault 19: nobody can tell whether there were events.
#[tokio::test]
async fn a_new_read_model_on_an_emptied_partition_says_so() {
    let refused = place_of(&Emptied(50), &at(), &checkpoint(0, 0), false).await;
    assert!(matches!(refused, Err(ProjectorError::NotOnLog { wanted: 1, .. })), "{refused:?}");
}

#[test]
fn a_twin_must_be_the_same_event() {
    let mut recent = RecentEvents::new();
    for sequence in 1..=REMEMBERED as u64 + 10 {
        recent.note(sequence, Uuid::from_u128(u128::from(sequence)));
    }
    let newest = REMEMBERED as u64 + 10;
    assert!(!recent.contradicts(newest, Uuid::from_u128(u128::from(newest))));
    assert!(recent.contradicts(newest, Uuid::from_u128(1)));
    assert!(!recent.contradicts(5, Uuid::from_u128(77)), "it is no longer remembered");
    assert!(!recent.contradicts(newest + 1, Uuid::from_u128(77)));
}
