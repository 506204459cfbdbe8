//! Reads for the query API: rows and position of a partition in one call, partitions side by side.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{join, try_join_all};
use redis::{Value, cmd};
use schemas::{Context, PositionToken, Sku, StorePosition, WarehouseId, partition_of};

use super::{Call, RedisStock, codec};
use crate::checkpoint::PartitionRef;
use crate::error::ReadModelError;
use crate::generations::ReadChoice;
use crate::read_model::Generation;
use crate::stock::{CONTEXTS, NAME, StockAnswer, StockRead, StockReader, StockRow};

/// A waiting read looks again after 1 ms, 2, 4, 8, and from then on every 10.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(10);

/// A read takes a millisecond or two. Who waits for one is not kept for the time that a write may take, and a request
/// that is given up from outside would tell the breaker nothing.
const READ: Duration = Duration::from_secs(1);

/// The functions' answer for one SKU: warehouses and rows in turn, and whether it is parked.
type SkuRows = (Vec<String>, bool);

// === impl RedisStock ===

impl RedisStock {
    /// A read that somebody waits for: bounded, and refused at once while servers do not answer.
    pub(super) async fn read<T>(
        &self,
        read: impl Future<Output = Result<T, ReadModelError>>,
    ) -> Result<T, ReadModelError> {
        let bounded = async {
            match tokio::time::timeout(READ, read).await {
                Ok(answer) => answer,
                Err(_) => Err(self.servers.late(READ)),
            }
        };
        let is_away = |error: &ReadModelError| matches!(error, ReadModelError::Unavailable { .. });
        match self.reads.call(is_away, bounded).await {
            Ok(answer) => answer,
            Err(open) => Err(ReadModelError::BreakerOpen { name: NAME.to_owned(), open }),
        }
    }

    /// Answers `read` from the generation that the catalogue chooses. What it chose last is read without waiting for
    /// the catalogue; the answer is dropped when that has moved.
    async fn read_chosen<T, F>(
        &self,
        choice: &ReadChoice,
        read: impl Fn(Arc<Generation>) -> F,
    ) -> Result<T, ReadModelError>
    where
        F: Future<Output = Result<T, ReadModelError>>,
    {
        let guess = self.seen.load_full().and_then(|seen| seen.choose(choice).ok());
        let Some(guess) = guess else {
            return read(self.look().await?.ok_or_else(rebuilding)?.choose(choice)?).await;
        };
        let (seen, answer) = join(self.look(), read(Arc::clone(&guess))).await;
        let chosen = seen?.ok_or_else(rebuilding)?.choose(choice)?;
        if chosen == guess {
            return answer;
        }
        read(chosen).await
    }

    pub(super) fn row(&self, text: &str) -> Result<StockRow, ReadModelError> {
        codec::row_of(text).ok_or_else(|| self.servers.damaged(format!("row {text:?}")))
    }

    async fn answers(&self, generation: &Generation, skus: &[Sku]) -> Result<Vec<StockAnswer>, ReadModelError> {
        let mut by_partition: HashMap<u32, Vec<usize>> = HashMap::new();
        for (index, sku) in skus.iter().enumerate() {
            by_partition.entry(partition_of(sku.as_str().as_bytes(), generation.partitions)).or_default().push(index);
        }
        let reads = by_partition.into_iter().map(|(number, indexes)| {
            let partition = PartitionRef { context: Context::Inventory, partition: number };
            async move {
                let wanted: Vec<&Sku> = indexes.iter().map(|&index| &skus[index]).collect();
                let found = self.of_partition(generation, partition, &wanted).await?;
                Ok::<_, ReadModelError>(indexes.into_iter().zip(found).collect::<Vec<_>>())
            }
        });
        let mut found: Vec<(usize, StockAnswer)> = try_join_all(reads).await?.into_iter().flatten().collect();
        found.sort_unstable_by_key(|(index, _)| *index);
        Ok(found.into_iter().map(|(_, answer)| answer).collect())
    }

    async fn of_partition(
        &self,
        generation: &Generation,
        partition: PartitionRef,
        skus: &[&Sku],
    ) -> Result<Vec<StockAnswer>, ReadModelError> {
        let at = self.keys(generation.number, partition);
        let mut names = vec![at.state(), at.parked_keys()];
        names.extend(skus.iter().map(|sku| at.sku(sku)));
        let skus_asked: Vec<&str> = skus.iter().map(|sku| sku.as_str()).collect();
        let call = Call::reading("read", &names).arg(codec::built(generation)).arg(skus_asked);
        let answer: Vec<Value> = self.parse(self.servers.call(call).await?)?;
        let mut answer = answer.into_iter();
        let mut next = || answer.next().unwrap_or(Value::Nil);
        let outcome: String = self.parse(next())?;
        if outcome != "live" {
            return Err(rebuilding());
        }
        let (xid, position): (Option<String>, Option<String>) = (self.parse(next())?, self.parse(next())?);
        let position = position_of(&xid, &position)
            .ok_or_else(|| self.servers.damaged(format!("position of {partition}: {xid:?} {position:?}")))?;
        let rows: Vec<SkuRows> = self.parse(next())?;
        if rows.len() != skus.len() {
            return Err(self.servers.damaged(format!("{} answers for {} SKUs", rows.len(), skus.len())));
        }
        skus.iter()
            .zip(rows)
            .map(|(&sku, (fields, parked))| {
                let warehouses = self.warehouses(&fields)?;
                Ok(StockAnswer { sku: sku.clone(), warehouses, position: partition.token(position), parked })
            })
            .collect()
    }

    fn warehouses(&self, fields: &[String]) -> Result<Vec<(WarehouseId, StockRow)>, ReadModelError> {
        let mut warehouses = fields
            .chunks_exact(2)
            .map(|pair| {
                let warehouse =
                    WarehouseId::new(pair[0].clone()).map_err(|error| self.servers.damaged(error.to_string()))?;
                Ok((warehouse, self.row(&pair[1])?))
            })
            .collect::<Result<Vec<_>, ReadModelError>>()?;
        warehouses.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        Ok(warehouses)
    }

    /// Whether the partitions that `min` names, of those that are read here, have come that far.
    async fn is_reached(&self, generation: &Generation, min: &PositionToken) -> Result<bool, ReadModelError> {
        let wanted = min.iter().filter(|wanted| CONTEXTS.contains(&wanted.context));
        let looks = wanted.map(|wanted| async move {
            let partition = PartitionRef { context: wanted.context, partition: wanted.partition };
            let mut held = cmd("HMGET");
            held.arg(self.keys(generation.number, partition).state()).arg("xid").arg("position");
            let (xid, position): (Option<String>, Option<String>) = self.parse(self.servers.command(&held).await?)?;
            Ok::<_, ReadModelError>(position_of(&xid, &position).is_some_and(|held| held >= wanted.position))
        });
        Ok(try_join_all(looks).await?.into_iter().all(|is_reached| is_reached))
    }
}

#[async_trait]
impl StockReader for RedisStock {
    async fn stock(&self, skus: &[Sku], choice: &ReadChoice) -> Result<StockRead, ReadModelError> {
        let read = self.read_chosen(choice, |generation| async move {
            let answers = self.answers(&generation, skus).await?;
            Ok(StockRead { generation: generation.number, answers })
        });
        self.read(read).await
    }

    async fn wait_for(
        &self,
        min: &PositionToken,
        choice: &ReadChoice,
        timeout: Duration,
    ) -> Result<bool, ReadModelError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut pause = FIRST_LOOK;
        loop {
            let look = self.read_chosen(choice, |generation| async move { self.is_reached(&generation, min).await });
            let look = self.read(look);
            match tokio::time::timeout_at(deadline.max(tokio::time::Instant::now() + LAST_LOOK), look).await {
                Ok(Ok(true)) => return Ok(true),
                Ok(Ok(false)) => {}
                // Waiting would not end before the reader's own time.
                Ok(Err(error @ ReadModelError::BreakerOpen { .. })) => return Err(error),
                Ok(Err(error)) if error.is_transient() => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(false),
            }
            let now = tokio::time::Instant::now();
            if now >= deadline {
                return Ok(false);
            }
            tokio::time::sleep_until(deadline.min(now + pause)).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    /// Of a Cluster the same partition of two generations may lie on two nodes.
    fn is_one_server(&self) -> bool {
        !self.servers.is_cluster()
    }
}

fn position_of(xid: &Option<String>, position: &Option<String>) -> Option<StorePosition> {
    Some(StorePosition { xid: codec::number(xid)?, position: codec::number(position)? })
}

pub(super) fn rebuilding() -> ReadModelError {
    ReadModelError::Rebuilding { name: NAME.to_owned() }
}
