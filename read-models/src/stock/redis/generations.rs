//! The catalogue in Redis: fields of the hash that marks the generations, so that a reader's one look shows pointer and
//! stages as one. A change with its decisions is one function call.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use redis::{Value, cmd};
use resilience::{Guard, guard};
use schemas::Context;

use super::reader::rebuilding;
use super::{Call, RedisStock, codec, keys};
use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::generations::{Catalogue, Decision, GenerationEntry, GenerationState, Generations, ReadChoice};
use crate::process_report::ProcessReport;
use crate::read_model::Generation;
use crate::stock::{NAME, SharedStock, StockReadModel};

/// A process that has not reported for so long, in milliseconds, is gone.
const REPORTS_KEPT_MS: i64 = 60 * 60 * 1_000;

/// What the store marks, and the catalogue that it says.
pub(super) struct Seen {
    marks: HashMap<String, String>,
    catalogue: Catalogue,
}

// === impl Seen ===

impl Seen {
    pub(super) fn choose(&self, choice: &ReadChoice) -> Result<Arc<Generation>, ReadModelError> {
        self.generation(self.catalogue.choose(NAME, choice)?)
    }

    fn serving(&self) -> Result<Arc<Generation>, ReadModelError> {
        self.generation(self.catalogue.serving)
    }

    pub(super) fn entry(&self, number: u32) -> Option<GenerationEntry> {
        self.catalogue.generations.get(&number).cloned()
    }

    /// Also one that is marked and not in the catalogue: it is built without having been planned.
    fn generation(&self, number: u32) -> Result<Arc<Generation>, ReadModelError> {
        let marked = || codec::generation(number, self.marks.get(&number.to_string())?);
        let found = self.catalogue.generation(NAME, number).or_else(marked);
        found.map(Arc::new).ok_or_else(|| {
            let there = self.catalogue.fed().map(|number| format!("{NAME}@{number}")).collect::<Vec<_>>().join(", ");
            ReadModelError::UnknownGeneration { name: NAME.to_owned(), wanted: number, there }
        })
    }
}

// === impl RedisStock ===

impl RedisStock {
    /// What the store says of its generations; `None` where it has none, or lost them all. What is as it was at the
    /// last look is not parsed again.
    pub(super) async fn look(&self) -> Result<Option<Arc<Seen>>, ReadModelError> {
        let mut marks = cmd("HGETALL");
        marks.arg(keys::generations(&self.prefix));
        let marks: HashMap<String, String> = self.parse(self.servers.command(&marks).await?)?;
        let last = self.seen.load_full();
        if last.as_ref().is_some_and(|seen| seen.marks == marks) {
            return Ok(last);
        }
        let Some(serving) = marks.get("serving") else {
            // What it was before it lost everything answers only where the guard against that is off.
            return Ok(self.before_the_loss(last).filter(|_| !guard::holds(Guard::GenerationMarker)));
        };
        let catalogue = match marks.get("catalogue") {
            Some(text) => {
                serde_json::from_str(text).map_err(|error| self.servers.damaged(format!("the catalogue: {error}")))?
            }
            None => {
                let built = marks.get(serving).and_then(|built| codec::generation(serving.parse().ok()?, built));
                let built = built
                    .ok_or_else(|| self.servers.damaged(format!("generation {serving} is served and not described")))?;
                Catalogue::of_built(Some(&built))
            }
        };
        let seen = Arc::new(Seen { marks, catalogue });
        self.seen.store(Some(Arc::clone(&seen)));
        Ok(Some(seen))
    }

    fn before_the_loss(&self, last: Option<Arc<Seen>>) -> Option<Arc<Seen>> {
        let prepared = || {
            let catalogue = Catalogue::of_built(Some(self.prepared.load_full()?.as_ref()));
            Some(Arc::new(Seen { marks: HashMap::new(), catalogue }))
        };
        last.or_else(prepared)
    }

    /// What this handle writes or is bound to, or else what serves.
    pub(super) async fn own_or_serving(&self) -> Result<Arc<Generation>, ReadModelError> {
        if let Some(prepared) = self.prepared.load_full() {
            return Ok(prepared);
        }
        let seen = self.look().await?.ok_or_else(rebuilding)?;
        match self.bound {
            Some(number) => seen.generation(number),
            None => seen.serving(),
        }
    }

    /// Marks the partitions of a generation, beside their rows: nothing is written to them from now on.
    pub(super) async fn retire(&self, number: u32, entry: &GenerationEntry) -> Result<(), ReadModelError> {
        for partition in 0..entry.partitions {
            let at = self.keys(number, PartitionRef { context: Context::Inventory, partition });
            self.servers.call(Call::new("retire", &[at.state()]).arg("0")).await?;
        }
        Ok(())
    }

    fn written<T: serde::Serialize>(&self, value: &T) -> Result<String, ReadModelError> {
        serde_json::to_string(value)
            .map_err(|error| ReadModelError::Permanent { name: NAME.to_owned(), problem: error.to_string() })
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, text: &str, what: &str) -> Result<T, ReadModelError> {
        serde_json::from_str(text).map_err(|error| self.servers.damaged(format!("{what}: {error}")))
    }
}

#[async_trait]
impl Generations for RedisStock {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn catalogue(&self) -> Result<Catalogue, ReadModelError> {
        Ok(self.look().await?.map_or_else(|| Catalogue::of_built(None), |seen| seen.catalogue.clone()))
    }

    async fn replace(&self, expected: u64, to: &Catalogue, decisions: &[Decision]) -> Result<(), ReadModelError> {
        let prefix = &self.prefix;
        let mut call =
            Call::new("change", &[keys::generations(prefix), keys::decisions(prefix), keys::published(prefix)])
                .arg(to.id.to_string())
                .arg(to.version.to_string())
                .arg(expected.to_string())
                .arg(self.written(to)?)
                .arg(to.serving)
                .arg(to.generations.len());
        for (number, entry) in &to.generations {
            let is_fed = entry.state == GenerationState::Fed;
            let built = to.generation(NAME, *number).map(|generation| codec::built(&generation));
            let mark = built.filter(|_| is_fed).unwrap_or_else(|| codec::RETIRED.to_owned());
            call = call.arg(*number).arg(mark).arg(u8::from(is_fed));
        }
        for decision in decisions {
            call = call.arg(self.written(decision)?);
        }
        let (outcome, found): (String, Option<String>) = {
            let answer: Vec<Value> = self.parse(self.servers.call(call).await?)?;
            let mut answer = answer.into_iter();
            let mut next = || answer.next().unwrap_or(Value::Nil);
            (self.parse(next())?, self.parse(next())?)
        };
        if outcome != "changed" {
            let found = codec::number(&found)
                .ok_or_else(|| self.servers.damaged(format!("version of the catalogue: {found:?}")))?;
            return Err(ReadModelError::CatalogueMoved { name: NAME.to_owned(), expected, found });
        }
        for (number, entry) in to.generations.iter().filter(|(_, entry)| entry.state == GenerationState::Retired) {
            // Its removal begins with the same.
            if let Err(error) = self.retire(*number, entry).await {
                tracing::warn!(%error, generation = number, "partitions not marked as retired yet");
            }
        }
        Ok(())
    }

    async fn decisions(&self, after: u64, limit: usize) -> Result<Vec<Decision>, ReadModelError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        // The first decision is the first of the list.
        let last = after.saturating_add(limit as u64 - 1).min(i64::MAX as u64);
        let mut range = cmd("LRANGE");
        range.arg(keys::decisions(&self.prefix)).arg(after.min(i64::MAX as u64)).arg(last);
        let found: Vec<String> = self.parse(self.servers.command(&range).await?)?;
        found.iter().map(|text| self.read_json(text, "a decision")).collect()
    }

    async fn published_decisions(&self) -> Result<u64, ReadModelError> {
        let mut noted = cmd("GET");
        noted.arg(keys::published(&self.prefix));
        let noted: Option<u64> = self.parse(self.servers.command(&noted).await?)?;
        Ok(noted.unwrap_or(0))
    }

    async fn note_published(&self, number: u64) -> Result<(), ReadModelError> {
        let call = Call::new("note_published", &[keys::published(&self.prefix)]).arg(number.to_string());
        self.servers.call(call).await.map(|_| ())
    }

    async fn remove_some(&self, generation: u32, limit: usize) -> Result<bool, ReadModelError> {
        self.remove(generation, limit).await
    }

    async fn note_report(&self, report: &ProcessReport) -> Result<(), ReadModelError> {
        let mut note = cmd("HSET");
        note.arg(keys::reads(&self.prefix)).arg(&report.process).arg(self.written(report)?);
        self.servers.command(&note).await?;
        let mut gone = self.kept_reports().await?;
        gone.retain(|other| other.at < report.at.saturating_sub(REPORTS_KEPT_MS));
        if !gone.is_empty() {
            let mut forget = cmd("HDEL");
            forget.arg(keys::reads(&self.prefix));
            forget.arg(gone.iter().map(|report| report.process.as_str()).collect::<Vec<_>>());
            self.servers.command(&forget).await?;
        }
        Ok(())
    }

    async fn reports(&self, now: i64, max_age_ms: i64) -> Result<Vec<ProcessReport>, ReadModelError> {
        let mut reports = self.kept_reports().await?;
        // Each process on its own machine has its own clock.
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.retain_of_late(&mut reports, now, max_age_ms);
        Ok(reports)
    }
}

// === impl RedisStock ===

impl RedisStock {
    async fn kept_reports(&self) -> Result<Vec<ProcessReport>, ReadModelError> {
        let mut all = cmd("HVALS");
        all.arg(keys::reads(&self.prefix));
        let found: Vec<String> = self.parse(self.servers.command(&all).await?)?;
        let found = found.iter().map(|text| self.read_json(text, "a report of reads"));
        let mut found = found.collect::<Result<Vec<ProcessReport>, _>>()?;
        found.sort_by(|left, right| left.process.cmp(&right.process));
        Ok(found)
    }
}

impl StockReadModel for RedisStock {
    fn of_generation(&self, number: u32) -> SharedStock {
        Arc::new(Self { bound: Some(number), prepared: Arc::default(), ..self.clone() })
    }
}
