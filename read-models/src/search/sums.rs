//! What the rows add up to, kept with them in the same transactions, so that bytes that went bad are noticed.
//!
//! SQLite checks the shape of its pages, not what is in them; and a write-ahead log that lost its end may leave pages
//! of two moments side by side. So each generation has a sum over its rows and documents, moved by what each write
//! takes away and puts in, and one over its checkpoints. Whatever changed otherwise shows as another sum. Heads are
//! left out, the next look at the log replaces them; so are parked events, which are decoded again before anything
//! rests on them.

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use schemas::Sku;
use sha2::{Digest, Sha256};

use crate::error::ReadModelError;
use crate::search::{NAME, SearchKey, SearchRow, rows};
use crate::sqlite::Abort;

/// The sum over some rows. The order of rows does not matter, and what was added can be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum(u64);

/// The first eight bytes of a SHA-256.
pub(super) fn sum_of(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

// === impl Sum ===

impl Sum {
    pub(super) fn add_row(&mut self, key: &SearchKey, row: &SearchRow) -> Result<(), Abort> {
        self.0 = self.0.wrapping_add(row_sum(key, row)?);
        Ok(())
    }

    pub(super) fn take_row(&mut self, key: &SearchKey, row: &SearchRow) -> Result<(), Abort> {
        self.0 = self.0.wrapping_sub(row_sum(key, row)?);
        Ok(())
    }

    pub(super) fn add_document(&mut self, sku: &Sku, row_version: i64) {
        self.0 = self.0.wrapping_add(document_sum(sku.as_str(), row_version));
    }

    pub(super) fn take_document(&mut self, sku: &Sku, row_version: i64) {
        self.0 = self.0.wrapping_sub(document_sum(sku.as_str(), row_version));
    }
}

/// Notes what a transaction did to the rows, and how it left the checkpoints. Every transaction that writes either ends
/// with it.
pub(super) fn seal(transaction: &Transaction<'_>, generation: u32, change: Sum) -> Result<(), Abort> {
    let before = stored(transaction, generation)?.map_or(0, |(rows, _)| rows);
    transaction
        .prepare_cached(
            "INSERT INTO sums (generation, rows, ledger) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET rows = excluded.rows, ledger = excluded.ledger",
        )?
        .execute(params![
            generation,
            before.wrapping_add(change.0) as i64,
            ledger_sum(transaction, generation)? as i64
        ])?;
    Ok(())
}

/// An error when the rows are not what was written. Reads all of them.
pub(super) fn check(connection: &Connection) -> Result<(), Abort> {
    let shape: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if shape != "ok" {
        return Err(damaged(shape));
    }
    let generations = connection
        .prepare("SELECT number FROM generations UNION SELECT generation FROM sums")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<u32>>>()?;
    for generation in generations {
        let mut sum = Sum::default();
        rows::for_each_row(connection, generation, |key, row| sum.add_row(&key, &row))?;
        rows::for_each_document(connection, generation, |sku, row_version| {
            sum.add_document(&sku, row_version);
            Ok(())
        })?;
        let found = Some((sum.0, ledger_sum(connection, generation)?));
        if stored(connection, generation)? != found {
            return Err(damaged(format!("the rows of generation {generation} do not add up")));
        }
    }
    Ok(())
}

fn stored(connection: &Connection, generation: u32) -> rusqlite::Result<Option<(u64, u64)>> {
    connection
        .prepare_cached("SELECT rows, ledger FROM sums WHERE generation = ?1")?
        .query_row([generation], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))
        .optional()
}

/// A few rows for each partition: they are added up anew each time.
fn ledger_sum(connection: &Connection, generation: u32) -> rusqlite::Result<u64> {
    let mut select = connection.prepare_cached(
        "SELECT format('%s/%d/%d/%d/%d/%d/%d/%d/%d', context, partition, epoch, sequence, next_offset, xid, position,
             event_time, live) FROM checkpoints WHERE generation = ?1
         UNION ALL
         SELECT format('%d/%d/%d', fold_version, partitions, serving) FROM generations WHERE number = ?1
         UNION ALL
         SELECT format('%d', row_version) FROM row_versions WHERE generation = ?1",
    )?;
    let mut lines = select.query([generation])?;
    let mut sum = 0_u64;
    while let Some(line) = lines.next()? {
        sum = sum.wrapping_add(sum_of(line.get_ref(0)?.as_str()?.as_bytes()));
    }
    Ok(sum)
}

fn row_sum(key: &SearchKey, row: &SearchRow) -> Result<u64, Abort> {
    let mut bytes = serde_json::to_vec(row)
        .map_err(|error| ReadModelError::Permanent { name: NAME.to_owned(), problem: error.to_string() })?;
    // Neither ids nor JSON hold a line end.
    let of_key = match key {
        SearchKey::Product(sku) => format!("\np\n{sku}"),
        SearchKey::Price(sku, region) => format!("\n$\n{sku}\n{region}"),
        SearchKey::Stock(sku, warehouse) => format!("\ns\n{sku}\n{warehouse}"),
    };
    bytes.extend_from_slice(of_key.as_bytes());
    Ok(sum_of(&bytes))
}

fn document_sum(sku: &str, row_version: i64) -> u64 {
    sum_of(format!("d\n{sku}\n{row_version}").as_bytes())
}

fn damaged(problem: String) -> Abort {
    ReadModelError::Damaged { name: NAME.to_owned(), problem }.into()
}
