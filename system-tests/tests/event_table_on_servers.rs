//! Both read models built from the event table by the real program, on real servers, after retention has taken all or
//! nearly all of the topics: what is shown is what the live generations show, and a kill in the middle changes nothing.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod system;

use std::time::Instant;

use event_log::connect_event_log;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use schemas::Context;
use serde_json::{Value, json};
use system::{PATIENCE, System, millrace};
use uuid::Uuid;

const SKUS: usize = 150;

async fn load(system: &System) {
    for number in 0..SKUS {
        let sku = format!("SKU-{number}");
        let product = json!({ "sku": sku, "name": format!("Onion {number}") });
        let stock = json!({ "sku": sku, "warehouse": "w-1", "region": "eu", "quantity": 5 });
        for (kind, data) in [("RegisterProduct", product), ("ReceiveStock", stock)] {
            let outcome = system.command(&json!({ "id": Uuid::new_v4(), "type": kind, "data": data })).await;
            assert_eq!(outcome["outcome"], "accepted", "{outcome}");
        }
    }
}

/// Exit code, and the last line of standard output as JSON; what was said where there is none.
fn replay(system: &System, line: &str) -> (i32, Value) {
    let mut command = millrace();
    command.current_dir(system.path("")).arg("replay").args(line.split(' ')).arg("--json");
    command.envs(system.settings(&["MILLRACE_STOCK_STORE", "MILLRACE_SEARCH_DIR"]));
    if ["start", "verify"].iter().any(|action| line.starts_with(action)) {
        command.envs(system.settings(&["MILLRACE_EVENT_LOG", "MILLRACE_SCHEMA_REGISTRY"]));
    }
    let done = command.output().unwrap();
    let printed = String::from_utf8(done.stdout).unwrap();
    let last = printed.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let said = || Value::String(String::from_utf8_lossy(&done.stderr).into_owned());
    (done.status.code().unwrap(), last.unwrap_or_else(said))
}

/// Removes everything from half of the partitions, and all but the last record from the others.
async fn pass_retention(url: &str) {
    let log = connect_event_log(url).await.unwrap();
    let mut to = TopicPartitionList::new();
    for topic in [Context::Inventory, Context::Catalogue].map(Context::events_topic) {
        for ends in log.ends(topic).await.unwrap() {
            let kept = u64::from(ends.partition % 2);
            let offset = Offset::Offset(ends.next.saturating_sub(kept) as i64);
            to.add_partition_offset(topic, ends.partition as i32, offset).unwrap();
        }
    }
    let servers = url.strip_prefix("kafka://").unwrap();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
    for partition in admin.delete_records(&to, &AdminOptions::new()).await.unwrap().elements() {
        partition.error().unwrap();
    }
}

async fn level(system: &System, generation: &str) {
    let begun = Instant::now();
    loop {
        let (code, status) = replay(system, &format!("status {generation}"));
        let progress = &status["generations"][0]["progress"];
        if code == 0 && progress["lag_events"] == 0 && progress["live"] == progress["partitions"] {
            assert_eq!(status["generations"][0]["source"], "event_table", "{status}");
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{generation}: {status}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn both_read_models_are_built_again_after_retention() {
    let mut system = System::separate().await;
    load(&system).await;
    system.settled(SKUS as u64).await;
    let [(_, log)] = <[_; 1]>::try_from(system.settings(&["MILLRACE_EVENT_LOG"])).unwrap();
    pass_retention(&log).await;

    for name in ["stock", "search"] {
        let (code, started) = replay(&system, &format!("start {name} --as ann --from event-table --fold 1"));
        assert_eq!((code, &started["done"]["generation"]), (0, &json!(format!("{name}@2"))), "{started}");
        system.kill(name);
        system.start(name);
        level(&system, &format!("{name}@2")).await;
        let (code, verified) = replay(&system, &format!("verify {name}@2 --as ann"));
        assert_eq!(code, 0, "{verified}");
    }
    // One from the topics cannot be built; the others do not mind.
    let (code, _) = replay(&system, "start stock --as ann --from log --fold 1");
    assert_eq!(code, 0);
    load_more(&system).await;
    system.settled(SKUS as u64).await;
    for name in ["stock", "search"] {
        level(&system, &format!("{name}@2")).await;
        let (code, verified) = replay(&system, &format!("verify {name}@2 --as ann"));
        assert_eq!(code, 0, "{verified}");
    }
    let (_, stock) = system.get("/v1/stock/SKU-7?generation=2").await;
    assert_eq!(stock["total"]["on_hand"], 6, "{stock}");
    let begun = Instant::now();
    while !system.log("stock").contains("--from event-table") {
        assert!(begun.elapsed() < PATIENCE, "nobody says what to do: {}", system.log("stock"));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn load_more(system: &System) {
    for number in 0..SKUS {
        let data = json!({ "sku": format!("SKU-{number}"), "warehouse": "w-1", "region": "eu", "quantity": 1 });
        let outcome = system.command(&json!({ "id": Uuid::new_v4(), "type": "ReceiveStock", "data": data })).await;
        assert_eq!(outcome["outcome"], "accepted", "{outcome}");
    }
}
