//! An orderly end under load, and clients that go away in the middle: every command has one outcome, and its id finds it.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use system::{PATIENCE, System};
use tokio::io::AsyncBufReadExt;
use uuid::Uuid;

/// What an orderly end may take.
const END: Duration = Duration::from_secs(10);

/// Commands as they were given, and the outcomes that came back.
#[derive(Default)]
struct Journal {
    given: Mutex<Vec<Value>>,
    outcomes: Mutex<BTreeMap<String, Value>>,
    acknowledged: AtomicUsize,
}

// === impl Journal ===

impl Journal {
    fn give(&self, sku: &str) -> Value {
        let command = receive(sku);
        self.given.lock().unwrap().push(command.clone());
        command
    }

    /// Outcomes that say "give it again" are none.
    fn note(&self, outcome: Value) {
        if outcome["outcome"] == "accepted" {
            self.outcomes.lock().unwrap().insert(outcome["id"].as_str().unwrap().to_owned(), outcome);
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        } else {
            assert_eq!(outcome["outcome"], "failed", "{outcome}");
        }
    }
}

fn receive(sku: &str) -> Value {
    json!({
        "id": Uuid::new_v4(), "type": "ReceiveStock",
        "data": { "sku": sku, "warehouse": "eu-1", "region": "eu", "quantity": 1 },
    })
}

/// Single commands, one after the other, until the process is gone.
async fn singles(url: String, sku: String, journal: Arc<Journal>) {
    let client = reqwest::Client::new();
    loop {
        let command = journal.give(&sku);
        let Ok(answer) = client.post(&url).json(&command).send().await else { return };
        let Ok(outcome) = answer.json::<Value>().await else { return };
        if outcome.get("outcome").is_some() {
            journal.note(outcome);
        }
    }
}

/// A body without end: only the end of the process ends it.
async fn bulk(url: String, sku: String, journal: Arc<Journal>) {
    let giving = Arc::clone(&journal);
    let lines = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(format!("{}\n", giving.give(&sku))));
    let request = reqwest::Client::new().post(&url).header("content-type", "application/x-ndjson");
    let Ok(answer) = request.body(reqwest::Body::wrap_stream(lines.take(200_000))).send().await else { return };
    let pieces = answer.bytes_stream().map(|piece| piece.map_err(std::io::Error::other));
    let mut outcomes = tokio_util::io::StreamReader::new(pieces).lines();
    while let Ok(Some(line)) = outcomes.next_line().await {
        // The last line may be cut.
        if let Ok(outcome) = serde_json::from_str(&line) {
            journal.note(outcome);
        }
    }
}

/// Gives commands as one body; an outcome for each, in order.
async fn give_all(system: &System, commands: &[Value]) -> Vec<Value> {
    let mut outcomes = Vec::new();
    for commands in commands.chunks(2_000) {
        let body: String = commands.iter().map(|command| format!("{command}\n")).collect();
        let url = format!("{}/v1/commands", system.commands_url());
        let request = reqwest::Client::new().post(url).header("content-type", "application/x-ndjson").body(body);
        let answer = request.send().await.unwrap().text().await.unwrap();
        outcomes.extend(answer.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    assert_eq!(outcomes.len(), commands.len());
    outcomes
}

/// Each command has one event: the versions of its stream are 1, 2, 3 … and the stock is their number.
async fn each_has_one_event(system: &System, commands: &[Value], outcomes: &[Value]) {
    let mut versions: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    let mut number: BTreeMap<&str, u64> = BTreeMap::new();
    for (command, outcome) in commands.iter().zip(outcomes) {
        assert_eq!((&outcome["outcome"], &outcome["id"]), (&json!("accepted"), &command["id"]), "{outcome}");
        let sku = command["data"]["sku"].as_str().unwrap();
        versions.entry(sku).or_default().insert(outcome["version"].as_u64().unwrap());
        *number.entry(sku).or_default() += 1;
    }
    for (sku, number) in number {
        assert_eq!(versions[sku], (1..=number).collect(), "{sku}");
        let last = outcomes.iter().rfind(|outcome| {
            outcome["version"] == number && outcome["stream"].as_str().is_some_and(|stream| stream.contains(sku))
        });
        let position = last.unwrap()["position"].as_str().unwrap();
        let stock = system.get_at(&format!("/v1/stock/{sku}"), position).await;
        assert_eq!(stock["total"]["on_hand"], number, "{stock}");
        assert_eq!(stock["regions"][0]["warehouses"][0]["version"], number, "{stock}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_under_load_is_orderly_and_keeps_what_it_acknowledged() {
    let mut system = System::embedded().await;
    let journal = Arc::new(Journal::default());
    let url = format!("{}/v1/commands", system.commands_url());
    let mut load = tokio::task::JoinSet::new();
    for number in 0..2 {
        load.spawn(singles(url.clone(), format!("SINGLE-{number}"), Arc::clone(&journal)));
        load.spawn(bulk(url.clone(), format!("BULK-{number}"), Arc::clone(&journal)));
    }
    let begun = Instant::now();
    while journal.acknowledged.load(Ordering::Relaxed) < 2_000 {
        assert!(begun.elapsed() < PATIENCE, "{} acknowledged", journal.acknowledged.load(Ordering::Relaxed));
        tokio::task::yield_now().await;
    }
    let code = tokio::task::block_in_place(|| system.terminate("up", END));
    assert_eq!(code, 0, "{}", system.log("up"));
    tokio::time::timeout(PATIENCE, async { while load.join_next().await.transpose().unwrap().is_some() {} })
        .await
        .unwrap();

    system.start("up");
    system.ready().await;
    let given = std::mem::take(&mut *journal.given.lock().unwrap());
    let again = give_all(&system, &given).await;
    let acknowledged = std::mem::take(&mut *journal.outcomes.lock().unwrap());
    for outcome in &again {
        if let Some(first) = acknowledged.get(outcome["id"].as_str().unwrap()) {
            assert_eq!(outcome, first, "an acknowledged command has another outcome now");
        }
    }
    each_has_one_event(&system, &given, &again).await;
}

/// Sends the first `bytes` of a request, and goes away.
fn send_and_leave(system: &System, content_type: &str, body: &str, bytes: usize) {
    let address = system.commands_url().replace("http://", "");
    let mut connection = TcpStream::connect(&address).unwrap();
    let head = format!(
        "POST /v1/commands HTTP/1.1\r\nhost: {address}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(&body.as_bytes()[..bytes]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_clients_that_left_have_one_outcome_each() {
    let system = System::embedded().await;
    let mut given = Vec::new();
    for _ in 0..40 {
        let command = receive("LEFT");
        let body = command.to_string();
        send_and_leave(&system, "application/json", &body, body.len());
        given.push(command);
    }
    for round in 1..=10 {
        let commands: Vec<Value> = (0..300).map(|_| receive("LEFT")).collect();
        let body: String = commands.iter().map(|command| format!("{command}\n")).collect();
        send_and_leave(&system, "application/x-ndjson", &body, body.len() * round / 10);
        given.extend(commands);
    }
    // What was taken of them has its outcome under the id, and the same again gets it.
    let mut found = BTreeMap::new();
    for command in &given {
        let id = command["id"].as_str().unwrap();
        let (status, outcome) = system.get(&format!("/v1/commands/{id}")).await;
        if status == 200 {
            found.insert(id.to_owned(), outcome);
        } else {
            assert_eq!(status, 404, "{outcome}");
        }
    }
    assert!(!found.is_empty() && found.len() < given.len(), "{} of {} were taken", found.len(), given.len());
    let again = give_all(&system, &given).await;
    for outcome in &again {
        if let Some(first) = found.get(outcome["id"].as_str().unwrap()) {
            assert_eq!(outcome, first);
        }
    }
    each_has_one_event(&system, &given, &again).await;
}
