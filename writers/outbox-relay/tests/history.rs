//! Log and event table that no longer tell the same history: the relay notices before it publishes, and
//! `reconcile` brings them level again.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use event_log::{
    EmbeddedRegistry, EventEnvelope, EventLog, EventLogError, Headers, NewRecord, Record, SqliteEventLog,
    TopicPartition,
};
use event_store::{AppendBatch, EventStore, RestoredOutcome, RestoredRows};
use outbox_relay::{Finding, PublishAgain, ReconcileOptions, ReconcileReport, RelayError, reconcile, topic_specs};
use schemas::Outcome;
use telemetry::Health;
use uuid::Uuid;

use fixture::{DEADLINE, TOPOLOGY, append, command, open_store, records, sequences, start, start_with};

const REPAIR: ReconcileOptions =
    ReconcileOptions { again: PublishAgain::NotWhatRetentionRemoved, restore: false, dry_run: false };

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn store(&self) -> Arc<dyn EventStore> {
        open_store(&self.path("events.db")).await
    }

    fn log(&self) -> Arc<dyn EventLog> {
        Arc::new(SqliteEventLog::open(self.path("log.db")).unwrap())
    }

    /// Appends versions of twenty streams, and relays until the topic has `wanted` records.
    async fn relay(&self, versions: std::ops::RangeInclusive<u64>, wanted: usize) -> Vec<Record> {
        let (store, log) = (self.store().await, self.log());
        append(&*store, versions).await;
        let (shutdown, relay) = start(store.clone(), &log, 33);
        let found = records(&*log, wanted).await;
        let begun = Instant::now();
        // The cursor is saved behind the records.
        while store.relay_lag(0).await.unwrap().0 > 0 {
            assert!(begun.elapsed() < DEADLINE, "the cursor is not saved");
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        relay.await.unwrap();
        found
    }

    /// Nothing holds the files open. What was committed last may still stand in the file beside it.
    fn copy(&self, from: &str, to: &str) {
        self.remove(to);
        for suffix in ["", "-wal"] {
            let from = self.path(&format!("{from}{suffix}"));
            if from.exists() {
                std::fs::copy(from, self.path(&format!("{to}{suffix}"))).unwrap();
            }
        }
    }

    fn remove(&self, name: &str) {
        for suffix in ["", "-wal", "-shm"] {
            // SQLite itself removes the two beside the file, once its last connection has closed.
            match std::fs::remove_file(self.path(&format!("{name}{suffix}"))) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.unwrap(),
            }
        }
    }

    /// Starts a relay, waits until it halts, and returns why. It has published nothing.
    async fn halts(&self) -> String {
        let (store, log) = (self.store().await, self.log());
        log.ensure_topics(&topic_specs(TOPOLOGY)).await.unwrap();
        let before = log.ends("pricing.events").await.unwrap();
        let health = Health::default();
        let (shutdown, relay) = start_with(store, &log, 33, &health);
        let begun = Instant::now();
        let why = loop {
            let told = health.report().components["relay"].clone();
            if told != "starting" {
                break told;
            }
            assert!(begun.elapsed() < DEADLINE);
            tokio::task::yield_now().await;
        };
        assert!(!relay.is_finished(), "a halted relay stays, so that its process does not start again and again");
        shutdown.cancel();
        relay.await.unwrap();
        assert_eq!(log.ends("pricing.events").await.unwrap(), before, "nothing is published");
        why
    }

    async fn reconcile(&self, options: ReconcileOptions) -> Result<ReconcileReport, RelayError> {
        let (store, log) = (self.store().await, self.log());
        let also = |events| Ok(RestoredRows { events, ..RestoredRows::default() });
        reconcile(&*store, &*log, &EmbeddedRegistry::default(), TOPOLOGY, options, also, |_, _| {}).await
    }
}

fn again(record: &Record) -> NewRecord {
    NewRecord {
        at: record.at.clone(),
        key: record.key.to_vec(),
        headers: record.headers.clone(),
        value: record.value.to_vec(),
        timestamp: record.timestamp,
    }
}

fn ids(records: &[Record]) -> HashMap<Uuid, (u32, u64)> {
    sequences(records)
}

/// Faults 6 and 21: the whole log, and its tail.
#[tokio::test]
async fn a_log_that_lost_records_halts_the_relay_and_gets_them_again() {
    for is_emptied in [true, false] {
        let files = Files::new();
        files.relay(1..=2, 40).await;
        files.copy("log.db", "earlier.db");
        let all = ids(&files.relay(3..=5, 100).await);
        files.remove("log.db");
        if !is_emptied {
            files.copy("earlier.db", "log.db");
        }

        let why = files.halts().await;
        assert!(why.contains("the log lost records") && why.contains("millrace relay reconcile"), "{why}");
        let found = files.reconcile(ReconcileOptions { dry_run: true, ..REPAIR }).await.unwrap();
        assert_eq!((found.finding, found.repaired, found.is_open()), (Finding::LogIsBehind, false, true));
        let missing: u64 = found.partitions.iter().map(|partition| partition.missing).sum();
        assert_eq!(missing, if is_emptied { 100 } else { 60 });
        files.halts().await;

        let repaired = files.reconcile(REPAIR).await.unwrap();
        assert!(repaired.repaired && !repaired.is_open(), "{repaired:?}");
        // The same ids at the same sequences, then the new ones behind them.
        let again = ids(&files.relay(6..=6, 120).await);
        assert_eq!(again.len(), 120);
        assert!(all.iter().all(|(id, place)| again[id] == *place));
        assert_eq!(files.reconcile(REPAIR).await.unwrap().finding, Finding::Level);
    }
}

/// Fault 21, where a relay published to the new topic and ended before it looked.
#[tokio::test]
async fn a_topic_that_begins_in_the_middle_halts_the_relay_though_it_ends_where_it_should() {
    let files = Files::new();
    files.relay(1..=2, 40).await;
    let all = files.relay(3..=5, 100).await;
    files.remove("log.db");
    let log = files.log();
    log.ensure_topics(&topic_specs(TOPOLOGY)).await.unwrap();
    let sequences = ids(&all);
    let newest = |record: &Record| {
        let envelope = EventEnvelope::from_headers(&record.headers).unwrap();
        let (partition, sequence) = sequences[&envelope.id];
        sequence + 3 > sequences.values().filter(|(of, _)| *of == partition).map(|(_, last)| *last).max().unwrap()
    };
    let newest: Vec<NewRecord> = all.iter().filter(|record| newest(record)).map(again).collect();
    let published = newest.len();
    log.publish(newest).await.unwrap();
    drop(log);

    let why = files.halts().await;
    assert!(why.contains("was made anew") && why.contains("millrace relay reconcile"), "{why}");
    let repaired = files.reconcile(REPAIR).await.unwrap();
    assert!(repaired.repaired && !repaired.is_open(), "{repaired:?}");
    // Those of the beginning stand behind now: that is no reason to halt when it leads anew.
    files.relay(6..=6, 120 + published).await;
    assert_eq!(ids(&files.relay(7..=7, 140 + published).await).len(), 140);
}

#[tokio::test]
async fn a_halted_relay_goes_on_by_itself_once_it_may() {
    let files = Files::new();
    files.relay(1..=3, 60).await;
    files.remove("log.db");
    let (store, log) = (files.store().await, files.log());
    let health = Health::default();
    let (shutdown, relay) = start_with(store, &log, 33, &health);
    let begun = Instant::now();
    while !health.report().components["relay"].contains("lost records") {
        assert!(begun.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    // Made anew, and empty, a topic would pass for all there is.
    assert!(matches!(log.ends("pricing.events").await, Err(EventLogError::UnknownTopic { .. })));
    // It has given up the lead: another process may take it.
    let repaired = files.reconcile(REPAIR).await.unwrap();
    assert!(repaired.repaired);
    assert_eq!(ids(&records(&*log, 60).await).len(), 60);
    shutdown.cancel();
    relay.await.unwrap();
}

/// Fault 22.
#[tokio::test]
async fn a_table_restored_to_an_earlier_point_halts_the_relay_and_gets_its_events_back() {
    let files = Files::new();
    files.relay(1..=2, 40).await;
    files.copy("events.db", "backup.db");
    let all = ids(&files.relay(3..=5, 100).await);
    files.copy("backup.db", "events.db");

    let why = files.halts().await;
    assert!(why.contains("restored to an earlier point") && why.contains("relay reconcile"), "{why}");
    let refused = files.reconcile(REPAIR).await.unwrap();
    assert_eq!((refused.finding, refused.is_open()), (Finding::TableIsBehind, true));
    assert_eq!(refused.partitions.iter().map(|partition| partition.only_on_topic).sum::<u64>(), 60);
    files.halts().await;

    let restored = files.reconcile(ReconcileOptions { restore: true, ..REPAIR }).await.unwrap();
    assert_eq!((restored.finding, restored.restored_events, restored.is_open()), (Finding::Level, 60, false));
    // Commands go on behind the restored events, under fresh sequences.
    let after = ids(&files.relay(6..=6, 120).await);
    assert_eq!(after.len(), 120);
    assert!(all.iter().all(|(id, place)| after[id] == *place));
}

/// Fault 22, and commands were accepted before anybody noticed.
#[tokio::test]
async fn commands_after_the_restore_go_out_under_no_used_sequence() {
    let files = Files::new();
    files.relay(1..=2, 40).await;
    files.copy("events.db", "backup.db");
    let all = ids(&files.relay(3..=5, 100).await);
    files.copy("backup.db", "events.db");
    {
        let store = files.store().await;
        let mut new = command(3, 3);
        new.id = Uuid::new_v4();
        new.outcome.id = new.id;
        new.events[0].id = Uuid::new_v4();
        store.append(&AppendBatch { commands: vec![new], ..AppendBatch::default() }).await.unwrap();
    }
    let why = files.halts().await;
    assert!(why.contains("restored to an earlier point"), "{why}");
    for restore in [false, true] {
        let refused = files.reconcile(ReconcileOptions { restore, ..REPAIR }).await.unwrap();
        assert_eq!((refused.finding, refused.is_open()), (Finding::HistoriesDiffer, true));
    }
    files.halts().await;
    assert_eq!(ids(&records(&*files.log(), 100).await), all, "the topic is as it was");
}

/// Fault 1, with what else may stand at the end of a topic: foreign records, and the batch of a superseded relay.
#[tokio::test]
async fn twins_and_foreign_records_at_the_end_are_no_loss() {
    let files = Files::new();
    let all = files.relay(1..=5, 100).await;
    {
        let log = files.log();
        let twins = all.iter().filter(|record| record.offset < 3).map(again).collect();
        log.publish(twins).await.unwrap();
        let foreign = |partition| NewRecord {
            at: TopicPartition::new("pricing.events", partition),
            key: Vec::new(),
            headers: Headers::default(),
            value: vec![1],
            timestamp: 0,
        };
        let foreign: Vec<NewRecord> = (0..5_000).map(|number| foreign(number % 4)).collect();
        log.publish(foreign).await.unwrap();
    }
    let there = 100 + 5_000 + all.iter().filter(|record| record.offset < 3).count();
    let found = files.relay(6..=6, there + 20).await;
    let ours: Vec<Record> =
        found.into_iter().filter(|record| EventEnvelope::from_headers(&record.headers).is_ok()).collect();
    assert_eq!(ids(&ours).len(), 120);
}

/// Fault 23: a relay that was superseded repeated a batch that is longer than what is looked at first.
#[tokio::test]
async fn a_long_batch_of_a_superseded_relay_at_the_end_is_no_loss() {
    let files = Files::new();
    let all = files.relay(1..=5, 100).await;
    {
        let log = files.log();
        let old = all.iter().filter(|record| record.offset < 3);
        let twins = old.cycle().take(6_000).map(again).collect();
        log.publish(twins).await.unwrap();
    }
    let found = files.relay(6..=6, 6_120).await;
    assert_eq!(ids(&found).len(), 120);
}

/// Fault 22: of an outcome and its event only the outcome came to the log before the table was restored.
#[tokio::test]
async fn an_outcome_does_not_come_back_without_its_event() {
    let files = Files::new();
    files.relay(1..=2, 40).await;
    files.copy("events.db", "backup.db");
    files.relay(3..=3, 60).await;
    files.copy("backup.db", "events.db");
    let (store, log) = (files.store().await, files.log());
    let outcome = |number: u128, version| {
        let id = Uuid::from_u128(number);
        let command = command(0, 3);
        let stream = Some(command.stream.to_string());
        let outcome = Outcome { id, stream, version: Some(version), ..command.outcome };
        RestoredOutcome { id, received_at: 0, outcome }
    };
    let also = |events: Vec<_>| {
        let outcomes = vec![outcome(901, 2), outcome(902, 3), outcome(903, 4)];
        Ok(RestoredRows { events, outcomes, ..RestoredRows::default() })
    };
    let options = ReconcileOptions { restore: true, ..REPAIR };
    let progress = |_, _| {};
    let restored = reconcile(&*store, &*log, &EmbeddedRegistry::default(), TOPOLOGY, options, also, progress).await;
    assert_eq!(restored.unwrap().restored_events, 20);
    for (number, is_there) in [(901, true), (902, true), (903, false)] {
        assert_eq!(store.outcome(Uuid::from_u128(number)).await.unwrap().is_some(), is_there, "{number}");
    }
}

/// Fault 22 again: another event table than the one whose events the topic holds.
#[tokio::test]
async fn the_topic_of_another_event_table_is_refused() {
    let files = Files::new();
    files.relay(1..=2, 40).await;
    files.remove("events.db");
    {
        let store = files.store().await;
        let mut commands: Vec<_> = (0..20).map(|number| command(number, 1)).collect();
        for new in &mut commands {
            new.events[0].id = Uuid::new_v4();
        }
        store.append(&AppendBatch { commands, ..AppendBatch::default() }).await.unwrap();
    }
    let why = files.halts().await;
    assert!(why.contains("the topic is another's"), "{why}");
}

/// The same, where the cursor and the topics are at the same sequences.
#[tokio::test]
async fn a_level_topic_of_another_event_table_is_refused() {
    let (one, other) = (Files::new(), Files::new());
    one.relay(1..=2, 40).await;
    {
        let mut commands: Vec<_> =
            (1..=2).flat_map(|version| (0..20).map(move |number| command(number, version))).collect();
        for new in &mut commands {
            new.events[0].id = Uuid::new_v4();
        }
        let store = other.store().await;
        store.append(&AppendBatch { commands, ..AppendBatch::default() }).await.unwrap();
    }
    other.relay(std::ops::RangeInclusive::new(1, 0), 40).await;
    other.remove("log.db");
    for suffix in ["", "-wal"] {
        let from = one.path(&format!("log.db{suffix}"));
        if from.exists() {
            std::fs::copy(from, other.path(&format!("log.db{suffix}"))).unwrap();
        }
    }
    let why = other.halts().await;
    assert!(why.contains("the topic is another's"), "{why}");
    let refused = other.reconcile(REPAIR).await.unwrap();
    assert_eq!(refused.finding, Finding::HistoriesDiffer);
}

/// Faults 2 and 23: only one may move the cursor.
#[tokio::test]
async fn reconcile_waits_for_no_relay_that_leads() {
    let files = Files::new();
    files.relay(1..=1, 20).await;
    let (store, log) = (files.store().await, files.log());
    let _leads = store.lease_relay().await.unwrap();
    let other = files.store().await;
    let also = |events| Ok(RestoredRows { events, ..RestoredRows::default() });
    let refused = reconcile(&*other, &*log, &EmbeddedRegistry::default(), TOPOLOGY, REPAIR, also, |_, _| {}).await;
    assert!(matches!(refused, Err(RelayError::AnotherLeads)), "{refused:?}");
}
