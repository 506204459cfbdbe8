//! Writes a batch: one call, which checks and changes everything or nothing. Stop 9 of an event's path.

use std::collections::HashMap;

use redis::Value;

use super::{Call, RedisStock, codec};
use crate::checkpoint::Checkpoint;
use crate::dead_letters::{KEPT_ANSWERS, Resolution};
use crate::error::ReadModelError;
use crate::read_model::{Batch, Generation};
use crate::stock::{StockKey, StockRow};

/// What became of a batch.
pub(super) enum Applied {
    Written,
    Superseded { current: u64 },
    Moved { found: Checkpoint },
    Retired,
}

// === impl RedisStock ===

impl RedisStock {
    pub(super) async fn write(
        &self,
        generation: &Generation,
        batch: &Batch<StockKey, StockRow>,
    ) -> Result<Applied, ReadModelError> {
        let at = self.keys(generation.number, batch.partition);
        let mut keys = vec![
            at.state(),
            at.parked_order(),
            at.parked_events(),
            at.parked_keys(),
            at.parked_by_key(),
            at.discarded_order(),
            at.discarded_events(),
            at.requests(),
            at.answers(),
        ];
        let before_skus = keys.len();
        let mut indexes = HashMap::new();
        for (key, _) in &batch.changes {
            indexes.entry(&key.sku).or_insert_with(|| {
                keys.push(at.sku(&key.sku));
                // The functions count the SKUs' keys from 1.
                keys.len() - before_skus
            });
        }
        let unwritable = |error: serde_json::Error| ReadModelError::Permanent {
            name: generation.to_string(),
            problem: error.to_string(),
        };
        let mut call = Call::new("apply", &keys)
            .arg(batch.epoch.to_string())
            .arg(&codec::checkpoint_fields(&batch.from))
            .arg(&codec::checkpoint_fields(&batch.to))
            .arg(u8::from(batch.live));
        call = resolving(call, &batch.dead_letters).map_err(unwritable)?;
        call = call.arg(batch.parked.len());
        for event in &batch.parked {
            let written = codec::parked(event).map_err(unwritable)?;
            call = call.arg(codec::place(event.place())).arg(&event.key).arg(written);
        }
        for (key, row) in &batch.changes {
            call = call.arg(indexes[&key.sku]).arg(key.warehouse.as_str()).arg(codec::row(row));
        }
        let answer: Vec<Value> = self.parse(self.servers.call(call).await?)?;
        let mut answer = answer.into_iter();
        let mut next = || answer.next().unwrap_or(Value::Nil);
        let outcome: String = self.parse(next())?;
        match outcome.as_str() {
            "applied" => Ok(Applied::Written),
            "missing" | "unclaimed" => Ok(Applied::Moved { found: Checkpoint::default() }),
            "retired" => Ok(Applied::Retired),
            "superseded" => {
                let current: Option<String> = self.parse(next())?;
                let current = codec::number(&current).ok_or_else(|| self.servers.damaged("an epoch is no number"))?;
                Ok(Applied::Superseded { current })
            }
            "moved" => Ok(Applied::Moved { found: self.checkpoint(batch.partition, next())? }),
            other => Err(self.servers.damaged(format!("a write was answered with {other:?}"))),
        }
    }
}

fn resolving(mut call: Call, resolution: &Resolution) -> serde_json::Result<Call> {
    call = call.arg(resolution.discarded.len());
    for (event, note) in &resolution.discarded {
        call = call.arg(codec::place(event.place)).arg(serde_json::to_vec(note)?);
    }
    call = call.arg(resolution.redriven.len() + resolution.discarded.len());
    let discarded = resolution.discarded.iter().map(|(event, _)| event);
    for event in resolution.redriven.iter().chain(discarded) {
        call = call.arg(codec::place(event.place)).arg(&event.key);
    }
    call = call.arg(resolution.kept.len());
    for event in &resolution.kept {
        call = call.arg(codec::place(event.place())).arg(codec::parked(event)?);
    }
    call = call.arg(resolution.answers.len());
    for answer in &resolution.answers {
        call = call.arg(answer.request.id.to_string()).arg(serde_json::to_vec(answer)?);
    }
    Ok(call.arg(KEPT_ANSWERS))
}
