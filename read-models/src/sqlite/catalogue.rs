//! The catalogue of a read model, with its decisions and read reports, in a SQLite file: of the rows, or one of its
//! own.
//!
//! A catalogue and the decisions that changed it are one transaction, which the caller makes durable
//! ([`SqliteFile::write_durably`](crate::sqlite::SqliteFile::write_durably)): a decision that was published must not be
//! taken back by a power cut.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::error::ReadModelError;
use crate::generations::{Catalogue, Decision};
use crate::process_report::{ProcessReport, is_of_late};
use crate::sqlite::Abort;
use crate::sqlite::ledger::{read, stored};

pub(crate) const TABLES: &str = include_str!("catalogue.sql");

/// A process that has not reported for so long, in milliseconds, is gone.
const REPORTS_KEPT_MS: i64 = 60 * 60 * 1_000;

/// `None` while none was ever stored.
pub(crate) fn catalogue(connection: &Connection) -> Result<Option<Catalogue>, Abort> {
    let found = connection
        .prepare_cached("SELECT document FROM catalogue")?
        .query_row([], |row| from_json(row, 0))
        .optional()?;
    Ok(found)
}

/// As it is stored, so that who has read it before need not parse it again.
pub(crate) fn text(connection: &Connection) -> rusqlite::Result<Option<String>> {
    connection.prepare_cached("SELECT document FROM catalogue")?.query_row([], |row| row.get(0)).optional()
}

/// Id and version of the one that is stored.
pub(crate) fn version(connection: &Connection) -> Result<Option<(Uuid, u64)>, Abort> {
    let found = connection
        .prepare_cached("SELECT id, version FROM catalogue")?
        .query_row([], |row| Ok((id(row)?, read(row.get(1)?))))
        .optional()?;
    Ok(found)
}

/// Writes the catalogue and its decisions; refused with [`ReadModelError::CatalogueMoved`] unless version `expected` of
/// it is stored, 0 for none. `name` is the read model's.
pub(crate) fn replace(
    connection: &Connection,
    name: &str,
    expected: u64,
    to: &Catalogue,
    decisions: &[Decision],
) -> Result<(), Abort> {
    let found = version(connection)?;
    // One of the same version and another id was begun after the store was wiped.
    let follows = match found {
        Some((id, version)) => id == to.id && version == expected,
        None => expected == 0,
    };
    if !follows {
        let found = found.map_or(0, |(_, version)| version);
        return Err(ReadModelError::CatalogueMoved { name: name.to_owned(), expected, found }.into());
    }
    connection
        .prepare_cached(
            "INSERT INTO catalogue (the_only, id, version, document) VALUES (1, ?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET id = excluded.id, version = excluded.version, document = excluded.document",
        )?
        .execute(params![to.id.to_string(), stored(to.version), json(name, to)?])?;
    let mut insert = connection.prepare_cached("INSERT INTO decisions (number, decision) VALUES (?1, ?2)")?;
    for decision in decisions {
        insert.execute(params![stored(decision.number), json(name, decision)?])?;
    }
    Ok(())
}

/// In order, from the one after `after`.
pub(crate) fn decisions(connection: &Connection, after: u64, limit: usize) -> Result<Vec<Decision>, Abort> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    Ok(connection
        .prepare_cached("SELECT decision FROM decisions WHERE number > ?1 ORDER BY number LIMIT ?2")?
        .query_map(params![stored(after), limit], |row| from_json(row, 0))?
        .collect::<rusqlite::Result<_>>()?)
}

/// 0 before the first.
pub(crate) fn published_decisions(connection: &Connection) -> Result<u64, Abort> {
    let number = connection
        .prepare_cached("SELECT number FROM published_decisions")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(number.map_or(0, read))
}

/// Only ever grows.
pub(crate) fn note_published(connection: &Connection, number: u64) -> Result<(), Abort> {
    connection
        .prepare_cached(
            "INSERT INTO published_decisions (the_only, number) VALUES (1, ?1)
             ON CONFLICT DO UPDATE SET number = max(number, excluded.number)",
        )?
        .execute([stored(number)])?;
    Ok(())
}

/// Replaces the report of a process, and forgets those of processes that are gone.
pub(crate) fn note_report(connection: &Connection, name: &str, report: &ProcessReport) -> Result<(), Abort> {
    connection
        .prepare_cached(
            "INSERT INTO read_reports (process, at, report) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET at = excluded.at, report = excluded.report",
        )?
        .execute(params![report.process, report.at, json(name, report)?])?;
    connection
        .prepare_cached("DELETE FROM read_reports WHERE at < ?1")?
        .execute([report.at.saturating_sub(REPORTS_KEPT_MS)])?;
    Ok(())
}

/// Those of the last `max_age_ms`.
pub(crate) fn reports(connection: &Connection, now: i64, max_age_ms: i64) -> Result<Vec<ProcessReport>, Abort> {
    let mut found = connection
        .prepare_cached("SELECT report FROM read_reports ORDER BY process")?
        .query_map([], |row| from_json(row, 0))?
        .collect::<rusqlite::Result<Vec<ProcessReport>>>()?;
    found.retain(|report| is_of_late(report.at, now, max_age_ms));
    Ok(found)
}

fn json(name: &str, value: &impl Serialize) -> Result<String, ReadModelError> {
    serde_json::to_string(value)
        .map_err(|error| ReadModelError::Permanent { name: name.to_owned(), problem: error.to_string() })
}

fn id(row: &Row<'_>) -> rusqlite::Result<Uuid> {
    row.get_ref(0)?.as_str()?.parse().map_err(|error: uuid::Error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}

fn from_json<A: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<A> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

#[cfg(test)]
mod tests;
