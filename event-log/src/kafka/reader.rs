//! Reads of one partition without a group: what it holds now, page by page.
//!
//! A consumer is kept between pages, with what it has fetched ahead, so a scan costs a connection once and runs at the
//! speed of a subscription. It goes on where it stands only for the page that follows at once; any other read, or one
//! that comes later, places it anew, which throws away what it has fetched: a topic that was deleted and made again
//! must not be answered from memory.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client_log::{ClientLog, code_of};
use super::lookup::{ANSWER_WITHIN, Lookup};
use super::record::{list, record_of};
use super::settings::KafkaSettings;
use crate::error::EventLogError;
use crate::log::{PartitionEnds, Record, TopicPartition};

/// Consumers kept while nobody reads.
const IDLE_READERS: usize = 4;
/// How long a reader's fetched records are taken for what the partition holds.
const GOES_ON_WITHIN: Duration = Duration::from_secs(1);

/// The readers of one log.
pub(super) struct PartitionReaders {
    settings: KafkaSettings,
    idle: Mutex<Vec<PartitionReader>>,
}

struct PartitionReader {
    consumer: BaseConsumer<ClientLog>,
    place: Option<Standing>,
    /// Nothing was read since it was placed.
    is_fresh: bool,
}

/// Where a reader stands.
struct Standing {
    at: TopicPartition,
    /// The next offset.
    next: u64,
    since: Instant,
    /// The partition's end when it was read.
    end: u64,
}

// === impl PartitionReaders ===

impl PartitionReaders {
    pub fn new(settings: KafkaSettings) -> Self {
        Self { settings, idle: Mutex::default() }
    }

    /// Blocks, for ten seconds without a record at most.
    pub fn read(
        &self,
        lookup: &Lookup,
        at: &TopicPartition,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Record>, EventLogError> {
        let ends = ends_of(lookup, at)?;
        self.forget_shrunk(at, ends.next);
        let out_of_range = |ends: PartitionEnds| EventLogError::OffsetOutOfRange {
            at: at.clone(),
            asked: from,
            first: ends.first,
            next: ends.next,
        };
        if !(ends.first..=ends.next).contains(&from) {
            return Err(out_of_range(ends));
        }
        if from == ends.next || limit == 0 {
            return Ok(Vec::new());
        }
        let mut reader = self.reader_at(at, from)?;
        let mut page = reader.page(at, from, ends.next, limit);
        if page.as_ref().is_err_and(is_out_of_range) {
            // Retention or a truncation has passed by between the two requests.
            let ends = ends_of(lookup, at)?;
            if !(ends.first..=ends.next).contains(&from) {
                return Err(out_of_range(ends));
            }
            // Or it happened to what the reader fetched ahead, before it was placed: a new one has no such past.
            reader = PartitionReader::new(&self.settings)?;
            reader.place_at(at, from).map_err(|error| lookup.log().classify(&error, &at.topic))?;
            page = reader.page(at, from, ends.next, limit);
        }
        match page {
            Ok(records) => {
                self.give_back(reader);
                Ok(records)
            }
            Err(error) => Err(lookup.log().classify(&error, &at.topic)),
        }
    }

    /// A reader that stands at `from`.
    fn reader_at(&self, at: &TopicPartition, from: u64) -> Result<PartitionReader, EventLogError> {
        let kept = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let standing = idle.iter().position(|reader| reader.stands_at(at, from));
            match standing {
                Some(index) => return Ok(idle.swap_remove(index)),
                None => idle.pop(),
            }
        };
        let mut reader = match kept {
            Some(reader) => reader,
            None => PartitionReader::new(&self.settings)?,
        };
        reader.place_at(at, from).map_err(|error| reader.consumer.context().classify(&error, &at.topic))?;
        Ok(reader)
    }

    /// What was fetched from a partition that ends before where it ended is of another log.
    fn forget_shrunk(&self, at: &TopicPartition, end: u64) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for reader in idle.iter_mut() {
            reader.place.take_if(|place| place.at == *at && end < place.end);
        }
    }

    fn give_back(&self, reader: PartitionReader) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(reader);
        }
    }
}

// === impl PartitionReader ===

impl PartitionReader {
    fn new(settings: &KafkaSettings) -> Result<Self, EventLogError> {
        let consumer = settings
            .client_config()
            // librdkafka takes no assignment without a group; this one is never joined and nothing is committed to it.
            .set("group.id", "millrace-reader")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("queued.min.messages", "20000")
            .set("queued.max.messages.kbytes", "16384")
            .set("fetch.max.bytes", "8388608")
            .set("fetch.queue.backoff.ms", "20")
            .set("fetch.error.backoff.ms", "100")
            // A reader asks for what is there, and is placed anew only when its last request is answered: with the
            // default, half a second, a relay would take many seconds to look at the ends of all partitions.
            .set("fetch.wait.max.ms", "50")
            .set("check.crcs", "true")
            .create_with_context(ClientLog::new(settings.address()))
            .map_err(|error| EventLogError::Setting { key: "event-log", problem: error.to_string() })?;
        Ok(Self { consumer, place: None, is_fresh: false })
    }

    fn stands_at(&self, at: &TopicPartition, from: u64) -> bool {
        self.place
            .as_ref()
            .is_some_and(|place| place.at == *at && place.next == from && place.since.elapsed() < GOES_ON_WITHIN)
    }

    fn place_at(&mut self, at: &TopicPartition, from: u64) -> Result<(), KafkaError> {
        self.place = None;
        self.is_fresh = true;
        // Without the first, an assignment of the same partition would keep the place and what was fetched for it.
        self.consumer.unassign()?;
        self.consumer.assign(&list(&[(at.clone(), from)])?)
    }

    /// What follows, until `limit` records, offset `end`, or nothing.
    fn page(&mut self, at: &TopicPartition, from: u64, end: u64, limit: usize) -> Result<Vec<Record>, KafkaError> {
        let mut records: Vec<Record> = Vec::with_capacity(limit.min(usize::try_from(end - from).unwrap_or(limit)));
        let mut next = from;
        let mut give_up_at = Instant::now() + ANSWER_WITHIN;
        while records.len() < limit && next < end {
            match self.consumer.poll(give_up_at.saturating_duration_since(Instant::now())) {
                Some(Ok(message)) => {
                    let record = record_of(&message);
                    // Left over from before the reader was placed.
                    if record.at != *at || record.offset < next {
                        continue;
                    }
                    next = record.offset + 1;
                    records.push(record);
                    give_up_at = Instant::now() + ANSWER_WITHIN;
                }
                // Up to `end` there may be control records only.
                Some(Err(KafkaError::PartitionEOF(_))) if self.is_fresh || !records.is_empty() => break,
                // The end as it was when the last page was read.
                Some(Err(KafkaError::PartitionEOF(_))) => self.place_at(at, from)?,
                Some(Err(error)) if is_passing(&error) && Instant::now() < give_up_at => {}
                Some(Err(error)) => return Err(error),
                None if !records.is_empty() => break,
                None if Instant::now() < give_up_at => {}
                // Not taken for the end: a broker that says nothing has not said that there is nothing.
                None => return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)),
            }
        }
        self.place = Some(Standing { at: at.clone(), next, since: Instant::now(), end });
        self.is_fresh = false;
        Ok(records)
    }
}

fn ends_of(lookup: &Lookup, at: &TopicPartition) -> Result<PartitionEnds, EventLogError> {
    let ends = lookup.ends_of(std::slice::from_ref(at))?;
    ends.first().copied().ok_or_else(|| lookup.log().unavailable(format!("no offset came for {at}")))
}

fn is_out_of_range(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code_of(error), Some(Code::AutoOffsetReset | Code::LogTruncation | Code::OffsetOutOfRange))
}

/// librdkafka goes on by itself after these.
fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code_of(error),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::Resolve
                // Of the group that is never joined.
                | Code::GroupAuthorizationFailed
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::CoordinatorLoadInProgress
        )
    )
}
