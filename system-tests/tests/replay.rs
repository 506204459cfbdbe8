//! A replay by the real command line beside a running system: started, refused, seen over HTTP, killed in the middle,
//! given up; and what each decision leaves behind.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod system;

use std::time::Instant;

use serde_json::{Value, json};
use system::{PATIENCE, System, millrace};
use uuid::Uuid;

const SKUS: usize = 30;

async fn load(system: &System) {
    for number in 0..SKUS {
        let data = json!({ "sku": format!("SKU-{number}"), "warehouse": "w-1", "region": "eu", "quantity": 5 });
        let command = json!({ "id": Uuid::new_v4(), "type": "ReceiveStock", "data": data });
        let outcome = system.command(&command).await;
        assert_eq!(outcome["outcome"], "accepted", "{outcome}");
    }
}

/// Exit code, and the last line of standard output as JSON; standard error where there is none.
fn replay(system: &System, line: &str) -> (i32, Value) {
    let data = system.path("data");
    let done = millrace().arg("replay").args(line.split(' ')).arg("--json").arg("--data").arg(data).output().unwrap();
    let printed = String::from_utf8(done.stdout).unwrap();
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    let last = printed.lines().last().and_then(|line| serde_json::from_str(line).ok());
    (done.status.code().unwrap(), last.unwrap_or(Value::String(errors)))
}

fn missing(refused: &Value) -> Vec<&str> {
    let missing = refused["refused"]["missing"].as_array().unwrap_or_else(|| panic!("{refused}"));
    missing.iter().map(|missing| missing["code"].as_str().unwrap()).collect()
}

fn generation<'v>(listed: &'v Value, name: &str) -> &'v Value {
    let models = listed["read_models"].as_array().unwrap();
    let mut all = models.iter().flat_map(|model| model["generations"].as_array().unwrap());
    all.find(|generation| generation["generation"] == name).unwrap_or_else(|| panic!("{listed}"))
}

#[tokio::test]
async fn a_replay_is_built_beside_survives_a_kill_and_is_never_cut_over_unapproved() {
    let mut system = System::embedded().await;
    load(&system).await;

    let (code, started) = replay(&system, "start stock --as ann --reason why");
    assert_eq!((code, &started["done"]["generation"]), (0, &json!("stock@2")), "{started}");
    system.kill("up");
    system.start("up");
    system.ready().await;
    let (code, status) = replay(&system, "status stock@2 --watch");
    let caught_up = &status["generations"][0];
    assert_eq!((code, &caught_up["role"]), (0, &json!("beside")), "{status}");
    assert_eq!(caught_up["progress"]["records"], SKUS, "{status}");

    for (line, code) in [("cutover stock@2 --as ann", "not_approved"), ("approve stock@2 --as ANN", "self_approved")] {
        let (exit, refused) = replay(&system, line);
        assert_eq!(exit, 3, "{refused}");
        assert!(missing(&refused).contains(&code), "{line}: {refused}");
    }
    let (_, listed) = replay(&system, "list");
    assert_eq!(generation(&listed, "stock@1")["role"], "serving");
    let (code, over_http) = system.get("/v1/replays").await;
    assert_eq!((code, &generation(&over_http, "stock@2")["replay"]["started_by"]), (200, &json!("ann")));

    let (code, refused) = replay(&system, "abort stock@1 --as ann");
    assert_eq!((code, missing(&refused)), (3, vec!["no_replay"]));
    assert_eq!(replay(&system, "abort stock --as ann").0, 0);
    // Every decision comes to platform.events, and the past is as it was.
    let begun = Instant::now();
    loop {
        let (code, history) = replay(&system, "history stock --against-log");
        assert_eq!(code, 0, "{history}");
        let decisions = history["read_models"][0]["decisions"].as_array().unwrap();
        let actions: Vec<&Value> = decisions.iter().map(|decision| &decision["action"]).collect();
        assert_eq!(actions, ["started", "aborted"]);
        let (tailed, recorded) = tail_of_platform(&system);
        assert!(tailed, "{recorded}");
        if recorded.lines().filter(|line| line.contains("DecisionRecorded")).count() == 2 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{recorded}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let altered = rusqlite::Connection::open(system.path("data/stock.db")).unwrap();
    let sql = "UPDATE decisions SET decision = replace(decision, '\"ann\"', '\"eve\"') WHERE number = 1";
    assert_eq!(altered.execute(sql, []).unwrap(), 1);
    let (code, history) = replay(&system, "history stock");
    assert_eq!(code, 3, "{history}");
    assert!(history["read_models"][0]["tampered"][0].as_str().unwrap().contains("decision 1"), "{history}");
}

fn tail_of_platform(system: &System) -> (bool, String) {
    let data = system.path("data");
    let arguments = ["tail", "--topic", "platform.events", "--from", "beginning", "--no-follow", "--json", "--data"];
    let done = millrace().args(arguments).arg(data).output().unwrap();
    let told = if done.status.success() { done.stdout } else { done.stderr };
    (done.status.success(), String::from_utf8(told).unwrap())
}

#[tokio::test]
async fn what_nobody_owns_is_refused_by_every_role_and_by_replay() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ownership.toml");
    let whole = include_str!("../../deploy/ownership.toml").replace("[\"*\"]", "[\"bob\"]");
    for (text, why) in [
        (whole.replace("    \"stock\",\n", ""), "projection stock has no owner, escalation, approvers"),
        (whole.replacen("owner = \"operator\"", "owner = \"\"", 1), "has no owner"),
        (whole.replace("escalation = ", "escalate = "), "escalate"),
    ] {
        std::fs::write(&file, text).unwrap();
        for role in ["up", "write", "relay", "serve", "project stock", "replay list", "replay abort stock --as ann"] {
            let mut command = millrace();
            command.args(role.split(' ')).arg("--ownership").arg(&file).arg("--data").arg(folder.path().join("data"));
            let done = command.output().unwrap();
            let errors = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.code(), Some(2), "{role}: {errors}");
            assert!(errors.contains(why), "{role}: {errors}");
        }
    }
    assert!(!folder.path().join("data").exists(), "nothing is made before everything is owned");
}
