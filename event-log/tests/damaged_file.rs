//! A damaged log file says where it is, what is wrong with it, and what brings it back.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use event_log::{SqliteEventLog, TopicPartition};
use fixture::{Fixture, records};

/// A log of ten records.
async fn written(path: &Path) -> (Fixture, TopicPartition) {
    let log = Arc::new(SqliteEventLog::open(path).unwrap());
    let fixture = Fixture { log, prefix: "t".to_owned(), folder: None };
    let at = TopicPartition::new(fixture.make_topic("events", 1).await, 0);
    fixture.log.publish(records(&at, 0..10)).await.unwrap();
    (fixture, at)
}

#[tokio::test]
async fn a_damaged_row_is_named_by_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    let (fixture, at) = written(&path).await;
    let file = rusqlite::Connection::open(&path).unwrap();
    for (offset, damage) in [(7, "headers = x'ff'"), (6, "value = 'text'"), (5, "timestamp = x'00'")] {
        let damage = format!("UPDATE records SET {damage} WHERE offset = {offset}");
        assert_eq!(file.execute(&damage, []).unwrap(), 1);
        assert_eq!(fixture.log.read(&at, 0, offset).await.unwrap().len(), offset);
        let error = fixture.log.read(&at, 0, 10).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("log.db: t.events/0 offset ") && text.contains("millrace relay reconcile"), "{text}");
        assert!(text.contains(&format!("offset {offset} cannot be read: ")) && !error.is_transient(), "{text}");
    }
}

#[tokio::test]
async fn a_damaged_page_says_what_brings_the_file_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    drop(written(&path).await);
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&[0; 100]).unwrap();
    let text = SqliteEventLog::open(&path).map(drop).unwrap_err().to_string();
    assert!(text.contains("log.db: file is not a database") && text.contains("millrace relay reconcile"), "{text}");
}
