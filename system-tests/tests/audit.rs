//! The audit beside a running system, and what it says of damage done by hand with each store's own client.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod system;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};
use system::{System, millrace};
use uuid::Uuid;

const SKUS: usize = 40;

fn sku(number: usize) -> String {
    format!("SKU-{number}")
}

/// Two stock events, a price and a product for each SKU; more stock only, once the products are there.
async fn load(system: &System) {
    receive(system, true).await;
}

async fn receive(system: &System, is_new: bool) {
    let command = |kind: &str, data: Value| json!({ "id": Uuid::new_v4(), "type": kind, "data": data });
    for number in 0..SKUS {
        let sku = sku(number);
        let receive = |quantity: u64| {
            command("ReceiveStock", json!({ "sku": sku, "warehouse": "w-1", "region": "eu", "quantity": quantity }))
        };
        let new = [
            command("RegisterProduct", json!({ "sku": sku, "name": format!("Leek {number}") })),
            command("SetPrice", json!({ "sku": sku, "region": "eu", "currency": "EUR", "amount_minor": 99 })),
        ];
        for command in new.into_iter().filter(|_| is_new).chain([receive(5), receive(7)]) {
            let outcome = system.command(&command).await;
            assert_eq!(outcome["outcome"], "accepted", "{outcome}");
        }
    }
    system.settled(SKUS as u64).await;
}

/// Exit code and report.
fn audit(arguments: &[&str], environment: &[(String, String)]) -> (i32, Value) {
    let done =
        millrace().arg("audit").args(arguments).arg("--json").envs(environment.iter().cloned()).output().unwrap();
    let code = done.status.code().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!([0, 1, 3].contains(&code), "{code}: {errors}");
    (code, serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {errors}")))
}

/// Kind, place, what and sequence of each difference.
fn differences(report: &Value) -> Vec<(String, String, String, Option<u64>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told = |it: &Value| (text(&it["kind"]), text(&it["place"]), text(&it["what"]), it["sequence"].as_u64());
    report["differences"].as_array().unwrap().iter().map(told).collect()
}

fn difference(kind: &str, place: &str, what: &str) -> (String, String, String, Option<u64>) {
    (kind.to_owned(), place.to_owned(), what.to_owned(), None)
}

/// A data directory that nobody has open.
struct Data {
    path: PathBuf,
}

impl Data {
    /// A copy, to be damaged.
    fn copy(&self, name: &str) -> Data {
        fn copy(from: &Path, to: &Path) {
            std::fs::create_dir_all(to).unwrap();
            for entry in std::fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                let to = to.join(entry.file_name());
                if entry.path().is_dir() {
                    copy(&entry.path(), &to);
                } else {
                    std::fs::copy(entry.path(), to).unwrap();
                }
            }
        }
        let path = self.path.with_file_name(name);
        copy(&self.path, &path);
        Data { path }
    }

    fn damage(&self, file: &str, sql: &str) {
        let changed = Connection::open(self.path.join(file)).unwrap().execute(sql, []).unwrap();
        assert!(changed > 0, "{sql}");
    }

    fn audit(&self) -> (i32, Value) {
        audit(&["--data", self.path.to_str().unwrap()], &[])
    }

    /// Exactly these.
    fn says(&self, expected: &[(String, String, String, Option<u64>)]) {
        let (code, report) = self.audit();
        let mut expected = expected.to_vec();
        expected.sort();
        let mut found = differences(&report);
        found.sort();
        assert_eq!((code, found), (3, expected), "{report:#}");
    }
}

/// Where a SKU's first stock event lies in the log: topic, partition, offset.
fn first_of(data: &Data, sku: &str) -> (i64, i64, i64) {
    let log = Connection::open(data.path.join("log.db")).unwrap();
    log.query_row(
        "SELECT topic, partition, min(offset) FROM records JOIN topics ON topics.id = topic
         WHERE name = 'inventory.events' AND cast(key AS TEXT) = ?1",
        [sku],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )
    .unwrap()
}

fn event(data: &Data, stream: &str, version: u64) -> String {
    let events = Connection::open(data.path.join("events.db")).unwrap();
    let id: [u8; 16] = events
        .query_row("SELECT id FROM events WHERE stream = ?1 AND version = ?2", (stream, version as i64), |row| {
            row.get(0)
        })
        .unwrap();
    format!("{stream} v{version} ({})", Uuid::from_bytes(id))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_damage_is_named_by_its_key_or_sequence() {
    let mut system = System::embedded().await;
    load(&system).await;
    let data = Data { path: system.path("data") };
    // Beside the process that writes, and after it was killed.
    let (code, report) = data.audit();
    assert_eq!(code, 0, "{report:#}");
    system.kill("up");
    let (code, report) = data.audit();
    assert_eq!((code, &report["events"]), (0, &json!(SKUS * 4)), "{report:#}");
    let sum = |list: &str, field: &str| -> u64 {
        report[list].as_array().unwrap().iter().map(|it| it[field].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("topics", "on_topic"), SKUS as u64 * 4);
    assert_eq!(sum("read_models", "rows"), SKUS as u64 * 4, "stock, and three parts of a document");
    assert_eq!(report["index"]["documents"], SKUS);

    read_models_differ(&data);
    topics_differ(&data);
    the_table_or_the_index_differs(&data);
    what_is_not_there_is_not_compared(&data);
}

fn what_is_not_there_is_not_compared(data: &Data) {
    let emptied = data.copy("emptied");
    std::fs::remove_dir_all(emptied.path.join("search")).unwrap();
    let (code, report) = emptied.audit();
    assert_eq!((code, differences(&report)), (1, Vec::new()), "{report:#}");
    assert_eq!(report["index"]["skipped"], "it is being built");
    let path = emptied.path.to_str().unwrap();
    let (code, report) = audit(&["--data", path, "--without", "search"], &[]);
    assert_eq!(code, 0, "left out by choice: {report:#}");
    // What differs outweighs it.
    emptied.damage("stock.db", "DELETE FROM stock WHERE sku = 'SKU-7'");
    emptied.says(&[difference("missing", "stock", "SKU-7@w-1")]);
    let (code, report) = audit(&["--data", path, "--without", "search", "--without", "stock"], &[]);
    assert_eq!(code, 0, "{report:#}");
}

fn read_models_differ(data: &Data) {
    let stock = |name: &str, sql: &str, kind: &str, what: &str| {
        let data = data.copy(name);
        data.damage("stock.db", sql);
        data.says(&[difference(kind, "stock", what)]);
    };
    let seven = "SKU-7@w-1";
    stock("missing", "DELETE FROM stock WHERE sku = 'SKU-7'", "missing", seven);
    stock("altered", "UPDATE stock SET on_hand = 13 WHERE sku = 'SKU-7'", "altered", seven);
    stock("stale", "UPDATE stock SET on_hand = 5, version = 1 WHERE sku = 'SKU-7'", "stale", seven);
    stock("stale-altered", "UPDATE stock SET on_hand = 6, version = 1 WHERE sku = 'SKU-7'", "altered", seven);
    stock("ahead", "UPDATE stock SET version = 3 WHERE sku = 'SKU-7'", "ahead", seven);
    let ghost = "INSERT INTO stock VALUES (1, 'GHOST', 'w-1', 'eu', 1, 0, 1, NULL)";
    stock("unexplained", ghost, "unexplained", "GHOST@w-1");
    stock("unreadable", "UPDATE stock SET on_hand = 'many' WHERE sku = 'SKU-7'", "altered", seven);

    let lost = data.copy("checkpoints");
    lost.damage("stock.db", "DELETE FROM checkpoints");
    let (code, report) = lost.audit();
    let count = json!({ "kind": "ahead", "where": "stock", "count": SKUS });
    assert_eq!((code, &report["counts"]), (3, &json!([count])), "{report:#}");

    let search = data.copy("search-altered");
    search.damage("search/builds/1/rows.db", "UPDATE prices SET amount_minor = 1 WHERE sku = 'SKU-7'");
    search.says(&[difference("altered", "search", "price SKU-7@eu"), difference("altered", "index", "SKU-7")]);
}

fn topics_differ(data: &Data) {
    let (topic, partition, offset) = first_of(data, "SKU-7");
    let at = format!("topic = {topic} AND partition = {partition}");
    let one = format!("{at} AND offset = {offset}");
    let (sequence, stream) = (Some(offset as u64 + 1), event(data, "stock-SKU-7@w-1", 1));
    let of = |kind: &str, what: &str, sequence| (kind.to_owned(), "topic".to_owned(), what.to_owned(), sequence);
    let next = format!("(SELECT max(offset) + 1 FROM records WHERE {at})");

    let lost = data.copy("lost");
    lost.damage("log.db", &format!("DELETE FROM records WHERE {one}"));
    // The first record of a partition is what retention removes first.
    if offset > 0 {
        lost.says(&[of("lost", &stream, sequence)]);
    }

    let altered = data.copy("altered-record");
    altered.damage(
        "log.db",
        &format!("UPDATE records SET value = cast(substr(value, 1, length(value) - 1) || x'7f' AS BLOB) WHERE {one}"),
    );
    altered.says(&[of("altered", &stream, sequence)]);

    let framed = data.copy("altered-schema");
    framed.damage(
        "log.db",
        &format!("UPDATE records SET value = cast(x'0000000001' || substr(value, 6) AS BLOB) WHERE {one}"),
    );
    framed.says(&[of("altered", &stream, sequence)]);

    let copied = format!("SELECT topic, partition, {next}, timestamp, key, headers, value FROM records WHERE {one}");
    let repeated = data.copy("repeated");
    repeated.damage("log.db", &format!("INSERT INTO records {copied}"));
    let (code, report) = repeated.audit();
    assert_eq!(code, 0, "a repeated record is no difference: {report:#}");
    let duplicates: u64 =
        report["topics"].as_array().unwrap().iter().map(|it| it["duplicates"].as_u64().unwrap()).sum();
    assert_eq!(duplicates, 1);

    repeated.damage(
        "log.db",
        &format!("UPDATE records SET value = cast(value || x'00' AS BLOB) WHERE {at} AND offset = {next} - 1"),
    );
    repeated.says(&[of("altered", &stream, sequence)]);

    let foreign = data.copy("foreign");
    let copied = format!("SELECT topic, partition, {next}, timestamp, key, x'', value FROM records WHERE {one}");
    foreign.damage("log.db", &format!("INSERT INTO records {copied}"));
    foreign.says(&[of("extra", "a record that is no event", None)]);

    let moved = data.copy("out-of-order");
    moved.damage("log.db", &format!("UPDATE records SET offset = {next} WHERE {one}"));
    if offset > 0 {
        let what = format!("sequence {}", offset + 2);
        moved.says(&[of("out_of_order", &what, Some(offset as u64 + 2))]);
    }

    // The newest records are gone: an older copy of the log.
    let older = data.copy("older");
    older.damage("log.db", &format!("DELETE FROM records WHERE {at} AND offset >= {next} - 3"));
    let (code, report) = older.audit();
    assert_eq!(
        (code, &report["counts"]),
        (3, &json!([{ "kind": "lost", "where": "topic", "count": 3 }])),
        "{report:#}"
    );
}

fn the_table_or_the_index_differs(data: &Data) {
    let table = data.copy("table");
    let gone = event(data, "stock-SKU-7@w-1", 1);
    let (_, partition, offset) = first_of(data, "SKU-7");
    table.damage("events.db", "DELETE FROM events WHERE stream = 'stock-SKU-7@w-1' AND version = 1");
    let (code, report) = table.audit();
    assert_eq!(code, 3);
    let found = differences(&report);
    let table_lost = difference("lost", "event_table", "stock-SKU-7@w-1 v1..v1");
    let extra = ("extra".to_owned(), "topic".to_owned(), gone, Some(offset as u64 + 1));
    for expected in [table_lost, extra] {
        assert!(found.contains(&expected), "{expected:?} in {report:#}");
    }
    assert!(found.iter().any(|it| it.0 == "miscounted" && it.1 == "event_table"), "{report:#}");
    assert!(found.iter().all(|it| it.1 != "topic" || it.0 == "extra"), "partition {partition}: {report:#}");

    let undocumented = data.copy("document");
    let index = tantivy::Index::open_in_dir(undocumented.path.join("search/builds/1/index")).unwrap();
    let payload = index.load_metas().unwrap().payload.unwrap();
    let sku = index.schema().get_field("sku").unwrap();
    let mut writer = index.writer_with_num_threads::<tantivy::TantivyDocument>(1, 15_000_000).unwrap();
    writer.delete_term(tantivy::Term::from_field_text(sku, "SKU-7"));
    let mut prepared = writer.prepare_commit().unwrap();
    prepared.set_payload(&payload);
    prepared.commit().unwrap();
    drop(writer);
    undocumented.says(&[difference("missing", "index", "SKU-7")]);

    let flipped = data.copy("flipped");
    let mut files =
        std::fs::read_dir(flipped.path.join("search/builds/1/index")).unwrap().map(|entry| entry.unwrap().path());
    let segment = files.find(|path| path.extension().is_some_and(|extension| extension == "store")).unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    flipped.says(&[difference("altered", "index", segment.file_name().unwrap().to_str().unwrap())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_since_a_position_sees_what_came_behind_it() {
    let mut system = System::embedded().await;
    load(&system).await;
    let head = system.status().await["head"].as_str().unwrap().to_owned();
    receive(&system, false).await;
    system.kill("up");
    let data = Data { path: system.path("data") };
    let path = data.path.to_str().unwrap();
    let (code, report) = audit(&["--data", path, "--since", &head], &[]);
    assert_eq!(code, 0, "{report:#}");
    let events = report["events"].as_u64().unwrap();
    assert!(events < SKUS as u64 * 4, "{events} of {} events were walked", SKUS * 6);
    let damaged = data.copy("since");
    damaged.damage("stock.db", "DELETE FROM stock WHERE sku = 'SKU-7'");
    let (code, report) = audit(&["--data", damaged.path.to_str().unwrap(), "--since", &head], &[]);
    assert_eq!((code, differences(&report)), (3, vec![difference("missing", "stock", "SKU-7@w-1")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_process_says_what_its_audit_found() {
    let mut system = System::embedded_with(&["--audit-every", "1s", "--audit-share", "1"]).await;
    load(&system).await;
    system.kill("up");
    Data { path: system.path("data") }.damage("stock.db", "UPDATE stock SET on_hand = 13 WHERE sku = 'SKU-7'");
    system.start("up");
    system.ready().await;
    let begun = Instant::now();
    loop {
        let (status, told) = system.get("/readyz").await;
        // It goes on: a wrong row is no reason to take all answers away.
        assert_eq!(status, 200, "{told}");
        let audit = told["components"]["audit"].as_str().unwrap();
        if audit.contains("1 altered in stock") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{told}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
