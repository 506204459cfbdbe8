//! The generations of a stock store in SQLite: the catalogue beside the rows, in one file. A reader sees both in one
//! transaction, and a projector that slept while its generation was retired finds the mark in the transaction that it
//! writes in.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, params};

use super::SqliteStock;
use crate::error::ReadModelError;
use crate::generations::{Catalogue, Decision, GenerationState, Generations, ReadChoice};
use crate::process_report::ProcessReport;
use crate::read_model::Generation;
use crate::sqlite::{Abort, catalogue, ledger};
use crate::stock::{NAME, SharedStock, StockReadModel};

/// Marks of generations that nobody writes any more; they stay for good.
pub(super) const TABLES: &str = include_str!("generations.sql");

/// All that a generation has, the rows first: whoever looks at its checkpoints sees that it is not gone yet.
const LEFT: [(&str, &str); 8] = [
    ("stock", "generation, sku, warehouse"),
    ("parked_events", "generation, context, partition, sequence, offset"),
    ("discarded_events", "generation, context, partition, sequence, offset"),
    ("dead_letter_requests", "number"),
    ("dead_letter_answers", "number"),
    ("mirrored", "generation, context, partition"),
    ("heads", "generation, context, partition"),
    ("checkpoints", "generation, context, partition"),
];

/// A catalogue that was parsed, and the text that it was.
pub(super) struct Seen {
    text: String,
    catalogue: Catalogue,
}

// === impl SqliteStock ===

impl SqliteStock {
    /// The generation that answers a request.
    pub(super) fn chosen(&self, connection: &Connection, choice: &ReadChoice) -> Result<Generation, Abort> {
        let seen;
        let built;
        let catalogue = match catalogue::text(connection)? {
            None => {
                built = Catalogue::of_built(Some(&ledger::serving(connection, NAME)?));
                &built
            }
            Some(text) => {
                seen = match self.seen.load_full() {
                    Some(seen) if seen.text == text => seen,
                    _ => {
                        let catalogue = stored(connection)?;
                        let seen = Arc::new(Seen { text, catalogue });
                        self.seen.store(Some(Arc::clone(&seen)));
                        seen
                    }
                };
                &seen.catalogue
            }
        };
        let number = catalogue.choose(NAME, choice)?;
        // One that serves and is not described was never built here.
        let found = catalogue.generation(NAME, number);
        Ok(found.ok_or_else(|| ReadModelError::Rebuilding { name: NAME.to_owned() })?)
    }
}

/// The stored catalogue, or the one that a store without has.
fn stored(connection: &Connection) -> Result<Catalogue, Abort> {
    if let Some(catalogue) = catalogue::catalogue(connection)? {
        return Ok(catalogue);
    }
    match ledger::serving(connection, NAME) {
        Ok(built) => Ok(Catalogue::of_built(Some(&built))),
        Err(Abort::Refused(ReadModelError::Rebuilding { .. })) => Ok(Catalogue::of_built(None)),
        Err(error) => Err(error),
    }
}

/// Refuses a generation that was retired.
pub(super) fn check_fed(connection: &Connection, generation: &Generation) -> Result<(), Abort> {
    let mut retired = connection.prepare_cached("SELECT 1 FROM retired_generations WHERE number = ?1")?;
    if retired.exists([generation.number])? {
        return Err(ReadModelError::Retired { name: generation.to_string() }.into());
    }
    Ok(())
}

/// What follows from a catalogue for the marks beside it: which are described, which are retired, which one serves.
fn mark(connection: &Connection, to: &Catalogue) -> Result<(), Abort> {
    for (number, entry) in &to.generations {
        if entry.state != GenerationState::Fed {
            connection
                .prepare_cached("INSERT OR IGNORE INTO retired_generations (number) VALUES (?1)")?
                .execute([number])?;
        }
        connection
            .prepare_cached(
                "INSERT OR IGNORE INTO generations (number, fold_version, partitions, serving) VALUES (?1, ?2, ?3, 0)",
            )?
            .execute(params![number, entry.fold_version, entry.partitions])?;
    }
    connection
        .prepare_cached("UPDATE generations SET serving = 0 WHERE serving AND number <> ?1")?
        .execute([to.serving])?;
    connection.prepare_cached("UPDATE generations SET serving = 1 WHERE number = ?1")?.execute([to.serving])?;
    Ok(())
}

fn remove(connection: &Connection, generation: u32, limit: usize) -> Result<bool, Abort> {
    let removed = stored(connection)?.generations.get(&generation).map(|entry| entry.state);
    if removed.is_none_or(|state| state == GenerationState::Fed) {
        let problem = format!("{NAME}@{generation} is not retired");
        return Err(ReadModelError::Permanent { name: NAME.to_owned(), problem }.into());
    }
    let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
    for (table, key) in LEFT {
        let statement =
            format!("DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE generation = ?1 LIMIT ?2)");
        if connection.prepare_cached(&statement)?.execute(params![generation, limit])? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

#[async_trait]
impl Generations for SqliteStock {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn catalogue(&self) -> Result<Catalogue, ReadModelError> {
        self.file.blocking(|file| file.read(|transaction| stored(transaction))).await
    }

    async fn replace(&self, found: u64, to: &Catalogue, decisions: &[Decision]) -> Result<(), ReadModelError> {
        let (to, decisions) = (to.clone(), decisions.to_vec());
        let work = move |file: &crate::sqlite::SqliteFile| {
            file.write_durably(|transaction| {
                catalogue::replace(transaction, NAME, found, &to, &decisions)?;
                mark(transaction, &to)
            })
        };
        self.file.blocking(work).await
    }

    async fn decisions(&self, after: u64, limit: usize) -> Result<Vec<Decision>, ReadModelError> {
        self.file.blocking(move |file| file.read(|transaction| catalogue::decisions(transaction, after, limit))).await
    }

    async fn published_decisions(&self) -> Result<u64, ReadModelError> {
        self.file.blocking(|file| file.read(|transaction| catalogue::published_decisions(transaction))).await
    }

    async fn note_published(&self, number: u64) -> Result<(), ReadModelError> {
        self.file
            .blocking(move |file| file.write_durably(|transaction| catalogue::note_published(transaction, number)))
            .await
    }

    async fn remove_some(&self, generation: u32, limit: usize) -> Result<bool, ReadModelError> {
        self.file.blocking(move |file| file.write(|transaction| remove(transaction, generation, limit))).await
    }

    async fn note_report(&self, report: &ProcessReport) -> Result<(), ReadModelError> {
        let report = report.clone();
        self.file
            .blocking(move |file| file.write(|transaction| catalogue::note_report(transaction, NAME, &report)))
            .await
    }

    async fn reports(&self, now: i64, max_age_ms: i64) -> Result<Vec<ProcessReport>, ReadModelError> {
        self.file.blocking(move |file| file.read(|transaction| catalogue::reports(transaction, now, max_age_ms))).await
    }
}

impl StockReadModel for SqliteStock {
    fn of_generation(&self, number: u32) -> SharedStock {
        Arc::new(Self { bound: Some(number), prepared: Default::default(), ..self.clone() })
    }
}
