//! Answers that readers got while the fault was there: each must be a state that the fold held (Q1), and one that was
//! asked for with a position must show the write of that position (Q2).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::PositionToken;
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Violation;
use super::fold::Expected;
use super::steady;
use crate::commands::sku;
use crate::journal::{Journal, Seen};

/// One warehouse of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub sku: String,
    pub warehouse: String,
    pub version: u64,
    pub on_hand: i64,
    pub reserved: i64,
}

/// One answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// When it was asked for, since the readers began.
    pub begun: Duration,
    /// When it was there.
    pub at: Duration,
    /// Route and SKU.
    pub asked: String,
    /// 0 where no answer came.
    pub status: u16,
    /// Where no answer came, why.
    pub failed: Option<String>,
    /// As `Millrace-Generation` names them.
    pub generations: Vec<String>,
    /// Rows of each read model that show the field which a newer fold adds, and rows that do not.
    pub folds: Vec<Shown>,
    /// Parts of a page that could not be read.
    pub lacks: Vec<String>,
    /// The write that it had to show.
    pub seen: Option<Seen>,
    pub stock: Vec<Answered>,
    pub position: Option<PositionToken>,
    /// (SKU, name) of products.
    pub names: Vec<(String, String)>,
    /// How many products a search without words found.
    pub total: Option<u64>,
    /// SKUs that the answer says have no stock.
    pub missing: Vec<String>,
}

/// By which fold the rows of an answer were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// `stock` or `search`.
    pub model: &'static str,
    pub with_new_field: usize,
    pub without: usize,
}

/// Readers under way.
pub struct Readers {
    pub(super) answers: Arc<Mutex<Vec<Answer>>>,
    /// What the times of answers count from.
    pub begun: Instant,
    pub(super) _end_with_it: DropGuard,
}

/// What the answers came to.
#[derive(Debug, Default, Clone)]
pub struct Told {
    pub answers: usize,
    /// 503: said that it could not; or none came.
    pub unavailable: usize,
    /// The longest time without an answer of 200.
    pub longest_outage: Duration,
}

const EVERY: Duration = Duration::from_millis(15);

// === impl Readers ===

impl Readers {
    /// Begins to read SKUs that all have stock, prices and a product.
    pub fn start(url: &str, journal: Arc<Journal>, seed: u64, skus: usize) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(8)).build()?;
        let answers = Arc::new(Mutex::new(Vec::new()));
        let begun = Instant::now();
        let stopped = CancellationToken::new();
        for reader in 0..3_u64 {
            let random = ChaCha8Rng::seed_from_u64(seed ^ (reader + 77));
            let read = read(client.clone(), url.to_owned(), journal.clone(), random, skus, reader, answers.clone());
            tokio::spawn(stopped.clone().run_until_cancelled_owned(read));
        }
        Ok(Self { answers, begun, _end_with_it: stopped.drop_guard() })
    }

    /// Begins to read so many times a second, however long answers take.
    pub fn steady(url: &str, asked: steady::Asked, per_second: u64) -> anyhow::Result<Self> {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let begun = Instant::now();
        let stopped = CancellationToken::new();
        let client = steady::client()?;
        let read = steady::read(client, url.to_owned(), asked, per_second.max(1), begun, answers.clone());
        tokio::spawn(stopped.clone().run_until_cancelled_owned(read));
        Ok(Self { answers, begun, _end_with_it: stopped.drop_guard() })
    }

    pub fn taken(&self) -> Vec<Answer> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many answers of a status there were since a count of all.
    pub fn since(&self, from: usize, status: u16) -> usize {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().skip(from).filter(|answer| answer.status == status).count()
    }

    pub fn len(&self) -> usize {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

async fn read(
    client: reqwest::Client,
    url: String,
    journal: Arc<Journal>,
    mut random: ChaCha8Rng,
    skus: usize,
    reader: u64,
    answers: Arc<Mutex<Vec<Answer>>>,
) {
    let begun = Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let asked = sku(random.random_range(0..skus)).to_string();
        let mut seen = None;
        let path = match reader {
            0 => {
                seen = journal.entries().latest.get(&asked).cloned();
                format!("/v1/stock/{asked}")
            }
            1 => {
                let others: Vec<String> = (0..10).map(|_| sku(random.random_range(0..skus)).to_string()).collect();
                format!("/v1/stock?sku={},{asked}", others.join(","))
            }
            _ if random.random_bool(0.5) => format!("/v1/products/{asked}"),
            _ => "/v1/search?limit=3&facets=false".to_owned(),
        };
        let mut request = client.get(format!("{url}{path}"));
        if let Some(seen) = &seen {
            request = request.header("Millrace-Min-Position", seen.position.to_string());
        }
        // A process that is down answers nobody: that is no wrong answer.
        let asked_at = begun.elapsed();
        let Ok(answer) = request.send().await else { continue };
        let status = answer.status().as_u16();
        let position = answer.headers().get("millrace-position").and_then(|value| value.to_str().ok()?.parse().ok());
        let Ok(body) = answer.json::<Value>().await else { continue };
        let at = begun.elapsed();
        let mut answer = Answer { begun: asked_at, at, asked: path, status, seen, position, ..Answer::default() };
        if status == 200 {
            understand(&body, &mut answer);
        }
        answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    }
}

pub(super) fn understand(body: &Value, answer: &mut Answer) {
    let items = body["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    for stock in items.iter().chain([body, &body["stock"]]) {
        let Some(sku) = stock["sku"].as_str() else { continue };
        for region in stock["regions"].as_array().into_iter().flatten() {
            for warehouse in region["warehouses"].as_array().into_iter().flatten() {
                answer.stock.push(Answered {
                    sku: sku.to_owned(),
                    warehouse: warehouse["warehouse"].as_str().unwrap_or_default().to_owned(),
                    version: warehouse["version"].as_u64().unwrap_or_default(),
                    on_hand: warehouse["on_hand"].as_i64().unwrap_or_default(),
                    reserved: warehouse["reserved"].as_i64().unwrap_or_default(),
                });
            }
        }
    }
    if let (Some(sku), Some(name)) = (body["sku"].as_str(), body["product"]["name"].as_str()) {
        answer.names.push((sku.to_owned(), name.to_owned()));
    }
    for hit in body["hits"].as_array().into_iter().flatten() {
        if let (Some(sku), Some(name)) = (hit["sku"].as_str(), hit["name"].as_str()) {
            answer.names.push((sku.to_owned(), name.to_owned()));
        }
    }
    answer.total = body["total"].as_u64();
    let missing = body["missing"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if body["items"].is_array() {
        answer.missing = missing.map(str::to_owned).collect();
    }
}

/// Q1 and Q2. `skus` products were there before the first answer, and none was discontinued.
pub fn check(expected: &Expected, answers: &[Answer], skus: u64) -> (Vec<Violation>, Told) {
    let mut violations = Vec::new();
    let mut told = Told { answers: answers.len(), ..Told::default() };
    let mut last_good = Duration::ZERO;
    let mut in_order: Vec<&Answer> = answers.iter().collect();
    in_order.sort_by_key(|answer| answer.at);
    for answer in in_order {
        let Answer { at, asked, status, .. } = answer;
        let place = format!("{asked} at {:.1} s", at.as_secs_f64());
        match status {
            200 => {
                told.longest_outage = told.longest_outage.max(at.saturating_sub(last_good));
                last_good = *at;
            }
            0 | 503 => {
                told.unavailable += 1;
                continue;
            }
            _ => {
                violations.push(Violation::new("Q1", format!("{place}: status {status}")));
                continue;
            }
        }
        for missing in &answer.missing {
            violations.push(Violation::new("Q1", format!("{place}: {missing} is told to have no stock")));
        }
        for stock in &answer.stock {
            let key = (stock.sku.clone(), stock.warehouse.clone());
            let steps = expected.history.get(&key).map_or(&[][..], Vec::as_slice);
            let held = (stock.version as usize).checked_sub(1).and_then(|index| steps.get(index));
            if held.is_none_or(|held| (held.on_hand, held.reserved) != (stock.on_hand, stock.reserved)) {
                let told = format!("{place}: {stock:?}, the fold held {held:?}");
                violations.push(Violation::new("Q1", told));
            }
        }
        for (sku, name) in &answer.names {
            if !expected.names.get(sku).is_some_and(|names| names.contains(name)) {
                violations.push(Violation::new("Q1", format!("{place}: {sku} was never called {name:?}")));
            }
        }
        if let Some(total) = answer.total
            && total < skus
        {
            violations.push(Violation::new("Q1", format!("{place}: {total} products of {skus}")));
        }
        if let Some(seen) = &answer.seen {
            let shown =
                answer.stock.iter().find(|stock| format!("stock-{}@{}", stock.sku, stock.warehouse) == seen.stream);
            if shown.is_none_or(|shown| shown.version < seen.version) {
                let told = format!("{place}: asked for {} {} and got {shown:?}", seen.stream, seen.version);
                violations.push(Violation::new("Q2", told));
            }
            for part in seen.position.iter() {
                let reached = answer.position.as_ref().and_then(|position| position.get(part.context, part.partition));
                if reached.is_none_or(|reached| reached < part.position) {
                    let told = format!("{place}: asked for {}, is true at {:?}", seen.position, answer.position);
                    violations.push(Violation::new("Q2", told));
                }
            }
        }
    }
    (violations, told)
}
