//! Faults 24 to 27: what comes in, and the end of a process.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use event_log::{Headers, NewRecord, TopicPartition};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::commands::Commands;
use crate::load::give_all;
use crate::scenario::{On, Scenario};
use crate::trial::Trial;

/// The promised bound of an orderly end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(24, "commands delivered twice, out of order, late", delivered_twice).duplicates(3),
        Scenario::new(24, "the same, in one process on files", delivered_twice)
            .duplicates(3)
            .variant("files")
            .on(On::Files),
        Scenario::new(25, "oversized, malformed, hostile input", hostile),
        Scenario::new(25, "the same, one process on files", hostile).variant("files").on(On::Files),
        Scenario::new(26, "clients disconnect before their answer", disconnects),
        Scenario::new(26, "the same, one process on files", disconnects).variant("files").on(On::Files),
        Scenario::new(27, "SIGTERM under load, each process in turn", terminated),
        Scenario::new(27, "SIGTERM under load, in one process on files", terminated).variant("files").on(On::Files),
    ]
}

/// The load does it by itself; the process that takes commands is killed meanwhile, so that many more come again.
fn delivered_twice<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let intake = if trial.system.is_embedded() { "up" } else { "write" };
        for share in [0.4, 0.7] {
            trial.load.reached(share).await?;
            trial.system.kill_and_start(intake).await?;
        }
        let entries = trial.journal.entries();
        let repeated = entries.commands.values().filter(|entry| entry.acknowledged > 1).count();
        drop(entries);
        trial.expect(repeated > 0, "no command was answered twice");
        Ok(())
    }
    .boxed_local()
}

fn terminated<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for name in trial.system.names() {
            let begun = Instant::now();
            let code = trial.system.program(&name)?.stop("TERM", ENDS_WITHIN * trial.settings.slack).await?;
            let took = begun.elapsed();
            trial.expect(code == 0, format!("{name} ended with exit code {code} after {took:?}"));
            trial.system.start(&name).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }
    .boxed_local()
}

/// What is hostile over HTTP, on the command and event topics, and in query text; each has a clear answer and nobody ends.
fn hostile<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build()?;
        let commands = format!("{}/v1/commands", trial.system.commands_url());
        let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
        let huge = json!({"id": uuid::Uuid::new_v4(), "type": "ReceiveStock", "data": {"sku": "x".repeat(200_000)}});
        let bodies: Vec<(Vec<u8>, &[u16])> = vec![
            (deep.into_bytes(), &[400]),
            (huge.to_string().into_bytes(), &[413]),
            (vec![b' '; 10 << 20], &[413]),
            (vec![0xff, 0xfe, 0x00], &[400]),
            (b"{".to_vec(), &[400]),
            (Vec::new(), &[400]),
            (json!({"id": "no", "type": "ReceiveStock", "data": {}}).to_string().into_bytes(), &[400]),
            (json!({"id": uuid::Uuid::new_v4(), "type": "DropTable", "data": {}}).to_string().into_bytes(), &[400]),
            (br#"{"id":"00000000-0000-0000-0000-000000000001","type":"ReceiveStock","data":{"sku":"a\u0000b","warehouse":"w","quantity":1e400}}"#.to_vec(), &[400]),
        ];
        for (body, wanted) in bodies {
            let length = body.len();
            let begin = String::from_utf8_lossy(&body[..length.min(40)]).into_owned();
            let answer = client.post(&commands).header("content-type", "application/json").body(body).send().await;
            // A body that is far too large may be cut off while it is sent.
            let status = answer.as_ref().map_or(413, |answer| answer.status().as_u16());
            trial.expect(wanted.contains(&status), format!("{begin:?}… ({length} bytes) is answered {status}"));
        }
        let mut lines = vec![b'x'; 5 << 20];
        lines.extend_from_slice(b"\n{\n\xff\xff\n");
        let answer = client.post(&commands).header("content-type", "application/x-ndjson").body(lines).send().await?;
        let outcomes = answer.text().await?;
        trial.expect(outcomes.lines().count() == 3, format!("three bad lines have the outcomes {outcomes:.300}"));
        trial.expect(outcomes.lines().all(|line| line.contains("\"invalid\"") && line.contains("line ")), outcomes);
        let queries = trial.system.queries_url();
        for query in [
            "/v1/search?q=%22%28%28%28%5B%7B%2A%3F%7E%5E%3A%2B-%21",
            "/v1/search?q=%00%ff%fe",
            &format!("/v1/search?q={}", "a+OR+".repeat(5_000)),
            &format!("/v1/search?brand={}", "%7C".repeat(5_000)),
            "/v1/search?limit=99999999999999999999",
            "/v1/search?cursor=%F0%9F%92%A9",
            "/v1/search?price_min=-1&region=north",
            "/v1/suggest?q=%2A&limit=0",
            "/v1/stock/..%2f..%2fetc%2fpasswd",
            &format!("/v1/stock?sku={}", "A,".repeat(20_000)),
            "/v1/products/%00",
        ] {
            let answer = client.get(format!("{queries}{query}")).send().await.with_context(|| query[..40.min(query.len())].to_owned())?;
            let status = answer.status().as_u16();
            trial.expect(status < 500, format!("{query:.60} is answered {status}"));
        }
        if !trial.system.is_embedded() {
            hostile_records(trial).await?;
        }
        for name in trial.system.names() {
            let program = trial.system.program(&name)?;
            let (runs, panicked) = (program.is_running(), program.log_text().contains("panicked"));
            trial.expect(runs && !panicked, format!("{name} runs: {runs}, panicked: {panicked}"));
        }
        Ok(())
    }
    .boxed_local()
}

/// Garbage on a command topic and between the events.
async fn hostile_records(trial: &mut Trial<'_>) -> anyhow::Result<()> {
    let log = event_log::connect_event_log(&format!("kafka://{}", trial.servers.kafka.address())).await?;
    let headers = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Headers>();
    let ours =
        [("ce_specversion", "1.0"), ("ce_id", "00000000-0000-0000-0000-00000000000a"), ("ce_type", "ReceiveStock")];
    let mut records = Vec::new();
    for (number, topic) in ["inventory.commands", "inventory.events", "catalogue.commands"].into_iter().enumerate() {
        for (index, value) in [vec![], vec![0xff; 900_000], b"{".repeat(50_000)].into_iter().enumerate() {
            for headers in [headers(&[]), headers(&ours), headers(&[("ce_id", "x")])] {
                // An event topic with whole headers would be a forged event: that is no garbage but an intruder.
                if topic.ends_with(".events") && headers.len() == ours.len() {
                    continue;
                }
                let at = TopicPartition::new(topic, ((number + index) % 4) as u32);
                records.push(NewRecord { at, key: vec![0, 1, 2], headers, value: value.clone(), timestamp: 0 });
            }
        }
    }
    let foreign = records.iter().filter(|record| record.at.topic.ends_with(".events")).count();
    trial.foreign = true;
    log.publish(records).await?;
    // Nothing takes a record off a topic: the audit goes on naming these, and nothing else.
    trial.audit = (3, "\n6 extra in topic\n");
    ensure!(foreign == 6, "{foreign} records were put between the events, not 6");
    Ok(())
}

/// Commands whose sender hangs up at once. Each has one outcome all the same, found by its id.
fn disconnects<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let address = trial.system.commands_url().trim_start_matches("http://").to_owned();
        let mut commands = Commands::new(trial.plan().seed, 500, trial.plan().skus);
        let given: Vec<_> = (0..300).map(|_| commands.next()).collect();
        for (number, one) in given.iter().enumerate() {
            trial.journal.given(one, false);
            let body = one.to_json().to_string();
            let head = format!(
                "POST /v1/commands HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let mut stream = TcpStream::connect(&address).await?;
            let request = [head.as_bytes(), body.as_bytes()].concat();
            // Every third breaks off inside its own request.
            let sent = if number % 3 == 0 { request.len() - 10 } else { request.len() };
            stream.write_all(&request[..sent]).await?;
            drop(stream);
        }
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let mut found = 0;
        for one in &given {
            let answer = client.get(format!("http://{address}/v1/commands/{}", one.id)).send().await?;
            let status = answer.status().as_u16();
            ensure!(matches!(status, 200 | 404), "the outcome of {} is asked for and {status} comes", one.id);
            if status == 200 {
                found += 1;
                trial.journal.answered(answer.json().await?);
            }
        }
        trial.expect(found > 0, "no command of a client that hung up was decided");
        // Given again, each has the outcome that it has.
        give_all(&trial.system.commands_url(), given, &trial.journal).await
    }
    .boxed_local()
}
