//! `millrace import` and `millrace generate` as they are called: the program, files, and what is in the event store.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use domain::{State, StreamId};
use event_store::{LoadRequest, LoadedStream};
use serde_json::Value;
use tempfile::TempDir;

fn millrace(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.current_dir(folder);
    command
}

/// Runs an import and reads its summary.
fn import(folder: &Path, args: &[&str]) -> (Output, Value) {
    let output = millrace(folder).args(["import", "products"]).args(args).arg("--json").output().unwrap();
    let summary = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output, summary)
}

fn counts(summary: &Value) -> [u64; 6] {
    ["rows_read", "imported", "unchanged", "duplicates_repeated", "duplicates_overruled", "rejected"]
        .map(|name| summary[name].as_u64().unwrap_or_else(|| panic!("{name} in {summary}")))
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// A product, its price in the region `eu` and its stock in `eu-1`, straight from the event store.
#[derive(Debug, Clone, PartialEq, Default)]
struct Held {
    name: Option<String>,
    category: Vec<String>,
    price: Option<i64>,
    stock: Option<i64>,
    /// Versions of the three streams: what is done twice shows here.
    versions: [u64; 3],
}

fn held(data: &Path, skus: &[&str]) -> BTreeMap<String, Held> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store =
            event_store::connect_event_store(&format!("sqlite:{}", data.join("events.db").display())).await.unwrap();
        let mut all = BTreeMap::new();
        for sku in skus {
            let streams = streams_of(sku);
            let loaded =
                store.load(&LoadRequest { streams: streams.to_vec(), ..LoadRequest::default() }).await.unwrap();
            let stream = |index: usize| -> &LoadedStream { &loaded.streams[&streams[index]] };
            let mut held =
                Held { versions: [stream(0).version, stream(1).version, stream(2).version], ..Held::default() };
            if let State::Product(domain::ProductState::Active(product)) = &stream(0).state {
                held.name = Some(product.name.clone());
                held.category.clone_from(&product.category_path);
            }
            if let State::Price(state) = &stream(1).state {
                held.price = state.price.as_ref().map(|price| price.amount_minor);
            }
            if let State::Stock(state) = &stream(2).state {
                held.stock = (stream(2).version > 0).then_some(state.on_hand);
            }
            all.insert((*sku).to_owned(), held);
        }
        all
    })
}

fn streams_of(sku: &str) -> [StreamId; 3] {
    let command = |kind: &str, data: String| schemas::Command::from_json(kind, data.as_bytes()).unwrap();
    [
        StreamId::of(&command("RegisterProduct", format!(r#"{{"sku":"{sku}","name":"x"}}"#))),
        StreamId::of(&command(
            "SetPrice",
            format!(r#"{{"sku":"{sku}","region":"eu","currency":"EUR","amount_minor":1}}"#),
        )),
        StreamId::of(&command("CountStock", format!(r#"{{"sku":"{sku}","warehouse":"eu-1","counted":1}}"#))),
    ]
}

fn folder_with(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

const DIRTY: &[u8] = b"\xef\xbb\xbfcode,title,cat,sub,cost,units\r\n\
A,Onions,Vegetables,Fresh,\"1,234.50\",3\r\n\
B,Cr\xe8me,Dairy,,2.00,1\r\n\
C,\"Open quote,Dairy,,2.00,1\r\n\
D,Milk,Dairy,,,\r\n\
E,Ragged,Dairy\r\n\
F,Free lunch,Dairy,,free,1\r\n\
G,Debt,Dairy,,-1.00,1\r\n\
H,\"Two\r\nlines\",\"Dairy\",,3.00,7\r\n\
A,Red onions,Vegetables,Fresh,2.00,4\r\n\
,Nameless code,Dairy,,1.00,1\r\n\
D,Milk,Dairy,,,\r\n\
A,Blue onions,Vegetables,Fresh,9.999,4\r\n\
I,Last,Dairy,,0.99,0";

const MAP: [&str; 2] = ["--map", "sku=code,name=title,category=cat/sub,price=cost,stock=units"];

#[test]
fn a_dirty_file_costs_its_bad_rows_only_and_twice_changes_nothing() {
    let (folder, file) = folder_with("dirty.csv", DIRTY);
    let data = folder.path().join("data");
    let args = [&[file.to_str().unwrap(), "--data", data.to_str().unwrap()][..], &MAP].concat();

    let (output, summary) = import(folder.path(), &args);
    assert_eq!(code(&output), 1, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(counts(&summary), [13, 4, 0, 1, 1, 7], "{summary}");
    let first = held(&data, &["A", "B", "C", "D", "E", "F", "G", "H", "I"]);
    assert_eq!(first["A"].name.as_deref(), Some("Red onions"), "the last good row counts");
    assert_eq!((first["A"].price, first["A"].stock), (Some(200), Some(4)));
    assert_eq!(first["A"].category, ["Vegetables", "Fresh"]);
    assert_eq!((first["D"].name.as_deref(), first["D"].price, first["D"].stock), (Some("Milk"), None, None));
    assert_eq!(first["H"].name.as_deref(), Some("Two\nlines"));
    assert_eq!((first["I"].price, first["I"].stock), (Some(99), Some(0)));
    for bad in ["B", "C", "E", "F", "G"] {
        assert_eq!(first[bad], Held::default(), "{bad}");
    }

    let rejects: Vec<(u64, String)> = csv::Reader::from_path(folder.path().join("dirty.csv.rejects.csv"))
        .unwrap()
        .records()
        .map(|row| row.unwrap())
        .map(|row| (row[0].parse().unwrap(), row[1].to_owned()))
        .collect();
    let lines: Vec<u64> = rejects.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [3, 4, 6, 7, 8, 12, 14], "{rejects:?}");
    for ((_, reason), says) in
        rejects.iter().zip(["0xE8", "never closed", "3 fields", "\"free\"", "negative", "SKU is blank", "may be"])
    {
        assert!(reason.contains(says), "{reason} should say {says}");
    }

    let (_, summary) = import(folder.path(), &args);
    assert_eq!(counts(&summary), [13, 0, 4, 1, 1, 7], "{summary}");
    assert_eq!(held(&data, &["A", "B", "C", "D", "E", "F", "G", "H", "I"]), first);
}

#[test]
fn a_later_delivery_revises_and_blank_cells_erase_nothing() {
    let (folder, file) =
        folder_with("p.csv", b"sku,name,category,price,stock\nA,Milk,Dairy,1.00,5\nB,Tea,Drinks,2.00,6\n");
    let data = folder.path().join("data");
    let args = [file.to_str().unwrap(), "--data", data.to_str().unwrap()];
    assert_eq!(code(&import(folder.path(), &args).0), 0);
    std::fs::write(&file, "sku,name,category,price,stock\nA,Whole milk,,,\nB,Tea,Drinks,2.00,6\n").unwrap();
    let (output, summary) = import(folder.path(), &args);
    assert_eq!((code(&output), counts(&summary)), (0, [2, 2, 0, 0, 0, 0]), "{summary}");
    let after = held(&data, &["A", "B"]);
    assert_eq!(after["A"].name.as_deref(), Some("Whole milk"));
    assert_eq!(
        (after["A"].category.as_slice(), after["A"].price, after["A"].stock),
        (&["Dairy".to_owned()][..], Some(100), Some(5))
    );
    // Another file is another delivery: B's stock was counted anew, and the rest of it is as it was.
    assert_eq!(after["B"].versions, [1, 1, 2]);
    let (_, summary) = import(folder.path(), &args);
    assert_eq!(counts(&summary), [2, 0, 2, 0, 0, 0], "{summary}");
    assert_eq!(held(&data, &["A", "B"]), after);
    // Under another name the same rows take effect again.
    let (_, summary) = import(folder.path(), &[&args[..], &["--delivery", "monday"]].concat());
    assert_eq!(summary["rejected"], 0, "{summary}");
    assert_eq!(held(&data, &["B"])["B"].versions, [1, 1, 3]);
    let (_, summary) = import(folder.path(), &[&args[..], &["--delivery", "monday"]].concat());
    assert_eq!(counts(&summary), [2, 0, 2, 0, 0, 0], "{summary}");
    assert_eq!(held(&data, &["B"])["B"].versions, [1, 1, 3]);
}

#[test]
fn a_price_that_goes_up_and_down_again_is_the_last_file_s() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for (day, price) in [("mon", "3.99"), ("tue", "4.99"), ("wed", "3.99")] {
        // Feeds say when they were made.
        let text = format!("sku,name,price,made\nA,Milk,{price},{day}\n");
        std::fs::write(folder.path().join("feed.csv"), text).unwrap();
        for _ in 0..2 {
            let (output, summary) = import(folder.path(), &["feed.csv", "--data", data.to_str().unwrap()]);
            assert_eq!((code(&output), summary["rejected"].as_u64()), (0, Some(0)), "{summary}");
        }
    }
    let held = &held(&data, &["A"])["A"];
    assert_eq!((held.price, held.versions), (Some(399), [1, 3, 0]));
}

#[test]
fn what_is_no_regular_file_is_refused_and_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in [fifo.as_path(), folder.path()] {
        let (output, _) = import(folder.path(), &[path.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(code(&output) == 2 && text.contains("regular file"), "{text}");
    }
}

#[test]
fn ndjson_is_read_and_skus_are_derived() {
    let text = br#"{"title":"Green Tea","shelf":["Drinks","Tea"],"cents":399,"n":"12"}
{"title":"Green Tea","shelf":["Drinks","Tea"],"cents":3.5,"n":1}
not json
{"title":"Oats","cents":null}
"#;
    let (folder, file) = folder_with("p.jsonl", text);
    let data = folder.path().join("data");
    let (output, summary) = import(
        folder.path(),
        &[
            file.to_str().unwrap(),
            "--data",
            data.to_str().unwrap(),
            "--map",
            "name=title,category=shelf,price=cents,stock=n",
            "--sku-from",
            "name",
            "--price-unit",
            "minor",
        ],
    );
    assert_eq!((code(&output), counts(&summary)), (1, [4, 2, 0, 0, 0, 2]), "{summary}");
}

#[test]
fn what_cannot_be_imported_is_said_before_anything_is_touched() {
    let (folder, file) = folder_with("p.csv", b"titel;preis\nMilk;1,00\n");
    let file = file.to_str().unwrap();
    let run = |args: &[&str]| {
        let output = millrace(folder.path()).args(["import", "products"]).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        (code(&output), text)
    };
    let (exit, text) = run(&[file, "--map", "name=title", "--sku-from", "name", "--delimiter", ";"]);
    assert!(exit == 2 && text.contains("\"titel\", \"preis\""), "{text}");
    let (exit, text) = run(&[file, "--map", "name=titel", "--sku-from", "name"]);
    assert!(exit == 2 && text.contains("--delimiter ';'"), "{text}");
    let (exit, text) = run(&["gone.csv", "--data", "data"]);
    assert!(exit == 1 && text.contains("gone.csv cannot be read"), "{text}");
    let (exit, text) = run(&[
        file,
        "--map",
        "name=titel",
        "--sku-from",
        "name",
        "--delimiter",
        ";",
        "--retry-for",
        "100ms",
        "--to",
        "http://127.0.0.1:1",
    ]);
    assert!(exit == 1 && text.contains("cannot be reached"), "{text}");
    assert!(!folder.path().join("data").exists() && !folder.path().join("millrace-data").exists());
}

#[test]
fn a_dry_run_checks_and_imports_nothing() {
    let (folder, file) = folder_with("dirty.csv", DIRTY);
    let args = [&[file.to_str().unwrap(), "--data", "data", "--dry-run"][..], &MAP].concat();
    let (output, summary) = import(folder.path(), &args);
    assert_eq!((code(&output), counts(&summary)), (1, [13, 4, 0, 1, 1, 7]), "{summary}");
    assert!(!folder.path().join("data").exists());
    assert!(folder.path().join("dirty.csv.rejects.csv").exists());
}

#[test]
fn generated_files_are_imported_and_generated_bytes_are_the_seeds() {
    let folder = tempfile::tempdir().unwrap();
    let generate = |args: &[&str]| {
        let output = millrace(folder.path()).arg("generate").args(args).output().unwrap();
        assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let commands = generate(&["commands", "--products", "20", "--movements", "100", "--seed", "4"]);
    assert_eq!(commands, generate(&["commands", "--products", "20", "--movements", "100", "--seed", "4"]));
    for line in commands.lines() {
        schemas::CommandEnvelope::from_json(line.unwrap().as_bytes(), None, 0).unwrap();
    }
    generate(&["products", "--products", "300", "--out", "clean.csv"]);
    let (output, summary) = import(folder.path(), &["clean.csv", "--data", "clean"]);
    assert_eq!((code(&output), counts(&summary)), (0, [300, 300, 0, 0, 0, 0]), "{summary}");
    generate(&["products", "--products", "300", "--dirty", "--out", "dirty.csv"]);
    let (_, first) = import(folder.path(), &["dirty.csv", "--data", "dirty"]);
    let [rows, imported, _, repeated, overruled, rejected] = counts(&first);
    assert!(rejected > 0 && imported > 270 && repeated + overruled > 0, "{first}");
    assert_eq!(rows, imported + repeated + overruled + rejected);
    let (_, again) = import(folder.path(), &["dirty.csv", "--data", "dirty"]);
    assert_eq!(counts(&again), [rows, 0, imported, repeated, overruled, rejected]);
}

/// A `millrace write` that can be killed and started again at the same address.
struct Writer {
    child: Child,
    address: String,
}

impl Writer {
    fn start(folder: &Path, listen: &str) -> Self {
        let mut child = millrace(folder)
            .args(["write", "--no-command-topics", "--data", "data", "--listen", listen])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().unwrap().to_owned();
        Self { child, address }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_killed_in_the_middle_of_an_import_loses_nothing_and_does_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let output = millrace(folder.path())
        .args(["generate", "products", "--products", "6000", "--out", "p.csv"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 0);
    let mut writer = Writer::start(folder.path(), "127.0.0.1:0");
    let url = format!("http://{}", writer.address);
    let mut importing = millrace(folder.path())
        .args(["import", "products", "p.csv", "--to", &url, "--retry-for", "60s", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();

    // Killed as soon as some of it is in, twice.
    let events = Events::of(&folder.path().join("data"));
    for share in [1_000, 7_000] {
        let deadline = Instant::now() + Duration::from_secs(60);
        while events.count() < share {
            assert!(importing.try_wait().unwrap().is_none(), "the import ended before the kill");
            assert!(Instant::now() < deadline, "the import does not get on");
            std::thread::yield_now();
        }
        writer.kill();
        let address = writer.address.clone();
        writer = Writer::start(folder.path(), &address);
    }
    let output = importing.wait_with_output().unwrap();
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((code(&output), counts(&summary)), (0, [6_000, 6_000, 0, 0, 0, 0]), "{summary}");
    assert_eq!(events.count(), 18_000, "each product is registered, priced and counted once");

    let (output, summary) = import(folder.path(), &["p.csv", "--to", &url]);
    assert_eq!((code(&output), counts(&summary)), (0, [6_000, 0, 6_000, 0, 0, 0]), "{summary}");
    assert_eq!(events.count(), 18_000);
}

/// A store that another process may be writing.
struct Events {
    runtime: tokio::runtime::Runtime,
    store: std::sync::Arc<dyn event_store::EventStore>,
}

impl Events {
    fn of(data: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = format!("sqlite:{}", data.join("events.db").display());
        let store = runtime.block_on(event_store::connect_event_store(&url)).unwrap();
        Self { runtime, store }
    }

    /// Nothing was relayed here, so all of them are ahead of the relay.
    fn count(&self) -> u64 {
        self.runtime.block_on(self.store.relay_lag(0)).unwrap().0
    }
}
