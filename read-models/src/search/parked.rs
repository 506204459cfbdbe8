//! Which SKUs are parked, as documents say it.
//!
//! A hit comes from the index and not from the rows, so what it says of dead letters must be true at the index's own
//! position: it is a part of the document. The first event of a SKU that waits changes the document, and the last one
//! that leaves does; those between do not.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, params};
use schemas::{Sku, partition_of};

use crate::dead_letters::Resolution;
use crate::read_model::{Batch, Generation};
use crate::search::{SearchKey, SearchRow};
use crate::sqlite::Abort;

/// Whether events of a SKU wait, of whichever context. One statement: it is asked for every document.
pub(super) fn is_parked(connection: &Connection, generation: &Generation, sku: &Sku) -> rusqlite::Result<bool> {
    let partition = partition_of(sku.as_str().as_bytes(), generation.partitions);
    connection
        .prepare_cached(
            "SELECT 1 FROM parked_events
             WHERE generation = ?1 AND context IN ('catalogue', 'inventory', 'pricing') AND partition = ?2 AND key = ?3",
        )?
        .exists(params![generation.number, partition, sku.as_str()])
}

/// The SKUs that a batch parks events of or takes some out of, and whether they are parked as it stands.
pub(super) fn touched(
    connection: &Connection,
    generation: &Generation,
    batch: &Batch<SearchKey, SearchRow>,
) -> Result<BTreeMap<Sku, bool>, Abort> {
    let Resolution { redriven, discarded, .. } = &batch.dead_letters;
    let leaving = redriven.iter().chain(discarded.iter().map(|(event, _)| event));
    let keys = batch.parked.iter().map(|event| &event.key).chain(leaving.map(|event| &event.key));
    let mut touched = BTreeMap::new();
    for key in keys.collect::<BTreeSet<_>>() {
        // Records that are no events of ours stand under a key that is no SKU.
        if let Ok(sku) = Sku::new(key.as_str()) {
            let is_parked = is_parked(connection, generation, &sku)?;
            touched.insert(sku, is_parked);
        }
    }
    Ok(touched)
}

/// Those of the [`touched`] that are parked and were not, or the other way round.
pub(super) fn changed<'t>(
    connection: &Connection,
    generation: &Generation,
    touched: &'t BTreeMap<Sku, bool>,
) -> Result<BTreeSet<&'t Sku>, Abort> {
    let mut changed = BTreeSet::new();
    for (sku, was_parked) in touched {
        if is_parked(connection, generation, sku)? != *was_parked {
            changed.insert(sku);
        }
    }
    Ok(changed)
}

/// Hands every SKU that is parked to `each`.
pub(super) fn for_each<E>(
    connection: &Connection,
    generation: u32,
    mut each: impl FnMut(Sku) -> Result<Result<(), E>, Abort>,
) -> Result<Result<(), E>, Abort> {
    let mut select = connection.prepare("SELECT DISTINCT key FROM parked_events WHERE generation = ?1")?;
    let mut found = select.query([generation])?;
    while let Some(row) = found.next()? {
        let Ok(sku) = Sku::new(row.get::<_, String>(0)?) else { continue };
        if let Err(error) = each(sku)? {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}
