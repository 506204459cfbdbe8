//! The steps of docs/replay.md, one command after the other, with what each must come to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::operator::{Operator, Told};
use crate::oracle::Violation;
use crate::oracle::generations::{Flip, Notes, Routing};
use crate::oracle::views::{self, StockView};
use crate::system::{Deployment, System};

/// Which plan a replay is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stages {
    /// None: one stage gives all.
    AtOnce,
    /// The one that is shipped, with times that fit a test.
    Shipped,
}

/// One replay, from its start to the retirement of what served before.
pub struct Walk {
    pub notes: Arc<Notes>,
    pub operator: Operator,
    pub model: &'static str,
    pub built: Built,
    pub slack: u32,
    pub rules: String,
    queries: Option<String>,
    deployment: Deployment,
    plan: Option<String>,
    stages: Vec<(&'static str, Routing)>,
    url: String,
    http: reqwest::Client,
    unexpected: Vec<Violation>,
}

/// How the new generation was built, until it had caught up.
#[derive(Debug, Default, Clone, Copy)]
pub struct Built {
    pub records: u64,
    pub seconds: f64,
}

const RULES: &str = r#"
[[difference]]
projection = "stock"
field = "updated_at"
kind = "new"
reason = "fold 2 tells when a row last changed"

[[difference]]
projection = "search"
field = "revised_at"
kind = "new"
reason = "fold 2 tells when a product last changed"
"#;

/// Words that few products have, see the readers.
const QUERIES: &str = "7 product\n42 product\n99 product\n123 product\n";

/// What is shipped, and what a test has in its place: times, and bounds on latency that a busy machine keeps.
const SHIPPED: &str = include_str!("../../../../../deploy/stages.toml");
const IN_ITS_PLACE: [(&str, &str); 8] = [
    ("min_time = \"60s\"", "min_time = \"3s\""),
    ("min_time = \"5m\"", "min_time = \"3s\""),
    ("min_time = \"10m\"", "min_time = \"3s\""),
    ("min_mirrored = 1000 ", "min_mirrored = 200 "),
    ("{ min_mirrored = 1000,", "{ min_mirrored = 50,"),
    ("{ regions = [\"eu\"] }", "{ regions = [\"north\"] }"),
    ("max_p99_ratio = 1.5", "max_p99_ratio = 50.0"),
    ("max_p99_ms = 100.0", "max_p99_ms = 5000.0"),
];

/// How long each state is looked at by the readers.
const HOLD: Duration = Duration::from_secs(2);
/// How long a step may wait for what it needs.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Lag at which a generation counts as caught up: what a stage asks for.
const CAUGHT_UP: u64 = 1_000;
/// What a stage may still wait for.
const WAITED_FOR: [&str; 4] = ["too_early", "too_few_mirrored", "not_caught_up", "rebuilding"];

// === impl Walk ===

impl Walk {
    pub fn new(system: &System, notes: Arc<Notes>, stages: Stages, slack: u32) -> anyhow::Result<Self> {
        let model = notes.noted().model;
        let rules = system.folder.join("rules.toml");
        std::fs::write(&rules, RULES)?;
        let queries = match model {
            "search" => {
                let file = system.folder.join("queries.txt");
                std::fs::write(&file, QUERIES)?;
                Some(file.display().to_string())
            }
            _ => None,
        };
        let plan = match stages {
            Stages::AtOnce => None,
            Stages::Shipped => Some(shipped_plan(&system.folder)?.display().to_string()),
        };
        let stages = match stages {
            Stages::AtOnce => vec![("all", Routing::All(2))],
            Stages::Shipped => vec![
                ("mirror", Routing::All(1)),
                ("tenth", Routing::Share { serving: 1, candidate: 2 }),
                ("eu", Routing::Region { region: "north".to_owned(), serving: 1, candidate: 2 }),
                ("all", Routing::All(2)),
            ],
        };
        Ok(Self {
            notes,
            operator: system.operator(),
            model,
            built: Built::default(),
            slack,
            rules: rules.display().to_string(),
            queries,
            deployment: system.deployment.clone(),
            plan,
            stages,
            url: system.queries_url(),
            http: reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?,
            unexpected: Vec::new(),
        })
    }

    /// Everything, in the order of the guide; the rows of the generation before as they were when it was given up.
    pub async fn through(&mut self) -> anyhow::Result<StockView> {
        let (model, rules) = (self.model, self.rules.clone());
        self.done(&format!("dry-run {model} --fold 2 --rules {rules}")).await?;
        self.start().await?;
        self.build().await?;
        self.verify().await?;
        self.refused(&format!("cutover {model} --as ann"), "not_approved").await?;
        self.refused(&format!("approve {model} --as ann"), "self_approved").await?;
        self.refused(&format!("approve {model} --as ANN"), "self_approved").await?;
        self.done(&format!("approve {model} --as bob --reason report-read")).await?;
        self.cut_over("cutover").await?;
        self.roll_back().await?;
        // The comparison and the approval before the rollback say nothing any more.
        self.refused(&format!("cutover {model} --as ann"), "no_parity").await?;
        self.verify().await?;
        self.done(&format!("approve {model} --as bob --reason again")).await?;
        self.cut_over("second cutover").await?;

        let kept = match model {
            "stock" => views::stock(&self.deployment, 1).await?,
            _ => StockView::default(),
        };
        self.refused(&format!("retire {model}@1 --as ann"), "rollback_window").await?;
        self.refused(&format!("retire {model}@1 --as ann --early ann"), "not_approved").await?;
        self.retire().await?;
        self.refused(&format!("rollback {model} --as carl"), "no_way_back").await?;
        self.history(&[
            ("started", 1),
            ("verified", 2),
            ("approved", 2),
            ("cut_over", 2),
            ("rolled_back", 1),
            ("retired", 1),
        ])
        .await?;
        Ok(kept)
    }

    pub async fn start(&mut self) -> anyhow::Result<()> {
        let plan = self.plan.as_ref().map(|plan| format!(" --plan {plan}")).unwrap_or_default();
        let line = format!("start {} --as ann --reason new-field --fold 2{plan}", self.model);
        let told = self.done(&line).await?;
        let name = format!("{}@2", self.model);
        ensure!(told.json["done"]["generation"] == *name, "{}", told.explain());
        Ok(())
    }

    /// Follows until it has caught up, as `status --watch` does.
    pub async fn build(&mut self) -> anyhow::Result<()> {
        let (begun, most) = (Instant::now(), PATIENCE * self.slack);
        let name = format!("{}@2", self.model);
        let watch = ["replay", "status", &name, "--watch", "--json"];
        let watched = async {
            let told = self.operator.run_for(&watch, most).await?;
            anyhow::Ok((told, begun.elapsed()))
        };
        let polled = async {
            loop {
                let view = self.look().await;
                let progress = view.as_ref().map(|view| generation(view, 2)["progress"].clone()).unwrap_or_default();
                if is_caught_up(&progress) {
                    let records = progress["records"].as_u64().unwrap_or(0);
                    return anyhow::Ok(Built { records, seconds: begun.elapsed().as_secs_f64() });
                }
                ensure!(begun.elapsed() < most, "{name} has not caught up after {most:?}: {progress}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let (watched, built) = tokio::join!(watched, polled);
        self.built = built?;
        self.notes.noted().folds.insert(2, 2);
        let (told, _) = watched?;
        self.expect(told.code == Some(0), || {
            format!("status --watch does not end although it has caught up: {}", told.explain())
        });
        Ok(())
    }

    /// Every key, and nothing differs but what the rules say.
    pub async fn verify(&mut self) -> anyhow::Result<()> {
        let told = self.done(&self.verification()).await?;
        let report = &told.json["report"];
        ensure!(report["differing"] == 0, "{}", told.explain());
        let excused = report["partitions"].as_array().into_iter().flatten();
        let excused: u64 = excused.filter_map(|partition| partition["excused"].as_u64()).sum();
        self.expect(excused > 0, || format!("no rule was needed: {}", told.explain()));
        Ok(())
    }

    /// `verify …`, with queries where there are some.
    pub fn verification(&self) -> String {
        let queries = self.queries.as_ref().map(|queries| format!(" --queries {queries}")).unwrap_or_default();
        format!("verify {} --as ann --rules {}{queries}", self.model, self.rules)
    }

    /// Each stage of the plan, as soon as its gates let it.
    pub async fn cut_over(&mut self, what: &str) -> anyhow::Result<()> {
        for (stage, routing) in self.stages.clone() {
            let line = format!("cutover {} --as ann --reason go", self.model);
            let (begun, most) = (Instant::now(), PATIENCE * self.slack);
            let told = loop {
                self.notes.release();
                let told = self.give(&line).await?;
                if told.code == Some(0) {
                    break told;
                }
                let missing = told.missing();
                let is_waiting = !missing.is_empty() && missing.iter().all(|code| WAITED_FOR.contains(code));
                ensure!(is_waiting && begun.elapsed() < most, "stage {stage}: {}", told.explain());
                tokio::time::sleep(Duration::from_millis(500)).await;
            };
            if routing == Routing::All(2) {
                self.note_flip(what, 1, &told);
            }
            self.notes.hold(routing);
            tokio::time::sleep(HOLD).await;
        }
        Ok(())
    }

    pub async fn roll_back(&mut self) -> anyhow::Result<()> {
        self.notes.release();
        let told = self.done(&format!("rollback {} --as carl --reason try", self.model)).await?;
        self.note_flip("rollback", 2, &told);
        self.notes.hold(Routing::All(1));
        tokio::time::sleep(HOLD).await;
        Ok(())
    }

    /// Before the rollback window is over, by an approver's leave; and all of its rows go.
    pub async fn retire(&mut self) -> anyhow::Result<()> {
        self.done(&format!("retire {}@1 --as ann --early bob --reason sure", self.model)).await?;
        self.removed(1).await
    }

    pub async fn removed(&mut self, number: u32) -> anyhow::Result<()> {
        let (begun, most) = (Instant::now(), PATIENCE * self.slack);
        loop {
            let role = self.look().await.map(|view| generation(&view, number)["role"].clone()).unwrap_or_default();
            if role == "removed" {
                return Ok(());
            }
            ensure!(begun.elapsed() < most, "{}@{number} is not removed after {most:?}, but {role}", self.model);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Every decision stands in the history and on the topic, once, and nothing was changed afterwards.
    pub async fn history(&mut self, wanted: &[(&str, usize)]) -> anyhow::Result<()> {
        let (begun, most) = (Instant::now(), PATIENCE * self.slack);
        let told = loop {
            let told = self.give(&format!("history {} --against-log", self.model)).await?;
            if told.code == Some(0) {
                break told;
            }
            ensure!(begun.elapsed() < most, "{}", told.explain());
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        let decisions = told.json["read_models"][0]["decisions"].as_array().cloned().unwrap_or_default();
        for (action, times) in wanted {
            let found = decisions.iter().filter(|decision| decision["action"] == *action).count();
            self.expect(found == *times, || {
                format!("{action} stands in the history {found} times, not {times}: {decisions:?}")
            });
        }
        Ok(())
    }

    /// What the query API tells of the generations of the read model; `None` while it cannot.
    pub async fn look(&self) -> Option<Value> {
        let answer = self.http.get(format!("{}/v1/replays", self.url)).send().await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        view_of(&answer.json().await.ok()?, self.model)
    }

    /// Of the query API.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn give(&self, line: &str) -> anyhow::Result<Told> {
        self.operator.run(&arguments(line)).await
    }

    /// A step that must be done.
    pub async fn done(&mut self, line: &str) -> anyhow::Result<Told> {
        let told = self.give(line).await?;
        if told.code != Some(0) {
            bail!("{}", told.explain());
        }
        Ok(told)
    }

    /// A step that must be refused.
    pub async fn refused(&mut self, line: &str, code: &str) -> anyhow::Result<()> {
        let told = self.give(line).await?;
        let is_refused = told.code == Some(3) && told.missing().contains(&code);
        self.expect(is_refused, || format!("not refused with exit code 3 and {code}: {}", told.explain()));
        Ok(())
    }

    pub fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.unexpected.push(Violation::new("replay", what()));
        }
    }

    pub fn unexpected(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.unexpected)
    }

    fn note_flip(&self, what: &str, from: u32, told: &Told) {
        let (asked, answered) = (self.notes.since(told.asked), self.notes.since(told.answered));
        self.notes.noted().flips.push(Flip { what: what.to_owned(), from, asked, answered });
    }
}

/// `millrace replay …`, as JSON.
pub fn arguments(line: &str) -> Vec<&str> {
    let mut arguments = vec!["replay"];
    arguments.extend(line.split(' '));
    arguments.push("--json");
    arguments
}

/// Of one read model, in what lists tell.
pub fn view_of(listed: &Value, model: &str) -> Option<Value> {
    let views = listed["read_models"].as_array()?;
    views.iter().find(|view| view["projection"] == *model).cloned()
}

/// Of one generation; null where there is none.
pub fn generation(view: &Value, number: u32) -> Value {
    let name = format!("{}@{number}", view["projection"].as_str().unwrap_or_default());
    let mut all = view["generations"].as_array().into_iter().flatten();
    all.find(|generation| generation["generation"] == *name).cloned().unwrap_or_default()
}

pub fn is_caught_up(progress: &Value) -> bool {
    let partitions = progress["partitions"].as_u64().unwrap_or(0);
    partitions > 0
        && progress["live"].as_u64() == Some(partitions)
        && progress["lag_events"].as_u64().is_some_and(|lag| lag <= CAUGHT_UP)
}

/// deploy/stages.toml with other times.
pub fn shipped_plan(folder: &std::path::Path) -> anyhow::Result<PathBuf> {
    let mut plan = SHIPPED.to_owned();
    for (shipped, instead) in IN_ITS_PLACE {
        ensure!(plan.contains(shipped), "deploy/stages.toml has no {shipped:?} any more");
        plan = plan.replace(shipped, instead);
    }
    let file = folder.join("stages.toml");
    std::fs::write(&file, plan).context("the plan cannot be written")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_shipped_plan_is_there_with_times_of_a_test() {
        let folder = tempfile::tempdir().unwrap();
        let plan = std::fs::read_to_string(shipped_plan(folder.path()).unwrap()).unwrap();
        assert_eq!(plan.matches("[[stage]]").count(), 4);
        assert_eq!(plan.matches("min_time = \"3s\"").count(), 3);
    }

    #[test]
    fn caught_up_is_live_everywhere_and_hardly_behind() {
        let progress = |live: u64, lag: Value| json!({"partitions": 4, "live": live, "lag_events": lag});
        assert!(is_caught_up(&progress(4, json!(1_000))));
        assert!(!is_caught_up(&progress(3, json!(0))));
        assert!(!is_caught_up(&progress(4, json!(1_001))));
        assert!(!is_caught_up(&progress(4, Value::Null)));
        assert!(!is_caught_up(&Value::Null));
    }
}
