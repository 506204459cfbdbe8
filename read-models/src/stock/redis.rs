//! The stock read model in Redis: one server, or a Redis Cluster.
//!
//! A Redis Function does each step on a partition as one: it checks epoch and checkpoint and writes rows, checkpoint
//! and parked events (invariants P2 and P3), or reads rows with the position that they are true at (Q1). Every key of a
//! partition carries one hash tag, so that a partition is on one server, and is lost or rolled back as one.
//!
//! How much a crash of Redis takes back is the operator's choice (`appendonly`, `appendfsync`, replicas). Whatever it
//! takes, effect and checkpoint go back together, and the projector goes on from there. A store that came back empty
//! answers [`ReadModelError::Rebuilding`], never zero stock; servers that evict keys are refused.

mod address;
pub mod codec;
mod connection;
mod dead_letters;
mod generations;
mod keys;
mod node;
mod reader;
mod removal;
mod scan;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use futures::future::try_join_all;
use redis::{FromRedisValue, Value, cmd, from_redis_value};
use resilience::{Breaker, BreakerSettings};
use schemas::Context;

use crate::checkpoint::{Checkpoint, PartitionRef};
use crate::error::ReadModelError;
use crate::metrics;
use crate::parked::FOREIGN_KEY;
use crate::process_report::Ahead;
use crate::read_model::{Batch, Claimed, Generation, Head, Loaded, ReadModel, RowPage};
use crate::status::{PartitionStatus, ReadModelStatus};
use crate::stock::{CONTEXTS, NAME, StockKey, StockRow};
use address::RedisAddress;
use connection::{Call, RedisServers};
use generations::Seen;
use keys::PartitionKeys;
use removal::Removal;
use writer::Applied;

/// A stock store in Redis.
#[derive(Clone)]
pub struct RedisStock {
    servers: RedisServers,
    /// For reads that somebody waits for. Projectors do without: they wait and try again by themselves.
    reads: Arc<Breaker>,
    /// Before every key.
    prefix: String,
    /// What this handle writes; `None` in one that only reads.
    prepared: Arc<ArcSwapOption<Generation>>,
    /// The only generation that this handle writes or tells of.
    bound: Option<u32>,
    /// The pointer as last seen: what it says is read at once, while it is looked at again.
    seen: Arc<ArcSwapOption<Seen>>,
    /// Of reports by processes whose clock is ahead.
    ahead: Arc<Mutex<Ahead>>,
    /// How far the removal of each retired generation is.
    removals: Arc<Mutex<HashMap<u32, Removal>>>,
}

// === impl RedisStock ===

impl RedisStock {
    /// Whether an address is one that [`RedisStock::connect`] reads. Touches nothing.
    pub fn check_address(url: &str) -> Result<(), ReadModelError> {
        RedisAddress::parse(url).map(drop)
    }

    /// Connects to `redis://`, `rediss://`, `redis+cluster://host:port,…` or `rediss+cluster://…`. `?prefix=` sets what
    /// keys begin with (default `millrace`). Fails at once where nothing answers.
    pub async fn connect(url: &str) -> Result<Self, ReadModelError> {
        let address = RedisAddress::parse(url)?;
        let servers = RedisServers::connect(&address).await?;
        Ok(Self {
            servers,
            reads: Arc::new(Breaker::new("redis", BreakerSettings::default())),
            prefix: address.prefix().to_owned(),
            prepared: Arc::default(),
            bound: None,
            seen: Arc::default(),
            ahead: Arc::default(),
            removals: Arc::default(),
        })
    }

    fn prepared(&self) -> Result<Arc<Generation>, ReadModelError> {
        self.prepared.load_full().ok_or_else(|| ReadModelError::Permanent {
            name: NAME.to_owned(),
            problem: "no generation was prepared in this process".to_owned(),
        })
    }

    fn keys(&self, generation: u32, at: PartitionRef) -> PartitionKeys {
        PartitionKeys::new(&self.prefix, generation, at)
    }

    /// What a function answered, in the shape that it always has.
    fn parse<T: FromRedisValue>(&self, answer: Value) -> Result<T, ReadModelError> {
        from_redis_value(answer).map_err(|error| self.servers.damaged(error))
    }

    /// Writes the generation's mark where it is missing.
    async fn mark(&self, generation: &Generation) -> Result<(), ReadModelError> {
        let call = Call::new("prepare", &[keys::generations(&self.prefix)])
            .arg(generation.number)
            .arg(codec::built(generation));
        let built: String = self.parse(self.servers.call(call).await?)?;
        if built == codec::RETIRED {
            return Err(retired(generation));
        }
        let found = codec::generation(generation.number, &built)
            .ok_or_else(|| self.servers.damaged(format!("generation {generation}: {built:?}")))?;
        found.check(generation)
    }

    fn checkpoint(&self, partition: PartitionRef, fields: Value) -> Result<Checkpoint, ReadModelError> {
        let fields: Vec<Option<String>> = self.parse(fields)?;
        self.checkpoint_of(partition, &fields)
    }

    fn checkpoint_of(&self, partition: PartitionRef, fields: &[Option<String>]) -> Result<Checkpoint, ReadModelError> {
        codec::checkpoint(fields).ok_or_else(|| self.servers.damaged(format!("checkpoint of {partition}: {fields:?}")))
    }

    async fn partition_status(
        &self,
        generation: &Generation,
        partition: PartitionRef,
    ) -> Result<PartitionStatus, ReadModelError> {
        let at = self.keys(generation.number, partition);
        let call = Call::reading("status", &[at.state(), at.head(), at.parked_order(), at.parked_keys()]);
        let answer = self.servers.call(call).await?;
        let (live, checkpoint, head, parked_keys, parked_events): (
            Option<String>,
            Value,
            Vec<Option<String>>,
            u64,
            u64,
        ) = self.parse(answer)?;
        let head = match (head.first().and_then(codec::number), head.get(1).and_then(codec::number)) {
            (Some(next_offset), Some(seen_at)) => Some(Head { next_offset, seen_at }),
            _ => None,
        };
        let checkpoint = match live {
            Some(_) => self.checkpoint(partition, checkpoint)?,
            None => Checkpoint::default(),
        };
        let live = live.as_deref() == Some("1");
        Ok(PartitionStatus { partition, checkpoint, live, head, parked_keys, parked_events })
    }
}

#[async_trait]
impl ReadModel for RedisStock {
    type Key = StockKey;
    type Row = StockRow;

    async fn prepare(&self, generation: &Generation) -> Result<(), ReadModelError> {
        generation.check_bound(self.bound)?;
        self.mark(generation).await?;
        self.prepared.store(Some(Arc::new(generation.clone())));
        Ok(())
    }

    async fn claim(&self, partition: PartitionRef) -> Result<Claimed, ReadModelError> {
        let generation = self.prepared()?;
        generation.check_partition(partition, &CONTEXTS)?;
        // Redis may have been emptied since `prepare`.
        self.mark(&generation).await?;
        // Finer than claims can follow each other: the epoch never runs ahead of the clock.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
        let at = self.keys(generation.number, partition);
        let keys = [at.state(), at.parked_keys(), at.parked_order(), at.parked_events(), at.parked_by_key()];
        let call =
            Call::new("claim", &keys).arg(now.max(1).to_string()).arg(codec::built(&generation)).arg(FOREIGN_KEY);
        let answer: Vec<Value> = self.parse(self.servers.call(call).await?)?;
        let mut answer = answer.into_iter();
        let mut next = || answer.next().unwrap_or(Value::Nil);
        let outcome: String = self.parse(next())?;
        if outcome == codec::RETIRED {
            return Err(retired(&generation));
        }
        let told: String = self.parse(next())?;
        if outcome == "built" {
            let found = codec::generation(generation.number, &told)
                .ok_or_else(|| self.servers.damaged(format!("{partition} is built {told:?}")))?;
            found.check(&generation)?;
        }
        let epoch = told.parse().map_err(|_| self.servers.damaged(format!("epoch of {partition}: {told:?}")))?;
        let live: String = self.parse(next())?;
        let checkpoint = self.checkpoint(partition, next())?;
        let parked_keys = self.parse(next())?;
        Ok(Claimed { epoch, checkpoint, parked_keys, foreign_records: self.parse(next())?, live: live == "1" })
    }

    async fn load(&self, partition: PartitionRef, keys: &[StockKey]) -> Result<Loaded<StockRow>, ReadModelError> {
        let at = self.keys(self.own_or_serving().await?.number, partition);
        let mut names = vec![at.state()];
        names.extend(keys.iter().map(|key| at.sku(&key.sku)));
        let warehouses: Vec<&str> = keys.iter().map(|key| key.warehouse.as_str()).collect();
        let answer = self.servers.call(Call::reading("load", &names).arg(warehouses)).await?;
        let (checkpoint, rows): (Vec<Option<String>>, Vec<Option<String>>) = self.parse(answer)?;
        let checkpoint = match checkpoint.iter().all(Option::is_none) {
            true => Checkpoint::default(),
            false => self.checkpoint_of(partition, &checkpoint)?,
        };
        if rows.len() != keys.len() {
            return Err(self.servers.damaged(format!("{} rows for {} keys", rows.len(), keys.len())));
        }
        let rows = rows.into_iter().map(|row| row.map(|row| self.row(&row)).transpose()).collect::<Result<_, _>>()?;
        Ok(Loaded { checkpoint, rows })
    }

    async fn apply(&self, batch: &Batch<StockKey, StockRow>) -> Result<(), ReadModelError> {
        let generation = self.prepared()?;
        let partition = batch.partition;
        generation.check_partition(partition, &CONTEXTS)?;
        metrics::timed_apply(NAME, async {
            let name = generation.to_string();
            match self.write(&generation, batch).await? {
                Applied::Written => Ok(()),
                Applied::Retired => Err(ReadModelError::Retired { name }),
                Applied::Superseded { current } => {
                    Err(ReadModelError::Superseded { name, partition, epoch: batch.epoch, current })
                }
                Applied::Moved { found } => {
                    Err(ReadModelError::CheckpointMoved { name, partition, expected: batch.from, found })
                }
            }
        })
        .await
    }

    async fn observe(&self, heads: &[(PartitionRef, Head)]) -> Result<(), ReadModelError> {
        let generation = self.prepared()?;
        // The mark may be on another server than the partitions, and lost without them.
        self.mark(&generation).await?;
        let observed = heads.iter().map(|(partition, head)| {
            let at = self.keys(generation.number, *partition);
            let call = Call::new("observe", &[at.head(), at.state()])
                .arg(head.next_offset.to_string())
                .arg(head.seen_at.max(0).to_string());
            self.servers.call(call)
        });
        try_join_all(observed).await.map(|_| ())
    }

    async fn status(&self) -> Result<ReadModelStatus, ReadModelError> {
        let looked = async {
            let generation = self.own_or_serving().await?;
            let partitions = CONTEXTS.into_iter().flat_map(|context: Context| {
                (0..generation.partitions).map(move |partition| PartitionRef { context, partition })
            });
            let partitions = partitions.map(|partition| self.partition_status(&generation, partition));
            Ok(ReadModelStatus {
                name: NAME.to_owned(),
                generation: generation.number,
                fold_version: generation.fold_version,
                partitions: try_join_all(partitions).await?,
            })
        };
        self.read(looked).await
    }

    async fn rows(
        &self,
        partition: PartitionRef,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RowPage<StockKey, StockRow>, ReadModelError> {
        let generation = self.own_or_serving().await?;
        generation.check_partition(partition, &CONTEXTS)?;
        self.scan(&generation, partition, from, limit).await
    }

    async fn ping(&self) -> Result<(), ReadModelError> {
        let mut any = cmd("HGET");
        any.arg(keys::generations(&self.prefix)).arg("serving");
        self.servers.command(&any).await.map(|_| ())
    }
}

fn retired(generation: &Generation) -> ReadModelError {
    ReadModelError::Retired { name: generation.to_string() }
}
