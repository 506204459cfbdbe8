//! The dead-letter routes of a query API, as this command asks them and as they answer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use replay::Target;
use reqwest::{Client, Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use super::args::AtArgs;

/// The dead-letter routes of a query API.
pub(super) struct Api {
    client: Client,
    base: Url,
}

#[derive(Deserialize)]
struct KeyPage {
    keys: Vec<Value>,
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Key {
    pub(super) projection: String,
    pub(super) key: String,
    pub(super) partition: String,
    pub(super) events: u64,
    pub(super) first_reason: String,
    pub(super) first_sequence: u64,
    pub(super) parked_at: String,
}

#[derive(Deserialize)]
struct Requested {
    requests: Vec<Asked>,
}

#[derive(Deserialize)]
pub(super) struct Letters {
    pub(super) events: Vec<Letter>,
    pub(super) more: bool,
    pub(super) history: History,
}

#[derive(Deserialize)]
pub(super) struct Letter {
    pub(super) partition: String,
    pub(super) sequence: u64,
    pub(super) reason: String,
    pub(super) event: Option<Value>,
    pub(super) error: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct History {
    pub(super) requests: Vec<Asked>,
    pub(super) discarded: Vec<Discarded>,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    pub(super) id: Uuid,
    /// Of the read model; an older query API asks what serves alone, and does not say so.
    pub(super) generation: Option<u32>,
    pub(super) partition: String,
    pub(super) state: String,
    pub(super) action: Option<String>,
    pub(super) by: Option<String>,
    pub(super) message: Option<String>,
    pub(super) resolved: Option<u64>,
    pub(super) left: Option<u64>,
    pub(super) requested_at: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Discarded {
    pub(super) reason: String,
    pub(super) by: Option<String>,
    pub(super) discarded_at: String,
    pub(super) letter: Letter,
}

/// What became of one key in one partition of one generation.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) projection: String,
    pub(super) generation: Option<u32>,
    /// Of the generation that is shown; the others follow it.
    #[serde(skip)]
    pub(super) is_shown: bool,
    pub(super) key: String,
    pub(super) partition: String,
    pub(super) state: String,
    pub(super) resolved: u64,
    pub(super) left: u64,
    pub(super) message: String,
}

/// Longest time to wait for a projector that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Keys that are asked for at once: a partition takes a bounded number of requests.
const AT_ONCE: usize = 200;

// === impl Api ===

impl Api {
    pub(super) fn new(at: &AtArgs) -> anyhow::Result<Self> {
        Ok(Self { client: Client::builder().timeout(Duration::from_secs(20)).build()?, base: at.url.clone() })
    }

    /// Of the dead-letter routes; names are written as a path takes them.
    pub(super) fn url(&self, path: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Url> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => {
                segments.pop_if_empty().extend(["v1", "dead-letters"]).extend(path);
            }
            Err(()) => bail!("{}: is no address of a server", self.base),
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    /// The answer; `None` for what nobody knows.
    pub(super) async fn known(&self, method: Method, url: Url, body: Option<&Value>) -> anyhow::Result<Option<Value>> {
        let mut request = self.client.request(method, url.clone());
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| {
            format!("{} does not answer; is `millrace up` or `millrace serve` running there? (--url)", self.base)
        })?;
        let code = answer.status();
        let body: Value = answer.json().await.with_context(|| format!("{url} gave no JSON"))?;
        // The API's own word for it; another program there has another one.
        if code == StatusCode::NOT_FOUND && body["title"] == "No dead letter" {
            return Ok(None);
        }
        let detail = body["detail"].as_str().or(body["title"].as_str()).unwrap_or("no reason given");
        ensure!(code.is_success(), "{} answers {code}: {detail}", self.base);
        Ok(Some(body))
    }

    /// Every parked key.
    pub(super) async fn keys(&self, projection: Option<&Target>) -> anyhow::Result<Vec<Value>> {
        let mut keys = Vec::new();
        let mut after: Option<String> = None;
        let name = projection.map(Target::to_string);
        loop {
            let mut query = vec![("limit", "1000")];
            query.extend(name.as_deref().map(|name| ("projection", name)));
            query.extend(after.as_deref().map(|after| ("after", after)));
            let body = self.known(Method::GET, self.url(&[], &query)?, None).await?.unwrap_or_default();
            let page: KeyPage = serde_json::from_value(body).context("the query API gave no list")?;
            keys.extend(page.keys);
            after = page.next;
            if after.is_none() {
                return Ok(keys);
            }
        }
    }

    /// Asks for each key where it is parked, and waits for what becomes of it.
    pub(super) async fn ask(
        &self,
        action: &str,
        wanted: &[(String, String)],
        body: &Value,
    ) -> anyhow::Result<Vec<Outcome>> {
        let mut results = Vec::new();
        let mut silent = BTreeSet::new();
        for some in wanted.chunks(AT_ONCE) {
            let mut asked = Vec::new();
            for (projection, key) in some {
                let url = self.url(&[projection, key, action], &[])?;
                let Some(answer) = self.known(Method::POST, url, Some(body)).await? else { continue };
                let requested: Requested = serde_json::from_value(answer).context("the query API gave no request")?;
                asked.push((projection, key, requested.requests));
            }
            for (projection, key, requests) in asked {
                let shown = requests.first().and_then(|request| request.generation);
                let name = projection.split('@').next().unwrap_or(projection);
                for request in requests {
                    // Where nobody acts for one key, nobody does for the next one.
                    let place = (name, request.generation, request.partition.clone());
                    let patience = if silent.contains(&place) { Duration::ZERO } else { PATIENCE };
                    let mut result = self.answer(name, key, &request, patience).await?;
                    result.is_shown = request.generation == shown;
                    if result.state == "waiting" {
                        silent.insert(place);
                    }
                    results.push(result);
                }
            }
        }
        Ok(results)
    }

    /// What became of a request; `waiting` where nobody has acted in time. Looks in the generation that was asked:
    /// another one may serve by now.
    async fn answer(&self, name: &str, key: &str, request: &Asked, patience: Duration) -> anyhow::Result<Outcome> {
        let deadline = Instant::now() + patience;
        let place = request.generation.map_or_else(|| name.to_owned(), |number| format!("{name}@{number}"));
        let outcome = |asked: &Asked| Outcome {
            projection: name.to_owned(),
            generation: request.generation,
            is_shown: false,
            key: key.to_owned(),
            partition: asked.partition.clone(),
            state: asked.state.clone(),
            resolved: asked.resolved.unwrap_or_default(),
            left: asked.left.unwrap_or_default(),
            message: asked.message.clone().unwrap_or_default(),
        };
        if request.state != "waiting" {
            return Ok(outcome(request));
        }
        loop {
            let url = self.url(&[&place, key], &[("limit", "1")])?;
            let found = match self.known(Method::GET, url, None).await? {
                Some(body) => {
                    let letters: Letters = serde_json::from_value(body).context("the query API gave no queue")?;
                    letters.history.requests.into_iter().find(|asked| asked.id == request.id)
                }
                None => None,
            };
            if let Some(asked) = found.filter(|asked| asked.state != "waiting") {
                return Ok(outcome(&asked));
            }
            if Instant::now() >= deadline {
                let message = format!(
                    "asked for, not answered in time; it waits until `millrace project {name}` (or `up`) feeds {place} \
                     and holds {}",
                    request.partition
                );
                return Ok(Outcome { message, ..outcome(request) });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
