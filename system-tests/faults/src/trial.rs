//! One trial of a fault: fresh stores, a running system, load and readers; the fault; quiet; the oracle.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use schemas::PositionToken;
use serde_json::Value;
use uuid::Uuid;

use crate::clock;
use crate::commands::preload;
use crate::counters::Counters;
use crate::disk::Disk;
use crate::journal::Journal;
use crate::lateness::Lateness;
use crate::load::{Load, LoadPlan, give_all};
use crate::oracle::answers::{self, Readers, Told};
use crate::oracle::fold::Expected;
use crate::oracle::generations::{self, Notes};
use crate::oracle::steady::Asked;
use crate::oracle::table::Table;
use crate::oracle::views::StockView;
use crate::oracle::{Violation, checks, topics, views};
use crate::probe::shows;
use crate::report::{Figures, ReplayFigures, Verdict};
use crate::scenario::{On, Scenario, Store};
use crate::servers::Servers;
use crate::system::System;

/// What holds for every trial.
#[derive(Debug, Clone)]
pub struct Settings {
    pub binary: PathBuf,
    pub seed: u64,
    pub events: u64,
    /// Seconds that the load is spread over.
    pub seconds: u64,
    /// Commands a second while a read model is replayed.
    pub rate: u64,
    /// Reads a second then.
    pub reads: u64,
    pub skus: usize,
    /// How long a storm lasts.
    pub storm: Duration,
    /// By how much a bound is longer on a machine that does other things, too.
    pub slack: u32,
    /// Keep the folder of a failed trial.
    pub keep: bool,
}

/// A system under load, for a scenario to do its worst to.
pub struct Trial<'a> {
    pub servers: &'a mut Servers,
    pub system: System,
    pub load: Load,
    pub readers: Readers,
    pub counters: Counters,
    pub journal: Arc<Journal>,
    pub settings: &'a Settings,
    /// Events that the scenario wrote into the event table itself.
    pub made: HashSet<Uuid>,
    /// Events that the scenario discarded from the dead letters.
    pub discarded: HashSet<Uuid>,
    /// Whether the scenario put records on the event topics that are no events.
    pub foreign: bool,
    pub violations: Vec<Violation>,
    /// A refusal leaves no event: a restored event store may have lost it.
    pub refusals_lost: bool,
    pub disk: Option<Disk>,
    /// What `millrace audit` must come to at last: its exit code, and words of its report. Only where the fault leaves
    /// something on purpose is it not 0.
    pub audit: (i32, &'static str),
    /// Of a scenario that replays a read model.
    pub replay: Option<Replay>,
    plan: LoadPlan,
}

/// What a replay left for the oracle.
pub struct Replay {
    pub notes: Arc<Notes>,
    pub figures: ReplayFigures,
    /// The generation before, as it was when it was given up: each row must be one that the fold held.
    pub kept: StockView,
}

const SETTLE: Duration = Duration::from_secs(90);
/// The promised bound of an orderly end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Runs one scenario; what goes wrong on the way is part of the verdict.
pub async fn run(scenario: &Scenario, servers: &mut Servers, settings: &Settings) -> Verdict {
    let begun = Instant::now();
    let mut verdict = Verdict::of(scenario);
    let folder = match tempfile::Builder::new().prefix("millrace-fault.").tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            verdict.violations.push(Violation::new("harness", error.to_string()));
            return verdict;
        }
    };
    let bound = scenario.bound * settings.slack;
    let tried = tokio::time::timeout(bound, attempt(scenario, servers, settings, folder.path(), &mut verdict));
    match tried.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => verdict.violations.push(Violation::new("harness", format!("{error:#}"))),
        Err(_) => verdict.violations.push(Violation::new("bound", format!("not over after {bound:?}"))),
    }
    verdict.seconds = begun.elapsed().as_secs_f64();
    if !verdict.is_passed() && settings.keep {
        if let Err(error) = servers.copy_logs(folder.path()) {
            eprintln!("the servers' logs were not kept: {error:#}");
        }
        verdict.kept = Some(folder.keep());
    }
    verdict
}

async fn attempt(
    scenario: &Scenario,
    servers: &mut Servers,
    settings: &Settings,
    folder: &Path,
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    if !matches!(scenario.on, On::Files) {
        servers.renew(scenario.needs()).await.context("the servers do not start")?;
    }
    let disk = match scenario.disk {
        Some(of) => Some(small_disk(of, servers, folder, verdict).await?),
        None => None,
    };
    if verdict.not_run.is_some() {
        return Ok(());
    }
    let clock = match scenario.clock {
        true => match clock::variables(folder)? {
            Some(variables) => variables,
            None => {
                verdict.not_run = Some("needs libfaketime (Debian: faketime)".to_owned());
                return Ok(());
            }
        },
        false => Vec::new(),
    };
    let system = match scenario.on {
        On::Files => System::embedded(&settings.binary, folder, &folder.join("data"), &clock).await?,
        On::Servers(reach, _) => System::roles(&settings.binary, folder, servers, reach, &clock).await?,
    };
    let journal = Arc::new(Journal::default());
    let commands = preload(settings.seed, settings.skus);
    give_all(&system.commands_url(), commands, &journal).await?;
    let plan = LoadPlan {
        seed: settings.seed.wrapping_add(u64::from(scenario.number)),
        skus: settings.skus,
        events: settings.events,
        rate: match scenario.replayed {
            Some(_) => (settings.rate / scenario.rate_divisor).max(1),
            None => (settings.events / settings.seconds.max(1)).max(50),
        },
        duplicates: scenario.duplicates,
        kafka: (!system.is_embedded() && scenario.topic_commands).then(|| servers.kafka.address()),
        partitions: Table::read(&system.deployment).await?.partitions,
        urls: vec![system.commands_url()],
    };
    settle(&system, &journal, &HashSet::new(), settings.settle()).await.context("before the fault")?;
    let readers = match scenario.replayed {
        Some(model) => {
            let asked = Asked { model, seed: settings.seed, skus: settings.skus };
            Readers::steady(&system.queries_url(), asked, settings.reads)?
        }
        None => Readers::start(&system.queries_url(), journal.clone(), settings.seed, settings.skus)?,
    };
    let counters = Counters::start(system.names().iter().map(|name| system.url(name)).collect())?;
    let load = Load::start(plan.clone(), journal.clone())?;
    let mut trial = Trial {
        servers,
        system,
        load,
        readers,
        counters,
        journal,
        settings,
        made: HashSet::new(),
        discarded: HashSet::new(),
        foreign: false,
        violations: Vec::new(),
        refusals_lost: false,
        disk: disk.flatten(),
        audit: (0, ""),
        replay: None,
        plan,
    };
    let tried = trial.go_through(scenario, verdict).await;
    verdict.violations.append(&mut trial.violations);
    if tried.is_err() || !verdict.is_passed() {
        for name in trial.system.names() {
            let program = trial.system.program(&name)?;
            verdict.logs.push((name, program.log_end(12)));
        }
    }
    tried
}

/// Puts a store's data on a small disk of its own; `None` when this machine does not let us.
async fn small_disk(
    of: Store,
    servers: &mut Servers,
    folder: &Path,
    verdict: &mut Verdict,
) -> anyhow::Result<Option<Disk>> {
    let place = match of {
        Store::Postgres => servers.postgres.data.clone(),
        Store::Kafka => servers.kafka.brokers[0].data.clone(),
        Store::Redis => servers.redis.data.clone(),
        Store::Search => folder.join("search"),
        Store::Files => folder.join("data"),
    };
    match of {
        Store::Postgres => drop(servers.postgres.program.stop("INT", Duration::from_secs(30)).await?),
        Store::Kafka => drop(servers.kafka.brokers[0].program.stop("TERM", Duration::from_secs(60)).await?),
        Store::Redis => drop(servers.redis.program.stop("TERM", Duration::from_secs(30)).await?),
        Store::Search | Store::Files => std::fs::create_dir_all(&place)?,
    }
    let disk = Disk::under(&place)?;
    if disk.is_none() {
        verdict.not_run = Some("needs root, to mount a small disk".to_owned());
    }
    match of {
        Store::Postgres => {
            servers.postgres.is_spoilt = true;
            servers.postgres.start().await?;
        }
        Store::Kafka => {
            servers.kafka.is_spoilt = true;
            servers.kafka.start().await?;
        }
        Store::Redis => {
            servers.redis.is_spoilt = true;
            servers.redis.start().await?;
        }
        Store::Search | Store::Files => {}
    }
    Ok(disk)
}

// === impl Settings ===

impl Settings {
    /// How long everything may take to come to rest.
    pub fn settle(&self) -> Duration {
        SETTLE * self.slack
    }
}

// === impl Trial ===

impl Trial<'_> {
    async fn go_through(&mut self, scenario: &Scenario, verdict: &mut Verdict) -> anyhow::Result<()> {
        self.load.reached(0.2).await?;
        let lateness = Lateness::start(self.system.commands_url(), self.system.queries_url(), self.journal.clone());
        let injected = (scenario.inject)(self).await.context("while the fault was there");
        let healed = Instant::now();
        let probed = match injected {
            Ok(()) => self.probe().await.context("after the fault"),
            Err(error) => Err(error),
        };
        verdict.figures.recovery_seconds = healed.elapsed().as_secs_f64();
        verdict.figures.latest_seconds = lateness.finish().await.as_secs_f64();
        probed?;
        self.load.finish(self.settings.settle()).await?;
        let (table, expected) = settle(&self.system, &self.journal, &self.discarded, self.settings.settle()).await?;
        verdict.figures.quiet_seconds = healed.elapsed().as_secs_f64();
        let told = self.compare(&table, &expected, &mut verdict.figures).await?;
        verdict.figures.answers = told.answers;
        verdict.figures.unavailable = told.unavailable;
        verdict.figures.longest_outage_seconds = told.longest_outage.as_secs_f64();
        Ok(())
    }

    /// Compares every digest with the oracle.
    async fn compare(&mut self, table: &Table, expected: &Expected, figures: &mut Figures) -> anyhow::Result<Told> {
        figures.events = table.events.iter().filter(|event| event.topic.ends_with(".events")).count() as u64;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build()?;
        let url = self.system.queries_url();
        let mut found = checks::streams(table, &self.made);
        let entries = self.journal.entries().commands.clone();
        figures.commands = entries.len() as u64;
        found.extend(checks::commands(table, &entries, &self.made, self.refusals_lost));
        let mut topics = topics::read(&self.system.deployment).await?;
        for partition in topics.values_mut() {
            partition.foreign_allowed = self.foreign;
        }
        let (wrong, duplicates) = checks::topics(table, expected, &topics);
        found.extend(wrong);
        figures.duplicates_seen = duplicates;
        let serving = views::serving(&self.system.deployment).await?;
        found.extend(checks::stock(expected, &views::stock(&self.system.deployment, serving).await?));
        let skus: Vec<String> = expected.products.keys().cloned().collect();
        found.extend(checks::products(&expected.products, &views::pages(&client, &url, &skus).await?));
        for region in crate::commands::REGIONS {
            let hits = views::hits(&client, &url, region).await?;
            found.extend(checks::products(&checks::shown(expected, region), &hits));
        }
        let answers = self.readers.taken();
        let (wrong, told) = answers::check(expected, &answers, self.settings.skus as u64);
        found.extend(wrong);
        if let Some(replay) = &mut self.replay {
            let (wrong, seen) = generations::check(expected, &answers, &replay.notes.noted());
            found.extend(wrong);
            found.extend(checks::were_held(expected, &replay.kept));
            replay.figures.seen = seen;
            figures.replay = Some(replay.figures.clone());
        }
        figures.duplicates_dropped = self.counters.total("millrace_events_duplicate_total");
        figures.superseded = self.counters.total("millrace_writes_superseded_total");
        if self.system.is_embedded() {
            // Its directory is for one process at a time.
            self.system.program("up")?.stop("TERM", ENDS_WITHIN * self.settings.slack).await?;
        }
        let begun = Instant::now();
        let (code, differs) = self.system.run(&["audit", "--show", "5"])?;
        figures.audit_seconds = begun.elapsed().as_secs_f64();
        let (wanted, words) = self.audit;
        // `6 extra in topic`: one such line for each kind and place.
        let kinds = differs.lines().filter(|line| is_count(line)).count();
        if code != wanted || !differs.contains(words) || kinds > usize::from(wanted == 3) {
            // The end of it: before that come tables of what is level.
            let end: Vec<&str> = differs.lines().rev().take(12).collect();
            let end = end.into_iter().rev().collect::<Vec<_>>().join("; ");
            found.push(Violation::new("audit", format!("ends with exit code {code}, not {wanted} {words:?}: {end}")));
        }
        self.violations.extend(found);
        Ok(told)
    }

    /// What a scenario itself expects.
    pub fn expect(&mut self, holds: bool, what: impl Into<String>) {
        if !holds {
            self.violations.push(Violation::new("fault", what));
        }
    }

    /// Another process of a kind, ready.
    pub async fn add(&mut self, name: &str, kind: &str, flags: &[&str]) -> anyhow::Result<()> {
        self.system.add(name, kind, flags)?;
        self.counters.also(self.system.url(name));
        self.system.ready(name).await
    }

    pub fn plan(&self) -> &LoadPlan {
        &self.plan
    }
}

/// Waits until every command that was given has an outcome, and both read models show all of the event table.
pub async fn settle(
    system: &System,
    journal: &Journal,
    discarded: &HashSet<Uuid>,
    within: Duration,
) -> anyhow::Result<(Table, Expected)> {
    let begun = Instant::now();
    let topic_commands: Vec<Uuid> = {
        let entries = journal.entries();
        entries.commands.iter().filter(|(_, entry)| entry.by_topic).map(|(id, _)| *id).collect()
    };
    loop {
        let mut table = Table::read(&system.deployment).await?;
        table.discarded.clone_from(discarded);
        let waiting = topic_commands.iter().filter(|id| !table.outcomes.contains_key(id)).count();
        if waiting == 0 && Table::count(&system.deployment).await? == table.events.len() as u64 {
            let expected = Expected::of(&table);
            let left = within.saturating_sub(begun.elapsed());
            shown_by_all(system, &expected, left).await?;
            if Table::count(&system.deployment).await? == table.events.len() as u64 {
                return Ok((table, expected));
            }
        }
        if begun.elapsed() > within {
            bail!("the event table does not come to rest within {within:?}: {waiting} topic commands wait");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn shown_by_all(system: &System, expected: &Expected, within: Duration) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(8)).build()?;
    let url = system.queries_url();
    let begun = Instant::now();
    loop {
        let status = match client.get(format!("{url}/v1/status")).send().await {
            Ok(answer) => answer.json::<Value>().await.unwrap_or_default(),
            Err(error) => Value::String(error.to_string()),
        };
        let projections = status["projections"].as_array().map(Vec::as_slice).unwrap_or_default();
        if projections.len() == 2 && projections.iter().all(|projection| has_all(projection, &expected.head)) {
            break;
        }
        if begun.elapsed() > within {
            bail!("the read models do not reach {} within {within:?}: {status}", expected.head);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shows(&url, "/v1/search?limit=1&facets=false", &expected.head, within.saturating_sub(begun.elapsed())).await
}

fn has_all(projection: &Value, head: &PositionToken) -> bool {
    let position: Option<PositionToken> = projection["position"].as_str().and_then(|text| text.parse().ok());
    let Some(position) = position else { return false };
    let is_stock = projection["name"] == "stock";
    projection["state"] == "live"
        && head
            .iter()
            .filter(|part| !is_stock || part.context == schemas::Context::Inventory)
            .all(|part| position.get(part.context, part.partition).is_some_and(|at| at >= part.position))
}

/// Whether a line of an audit's report counts differences: a number, a kind, `in`, a place.
fn is_count(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    matches!(words.as_slice(), [count, _, "in", _] if count.parse::<u64>().is_ok())
}
