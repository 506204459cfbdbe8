//! Batches are bounded in bytes, and become smaller where the log does not take them in time.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use event_log::{EventLog, SqliteEventLog};
use event_store::AppendBatch;

use fixture::{Picky, append, command_in, open_store, records, sequences, start};

#[tokio::test]
async fn rows_that_do_not_go_out_in_time_go_out_in_smaller_batches() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder.path().join("events.db")).await;
    append(store.as_ref(), 1..=2).await;
    let file: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    let slow: Arc<dyn EventLog> = Arc::new(Picky { log: file.clone(), takes: Box::new(|records| records.len() <= 3) });
    let (shutdown, relay) = start(store, &slow, 33);
    let found = records(file.as_ref(), 40).await;
    shutdown.cancel();
    relay.await.unwrap();
    assert_eq!((found.len(), sequences(&found).len()), (40, 40));
}

#[tokio::test]
async fn a_batch_of_large_rows_has_few_of_them() {
    const ROW: usize = 100_000;
    const ROWS: u32 = 100;
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder.path().join("events.db")).await;
    let long = "E".repeat(ROW);
    let commands = (0..ROWS).map(|number| command_in(&long, number, 1)).collect();
    store.append(&AppendBatch { commands, ..AppendBatch::default() }).await.unwrap();
    let file: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let largest = Arc::new(AtomicUsize::new(0));
    let (seen, most) = (sizes.clone(), largest.clone());
    let watched: Arc<dyn EventLog> = Arc::new(Picky {
        log: file.clone(),
        takes: Box::new(move |records| {
            seen.lock().unwrap().push(records.len());
            most.fetch_max(records.iter().map(|record| record.value.len()).sum(), Ordering::SeqCst);
            true
        }),
    });
    let (shutdown, relay) = start(store, &watched, 2_000);
    let found = records(file.as_ref(), ROWS as usize).await;
    shutdown.cancel();
    relay.await.unwrap();
    assert_eq!(sequences(&found).len(), ROWS as usize);
    let largest = largest.load(Ordering::SeqCst);
    // The frame of a record is a few bytes.
    assert!(largest > 3_000_000 && largest < (4 << 20) + 10_000, "{largest}, in {:?}", sizes.lock().unwrap());
}
