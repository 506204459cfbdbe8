//! What settings do to the program: which store is written, what is refused before anything is touched, and how the
//! program ends.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn millrace(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.current_dir(folder);
    command
}

/// Exit code and what was said.
fn said(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_import_writes_the_event_store_of_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.csv"), "sku,name\nA,Milk\n").unwrap();
    std::fs::write(folder.path().join("millrace.toml"), "event-store = \"sqlite:theirs.db\"\npartitions = 7\n")
        .unwrap();
    let output = millrace(folder.path()).args(["import", "products", "p.csv"]).output().unwrap();
    assert_eq!(said(&output).0, 0, "{}", said(&output).1);
    assert!(!folder.path().join("millrace-data").exists());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let topology = runtime.block_on(async {
        let url = format!("sqlite:{}", folder.path().join("theirs.db").display());
        event_store::connect_event_store(&url).await.unwrap().topology().await.unwrap()
    });
    assert_eq!(topology.unwrap().partitions, 7);

    // A Kafka log is not asked for anything here, but it decides on the partitions.
    std::fs::remove_file(folder.path().join("millrace.toml")).unwrap();
    let output = millrace(folder.path())
        .args(["import", "products", "p.csv"])
        .env("MILLRACE_EVENT_STORE", "sqlite:third.db")
        .env("MILLRACE_EVENT_LOG", "kafka://127.0.0.1:9")
        .output()
        .unwrap();
    assert_eq!(said(&output).0, 0, "{}", said(&output).1);
    let topology = runtime.block_on(async {
        let url = format!("sqlite:{}", folder.path().join("third.db").display());
        event_store::connect_event_store(&url).await.unwrap().topology().await.unwrap()
    });
    assert_eq!(topology.unwrap().partitions, 12);
}

#[test]
fn registering_takes_the_registry_of_the_settings_file() {
    let folder = tempfile::tempdir().unwrap();
    let register = || said(&millrace(folder.path()).args(["contracts", "register"]).output().unwrap());
    let (code, text) = register();
    assert!(code == 2 && text.contains("--schema-registry") && text.lines().count() == 1, "{code} {text}");
    std::fs::write(folder.path().join("millrace.toml"), "schema_registry = \"http://127.0.0.1:9\"\n").unwrap();
    let (code, text) = register();
    assert!(code == 1 && text.contains("127.0.0.1:9"), "{code} {text}");
}

#[test]
fn a_wrong_kind_of_store_is_a_usage_error_and_leaves_no_file() {
    for (flag, url) in [
        ("--event-store", "mysql://user:hunter2@h/db"),
        ("--event-store", "postgres:h/hunter2"),
        ("--event-log", "redis://:hunter2@h"),
        ("--event-log", "kafka://h"),
        ("--stock-store", "mysql://user:hunter2@h/db"),
        ("--schema-registry", "kafka://user:hunter2@h:1"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let output = millrace(folder.path()).args(["up", "--listen", "127.0.0.1:0", flag, url]).output().unwrap();
        let (code, text) = said(&output);
        assert!(code == 2 && text.contains(&flag[2..]) && !text.contains("hunter2"), "{flag} {url}: {code} {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert_eq!(names(folder.path()), Vec::<String>::new(), "{flag} {url}");
    }
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["write", "--event-store", "x:y"][..],
        &["relay", "--event-log", "x:y"],
        &["project", "stock", "--stock-store", "x:y"],
        &["serve", "--stock-store", "x:y"],
        &["tail", "--event-log", "x:y"],
        &["import", "products", "p.csv", "--event-store", "x:y"],
        &["contracts", "check", "--schema-registry", "x:y"],
        &["contracts", "register", "--schema-registry", "x:y"],
    ] {
        let (code, text) = said(&millrace(folder.path()).args(arguments).output().unwrap());
        assert!(code == 2 && text.contains("\"x:\""), "{arguments:?}: {code} {text}");
        assert_eq!(names(folder.path()), Vec::<String>::new(), "{arguments:?}");
    }
}

/// A program that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for the end; its exit code.
fn end_of(running: &mut Running, within: Duration) -> Option<i32> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = running.0.try_wait().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "it did not end within {within:?}");
        std::thread::yield_now();
    }
}

fn interrupt(running: &Running) {
    assert!(Command::new("kill").args(["-INT", &running.0.id().to_string()]).status().unwrap().success());
}

#[test]
fn the_demo_that_is_stopped_while_it_fills_has_done_nothing_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let demo = millrace(folder.path())
        .args(["demo", "--products", "20000", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn();
    let mut demo = Running(demo.unwrap());
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("20000 products"));
    interrupt(&demo);
    assert_eq!(end_of(&mut demo, Duration::from_secs(10)), Some(0));
}

#[test]
fn a_reader_that_goes_away_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["up", "demo"] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let child =
            millrace(folder.path()).args([command, "--listen", &address.to_string()]).stdout(Stdio::piped()).spawn();
        let mut child = Running(child.unwrap());
        drop(child.0.stdout.take());
        let deadline = Instant::now() + Duration::from_secs(30);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let is_ready = || {
            let ready = runtime.block_on(async { client.get(format!("http://{address}/readyz")).send().await });
            ready.is_ok_and(|answer| answer.status().is_success())
        };
        while !is_ready() {
            assert!(child.0.try_wait().unwrap().is_none(), "{command} ended with its reader");
            assert!(Instant::now() < deadline, "{command} is not ready");
        }
        interrupt(&child);
        assert_eq!(end_of(&mut child, Duration::from_secs(10)), Some(0), "{command}");
    }
}

#[test]
fn a_tail_of_no_events_prints_none() {
    let folder = tempfile::tempdir().unwrap();
    let output = millrace(folder.path()).args(["tail", "--limit", "0"]).output().unwrap();
    assert_eq!((said(&output).0, output.stdout.len()), (0, 0));
}
