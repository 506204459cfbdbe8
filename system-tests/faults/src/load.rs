//! The load: workers that give seeded commands over HTTP, in bulk and one by one, and by command topic, until enough
//! events are acknowledged and the scenario says that it is over.
//!
//! A command whose outcome is unknown (a broken connection, `failed`, 429, 503) is given again under its id until it has
//! one. Some are given again though they have one, some of those much later: duplicates and reordering on purpose.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use event_log::{EventLog, NewRecord, TopicPartition};
use futures::StreamExt;
use schemas::{Outcome, partition_of};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::commands::{Commands, Given};
use crate::journal::Journal;

/// Commands in one bulk request.
const BULK: usize = 200;
/// Kept to be given again later.
const REMEMBERED: usize = 2_000;

/// How much, how fast, and how rudely.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    pub seed: u64,
    pub skus: usize,
    /// Acknowledged events until it is enough.
    pub events: u64,
    /// Commands a second; 0 for as fast as it goes.
    pub rate: u64,
    /// One command of so many is given again later.
    pub duplicates: u32,
    /// Past the proxy; none when the log is embedded.
    pub kafka: Option<String>,
    /// Partitions of the topics.
    pub partitions: u32,
    /// Command APIs; workers take turns.
    pub urls: Vec<String>,
}

/// A load under way.
pub struct Load {
    shared: Arc<Shared>,
    workers: JoinSet<anyhow::Result<()>>,
}

struct Shared {
    plan: LoadPlan,
    journal: Arc<Journal>,
    client: reqwest::Client,
    begun: Instant,
    taken: AtomicU64,
    over: CancellationToken,
    abandoned: CancellationToken,
    /// Events that were there before.
    before: u64,
}

// === impl Load ===

impl Load {
    pub fn start(plan: LoadPlan, journal: Arc<Journal>) -> anyhow::Result<Self> {
        let mut load = Self::idle(plan, journal)?;
        let (shared, workers) = (&load.shared, &mut load.workers);
        for worker in 0..4 {
            workers.spawn(bulk_worker(shared.clone(), worker));
        }
        for worker in 4..6 {
            workers.spawn(single_worker(shared.clone(), worker));
        }
        if shared.plan.kafka.is_some() {
            workers.spawn(topic_worker(shared.clone(), 6));
        }
        Ok(load)
    }

    fn idle(plan: LoadPlan, journal: Arc<Journal>) -> anyhow::Result<Self> {
        let client =
            reqwest::Client::builder().timeout(Duration::from_secs(20)).connect_timeout(Duration::from_secs(2));
        let before = journal.entries().events;
        let shared = Arc::new(Shared {
            plan,
            journal,
            client: client.build()?,
            begun: Instant::now(),
            taken: AtomicU64::new(0),
            over: CancellationToken::new(),
            abandoned: CancellationToken::new(),
            before,
        });
        let workers = JoinSet::new();
        Ok(Self { shared, workers })
    }

    /// Events acknowledged since it began.
    pub fn events(&self) -> u64 {
        self.shared.journal.entries().events - self.shared.before
    }

    /// Waits until a share of the events is acknowledged.
    pub async fn reached(&mut self, share: f64) -> anyhow::Result<()> {
        let wanted = (self.shared.plan.events as f64 * share) as u64;
        let (mut last, mut since) = (self.events(), Instant::now());
        while self.events() < wanted {
            if let Some(ended) = self.workers.try_join_next() {
                ended??;
            }
            let now = self.events();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if since.elapsed() > Duration::from_secs(60) {
                bail!("no command was acknowledged for 60 s, {now} events so far");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends it when the events are there, with every command answered.
    pub async fn finish(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        self.reached(1.0).await?;
        self.shared.over.cancel();
        while let Some(ended) =
            match tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), self.workers.join_next())
                .await
            {
                Ok(ended) => ended,
                Err(_) => {
                    self.shared.abandoned.cancel();
                    bail!("commands are still without an outcome {within:?} after the end of the load");
                }
            }
        {
            ended??;
        }
        Ok(())
    }
}

// === impl Shared ===

impl Shared {
    /// Waits until so many more commands are due.
    async fn take(&self, commands: u64) {
        if self.plan.rate == 0 {
            return;
        }
        let before = self.taken.fetch_add(commands, Ordering::Relaxed);
        let due = self.begun + Duration::from_secs_f64(before as f64 / self.plan.rate as f64);
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            () = self.over.cancelled() => {}
        }
    }

    fn url(&self, turn: usize) -> String {
        format!("{}/v1/commands", self.plan.urls[turn % self.plan.urls.len()])
    }

    /// Gives commands in bulk; those that have no outcome yet come back.
    async fn give_bulk(&self, commands: Vec<Given>, turn: usize) -> Vec<Given> {
        let mut left: Vec<Option<Given>> = Vec::with_capacity(commands.len());
        let mut body = String::new();
        for given in commands {
            self.journal.given(&given, false);
            body += &given.to_json().to_string();
            body.push('\n');
            left.push(Some(given));
        }
        let request = self.client.post(self.url(turn)).header("content-type", "application/x-ndjson").body(body);
        if let Ok(answer) = request.send().await
            && answer.status().is_success()
        {
            let mut pieces = answer.bytes_stream();
            let (mut buffer, mut line) = (Vec::new(), 0);
            // What came before the connection broke counts.
            while let Some(Ok(piece)) = pieces.next().await {
                buffer.extend_from_slice(&piece);
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let text: Vec<u8> = buffer.drain(..=end).collect();
                    if let Ok(outcome) = serde_json::from_slice::<Outcome>(&text)
                        && self.journal.answered(outcome)
                        && let Some(given) = left.get_mut(line)
                    {
                        *given = None;
                    }
                    line += 1;
                }
            }
        }
        left.into_iter().flatten().collect()
    }

    /// Gives one command; `false` when it has no outcome yet.
    async fn give_one(&self, given: &Given, turn: usize) -> bool {
        self.journal.given(given, false);
        let Ok(answer) = self.client.post(self.url(turn)).json(&given.to_json()).send().await else { return false };
        if matches!(answer.status().as_u16(), 429 | 503) {
            return false;
        }
        // A refusal is a problem document that holds the outcome's members.
        let Ok(mut body) = answer.json::<Value>().await else { return false };
        if let Some(members) = body.as_object_mut() {
            members.retain(|name, _| !matches!(name.as_str(), "type" | "title" | "status" | "detail"));
        }
        serde_json::from_value(body).is_ok_and(|outcome| self.journal.answered(outcome))
    }
}

/// Between two tries of what did not go through.
async fn pause(shared: &Shared) -> bool {
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(150)) => true,
        () = shared.abandoned.cancelled() => false,
    }
}

async fn bulk_worker(shared: Arc<Shared>, worker: u64) -> anyhow::Result<()> {
    let mut commands = Commands::new(shared.plan.seed, worker, shared.plan.skus);
    let mut remembered: VecDeque<Given> = VecDeque::new();
    let mut turn = worker as usize;
    while !shared.over.is_cancelled() {
        shared.take(BULK as u64).await;
        let mut batch = Vec::with_capacity(BULK);
        while batch.len() < BULK {
            if commands.chance(shared.plan.duplicates) && !remembered.is_empty() {
                let at = commands.below(remembered.len());
                batch.extend(remembered.get(at).cloned());
                continue;
            }
            let given = commands.next();
            remembered.push_back(given.clone());
            if remembered.len() > REMEMBERED {
                remembered.pop_front();
            }
            batch.push(given);
        }
        if commands.chance(5) {
            batch.reverse();
        }
        loop {
            turn += 1;
            batch = shared.give_bulk(batch, turn).await;
            if batch.is_empty() || !pause(&shared).await {
                break;
            }
        }
    }
    Ok(())
}

async fn single_worker(shared: Arc<Shared>, worker: u64) -> anyhow::Result<()> {
    let mut commands = Commands::new(shared.plan.seed, worker, shared.plan.skus);
    let mut turn = worker as usize;
    while !shared.over.is_cancelled() {
        shared.take(1).await;
        let given = commands.next();
        loop {
            turn += 1;
            if shared.give_one(&given, turn).await || !pause(&shared).await {
                break;
            }
        }
        if commands.chance(shared.plan.duplicates) {
            shared.give_one(&given, turn).await;
        }
    }
    Ok(())
}

/// Publishes commands; their outcomes are read from the outcome topics at the end.
async fn topic_worker(shared: Arc<Shared>, worker: u64) -> anyhow::Result<()> {
    let Some(kafka) = &shared.plan.kafka else { return Ok(()) };
    let log = event_log::connect_event_log(&format!("kafka://{kafka}")).await?;
    let mut commands = Commands::new(shared.plan.seed, worker, shared.plan.skus);
    while !shared.over.is_cancelled() {
        shared.take(20).await;
        let mut batch: Vec<Given> = (0..20).map(|_| commands.next()).collect();
        if commands.chance(4) {
            batch.push(batch[0].clone());
        }
        for given in &batch {
            shared.journal.given(given, true);
        }
        let records: Vec<NewRecord> = batch.iter().map(|given| record(given, shared.plan.partitions)).collect();
        // What may or may not be there is sent again: the ids tell.
        while publish(log.as_ref(), records.clone()).await.is_err() {
            if !pause(&shared).await {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn publish(log: &dyn EventLog, records: Vec<NewRecord>) -> anyhow::Result<()> {
    Ok(tokio::time::timeout(Duration::from_secs(30), log.publish(records)).await??)
}

/// A CloudEvent command as another team's service sends it.
pub fn record(given: &Given, partitions: u32) -> NewRecord {
    let body = given.to_json();
    let headers = [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", given.id.to_string()),
        ("ce_source", "/faults".to_owned()),
        ("ce_type", given.command.full_name()),
        ("content-type", "application/json".to_owned()),
    ];
    let partition = partition_of(given.sku().as_bytes(), partitions);
    NewRecord {
        at: TopicPartition::new(given.command.context().commands_topic(), partition),
        key: given.sku().as_bytes().to_vec(),
        headers: headers.into_iter().collect(),
        value: body["data"].to_string().into_bytes(),
        timestamp: 0,
    }
}

/// Gives commands until each has an outcome.
pub async fn give_all(url: &str, commands: Vec<Given>, journal: &Arc<Journal>) -> anyhow::Result<()> {
    let plan = LoadPlan {
        seed: 0,
        skus: 0,
        events: 0,
        rate: 0,
        duplicates: u32::MAX,
        kafka: None,
        partitions: 1,
        urls: vec![url.to_owned()],
    };
    let load = Load::idle(plan, journal.clone())?;
    let begun = Instant::now();
    let mut left = commands;
    while !left.is_empty() {
        left = load.shared.give_bulk(left, 0).await;
        if begun.elapsed() > Duration::from_secs(60) {
            bail!("{} commands have no outcome after 60 s", left.len());
        }
        if !left.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}
