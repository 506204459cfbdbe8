//! `millrace relay reconcile` as it is called: the program, its exit codes, and a data directory that lost its log.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

/// A program that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _status = self.0.wait();
    }
}

fn millrace(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.current_dir(folder).args(args);
    command
}

fn reconcile(folder: &Path, args: &[&str]) -> (Option<i32>, Value) {
    let output: Output =
        millrace(folder, &["relay", "reconcile", "--data", "data", "--json"]).args(args).output().unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&output.stderr).into_owned()));
    (output.status.code(), report)
}

/// Relays until all is published and the cursor saved.
fn relay(folder: &Path, events: u64) {
    let _relay = Running(
        millrace(folder, &["relay", "--data", "data", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let begun = Instant::now();
        let url = format!("sqlite:{}", folder.join("data/events.db").display());
        let store = event_store::connect_event_store(&url).await.unwrap();
        while store.relay_lag(0).await.unwrap().0 > 0 {
            assert!(begun.elapsed() < DEADLINE, "the relay does not publish");
            tokio::task::yield_now().await;
        }
        let log = event_log::SqliteEventLog::open_read_only(folder.join("data/log.db")).unwrap();
        let ends = event_log::EventLog::ends(&log, "catalogue.events").await.unwrap();
        assert_eq!(ends.iter().map(|ends| ends.next).sum::<u64>(), events);
    });
}

#[test]
fn a_data_directory_that_lost_its_log_is_level_again_after_one_command() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (code, refused) = reconcile(folder, &[]);
    assert_eq!(code, Some(1), "{refused}");
    assert!(refused.to_string().contains("never set up"), "{refused}");

    let rows: String = (0..50).map(|number| format!("SKU-{number},Tea {number}\n")).collect();
    std::fs::write(folder.join("products.csv"), format!("sku,name\n{rows}")).unwrap();
    let imported = millrace(folder, &["import", "products", "products.csv", "--data", "data"]).output().unwrap();
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    relay(folder, 50);
    let (code, level) = reconcile(folder, &[]);
    assert_eq!((code, &level["finding"]), (Some(0), &"level".into()), "{level}");

    for suffix in ["", "-wal", "-shm"] {
        let path = folder.join(format!("data/log.db{suffix}"));
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let (code, found) = reconcile(folder, &["--dry-run"]);
    assert_eq!((code, &found["finding"], &found["repaired"]), (Some(3), &"log_is_behind".into(), &false.into()));
    let (code, repaired) = reconcile(folder, &[]);
    assert_eq!((code, &repaired["repaired"]), (Some(0), &true.into()), "{repaired}");
    relay(folder, 50);

    let shown = millrace(folder, &["relay", "reconcile", "--data", "data"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("are level") && shown.contains("catalogue.events/0"), "{shown}");
}
