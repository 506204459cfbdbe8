//! Records and lists of partitions, between librdkafka's words and ours.

use bytes::Bytes;
use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::headers::Headers;
use crate::log::{Record, TopicPartition};

pub(super) fn list(places: &[(TopicPartition, u64)]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (at, offset) in places {
        let offset = Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
        list.add_partition_offset(&at.topic, at.partition as i32, offset)?;
    }
    Ok(list)
}

/// The event store keeps digests of it (`RecordIdentity`): the same message must be the same record in every build.
pub(super) fn record_of(message: &BorrowedMessage<'_>) -> Record {
    // A foreign client's header may be any bytes, or null.
    let headers = message.headers().map_or_else(Headers::default, |headers| {
        headers.iter().map(|header| (header.key, String::from_utf8_lossy(header.value.unwrap_or_default()))).collect()
    });
    Record {
        at: TopicPartition::new(message.topic(), message.partition() as u32),
        offset: message.offset() as u64,
        key: Bytes::copy_from_slice(message.key().unwrap_or_default()),
        headers,
        value: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        timestamp: message.timestamp().to_millis().unwrap_or_default(),
    }
}
