//! Readers at a fixed rate: a read begins when its turn comes, whatever became of those before, and what went wrong is kept
//! too. None is given a second try.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::answers::{Answer, Shown, understand};
use crate::commands::{REGIONS, sku};

/// What readers ask for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Most of it is of this read model: `stock` or `search`.
    pub model: &'static str,
    pub seed: u64,
    /// SKUs that all have stock in each region, prices and a product.
    pub skus: usize,
}

/// Longest that an answer may take; the query API gives up before.
const PATIENCE: Duration = Duration::from_secs(10);
/// Reads under way at once: beyond them turns are missed, and the rate that is told is lower.
const AT_ONCE: usize = 400;

pub(super) fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().timeout(PATIENCE).pool_max_idle_per_host(AT_ONCE).build()
}

pub(super) async fn read(
    client: reqwest::Client,
    url: String,
    asked: Asked,
    per_second: u64,
    begun: Instant,
    answers: Arc<Mutex<Vec<Answer>>>,
) {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut random = ChaCha8Rng::seed_from_u64(asked.seed ^ 0x5eed);
    for turn in 0_u64.. {
        let due = begun + Duration::from_secs_f64(turn as f64 / per_second as f64);
        tokio::time::sleep_until(due.into()).await;
        let path = path(&asked, &mut random);
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let (client, url, answers) = (client.clone(), url.clone(), answers.clone());
        tokio::spawn(async move {
            let answer = one(&client, &url, path, begun).await;
            answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
            drop(permit);
        });
    }
}

/// Of ten reads of stock one asks for several SKUs, and four for one region; searches are with words, by brand, and of all.
fn path(asked: &Asked, random: &mut ChaCha8Rng) -> String {
    let number = random.random_range(0..asked.skus);
    let one = sku(number);
    let region = REGIONS[random.random_range(0..REGIONS.len())];
    let shift = if asked.model == "stock" { 0 } else { 40 };
    match random.random_range(shift..shift + 60) {
        0..15 => format!("/v1/stock/{one}"),
        15..40 => format!("/v1/stock/{one}?region={region}"),
        40..46 => {
            let others: Vec<String> = (0..5).map(|_| sku(random.random_range(0..asked.skus)).to_string()).collect();
            format!("/v1/stock?sku={one},{}", others.join(","))
        }
        46..53 => format!("/v1/products/{one}"),
        53..60 => format!("/v1/search?limit=5&facets=false&region={region}"),
        60..75 => format!("/v1/products/{one}?region={region}"),
        // Words that few have: of a thousand hits that are all as good, two right indexes may show other five.
        75..90 => format!("/v1/search?q={number}+product&limit=5&facets=false"),
        _ => format!("/v1/search?brand=Brand%20{}&limit=5&facets=false&region={region}", number % 17),
    }
}

async fn one(client: &reqwest::Client, url: &str, path: String, begun: Instant) -> Answer {
    let asked_at = begun.elapsed();
    let mut answer = Answer { begun: asked_at, ..Answer::default() };
    match asked(client, &format!("{url}{path}")).await {
        Ok((status, generations, body)) => {
            answer.status = status;
            answer.generations = generations;
            answer.asked = path;
            if status == 200 {
                understand(&body, &mut answer);
                folds(&body, &mut answer);
            } else {
                answer.failed = Some(body.to_string());
            }
        }
        Err(error) => {
            answer.asked = path;
            answer.failed = Some(format!("{error:?}"));
        }
    }
    // Of these the oracle does not know how many there are.
    if answer.asked.contains("q=") || answer.asked.contains("brand=") {
        answer.total = None;
    }
    answer.at = begun.elapsed();
    answer
}

async fn asked(client: &reqwest::Client, address: &str) -> reqwest::Result<(u16, Vec<String>, Value)> {
    let answer = client.get(address).send().await?;
    let named = answer.headers().get_all("millrace-generation").iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(',')).map(|name| name.trim().to_owned()).collect();
    let status = answer.status().as_u16();
    Ok((status, named, answer.json().await?))
}

/// Which rows show `updated_at` (stock) and `revised_at` (search), and what a page lacks.
fn folds(body: &Value, answer: &mut Answer) {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut stock = Shown { model: "stock", with_new_field: 0, without: 0 };
    for item in list(&body["items"]).iter().chain([body, &body["stock"]]) {
        for warehouse in list(&item["regions"]).iter().flat_map(|region| list(&region["warehouses"])) {
            stock.note(warehouse["updated_at"].is_string());
        }
    }
    let mut search = Shown { model: "search", with_new_field: 0, without: 0 };
    for shown in list(&body["hits"]).iter().chain([&body["product"]]).filter(|shown| shown.is_object()) {
        search.note(shown["revised_at"].is_string());
    }
    answer.folds = [stock, search].into_iter().filter(|shown| shown.with_new_field + shown.without > 0).collect();
    if body["product"].is_object() || body["price"].is_object() || body["missing"].is_array() {
        let is_page = body.get("items").is_none();
        let lacks = list(&body["missing"]).into_iter().filter(|_| is_page);
        answer.lacks = lacks.filter_map(|part| part.as_str().map(str::to_owned)).collect();
    }
}

// === impl Shown ===

impl Shown {
    fn note(&mut self, has_it: bool) {
        match has_it {
            true => self.with_new_field += 1,
            false => self.without += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_told_apart_by_the_field_that_the_newer_fold_adds() {
        let mut answer = Answer::default();
        let warehouses = json!([{"updated_at": "2026-01-01T00:00:00.000Z"}, {"version": 3}]);
        let page = json!({
            "sku": "A", "product": {"name": "x", "revised_at": "2026-01-01T00:00:00.000Z"},
            "stock": {"sku": "A", "regions": [{"warehouses": warehouses}]}, "missing": ["price"],
        });
        folds(&page, &mut answer);
        let stock = Shown { model: "stock", with_new_field: 1, without: 1 };
        let search = Shown { model: "search", with_new_field: 1, without: 0 };
        assert_eq!(answer.folds, [stock, search]);
        assert_eq!(answer.lacks, ["price"]);
    }

    #[test]
    fn every_kind_of_read_is_made() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for model in ["stock", "search"] {
            let asked = Asked { model, seed: 1, skus: 10 };
            let paths: Vec<String> = (0..500).map(|_| path(&asked, &mut random)).collect();
            for kind in ["/v1/stock/", "/v1/stock?", "/v1/products/", "/v1/search?"] {
                let is_made = paths.iter().any(|path| path.starts_with(kind));
                assert!(is_made || (model == "search" && kind == "/v1/stock/"), "{model}: {kind}");
            }
        }
    }
}
