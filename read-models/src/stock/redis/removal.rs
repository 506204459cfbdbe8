//! Removes what is left of a retired generation, in steps between which others are served.
//!
//! Its partitions are marked first, so that nothing is added behind the scan: what SCAN did not meet on one way through
//! a server's keys is not there. The marks stay.

use std::sync::PoisonError;

use futures::future::try_join_all;
use redis::cmd;
use schemas::Context;

use super::{Call, RedisStock, keys};
use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::generations::{GenerationEntry, GenerationState};
use crate::stock::NAME;

/// Keys that one SCAN looks at, at most: about a millisecond.
const LOOKED_AT: usize = 2_000;
/// SCANs of one step that find little.
const SCANS: usize = 16;

/// How far a removal is. It begins anew in another process.
#[derive(Clone)]
pub(super) struct Removal {
    /// The partition whose server is scanned.
    partition: u32,
    cursor: String,
}

// === impl RedisStock ===

impl RedisStock {
    /// `false` once nothing is left but the marks.
    pub(super) async fn remove(&self, number: u32, limit: usize) -> Result<bool, ReadModelError> {
        let entry = self.look().await?.and_then(|seen| seen.entry(number));
        let Some(entry) = entry.filter(|entry| entry.state != GenerationState::Fed) else {
            let problem = format!("{NAME}@{number} is not retired");
            return Err(ReadModelError::Permanent { name: NAME.to_owned(), problem });
        };
        let begun = self.removals.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
        let mut removal = match begun {
            Some(removal) => removal,
            None => {
                self.retire(number, &entry).await?;
                Removal { partition: 0, cursor: "0".to_owned() }
            }
        };
        let mut removed = 0;
        for _ in 0..SCANS {
            let Some(found) = self.scan_once(number, &entry, &mut removal, limit).await? else {
                self.removals.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                return Ok(false);
            };
            self.removals.lock().unwrap_or_else(PoisonError::into_inner).insert(number, removal.clone());
            removed += found;
            if removed >= limit {
                break;
            }
        }
        Ok(true)
    }

    /// Removes the keys that one SCAN meets, and says how many; `None` when all of them were looked at.
    async fn scan_once(
        &self,
        number: u32,
        entry: &GenerationEntry,
        removal: &mut Removal,
        limit: usize,
    ) -> Result<Option<usize>, ReadModelError> {
        // One server has all of the partitions: one way through its keys is enough.
        let ways = if self.servers.is_cluster() { entry.partitions } else { 1 };
        if removal.partition >= ways {
            for partition in 0..entry.partitions {
                self.servers.call(Call::new("retire", &[self.state(number, partition)]).arg("1")).await?;
            }
            return Ok(None);
        }
        let marks: Vec<String> = (0..entry.partitions).map(|partition| self.state(number, partition)).collect();
        let mut scan = cmd("SCAN");
        // No character of a prefix is one of a pattern.
        scan.arg(&removal.cursor).arg("MATCH").arg(format!("{}*", keys::generation(&self.prefix, number)));
        scan.arg("COUNT").arg(limit.clamp(1, LOOKED_AT));
        let beside = self.state(number, removal.partition);
        let (next, names): (String, Vec<String>) = self.parse(self.servers.beside(&beside, &scan).await?)?;
        let gone: Vec<&String> = names.iter().filter(|name| !marks.contains(name)).collect();
        // Their slots differ, so each is a command of its own.
        try_join_all(gone.iter().map(|name| async move {
            let mut unlink = cmd("UNLINK");
            unlink.arg(name.as_str());
            self.servers.command(&unlink).await
        }))
        .await?;
        if next == "0" {
            removal.partition += 1;
        }
        removal.cursor = next;
        Ok(Some(gone.len()))
    }

    fn state(&self, number: u32, partition: u32) -> String {
        self.keys(number, PartitionRef { context: Context::Inventory, partition }).state()
    }
}
