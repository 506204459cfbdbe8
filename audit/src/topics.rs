//! The topics' side: every record of a partition, in blocks, held against the event table's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use event_log::{EventLog, EventLogError, PartitionEnds, Record, SchemaRegistry, TopicPartition};
use event_store::EventStore;

use crate::behind::ReadModels;
use crate::digest::{Face, IdMeans};
use crate::error::AuditError;
use crate::narrow::{self, Narrowed};
use crate::pace::{Pace, Progress};
use crate::report::{Difference, Findings, Kind, Place, TopicReport};
use crate::side::{BLOCK, Block, Meeting, Met, Side, block_of};
use crate::walk::TableWalk;

/// Records of one read.
const PAGE: usize = 2_000;
/// Blocks of a partition that are looked at event by event; of more, the numbers tell.
const NARROWED: usize = 16;
/// How far before the place that a search found a partial reading begins: a relay repeats some after a crash.
const MARGIN: u64 = 4_096;

/// One topic partition, as far as it was read.
#[derive(Debug, Default)]
pub(crate) struct TopicSide {
    side: Side<u64>,
    met: Met,
    /// Above what the relay's cursor says: sequence, digest, offset.
    waiting: Vec<(u64, u128, u64)>,
    next: u64,
    is_begun: bool,
    /// First sequence that the topic keeps; `None` before a record was read.
    base: Option<u64>,
    /// Blocks with a record that must be looked at whatever the sums say.
    suspects: BTreeSet<u64>,
    /// Records that are no events of ours: offset, and why.
    foreign: Vec<(u64, String)>,
    /// What was found in blocks that have not changed since.
    narrowed: HashMap<u64, (Compared, Narrowed)>,
}

/// Sums of a block on both sides, and whether it was suspect.
type Compared = ((u64, u128), (u64, u128), bool);

/// What is read from.
pub(crate) struct Sources {
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) schemas: SchemaIds,
    pub(crate) models: ReadModels,
}

/// What registry ids stand for.
pub(crate) struct SchemaIds {
    pub(crate) registry: Arc<dyn SchemaRegistry>,
    pub(crate) known: tokio::sync::Mutex<HashMap<u32, IdMeans>>,
}

// === impl SchemaIds ===

impl SchemaIds {
    /// The face of a record, or why it is none.
    pub(crate) async fn face(&self, record: &Record) -> Result<Result<Face, String>, AuditError> {
        let Ok((id, _)) = event_log::frame::unframe(&record.value) else {
            return Ok(Face::of_record(record, IdMeans::Foreign));
        };
        let mut known = self.known.lock().await;
        let schema = match known.get(&id) {
            Some(schema) => *schema,
            None => {
                let schema = match self.registry.schema(id).await {
                    Ok(schema) => schema.known().map_or(IdMeans::Foreign, IdMeans::Ours),
                    Err(error) if error.is_transient() => return Err(error.into()),
                    Err(EventLogError::UnknownSchemaId { .. }) => IdMeans::Nothing,
                    // A schema that cannot be read: the record is not as it was published.
                    Err(_) => IdMeans::Foreign,
                };
                known.insert(id, schema);
                schema
            }
        };
        Ok(Face::of_record(record, schema))
    }
}

// === impl TopicSide ===

impl TopicSide {
    /// Reads on to `ends`, which were taken after the relay's cursor.
    pub(crate) async fn read(
        &mut self,
        sources: &Sources,
        at: &TopicPartition,
        ends: PartitionEnds,
        walk: &TableWalk,
        pace: Pace,
        progress: &Progress,
    ) -> Result<(), AuditError> {
        if ends.next < self.next {
            // A log that was made again, or an older copy of it: all of it is read anew.
            *self = Self::default();
        }
        let is_new = !std::mem::replace(&mut self.is_begun, true);
        if is_new {
            let from = if walk.is_partial { self.find(sources, at, ends, walk.base(at)).await? } else { ends.first };
            self.begin(from, ends, walk, at);
        }
        let begun_at = self.next;
        self.side.raise(walk.limit(at));
        for (sequence, digest, offset) in std::mem::take(&mut self.waiting) {
            self.take(sequence, digest, offset, walk.limit(at));
        }
        self.read_to(sources, at, ends, walk, pace, progress).await?;
        let is_short = walk.is_partial && is_new && begun_at > ends.first && !self.met.has(walk.base(at));
        if is_short && walk.limit(at) >= walk.base(at) {
            // Sequences do not rise with offsets here: something was published again.
            *self = Self { is_begun: true, ..Self::default() };
            self.begin(ends.first, ends, walk, at);
            self.side.raise(walk.limit(at));
            self.read_to(sources, at, ends, walk, pace, progress).await?;
        }
        Ok(())
    }

    fn begin(&mut self, from: u64, ends: PartitionEnds, walk: &TableWalk, at: &TopicPartition) {
        self.next = from;
        if ends.first == 0 {
            self.base = Some(walk.base(at));
            self.met = Met::from(walk.base(at));
        }
    }

    async fn read_to(
        &mut self,
        sources: &Sources,
        at: &TopicPartition,
        ends: PartitionEnds,
        walk: &TableWalk,
        pace: Pace,
        progress: &Progress,
    ) -> Result<(), AuditError> {
        while self.next < ends.next {
            let begun = Instant::now();
            let page = match sources.log.read(at, self.next, PAGE).await {
                // What is expired meanwhile is expired.
                Err(EventLogError::OffsetOutOfRange { first, .. }) if first > self.next => {
                    self.next = first;
                    continue;
                }
                page => page?,
            };
            if page.is_empty() {
                break;
            }
            Progress::add(&progress.records, page.len());
            for record in &page {
                match sources.schemas.face(record).await? {
                    Ok(face) => {
                        if self.base.is_none() {
                            // The oldest record that is kept: what lies before it is expired.
                            let base = face.sequence.min(walk.limit(at) + 1).max(walk.base(at));
                            self.base = Some(base);
                            self.met = Met::from(base);
                        }
                        self.take(face.sequence, face.digest(), record.offset, walk.limit(at));
                    }
                    Err(why) => self.foreign.push((record.offset, why)),
                }
                self.next = record.offset + 1;
            }
            pace.rest(begun, page.len()).await;
        }
        Ok(())
    }

    fn take(&mut self, sequence: u64, digest: u128, offset: u64, limit: u64) {
        if sequence > limit {
            self.waiting.push((sequence, digest, offset));
            return;
        }
        if sequence < self.base.unwrap_or(1) {
            // 0 is none of ours; what is below the base was expired, or is not asked for.
            if sequence == 0 {
                self.foreign.push((offset, "its sequence is 0".to_owned()));
            }
            return;
        }
        match self.met.take(sequence, digest) {
            Meeting::First => self.side.take(sequence, digest, offset),
            Meeting::Duplicate => {}
            Meeting::Twin => {
                self.side.widen(sequence, offset);
                self.suspects.insert(block_of(sequence));
            }
        }
    }

    /// The offset from which on a partial reading finds everything from `base` on, as long as sequences rise.
    async fn find(
        &self,
        sources: &Sources,
        at: &TopicPartition,
        ends: PartitionEnds,
        base: u64,
    ) -> Result<u64, AuditError> {
        let (mut low, mut high) = (ends.first, ends.next);
        while low < high {
            let middle = low + (high - low) / 2;
            let page = sources.log.read(at, middle, 1).await?;
            let sequence = match page.first() {
                Some(record) => sources.schemas.face(record).await?.map_or(0, |face| face.sequence),
                None => u64::MAX,
            };
            if sequence < base {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low.saturating_sub(MARGIN).max(ends.first))
    }

    /// Whether a record is above the relay's cursor and not known from the table yet.
    pub(crate) fn has_unmatched(&self, walk: &TableWalk, at: &TopicPartition) -> bool {
        !self.unmatched(walk, at).is_empty()
    }

    fn unmatched(&self, walk: &TableWalk, at: &TopicPartition) -> Vec<(u64, u64)> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let table: HashMap<u64, u128> = match walk.sides.get(at) {
            Some(side) => side.waiting().iter().map(|(sequence, digest, _)| (*sequence, *digest)).collect(),
            None => HashMap::new(),
        };
        let is_known = |(sequence, digest, _): &&(u64, u128, u64)| table.get(sequence) == Some(digest);
        self.waiting.iter().filter(|it| !is_known(it)).map(|(sequence, _, offset)| (*sequence, *offset)).collect()
    }

    /// Holds both sides against each other, up to the relay's cursor.
    pub(crate) async fn compare(
        &mut self,
        sources: &Sources,
        at: &TopicPartition,
        ends: PartitionEnds,
        walk: &TableWalk,
        counted: Option<u64>,
    ) -> Result<(TopicReport, Findings), AuditError> {
        let mut findings = Findings::default();
        let limit = walk.limit(at);
        // A topic that expired altogether has nothing to say.
        let base = match self.base {
            Some(base) => base,
            None if ends.first > 0 => limit + 1,
            None => walk.base(at),
        };
        let wrongly_counted = counted.filter(|counted| *counted != limit && !walk.is_partial);
        if let Some(counted) = wrongly_counted {
            let what = format!("{counted} events counted");
            let detail = format!(
                "the relay has published {counted} events here up to its cursor, the event table has {limit}: rows were removed or added"
            );
            let told = Difference { sequence: Some(limit), ..difference(at, Kind::Miscounted, what, detail) };
            findings.push(Difference { place: Place::EventTable, ..told });
        }
        let mut looked_at = 0;
        for block in self.differing(walk, at, base) {
            let (table, topic) = self.sums(walk, at, block);
            // Behind a row that is gone every event stands elsewhere: the first block tells where that begins.
            let is_told = looked_at >= if wrongly_counted.is_some() { 1 } else { NARROWED };
            if is_told {
                let (wanted, found) = (table.map_or(0, |table| table.count), topic.map_or(0, |topic| topic.count));
                if wrongly_counted.is_none() {
                    findings.count(Kind::Lost, Place::Topic, wanted.saturating_sub(found));
                    // Those that were looked at stand for the others.
                    let met = findings.kept();
                    let is_undecodable = !met.is_empty() && met.iter().all(|it| it.kind == Kind::Undecodable);
                    let kind = if is_undecodable { Kind::Undecodable } else { Kind::Altered };
                    findings.count(kind, Place::Topic, u64::from(wanted <= found));
                }
                continue;
            }
            looked_at += 1;
            let is_suspect = self.suspects.contains(&block);
            let sums = (table.map_or((0, 0), |it| (it.count, it.sum)), topic.map_or((0, 0), |it| (it.count, it.sum)));
            let compared = (sums.0, sums.1, is_suspect);
            let narrowed = match self.narrowed.get(&block) {
                Some((known, narrowed)) if *known == compared => narrowed.clone(),
                _ => {
                    let first = (block * BLOCK + 1).max(walk.base(at));
                    let from = base.max(first);
                    let narrowed = narrow::narrow(
                        sources,
                        at,
                        walk.topology(),
                        table,
                        topic,
                        first,
                        from,
                        wrongly_counted.is_some(),
                    )
                    .await?;
                    self.narrowed.insert(block, (compared, narrowed.clone()));
                    narrowed
                }
            };
            findings.merge(&narrowed.findings);
        }
        for (offset, why) in &self.foreign {
            let told = difference(at, Kind::Extra, "a record that is no event".to_owned(), why.clone());
            findings.push(Difference { offset: Some(*offset), ..told });
        }
        for (sequence, offset) in self.unmatched(walk, at) {
            findings.push(self.above(sources, at, walk, sequence, offset).await?);
        }
        let next = self.met.in_order + 1;
        if self.base.is_some() && next <= limit && self.met.has(next) {
            let detail = "it stands behind higher ones and nothing repeats them: no consumer takes them in order";
            let told = difference(at, Kind::OutOfOrder, format!("sequence {next}"), detail.to_owned());
            findings.push(Difference { sequence: Some(next), ..told });
        }
        let report = TopicReport {
            topic: at.topic.clone(),
            partition: at.partition,
            events: limit.saturating_sub(walk.base(at) - 1),
            on_topic: self.side.count(),
            expired: base.saturating_sub(walk.base(at)).min(limit),
            duplicates: self.met.duplicates,
            differences: findings.total(),
        };
        Ok((report, findings))
    }

    /// Blocks whose sums differ, and suspects.
    fn differing(&self, walk: &TableWalk, at: &TopicPartition, base: u64) -> BTreeSet<u64> {
        let mut blocks: BTreeSet<u64> = self.suspects.clone();
        let table = walk.sides.get(at).map(Side::blocks);
        blocks.extend(table.into_iter().flat_map(|blocks| blocks.keys()));
        blocks.extend(self.side.blocks().keys());
        blocks.retain(|block| {
            let (table, topic) = self.sums(walk, at, *block);
            let sums = |count: u64, sum: u128| (count, sum);
            let table = table.map_or((0, 0), |it| sums(it.count, it.sum));
            let topic = topic.map_or((0, 0), |it| sums(it.count, it.sum));
            let is_expired = (block + 1) * BLOCK < base;
            !is_expired && (table != topic || self.suspects.contains(block))
        });
        blocks
    }

    fn sums(
        &self,
        walk: &TableWalk,
        at: &TopicPartition,
        block: u64,
    ) -> (Option<Block<schemas::StorePosition>>, Option<Block<u64>>) {
        let table = walk.sides.get(at).and_then(|side| side.blocks().get(&block).copied());
        (table, self.side.blocks().get(&block).copied())
    }

    /// A record above the relay's cursor that the table does not have.
    async fn above(
        &self,
        sources: &Sources,
        at: &TopicPartition,
        walk: &TableWalk,
        sequence: u64,
        offset: u64,
    ) -> Result<Difference, AuditError> {
        let page = sources.log.read(at, offset, 1).await?;
        let what = match page.first() {
            Some(record) => sources.schemas.face(record).await?.map_or_else(|why| why, |face| face.shown()),
            None => "a record".to_owned(),
        };
        let waiting = walk.sides.get(at).map_or(&[][..], Side::waiting);
        let is_known = waiting.iter().any(|(known, _, _)| *known == sequence);
        let kind = if is_known { Kind::Altered } else { Kind::Extra };
        let detail = "the event table has no such event there".to_owned();
        Ok(Difference { sequence: Some(sequence), offset: Some(offset), ..difference(at, kind, what, detail) })
    }
}

pub(crate) fn difference(at: &TopicPartition, kind: Kind, what: String, detail: String) -> Difference {
    Difference { place: Place::Topic, partition: at.to_string(), kind, sequence: None, offset: None, what, detail }
}
