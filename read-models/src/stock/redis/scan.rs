//! Scans of a partition's rows, for checks.
//!
//! There is no index of a partition's SKUs, on purpose: what keeps an index beside the rows loses or adds to both
//! alike, and a check must meet what is there. SCAN looks at every key of the partition's server, so one scan costs as
//! much as that server has keys: some seconds for a million, in steps of about a millisecond between which others are
//! served.

use std::collections::BTreeSet;

use futures::future::try_join_all;
use redis::cmd;
use schemas::{Sku, WarehouseId};

use super::{RedisStock, codec};
use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::read_model::{Generation, RowPage};
use crate::stock::{StockKey, StockRow};

// === impl RedisStock ===

impl RedisStock {
    pub(super) async fn scan(
        &self,
        generation: &Generation,
        partition: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<StockKey, StockRow>, ReadModelError> {
        let at = self.keys(generation.number, partition);
        let begin = at.skus();
        let mut scan = cmd("SCAN");
        // No character of a prefix or a context is one of a pattern.
        scan.arg(from.unwrap_or("0")).arg("MATCH").arg(format!("{begin}*")).arg("COUNT").arg(limit.max(1));
        let (next, names): (String, BTreeSet<String>) = self.parse(self.servers.beside(&at.state(), &scan).await?)?;
        let hashes = names.iter().map(|name| async move {
            let mut all = cmd("HGETALL");
            all.arg(name);
            self.servers.command(&all).await
        });
        let hashes = try_join_all(hashes).await?;
        let mut page = RowPage { rows: Vec::new(), foreign: Vec::new(), next: (next != "0").then_some(next) };
        for (name, hash) in names.iter().zip(hashes) {
            let sku = name.strip_prefix(&begin).unwrap_or(name);
            let fields: Vec<String> = self.parse(hash)?;
            for field in fields.chunks_exact(2) {
                match (Sku::new(sku), WarehouseId::new(field[0].as_str())) {
                    (Ok(sku), Ok(warehouse)) => {
                        let row = codec::row_of(&field[1]).ok_or_else(|| format!("{:?} is no row", field[1]));
                        page.rows.push((StockKey { sku, warehouse }, row));
                    }
                    _ => page.foreign.push(format!("{sku}/{}", field[0])),
                }
            }
        }
        Ok(page)
    }
}
