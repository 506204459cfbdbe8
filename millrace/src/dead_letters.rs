//! `millrace dead-letters`: what waits because it cannot be folded, and what is to be done with it. Asks a query API; the
//! projector that owns the partition acts.

mod args;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use comfy_table::Table;
use read_models::{search, stock};
use replay::Target;
use reqwest::{Client, Method, StatusCode, Url};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

pub use args::DeadLettersArgs;
use args::{AtArgs, DeadLettersAction, DiscardArgs, RedriveArgs, ShowArgs};

use crate::exit::Exit;
use crate::output;

/// Longest time to wait for a projector that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Keys that are asked for at once: a partition takes a bounded number of requests.
const AT_ONCE: usize = 200;
/// Of a text in a table.
const CELL: usize = 60;

/// The dead-letter routes of a query API.
struct Api {
    client: Client,
    base: Url,
}

#[derive(Deserialize)]
struct KeyPage {
    keys: Vec<Value>,
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Key {
    projection: String,
    key: String,
    partition: String,
    events: u64,
    first_reason: String,
    first_sequence: u64,
    parked_at: String,
}

#[derive(Deserialize)]
struct Requested {
    requests: Vec<Asked>,
}

#[derive(Deserialize)]
struct Letters {
    events: Vec<Letter>,
    more: bool,
    history: History,
}

#[derive(Deserialize)]
struct Letter {
    partition: String,
    sequence: u64,
    reason: String,
    event: Option<Value>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct History {
    requests: Vec<Asked>,
    discarded: Vec<Discarded>,
}

#[derive(Deserialize)]
struct Asked {
    id: Uuid,
    /// Of the read model; an older query API asks what serves alone, and does not say so.
    generation: Option<u32>,
    partition: String,
    state: String,
    action: Option<String>,
    by: Option<String>,
    message: Option<String>,
    resolved: Option<u64>,
    left: Option<u64>,
    requested_at: Option<String>,
}

#[derive(Deserialize)]
struct Discarded {
    reason: String,
    by: Option<String>,
    discarded_at: String,
    letter: Letter,
}

/// What became of one key in one partition of one generation.
#[derive(Debug, Serialize)]
struct Outcome {
    projection: String,
    generation: Option<u32>,
    /// Of the generation that is shown; the others follow it.
    #[serde(skip)]
    is_shown: bool,
    key: String,
    partition: String,
    state: String,
    resolved: u64,
    left: u64,
    message: String,
}

pub async fn run(args: DeadLettersArgs) -> anyhow::Result<Exit> {
    match args.action {
        DeadLettersAction::List(args) => list(&args.at).await,
        DeadLettersAction::Show(args) => show(&args).await,
        DeadLettersAction::Redrive(args) => redrive(&args).await,
        DeadLettersAction::Discard(args) => discard(&args).await,
    }
}

async fn list(at: &AtArgs) -> anyhow::Result<Exit> {
    let keys = Api::new(at)?.keys(at.projection.as_ref()).await?;
    if at.json {
        output::json(&json!({ "keys": keys }))?;
        return Ok(Exit::Done);
    }
    if keys.is_empty() {
        output::line("nothing is parked")?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new();
    table.set_header(["projection", "key", "partition", "events", "first sequence", "parked at", "reason"]);
    for key in keys {
        let key: Key = serde_json::from_value(key)?;
        table.add_row([
            key.projection,
            key.key,
            key.partition,
            key.events.to_string(),
            key.first_sequence.to_string(),
            key.parked_at,
            short(&key.first_reason),
        ]);
    }
    output::line(table.to_string())?;
    Ok(Exit::Done)
}

async fn show(args: &ShowArgs) -> anyhow::Result<Exit> {
    let api = Api::new(&args.at)?;
    let limit = args.events.to_string();
    let mut is_known = false;
    for projection in projections(args.at.projection.as_ref()) {
        let url = api.url(&[&projection, &args.key], &[("limit", &limit)])?;
        let Some(body) = api.known(Method::GET, url, None).await? else { continue };
        is_known = true;
        if args.at.json {
            output::json(&body)?;
            continue;
        }
        let letters: Letters = serde_json::from_value(body).context("the query API gave no queue")?;
        output::line(format!("{projection}: {}", args.key))?;
        let mut table = Table::new();
        table.set_header(["partition", "sequence", "reason", "event"]);
        for letter in letters.events {
            let shown = shown(&letter);
            table.add_row([letter.partition, letter.sequence.to_string(), short(&letter.reason), shown]);
        }
        output::line(table.to_string())?;
        if letters.more {
            output::line("more wait behind them (--events)")?;
        }
        for asked in letters.history.requests {
            output::line(format!(
                "{} {} by {}: {} {}",
                asked.requested_at.unwrap_or_default(),
                asked.action.unwrap_or_default(),
                asked.by.as_deref().unwrap_or("somebody"),
                asked.state,
                asked.message.unwrap_or_default()
            ))?;
        }
        for discarded in letters.history.discarded {
            output::line(format!(
                "{} discarded by {}, sequence {}: {}",
                discarded.discarded_at,
                discarded.by.as_deref().unwrap_or("somebody"),
                discarded.letter.sequence,
                discarded.reason
            ))?;
        }
    }
    ensure!(is_known, "nothing is or was parked under {}", args.key);
    Ok(Exit::Done)
}

async fn redrive(args: &RedriveArgs) -> anyhow::Result<Exit> {
    let api = Api::new(&args.at)?;
    let only = args.at.projection.as_ref();
    let wanted: Vec<(String, String)> = match &args.key {
        Some(key) => projections(only).into_iter().map(|projection| (projection, key.clone())).collect(),
        None => {
            let mut keys = BTreeSet::new();
            for key in api.keys(only).await? {
                let key: Key = serde_json::from_value(key)?;
                // Records of nobody have no place in the order; they can only be discarded.
                if !key.key.starts_with('!') {
                    keys.insert((key.projection, key.key));
                }
            }
            keys.into_iter().collect()
        }
    };
    let body = json!({ "reason": args.reason, "by": args.by });
    let results = api.ask("redrive", &wanted, &body).await?;
    if let Some(key) = &args.key {
        ensure!(!results.is_empty(), "nothing is parked under {key}");
    }
    tell(&results, args.at.json)?;
    let mut shown = results.iter().filter(|result| result.is_shown);
    if shown.clone().any(|result| result.state == "waiting") {
        return Ok(Exit::Failed);
    }
    let is_level = shown.all(|result| result.state == "done" && result.left == 0);
    Ok(if is_level { Exit::Done } else { Exit::Refused })
}

async fn discard(args: &DiscardArgs) -> anyhow::Result<Exit> {
    let api = Api::new(&args.at)?;
    let wanted = projections(args.at.projection.as_ref()).into_iter().map(|projection| (projection, args.key.clone()));
    let wanted: Vec<_> = wanted.collect();
    let body = json!({ "reason": args.reason, "by": args.by, "first": args.first });
    let results = api.ask("discard", &wanted, &body).await?;
    ensure!(!results.is_empty(), "nothing is parked under {}", args.key);
    tell(&results, args.at.json)?;
    let mut shown = results.iter().filter(|result| result.is_shown);
    Ok(if shown.all(|result| result.state == "done") { Exit::Done } else { Exit::Failed })
}

fn tell(results: &[Outcome], is_json: bool) -> anyhow::Result<()> {
    if is_json {
        return output::json(&json!({ "results": results }));
    }
    if results.is_empty() {
        output::line("nothing is parked")?;
        return Ok(());
    }
    let mut table = Table::new();
    table.set_header(["projection", "key", "partition", "result", "resolved", "left", "message"]);
    for result in results {
        let projection = match result.generation {
            Some(number) => format!("{}@{number}", result.projection),
            None => result.projection.clone(),
        };
        table.add_row([
            &projection,
            &result.key,
            &result.partition,
            &result.state,
            &result.resolved.to_string(),
            &result.left.to_string(),
            &result.message,
        ]);
    }
    output::line(table.to_string())?;
    Ok(())
}

/// As the routes name them.
fn projections(only: Option<&Target>) -> Vec<String> {
    match only {
        Some(only) => vec![only.to_string()],
        None => [stock::NAME, search::NAME].map(str::to_owned).to_vec(),
    }
}

/// What the event says, or why nobody can tell.
fn shown(letter: &Letter) -> String {
    match (&letter.event, &letter.error) {
        (Some(event), _) => short(&event.to_string()),
        (None, Some(error)) => short(error),
        (None, None) => String::new(),
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(CELL) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

// === impl Api ===

impl Api {
    fn new(at: &AtArgs) -> anyhow::Result<Self> {
        let base = Url::parse(&at.url).ok().filter(|url| url.scheme().starts_with("http"));
        let base = base.with_context(|| {
            format!("--url {}: an address begins with http://, as in http://127.0.0.1:8080", at.url)
        })?;
        Ok(Self { client: Client::builder().timeout(Duration::from_secs(20)).build()?, base })
    }

    /// Of the dead-letter routes; names are written as a path takes them.
    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> anyhow::Result<Url> {
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
    async fn known(&self, method: Method, url: Url, body: Option<&Value>) -> anyhow::Result<Option<Value>> {
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
    async fn keys(&self, projection: Option<&Target>) -> anyhow::Result<Vec<Value>> {
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
    async fn ask(&self, action: &str, wanted: &[(String, String)], body: &Value) -> anyhow::Result<Vec<Outcome>> {
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

    /// What became of a request; `waiting` where nobody has acted in time. Looks in the generation that was asked: another
    /// one may serve by now.
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
