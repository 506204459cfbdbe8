//! Batches: rows that are sent together, and what becomes of each.

use std::sync::Arc;

use schemas::{Outcome, OutcomeKind};

use super::delivery::{Delivered, Delivery};
use super::duplicates::{LastRows, Standing};
use super::product_row::{Prepared, PreparedKind, ProductRow, RowSettings};
use super::report::{Reject, Summary};
use super::rows::SourceFile;

/// Rows of the first batch: it goes alone, to learn where this import begins.
const FIRST_ROWS: usize = 50;
/// Rows of a batch; a row is up to three commands.
const ROWS: usize = 1_000;

/// Bytes of a batch: with the batches read ahead and under way, and each row as commands, answers and a reject as well,
/// an import of the largest rows stays below some 100 MB.
const BYTES: usize = 2 << 20;

/// Rows in the file's order.
#[derive(Debug, Default)]
pub struct Batch {
    rows: Vec<BatchRow>,
    bytes: usize,
}

#[derive(Debug)]
enum BatchRow {
    Goes { row: Box<ProductRow>, line: u64, record: String },
    Rejected(Reject),
    Repeated,
    Overruled,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Settled {
    pub rows: u64,
    pub rejects: Vec<Reject>,
    imported: u64,
    unchanged: u64,
    repeated: u64,
    overruled: u64,
    commands: u64,
}

/// Reads the file into batches until `take` wants no more.
pub fn read_batches(
    source: &SourceFile,
    settings: &RowSettings,
    last_rows: &LastRows,
    mut take: impl FnMut(Batch) -> bool,
) -> anyhow::Result<()> {
    let mut rows = source.rows()?;
    let mut batch = Batch::default();
    let mut size = FIRST_ROWS;
    let mut number = 0;
    while let Some(record) = rows.next_record()? {
        let read = match record.cells {
            Ok(cells) => ProductRow::read(&cells, settings),
            Err(problem) => Err(problem),
        };
        batch.push(match read {
            Err(reason) => BatchRow::Rejected(Reject { line: record.line, reason, record: record.text }),
            Ok(row) => match last_rows.standing(&row.product.sku, number, row.content()) {
                Standing::Last => BatchRow::Goes { row: Box::new(row), line: record.line, record: record.text },
                Standing::Repeated => BatchRow::Repeated,
                Standing::Overruled => BatchRow::Overruled,
            },
        });
        number += 1;
        if batch.rows.len() >= size || batch.bytes >= BYTES {
            if !take(std::mem::take(&mut batch)) {
                return Ok(());
            }
            size = ROWS;
        }
    }
    if !batch.rows.is_empty() {
        take(batch);
    }
    Ok(())
}

/// Sends a batch and waits until each of its rows is settled. Without a delivery nothing is sent.
pub async fn settle(batch: Batch, delivery: Option<Arc<Delivery>>, settings: &RowSettings) -> anyhow::Result<Settled> {
    let mut settled = Settled { rows: batch.rows.len() as u64, ..Settled::default() };
    let Some(delivery) = delivery else {
        for row in batch.rows {
            match row {
                BatchRow::Goes { .. } => settled.imported += 1,
                other => settled.set_aside(other),
            }
        }
        return Ok(settled);
    };

    let prepared: Vec<Vec<Prepared>> = batch
        .rows
        .iter()
        .map(|row| match row {
            BatchRow::Goes { row, .. } => row.commands(&settings.delivery),
            _ => Vec::new(),
        })
        .collect();
    let commands: Vec<Prepared> = prepared.iter().flatten().cloned().collect();
    let first = delivery.deliver(&commands).await?;

    // What is registered with other content is revised, so that this row wins.
    let revisions: Vec<Option<Prepared>> = batch
        .rows
        .iter()
        .zip(&prepared)
        .map(|(row, commands)| match row {
            BatchRow::Goes { row, .. } if is_registered_already(&first, commands) => {
                Some(row.revise(&settings.delivery))
            }
            _ => None,
        })
        .collect();
    let revised: Vec<Prepared> = revisions.iter().flatten().cloned().collect();
    let second = if revised.is_empty() { Delivered::default() } else { delivery.deliver(&revised).await? };
    settled.commands = (commands.len() + revised.len()) as u64;

    for ((row, commands), revision) in batch.rows.into_iter().zip(&prepared).zip(&revisions) {
        let BatchRow::Goes { line, record, .. } = row else {
            settled.set_aside(row);
            continue;
        };
        let from_first = commands.iter().filter(|command| revision.is_none() || command.kind != PreparedKind::Register);
        let answers: Vec<(&Prepared, &Delivered)> = from_first
            .map(|command| (command, &first))
            .chain(revision.iter().map(|command| (command, &second)))
            .collect();
        let refusals: Vec<String> =
            answers.iter().filter_map(|(command, delivered)| refusal(delivered.outcome(command))).collect();
        if !refusals.is_empty() {
            settled.rejects.push(Reject { line, reason: refusals.join("; "), record });
        } else if answers.iter().any(|(command, delivered)| delivered.has_effect(command)) {
            settled.imported += 1;
        } else {
            settled.unchanged += 1;
        }
    }
    Ok(settled)
}

fn is_registered_already(delivered: &Delivered, commands: &[Prepared]) -> bool {
    let register = commands.iter().find(|command| command.kind == PreparedKind::Register);
    let reason = register.and_then(|register| delivered.outcome(register)).and_then(|outcome| outcome.reason.as_ref());
    reason.is_some_and(|reason| reason.code == "product_already_registered")
}

fn refusal(outcome: Option<&Outcome>) -> Option<String> {
    match outcome {
        None => Some("no_outcome: the command was not answered".to_owned()),
        Some(outcome) if outcome.outcome == OutcomeKind::Accepted => None,
        Some(outcome) => Some(match &outcome.reason {
            Some(reason) => format!("{}: {}", reason.code, reason.message),
            None => outcome.outcome.as_str().to_owned(),
        }),
    }
}

// === impl Batch ===

impl Batch {
    fn push(&mut self, row: BatchRow) {
        self.bytes += row.bytes();
        self.rows.push(row);
    }
}

// === impl BatchRow ===

impl BatchRow {
    fn bytes(&self) -> usize {
        match self {
            BatchRow::Goes { row, record, .. } => row.bytes() + record.len(),
            BatchRow::Rejected(reject) => reject.reason.len() + reject.record.len(),
            BatchRow::Repeated | BatchRow::Overruled => 0,
        }
    }
}

// === impl Settled ===

impl Settled {
    fn set_aside(&mut self, row: BatchRow) {
        match row {
            BatchRow::Rejected(reject) => self.rejects.push(reject),
            BatchRow::Repeated => self.repeated += 1,
            BatchRow::Overruled => self.overruled += 1,
            BatchRow::Goes { .. } => {}
        }
    }

    pub fn add_to(&self, summary: &mut Summary) {
        summary.rows_read += self.rows;
        summary.rejected += self.rejects.len() as u64;
        summary.imported += self.imported;
        summary.unchanged += self.unchanged;
        summary.duplicates_repeated += self.repeated;
        summary.duplicates_overruled += self.overruled;
        summary.commands += self.commands;
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use clap::Parser;

    use super::*;
    use crate::import::ProductsArgs;
    use crate::import::field_map::FieldMap;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        products: ProductsArgs,
    }

    /// Rows of each batch of a file.
    fn batches(text: &str) -> Vec<usize> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.csv");
        std::fs::write(&path, text).unwrap();
        let args = Line::try_parse_from(["import", path.to_str().unwrap()]).unwrap().products;
        let source = SourceFile::of(&args);
        let settings = RowSettings {
            map: FieldMap::find(&[], &[], &source.columns().unwrap()).unwrap(),
            currency: "EUR".to_owned(),
            price_decimals: 2,
            region: args.region.clone(),
            warehouse: args.warehouse.clone(),
            delivery: String::new(),
        };
        let mut sizes = Vec::new();
        read_batches(&source, &settings, &LastRows::default(), |batch| {
            assert!(batch.bytes < BYTES + (64 << 10), "{} bytes", batch.bytes);
            sizes.push(batch.rows.len());
            true
        })
        .unwrap();
        sizes
    }

    #[test]
    fn a_batch_ends_by_rows_or_by_bytes() {
        let mut small = "sku,name,other\n".to_owned();
        let mut large = "sku,name,description\n".to_owned();
        let mut unmapped = small.clone();
        for number in 0..1_100 {
            writeln!(small, "S{number},x,y").unwrap();
            writeln!(large, "S{number},x,{}", "y".repeat(9_000)).unwrap();
            writeln!(unmapped, "S{number},x,{}", "y".repeat(9_000)).unwrap();
        }
        assert_eq!(batches(&small), [50, 1_000, 50]);
        let sizes = batches(&large);
        assert!(sizes.len() > 4 && sizes.iter().sum::<usize>() == 1_100, "{sizes:?}");
        // A column that is not imported weighs what a reject would show of it.
        assert!(batches(&unmapped).len() <= 4);
    }
}
