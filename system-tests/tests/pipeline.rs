//! Command to query over whole systems: in one process on files, and in five on Postgres, Kafka, registry and Redis.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod system;

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use uuid::Uuid;

use system::{PATIENCE, System, millrace, wait};

/// Two sets of servers at once would only slow each other down.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A customer's file with every kind of dirt.
fn dirty_file(system: &System, products: u32) -> String {
    let path = system.path("products.csv").display().to_string();
    let made = millrace()
        .args(["generate", "products", "--dirty", "--products", &products.to_string(), "--out", &path])
        .status()
        .unwrap();
    assert!(made.success());
    path
}

fn start_import(system: &System, file: &str) -> Child {
    millrace()
        .args(["import", "products", file, "--to", &system.commands_url(), "--json"])
        .args(["--rejects", system.path("rejects.csv").to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The summary. Exit code 1 says that some rows were refused, as they are in a dirty file.
fn finish_import(mut import: Child) -> Value {
    let mut output = import.stdout.take().unwrap();
    assert_eq!(wait(&mut import, PATIENCE), 1);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut output, &mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

async fn import(system: &System, file: &str) -> Value {
    let import = start_import(system, file);
    tokio::task::spawn_blocking(move || finish_import(import)).await.unwrap()
}

/// What the system says of each SKU.
async fn pages(system: &System, skus: &[String]) -> Vec<Value> {
    let page = |sku: &String| {
        let path = format!("/v1/products/{sku}?region=eu");
        async move { system.get(&path).await.1 }
    };
    futures::stream::iter(skus).map(page).buffered(16).collect().await
}

/// Imports a dirty file, twice; returns the SKUs and the page of each.
async fn imported_twice(system: &System) -> (Vec<String>, Vec<Value>) {
    let file = dirty_file(system, 3_000);
    let first = import(system, &file).await;
    let imported = first["imported"].as_u64().unwrap();
    assert!(imported > 2_000 && first["rejected"].as_u64().unwrap() > 0, "{first}");
    system.settled(imported).await;
    let head = system.status().await["head"].clone();

    let second = import(system, &file).await;
    assert_eq!((&second["imported"], &second["unchanged"]), (&json!(0), &first["imported"]), "{second}");
    system.settled(imported).await;
    assert_eq!(system.status().await["head"], head, "the second import appended events");

    let skus = system.skus().await;
    assert_eq!(skus.len() as u64, imported);
    let pages = pages(system, &skus).await;
    for page in &pages {
        assert!(page["product"]["name"].is_string(), "{page}");
    }
    (skus, pages)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn one_process_and_five_answer_the_same_for_every_sku() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (skus, pages) = imported_twice(&System::embedded().await).await;
    let (other_skus, other_pages) = imported_twice(&System::separate().await).await;
    assert_eq!(skus, other_skus);
    for (page, other) in pages.iter().zip(&other_pages) {
        assert_eq!(page, other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dirty_file_goes_in_once_in_one_process() {
    imported_twice(&System::embedded().await).await;
}

fn stock_command(kind: &str, data: Value) -> Value {
    let mut command = json!({ "id": Uuid::new_v4(), "type": kind, "data": { "sku": "LAST", "warehouse": "w-1" } });
    command["data"].as_object_mut().unwrap().extend(data.as_object().unwrap().clone());
    command
}

/// 200 buyers and 50 units.
async fn last_units(system: System) {
    let system = Arc::new(system);
    let received = system.command(&stock_command("ReceiveStock", json!({ "quantity": 50, "region": "north" }))).await;
    assert_eq!(received["outcome"], "accepted", "{received}");
    let buyers = (0..200).map(|buyer| {
        let system = system.clone();
        tokio::spawn(async move {
            let data = json!({
                "quantity": 1, "reservation_id": format!("buyer-{buyer}"), "expires_at": "2099-01-01T00:00:00Z",
            });
            system.command(&stock_command("ReserveStock", data)).await
        })
    });
    let outcomes = futures::future::join_all(buyers).await;
    let outcomes: Vec<Value> = outcomes.into_iter().map(Result::unwrap).collect();
    let accepted: Vec<&Value> = outcomes.iter().filter(|outcome| outcome["outcome"] == "accepted").collect();
    assert_eq!(accepted.len(), 50);
    for refused in outcomes.iter().filter(|outcome| outcome["outcome"] != "accepted") {
        assert_eq!(refused["reason"]["message"], "1 asked, 0 available", "{refused}");
    }
    let last = accepted.iter().max_by_key(|outcome| outcome["version"].as_u64()).unwrap();
    let stock = system.get_at("/v1/stock/LAST", last["position"].as_str().unwrap()).await;
    assert_eq!(stock["total"], json!({ "on_hand": 50, "reserved": 50, "available": 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_units_are_sold_once_on_sqlite() {
    last_units(System::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn the_last_units_are_sold_once_on_postgres() {
    let _alone = ONE_AT_A_TIME.lock().await;
    last_units(System::separate().await).await;
}

/// Kills every process in turn while a file goes in.
async fn killed_during_an_import(mut system: System, rows: u32) {
    let file = dirty_file(&system, rows);
    let mut running = start_import(&system, &file);
    let mut kills = 0;
    for name in system.names().into_iter().cycle().take(6) {
        if running.try_wait().unwrap().is_some() {
            break;
        }
        // Some of it is in before each kill.
        let before = events_appended(&system).await;
        let begun = Instant::now();
        while events_appended(&system).await < before + 500 && running.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "nothing goes in any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        system.kill(name);
        system.start(name);
        system.ready().await;
        kills += 1;
    }
    // Else the file is too small for this machine, and the test shows nothing.
    assert!(kills >= system.names().len(), "only {kills} kills while the file went in");
    let summary = tokio::task::spawn_blocking(move || finish_import(running)).await.unwrap();
    let imported = summary["imported"].as_u64().unwrap() + summary["unchanged"].as_u64().unwrap();
    assert_eq!(Some(imported), good_rows(&file), "refused: {:?}", refused_by_rule(&system));
    system.settled(imported).await;
    let skus = system.skus().await;
    assert_eq!(skus.len() as u64, imported);
    for page in pages(&system, &skus).await {
        assert!(page["product"]["name"].is_string(), "{page}");
        // A count that was taken twice would have two versions.
        for region in page["stock"]["regions"].as_array().into_iter().flatten() {
            assert_eq!(region["warehouses"][0]["version"], 1, "{page}");
        }
    }
    // Whatever was lost would go in now.
    let again = import(&system, &file).await;
    assert_eq!(again["imported"], 0, "{again}");
}

/// How many rows of a file are good, whatever becomes of their commands.
fn good_rows(file: &str) -> Option<u64> {
    let read = millrace().args(["import", "products", file, "--dry-run", "--json"]).output().unwrap();
    let summary: Value = serde_json::from_slice(&read.stdout).unwrap();
    summary["imported"].as_u64()
}

/// Rejects whose reason is an outcome's, not a reader's.
fn refused_by_rule(system: &System) -> Vec<String> {
    let rejects = std::fs::read_to_string(system.path("rejects.csv")).unwrap_or_default();
    let is_code = |line: &&str| {
        let reason = line.split(',').nth(1).unwrap_or_default();
        reason.split(':').next().is_some_and(|code| code.contains('_') && !code.contains(' '))
    };
    rejects.lines().filter(is_code).map(str::to_owned).collect()
}

/// The highest place in the event table that the read side has heard of.
async fn events_appended(system: &System) -> u64 {
    let (status, body) = system.get("/v1/status").await;
    if status != 200 {
        return 0;
    }
    let head = body["head"].as_str().unwrap_or_default();
    head.split(',').filter_map(|part| part.rsplit('.').next()?.parse::<u64>().ok()).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_process_is_killed_again_and_again_and_every_row_goes_in_once() {
    killed_during_an_import(System::embedded().await, 12_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn every_role_is_killed_and_every_row_goes_in_once() {
    let _alone = ONE_AT_A_TIME.lock().await;
    killed_during_an_import(System::separate().await, 24_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn an_emptied_redis_is_folded_again_without_a_new_event() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let system = System::separate().await;
    let file = dirty_file(&system, 500);
    let imported = import(&system, &file).await["imported"].as_u64().unwrap();
    system.settled(imported).await;
    let skus = system.skus().await;
    let before = pages(&system, &skus).await;
    assert!(before.iter().any(|page| page["stock"]["total"]["on_hand"].is_i64()));

    let redis = |words: &[&str]| {
        let mut asked = std::process::Command::new("redis-cli");
        assert!(asked.args(["-u", system.redis_url()]).args(words).stdout(Stdio::null()).status().unwrap().success());
    };
    redis(&["FLUSHALL"]);
    let begun = Instant::now();
    while pages(&system, &skus).await != before {
        assert!(begun.elapsed() < PATIENCE, "the stock is not there again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // What the store refuses halts the partition; mended there, it goes on without a start.
    let state = "millrace:{stock@1:inventory:0}:state";
    redis(&["DEL", state]);
    redis(&["SET", state, "no hash"]);
    let begun = Instant::now();
    while !system.told("stock").await.contains("inventory.events/0 halted") {
        assert!(begun.elapsed() < PATIENCE, "{}", system.told("stock").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    redis(&["FLUSHALL"]);
    let begun = Instant::now();
    while pages(&system, &skus).await != before || system.told("stock").await.contains("halted") {
        assert!(begun.elapsed() < PATIENCE, "{}", system.told("stock").await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs servers: run make test"]
async fn two_search_directories_have_the_whole_log_each() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut system = System::separate().await;
    let file = dirty_file(&system, 300);
    let before = import(&system, &file).await["imported"].as_u64().unwrap();
    system.settled(before).await;
    // It comes to a log that is there, and both go on with what is appended.
    let [_, other] = system.add_search_node().await;
    let product = json!({ "sku": "LATE", "name": "Late leek" });
    let command = json!({ "id": Uuid::new_v4(), "type": "RegisterProduct", "data": product });
    let registered = system.command(&command).await;
    assert_eq!(registered["outcome"], "accepted", "{registered}");
    system.settled(before + 1).await;
    let (skus, head) = (system.skus().await, system.status().await["head"].clone());
    assert_eq!(skus.len() as u64, before + 1);
    let pages_of_one = pages(&system, &skus).await;

    system.ask(other);
    system.settled(before + 1).await;
    assert_eq!(system.status().await["head"], head);
    assert_eq!(system.skus().await, skus);
    assert_eq!(pages(&system, &skus).await, pages_of_one);
}
