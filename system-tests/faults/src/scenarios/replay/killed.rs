//! A replay while the projector, Redis, the broker and the commands themselves are killed: it goes on where it was, the
//! operator gives again what was not done, and at every moment the catalogue is before or after a flip.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::walk::{PATIENCE, Stages, Walk, arguments, generation, is_caught_up, view_of};
use super::{Pace, begin, end};
use crate::oracle::Violation;
use crate::oracle::generations::Notes;
use crate::oracle::views::StockView;
use crate::probe::shows;
use crate::process::until;
use crate::system::System;
use crate::trial::Trial;

/// So many kills of processes there are at least, and so many of commands at most for one step.
const KILLS: usize = 6;
const KILLED_COMMANDS: usize = 3;
/// How long a step may take while everything is killed around it, and all generations until they have caught up. A build
/// yields to a live side that suffers, as it does here most of the time.
const IN_THE_END: Duration = Duration::from_secs(300);

/// Counts of what was done, by those who do it at the same time.
#[derive(Default)]
struct Counts {
    kills: AtomicUsize,
    killed_commands: AtomicUsize,
    looks: AtomicUsize,
}

pub async fn replay(trial: &mut Trial<'_>, model: &'static str) -> anyhow::Result<()> {
    let pace = Pace::of(trial);
    let mut walk = begin(trial, model, Stages::AtOnce)?;
    // While processes come and go, flips have no time of their own.
    walk.notes.release();
    walk.notes.noted().folds.insert(2, 2);
    let (over, counts, seed) = (CancellationToken::new(), Counts::default(), trial.settings.seed);
    let onlooker = onlooker(&walk, over.clone());
    let notes = walk.notes.clone();
    let walked = async {
        let _ends_the_others = over.clone().drop_guard();
        through(&mut walk, &counts, seed).await
    };
    let looked = onlooker.look_on(&counts);
    let killed = kills(trial, &notes, model, seed, &counts, &over);
    let (walked, halves, killed) = tokio::join!(walked, looked, killed);
    trial.violations.extend(halves);
    killed.context("while processes were killed")?;
    walked?;

    // In peace: what is left of the guide.
    let kept = StockView::default();
    walk.refused(&format!("retire {model}@1 --as ann"), "rollback_window").await?;
    walk.retire().await?;
    walk.history(&[("started", 1), ("retired", 1)]).await?;
    trial.violations.extend(walk.unexpected());
    let per_second = pace.per_second(trial);
    end(trial, &walk, kept, per_second, None);
    if let Some(replay) = &mut trial.replay {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        replay.figures.kills = count(&counts.kills) + count(&counts.killed_commands);
        replay.figures.looks = count(&counts.looks);
    }
    Ok(())
}

/// Start to second cutover, and back and forth until enough was killed.
async fn through(walk: &mut Walk, counts: &Counts, seed: u64) -> anyhow::Result<()> {
    let mut steps = Steps { random: ChaCha8Rng::seed_from_u64(seed ^ 0xc0de), counts };
    let (model, verification) = (walk.model, walk.verification());
    let begun = Instant::now();
    steps.insist(walk, &format!("start {model} --as ann --reason new-field --fold 2"), 200, is_there).await?;
    let progress = RefCell::new(Value::Null);
    until("the new generation has caught up", IN_THE_END * walk.slack, async || {
        if let Some(view) = walk.look().await {
            progress.replace(generation(&view, 2)["progress"].clone());
        }
        is_caught_up(&progress.borrow())
    })
    .await
    .with_context(|| format!("it stands at {}", progress.borrow()))?;
    walk.built.seconds = begun.elapsed().as_secs_f64();
    if let Some(view) = walk.look().await {
        walk.built.records = generation(&view, 2)["progress"]["records"].as_u64().unwrap_or(0);
    }
    let mut rounds = 0;
    loop {
        steps.insist(walk, &verification, 2_000, is_clean).await?;
        steps.insist(walk, &format!("approve {model} --as bob --reason report-read"), 200, is_approved).await?;
        steps.insist(walk, &format!("cutover {model} --as ann --reason go"), 200, |view| serves(view, 2)).await?;
        rounds += 1;
        if rounds > 1 && counts.kills.load(Ordering::Relaxed) >= KILLS {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        steps.insist(walk, &format!("rollback {model} --as carl --reason try"), 200, |view| serves(view, 1)).await?;
    }
}

fn is_there(view: &Value) -> bool {
    generation(view, 2).is_object()
}

fn is_clean(view: &Value) -> bool {
    generation(view, 2)["replay"]["parity_clean"] == true
}

fn is_approved(view: &Value) -> bool {
    let by = generation(view, 2)["replay"]["approved_by"].clone();
    by.as_array().is_some_and(|by| by.iter().any(|by| by == "bob"))
}

fn serves(view: &Value, number: u32) -> bool {
    view["serving"] == format!("{}@{number}", view["projection"].as_str().unwrap_or_default())
}

struct Steps<'c> {
    random: ChaCha8Rng,
    counts: &'c Counts,
}

// === impl Steps ===

impl Steps<'_> {
    /// Gives a command until what it is for is done: some are killed after up to `most_ms`, and what came of those is
    /// looked at, not guessed, as an operator would.
    async fn insist(
        &mut self,
        walk: &mut Walk,
        line: &str,
        most_ms: u64,
        is_done: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        let (begun, most) = (Instant::now(), IN_THE_END * walk.slack);
        let (mut killed, mut last) = (0, None);
        loop {
            match walk.look().await {
                Some(view) if is_done(&view) => return Ok(()),
                Some(_) => {
                    let is_killed = killed < KILLED_COMMANDS && self.random.random_bool(0.6);
                    let life = if is_killed { self.random.random_range(0..most_ms) } else { 60_000 };
                    let told = walk.operator.run_for(&arguments(line), Duration::from_millis(life)).await?;
                    if told.code.is_none() {
                        killed += 1;
                        self.counts.killed_commands.fetch_add(1, Ordering::Relaxed);
                    }
                    last = Some(told);
                }
                // The store that knows is down.
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
            ensure!(
                begun.elapsed() < most,
                "not done after {most:?}: {line}: {}",
                last.map_or_else(|| "it could not be given".to_owned(), |told| told.explain())
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// One after the other, in an order of its own each round, until the walk is over.
async fn kills(
    trial: &mut Trial<'_>,
    notes: &Notes,
    model: &str,
    seed: u64,
    counts: &Counts,
    over: &CancellationToken,
) -> anyhow::Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xdead);
    let all: Vec<&str> = if trial.system.is_embedded() { vec!["up"] } else { vec![model, "redis", "kafka"] };
    let mut left: Vec<&str> = Vec::new();
    let mut unfed_since: Option<Duration> = None;
    loop {
        let pause = Duration::from_millis(random.random_range(1_500..5_000));
        if over.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            let open = unfed_since.map(|from| (from, Duration::MAX));
            notes.noted().unfed.extend(open);
            return Ok(());
        }
        if left.is_empty() {
            left.clone_from(&all);
        }
        let victim = left.swap_remove(random.random_range(0..left.len()));
        let down = Duration::from_millis(random.random_range(0..1_500));
        let from = notes.since(Instant::now());
        unfed_since.get_or_insert(from);
        match victim {
            "kafka" => {
                trial.servers.kafka.brokers[0].program.kill()?;
                tokio::time::sleep(down).await;
                trial.servers.kafka.start().await?;
            }
            "redis" => {
                trial.servers.redis.program.kill()?;
                tokio::time::sleep(down).await;
                trial.servers.redis.start().await?;
            }
            role => {
                trial.system.program(role)?.kill()?;
                tokio::time::sleep(down).await;
                trial.system.program(role)?.start()?;
            }
        }
        counts.kills.fetch_add(1, Ordering::Relaxed);
        // Readers need neither projector nor broker.
        if matches!(victim, "redis" | "up") {
            answers_again(&trial.system, PATIENCE * trial.settings.slack).await?;
            notes.noted().down.push((from, notes.since(Instant::now())));
        }
        // A role that gave up because a server was away is started again, as its supervisor would.
        for name in trial.system.names() {
            trial.system.program(&name)?.start()?;
        }
        // Now and then the next one comes before all is well again; always so, nothing ever would be.
        if !random.random_ratio(1, 4) {
            let well = caught_up_again(trial, model, IN_THE_END * trial.settings.slack);
            if let Some(well) = over.run_until_cancelled(well).await {
                well.with_context(|| format!("after a kill of {victim}"))?;
                let until = notes.since(Instant::now());
                notes.noted().unfed.extend(unfed_since.take().map(|from| (from, until)));
            }
        }
    }
}

/// Waits until every generation that is there shows a new command of each partition: lag alone says nothing while the
/// log's end is not seen, and one partition nothing of the others.
async fn caught_up_again(trial: &mut Trial<'_>, model: &str, within: Duration) -> anyhow::Result<()> {
    let position = trial.acknowledged_everywhere().await?;
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let (url, begun) = (trial.system.queries_url(), Instant::now());
    let view = loop {
        if let Ok(answer) = http.get(format!("{url}/v1/replays")).send().await
            && answer.status().is_success()
            // One whose store is away stands in no list.
            && let Some(view) = view_of(&answer.json().await?, model)
        {
            break view;
        }
        ensure!(begun.elapsed() < within, "nobody tells which generations there are");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    for number in [1, 2].into_iter().filter(|number| generation(&view, *number).is_object()) {
        let path = match model {
            "stock" => format!("/v1/stock/{}?generation={number}", crate::commands::sku(0)),
            _ => format!("/v1/search?limit=1&facets=false&generation={number}"),
        };
        shows(&url, &path, &position, within).await?;
    }
    Ok(())
}

/// Waits until reads of both read models are answered, several times over.
async fn answers_again(system: &System, within: Duration) -> anyhow::Result<()> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let url = system.queries_url();
    let paths = [format!("/v1/products/{}", crate::commands::sku(0)), "/v1/search?limit=1".to_owned()];
    let (begun, mut in_a_row) = (Instant::now(), 0);
    while in_a_row < 10 {
        for path in &paths {
            let answer = match http.get(format!("{url}{path}")).send().await {
                Ok(answer) if answer.status().is_success() => answer.json::<Value>().await.unwrap_or_default(),
                _ => Value::Null,
            };
            // A page comes without the part whose store is away.
            let is_whole = answer.is_object() && answer["missing"].as_array().is_none_or(Vec::is_empty);
            in_a_row = if is_whole { in_a_row + 1 } else { 0 };
        }
        ensure!(begun.elapsed() < within, "reads are not answered again within {within:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Looks at the catalogue all the time, by HTTP and by `replay list`.
struct Onlooker {
    model: &'static str,
    url: String,
    operator: crate::operator::Operator,
    over: CancellationToken,
}

fn onlooker(walk: &Walk, over: CancellationToken) -> Onlooker {
    Onlooker { model: walk.model, url: walk.url().to_owned(), operator: walk.operator.clone(), over }
}

// === impl Onlooker ===

impl Onlooker {
    /// What it saw that is neither before nor after a flip, or that went back in time.
    async fn look_on(&self, counts: &Counts) -> Vec<Violation> {
        let mut halves = Vec::new();
        let Ok(http) = reqwest::Client::builder().timeout(Duration::from_secs(5)).build() else { return halves };
        let (mut turn, mut version) = (0_u32, 0);
        let over = self.over.clone();
        let look = async {
            loop {
                turn += 1;
                let seen = if turn.is_multiple_of(10) {
                    let told = self.operator.run_for(&arguments("list"), Duration::from_secs(20)).await;
                    told.ok().filter(|told| told.code == Some(0)).map(|told| told.json)
                } else {
                    self.by_http(&http).await
                };
                if let Some(view) = seen.and_then(|listed| view_of(&listed, self.model)) {
                    counts.looks.fetch_add(1, Ordering::Relaxed);
                    let now = view["version"].as_u64().unwrap_or(0);
                    let problem = half(&view)
                        .or_else(|| (now < version).then(|| format!("version {now} after version {version}")));
                    halves.extend(problem.map(|problem| Violation::new("half a flip", format!("{problem}: {view}"))));
                    version = version.max(now);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        over.run_until_cancelled(look).await;
        halves
    }

    async fn by_http(&self, http: &reqwest::Client) -> Option<Value> {
        let answer = http.get(format!("{}/v1/replays", self.url)).send().await.ok()?;
        if answer.status().is_success() { answer.json().await.ok() } else { None }
    }
}

/// What is not of one moment in a view.
fn half(view: &Value) -> Option<String> {
    let generations = view["generations"].as_array()?;
    let serving: Vec<&Value> = generations.iter().filter(|generation| generation["role"] == "serving").collect();
    let [one] = serving[..] else { return Some(format!("{} generations serve", serving.len())) };
    if one["generation"] != view["serving"] || one["answers"] != "all" {
        return Some(format!("{} answers {}", one["generation"], one["answers"]));
    }
    let replay = &generation(view, 2)["replay"];
    let (is_after, is_cut_over) = (serves(view, 2), replay["cut_over_at"].is_string());
    if !is_after && !serves(view, 1) {
        return Some(format!("{} serves", view["serving"]));
    }
    let first = &generation(view, 1)["role"];
    let is_whole = match is_after {
        true => is_cut_over && replay["stage"] == "all" && first == "previous",
        false => !is_cut_over && replay["stage"].is_null() && first == "serving",
    };
    (!is_whole).then(|| "neither before nor after".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(serving: u32, cut_over: bool) -> Value {
        let role = |number: u32, other: &str| if serving == number { "serving".to_owned() } else { other.to_owned() };
        let answers = |number: u32| if serving == number { "all" } else { "nothing" };
        let replay = json!({
            "stage": cut_over.then_some("all"), "cut_over_at": cut_over.then_some("2026-01-01T00:00:00Z"),
        });
        json!({"projection": "stock", "serving": format!("stock@{serving}"), "generations": [
            {"generation": "stock@1", "role": role(1, "previous"), "answers": answers(1)},
            {"generation": "stock@2", "role": role(2, "beside"), "answers": answers(2), "replay": replay},
        ]})
    }

    #[test]
    fn before_and_after_a_flip_are_whole_and_anything_between_is_not() {
        assert_eq!((half(&view(1, false)), half(&view(2, true))), (None, None));
        assert!(half(&view(1, true)).is_some());
        assert!(half(&view(2, false)).is_some());
        let mut both = view(2, true);
        both["generations"][0]["role"] = json!("serving");
        assert!(half(&both).is_some());
        let mut other = view(2, true);
        other["serving"] = json!("stock@1");
        assert!(half(&other).is_some());
    }
}
