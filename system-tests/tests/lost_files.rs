//! Files of one process that are lost, alone and together: what is not known is not answered, and comes back.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod system;

use std::io::Read;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use system::{PATIENCE, System, millrace, wait};

const SKUS: usize = 300;
const ROUNDS: u64 = 10;

fn sku(number: usize) -> String {
    format!("SKU-{number}")
}

async fn receive(system: &System, sku: &str) -> Value {
    let data = json!({ "sku": sku, "warehouse": "w-1", "region": "eu", "quantity": 1 });
    let outcome = system.command(&json!({ "id": Uuid::new_v4(), "type": "ReceiveStock", "data": data })).await;
    assert_eq!(outcome["outcome"], "accepted", "{outcome}");
    outcome
}

/// A unit of each SKU after the other, again and again: a state that is a while behind differs from the last.
async fn filled() -> System {
    let system = System::embedded().await;
    for _ in 0..ROUNDS {
        let received = (0..SKUS).map(|number| {
            let (system, sku) = (&system, sku(number));
            async move { (receive(system, &sku).await, sku) }
        });
        for (outcome, sku) in futures::future::join_all(received).await {
            system.get_at(&format!("/v1/stock/{sku}"), outcome["position"].as_str().unwrap()).await;
        }
    }
    until_whole(&system).await;
    system
}

/// Waits until every SKU has all of its units. Nothing else may be answered meanwhile but that it is not known.
async fn until_whole(system: &System) {
    let begun = Instant::now();
    for number in 0..SKUS {
        loop {
            let (status, stock) = system.get(&format!("/v1/stock/{}", sku(number))).await;
            if status == 200 {
                assert_eq!(stock["total"]["on_hand"], ROUNDS, "{stock}");
                break;
            }
            assert_eq!(status, 503, "{stock}");
            assert!(begun.elapsed() < PATIENCE, "{stock}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn remove(system: &System, file: &str) {
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(system.path("data").join(format!("{file}{ending}")));
    }
}

fn reconcile(system: &System, flags: &[&str]) -> Output {
    let data = system.path("data");
    let reconcile = ["relay", "reconcile", "--data", data.to_str().unwrap()];
    millrace().current_dir(system.path("")).args(reconcile).args(flags).output().unwrap()
}

fn assert_done(output: &Output) {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_and_rows_that_are_lost_together_are_not_answered_as_nothing() {
    let mut system = filled().await;
    assert_eq!(system.terminate("up", PATIENCE), 0);
    remove(&system, "log.db");
    remove(&system, "stock.db");
    system.start("up");
    let begun = Instant::now();
    while !system.told("up").await.contains("the log lost records") {
        assert!(begun.elapsed() < PATIENCE, "{}", system.told("up").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for number in 0..SKUS {
        let (status, stock) = system.get(&format!("/v1/stock/{}", sku(number))).await;
        assert_eq!(status, 503, "{stock}");
    }
    assert_eq!(system.terminate("up", PATIENCE), 0);

    assert_done(&reconcile(&system, &[]));
    system.start("up");
    system.ready().await;
    until_whole(&system).await;
    receive(&system, &sku(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_table_that_is_lost_takes_no_commands_and_is_put_back_from_the_log() {
    let mut system = filled().await;
    assert_eq!(system.terminate("up", PATIENCE), 0);
    remove(&system, "events.db");
    std::fs::write(system.path("data/events.db"), "").unwrap();
    let data = system.path("data").display().to_string();
    let mut refused = millrace()
        .current_dir(system.path(""))
        .args(["up", "--data", &data, "--listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(wait(&mut refused, PATIENCE), 1);
    let mut told = String::new();
    refused.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("has events"), "{told}");
    assert!(told.contains("millrace relay reconcile --restore-from-log"), "{told}");

    // What it would do, then that.
    assert_eq!(reconcile(&system, &["--dry-run"]).status.code(), Some(3));
    assert_done(&reconcile(&system, &["--restore-from-log"]));
    system.start("up");
    system.ready().await;
    until_whole(&system).await;
    let outcome = receive(&system, &sku(0)).await;
    assert_eq!(outcome["version"], ROUNDS + 1, "{outcome}");
    let stock = system.get_at(&format!("/v1/stock/{}", sku(0)), outcome["position"].as_str().unwrap()).await;
    assert_eq!(stock["total"]["on_hand"], ROUNDS + 1, "{stock}");
}
