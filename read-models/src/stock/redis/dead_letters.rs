//! Dead letters in Redis: beside the partition they belong to, under its hash tag, so that they are lost or rolled back
//! with it.

use async_trait::async_trait;
use redis::cmd;
use serde::de::DeserializeOwned;

use super::{Call, RedisStock, codec};
use crate::checkpoint::PartitionRef;
use crate::dead_letters::{
    DeadLetterAnswer, DeadLetterRequest, DeadLetters, DiscardedEvent, KEPT_ANSWERS, MAX_REQUESTS,
};
use crate::error::ReadModelError;
use crate::parked::{ParkedEvent, ParkedKey, ParkedPlace};
use crate::stock::CONTEXTS;

#[async_trait]
impl DeadLetters for RedisStock {
    async fn partitions(&self) -> Result<Vec<PartitionRef>, ReadModelError> {
        let count = self.own_or_serving().await?.partitions;
        Ok(CONTEXTS
            .into_iter()
            .flat_map(|context| (0..count).map(move |partition| PartitionRef { context, partition }))
            .collect())
    }

    async fn parked(
        &self,
        partition: PartitionRef,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadModelError> {
        let at = self.keys(self.own_or_serving().await?.number, partition);
        let keys = [at.parked_order(), at.parked_events()];
        self.events(partition, &keys, after, limit, codec::parked_of).await
    }

    async fn parked_of(
        &self,
        partition: PartitionRef,
        key: &str,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadModelError> {
        let at = self.keys(self.own_or_serving().await?.number, partition);
        let call = Call::reading("parked_of", &[at.parked_by_key(), at.parked_events()])
            .arg(key)
            .arg(after.map(codec::place).unwrap_or_default())
            .arg(rows(limit));
        let events: Vec<Option<Vec<u8>>> = self.parse(self.servers.call(call).await?)?;
        self.parse_all(partition, events, codec::parked_of)
    }

    async fn parked_keys(
        &self,
        partition: PartitionRef,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ParkedKey>, ReadModelError> {
        let at = self.keys(self.own_or_serving().await?.number, partition);
        let call = Call::reading("parked_keys", &[at.parked_by_key(), at.parked_events(), at.parked_keys()])
            .arg(u8::from(after.is_some()))
            .arg(after.unwrap_or_default())
            .arg(rows(limit));
        let found: Vec<(String, u64, Vec<u8>)> = self.parse(self.servers.call(call).await?)?;
        found
            .into_iter()
            .map(|(key, events, head)| {
                codec::parked_key(&key, events, &head).ok_or_else(|| self.unreadable(partition, "a parked event"))
            })
            .collect()
    }

    async fn discarded(
        &self,
        partition: PartitionRef,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<DiscardedEvent>, ReadModelError> {
        let at = self.keys(self.own_or_serving().await?.number, partition);
        let keys = [at.discarded_order(), at.discarded_events()];
        self.events(partition, &keys, after, limit, codec::discarded_of).await
    }

    async fn request_dead_letter(
        &self,
        partition: PartitionRef,
        request: &DeadLetterRequest,
    ) -> Result<(), ReadModelError> {
        let generation = self.own_or_serving().await?;
        generation.check_partition(partition, &CONTEXTS)?;
        let name = generation.to_string();
        let written = serde_json::to_vec(request)
            .map_err(|error| ReadModelError::Permanent { name: name.clone(), problem: error.to_string() })?;
        let at = self.keys(generation.number, partition);
        let call = Call::new("request", &[at.requests(), at.state()])
            .arg(request.id.to_string())
            .arg(written)
            .arg(MAX_REQUESTS);
        let outcome: String = self.parse(self.servers.call(call).await?)?;
        match outcome.as_str() {
            "waits" => Ok(()),
            codec::RETIRED => Err(ReadModelError::Retired { name }),
            _ => Err(ReadModelError::TooManyRequests { name, partition, waiting: MAX_REQUESTS }),
        }
    }

    async fn dead_letter_requests(&self, partition: PartitionRef) -> Result<Vec<DeadLetterRequest>, ReadModelError> {
        let mut waiting = cmd("HVALS");
        waiting.arg(self.keys(self.own_or_serving().await?.number, partition).requests());
        let found: Vec<Option<Vec<u8>>> = self.parse(self.servers.command(&waiting).await?)?;
        let mut found: Vec<DeadLetterRequest> = self.parse_all(partition, found, from_json)?;
        found.sort_by_key(|request| (request.requested_at, request.id));
        Ok(found)
    }

    async fn dead_letter_answers(
        &self,
        partition: PartitionRef,
        limit: usize,
    ) -> Result<Vec<DeadLetterAnswer>, ReadModelError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut newest = cmd("LRANGE");
        newest.arg(self.keys(self.own_or_serving().await?.number, partition).answers());
        newest.arg(0).arg(limit.min(KEPT_ANSWERS) - 1);
        let found: Vec<Option<Vec<u8>>> = self.parse(self.servers.command(&newest).await?)?;
        self.parse_all(partition, found, from_json)
    }

    async fn mirrored(&self, partition: PartitionRef) -> Result<Option<ParkedPlace>, ReadModelError> {
        let mut mark = cmd("HGET");
        mark.arg(self.keys(self.own_or_serving().await?.number, partition).state()).arg("mirrored");
        let mark: Option<String> = self.parse(self.servers.command(&mark).await?)?;
        mark.map(|mark| codec::place_of(&mark).ok_or_else(|| self.unreadable(partition, "the mirror's mark")))
            .transpose()
    }

    async fn set_mirrored(&self, partition: PartitionRef, place: ParkedPlace) -> Result<(), ReadModelError> {
        let at = self.keys(self.own_or_serving().await?.number, partition);
        let call = Call::new("mirror", &[at.state()]).arg(codec::place(place));
        self.servers.call(call).await.map(|_| ())
    }
}

// === impl RedisStock ===

impl RedisStock {
    async fn events<T>(
        &self,
        partition: PartitionRef,
        keys: &[String],
        after: Option<ParkedPlace>,
        limit: usize,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, ReadModelError> {
        let from = after.map_or_else(|| "-".to_owned(), |place| format!("({}", codec::place(place)));
        let call = Call::reading("parked", keys).arg(from).arg(rows(limit));
        let found: Vec<Option<Vec<u8>>> = self.parse(self.servers.call(call).await?)?;
        self.parse_all(partition, found, read)
    }

    fn parse_all<T>(
        &self,
        partition: PartitionRef,
        found: Vec<Option<Vec<u8>>>,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, ReadModelError> {
        let read = |bytes: Option<Vec<u8>>| bytes.as_deref().and_then(&read);
        found.into_iter().map(|bytes| read(bytes).ok_or_else(|| self.unreadable(partition, "a dead letter"))).collect()
    }

    fn unreadable(&self, partition: PartitionRef, what: &str) -> ReadModelError {
        self.servers.damaged(format!("{what} of {partition}"))
    }
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
