//! A partition of a read model held against the events up to its checkpoint, while it is written.
//!
//! The checkpoint is read before and after the scan. A row may be at any version between the two; at the first one or
//! below it must be there, and above the second there must be none. What differs is looked at a second time: only what
//! is found twice is told. A key whose events are parked stays at its last good state; dead letters are read after the
//! rows, and a redrive may come in between, so that a row that seems to lack an update is looked at once more behind
//! them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use event_log::EventEnvelope;
use projectors::{Facts, contained};
use read_models::{Checkpoint, ParkedEvent, PartitionRef, PartitionStatus};

use crate::error::AuditError;
use crate::oracle::{Audited, Later, Oracle, Poison, Standing, row_digest};
use crate::pace::{Pace, Progress};
use crate::report::{Difference, Findings, Kind, ReadModelReport};
use crate::topics::Sources;
use crate::walk::TableWalk;

/// Rows of one page.
const PAGE: usize = 1_000;
/// Dead letters of one page.
const LETTERS_PAGE: usize = 1_000;
/// Rows whose streams are read for what their older versions said.
const EXPLAINED: usize = 200;

/// Where the oracle of a read model lies in the walk.
pub(crate) type OracleOf<P> = fn(&mut TableWalk) -> &mut Oracle<P>;

/// What a scan of a partition found.
struct Scan<K> {
    report: ReadModelReport,
    /// By kind and key.
    candidates: BTreeMap<(Kind, String), Candidate<K>>,
}

struct Candidate<K> {
    /// `None` where it is no key.
    key: Option<K>,
    /// Version and digest of the row; `None` where there is none.
    row: Option<(u64, u128)>,
    detail: String,
}

/// A difference that is told unless its row is another one by now.
struct Told<K> {
    kind: Kind,
    what: String,
    detail: String,
    /// Key and row of what seems to lack an update, as met.
    met: Option<(K, Option<(u64, u128)>)>,
}

/// One comparison.
pub(crate) struct Comparison<'a, P: Audited> {
    pub(crate) sources: &'a Sources,
    pub(crate) model: &'a dyn Standing<P>,
    pub(crate) oracle: OracleOf<P>,
    pub(crate) at: PartitionRef,
    pub(crate) pace: Pace,
    pub(crate) progress: &'a Progress,
}

impl<P: Audited> Comparison<'_, P> {
    pub(crate) async fn compare(&self, walk: &mut TableWalk) -> Result<(ReadModelReport, Findings), AuditError> {
        let first = self.scan(walk).await?;
        let mut scan = first;
        if !scan.candidates.is_empty() {
            let again = self.scan(walk).await?;
            if again.report.skipped.is_none() {
                let twice: HashSet<(Kind, String)> = scan.candidates.into_keys().collect();
                scan = again;
                scan.candidates.retain(|place, _| twice.contains(place));
            } else {
                scan = again;
                scan.candidates.clear();
            }
        }
        let Scan { mut report, candidates } = scan;
        let fold = (self.oracle)(walk).fold();
        let poison = match report.skipped {
            None => self.poison(walk, report.checkpoint),
            Some(_) => Vec::new(),
        };
        let is_level = candidates.is_empty() && poison.is_empty();
        let not_folded = if is_level { HashSet::new() } else { self.not_folded().await? };
        let mut told = Vec::new();
        for (number, ((kind, what), candidate)) in candidates.into_iter().enumerate() {
            let Candidate { key, row, detail } = candidate;
            let mut found = Told { kind, what, detail, met: None };
            if matches!(kind, Kind::Stale | Kind::Missing)
                && let Some(key) = key
            {
                if let Some((version, digest)) = row
                    && number < EXPLAINED
                    && self.digest_at(&key, version, fold).await? != Some(digest)
                {
                    found.kind = Kind::Altered;
                    found.detail = format!("it is at version {version}, with another content than that");
                } else if self.is_last_good_state(walk, &key, row, &not_folded) {
                    continue;
                }
                found.met = Some((key, row));
            }
            told.push(found);
        }
        let mut findings = self.confirmed(told).await?;
        for event in poison {
            let place = (event.stream.to_string(), event.version);
            if !not_folded.contains(&place) {
                let detail = "cannot be folded, and neither waits in the dead letters nor was discarded: stepped over";
                let what = format!("{} version {}", place.0, place.1);
                let sequence = Some(event.sequence);
                findings.push(Difference { sequence, ..self.difference(Kind::Lost, what, detail.to_owned()) });
            }
        }
        report.differences = findings.total();
        Ok((report, findings))
    }

    /// Whether all that the row lacks is parked, or was discarded. The next event alone does not say so: what came
    /// behind a discarded one was folded.
    fn is_last_good_state(
        &self,
        walk: &mut TableWalk,
        key: &P::Key,
        row: Option<(u64, u128)>,
        not_folded: &HashSet<(String, u64)>,
    ) -> bool {
        let Some(wanted) = (self.oracle)(walk).partition(self.at).keys.get(key) else { return false };
        let (has, stream) = (row.map_or(0, |(version, _)| version), P::stream(key).to_string());
        (has + 1..=wanted.version).all(|version| not_folded.contains(&(stream.clone(), version)))
    }

    /// Those whose row is still the one that was met.
    async fn confirmed(&self, told: Vec<Told<P::Key>>) -> Result<Findings, AuditError> {
        let mut findings = Findings::default();
        let mut told = told.into_iter().peekable();
        while told.peek().is_some() {
            let begun = Instant::now();
            let page: Vec<Told<P::Key>> = told.by_ref().take(PAGE).collect();
            let met = page.iter().filter_map(|told| told.met.as_ref());
            let keys: Vec<P::Key> = met.map(|(key, _)| key.clone()).collect();
            let rows = if keys.is_empty() { Vec::new() } else { self.model.load(self.at, &keys).await?.rows };
            let mut rows = rows.into_iter();
            for Told { kind, what, detail, met } in page {
                if let Some((key, met)) = met {
                    let now = rows.next().flatten();
                    if now.map(|row| (P::version(&row), row_digest::<P>(&key, &row))) != met {
                        continue;
                    }
                }
                findings.push(self.difference(kind, what, detail));
            }
            self.pace.rest(begun, keys.len()).await;
        }
        Ok(findings)
    }

    fn difference(&self, kind: Kind, what: String, detail: String) -> Difference {
        let partition = self.at.to_string();
        Difference { place: P::PLACE, partition, kind, sequence: None, offset: None, what, detail }
    }

    /// Events up to the checkpoint that no row can follow from.
    fn poison(&self, walk: &mut TableWalk, checkpoint: u64) -> Vec<Poison> {
        let found = &(self.oracle)(walk).partition(self.at).poison;
        found.iter().filter(|event| event.sequence <= checkpoint).cloned().collect()
    }

    async fn status(&self) -> Result<(PartitionStatus, u32), AuditError> {
        let status = self.model.status().await?;
        let fold_version = status.fold_version;
        let found = status.partitions.into_iter().find(|partition| partition.partition == self.at);
        let none = PartitionStatus {
            partition: self.at,
            checkpoint: Checkpoint::default(),
            live: false,
            head: None,
            parked_keys: 0,
            parked_events: 0,
        };
        Ok((found.unwrap_or(none), fold_version))
    }

    /// Checkpoint and fold version, with the walk at the checkpoint. Where the oracle was folded to a newer checkpoint
    /// on the way there, that one is read again.
    async fn walk_to_checkpoint(&self, walk: &mut TableWalk) -> Result<(PartitionStatus, u32), AuditError> {
        loop {
            let (status, fold_version) = self.status().await?;
            let target = status.checkpoint.position;
            let is_there = target <= walk.position();
            let came_there = is_there || self.sources.walk_to(walk, target, self.pace, self.progress).await?;
            if is_there || !came_there || (self.oracle)(walk).partition(self.at).at <= status.checkpoint.sequence {
                return Ok((status, fold_version));
            }
        }
    }

    async fn scan(&self, walk: &mut TableWalk) -> Result<Scan<P::Key>, AuditError> {
        let (before, fold_version) = self.walk_to_checkpoint(walk).await?;
        let mut scan = Scan {
            report: ReadModelReport {
                read_model: P::NAME.to_owned(),
                topic: self.at.context.events_topic().to_owned(),
                partition: self.at.partition,
                checkpoint: before.checkpoint.sequence,
                keys: 0,
                rows: 0,
                digest: String::new(),
                parked_keys: before.parked_keys,
                differences: 0,
                skipped: None,
            },
            candidates: BTreeMap::new(),
        };
        let walked_with = (self.oracle)(walk).fold();
        if fold_version != walked_with {
            scan.report.skipped = Some(if P::FOLDS.contains(&fold_version) {
                format!(
                    "it is of fold version {fold_version} since a moment ago, the table was folded with {walked_with}"
                )
            } else {
                format!("fold version {fold_version} built it, this program has {:?}", P::FOLDS)
            });
            return Ok(scan);
        }
        if (self.oracle)(walk).partition(self.at).is_given_up {
            let most = walk.most_later;
            scan.report.skipped =
                Some(format!("too far behind to compare: more than {most} events wait behind its checkpoint"));
            return Ok(scan);
        }
        let is_partial = walk.is_partial;
        let went_back = || Some("its checkpoint went back during the audit".to_owned());
        if !(self.oracle)(walk).partition(self.at).fold_to(before.checkpoint.sequence) {
            scan.report.skipped = went_back();
            return Ok(scan);
        }
        let pending = self.meet_rows((self.oracle)(walk), &mut scan).await?;
        let (after, _) = self.status().await?;
        if after.checkpoint.sequence < before.checkpoint.sequence {
            scan.report.skipped = went_back();
            scan.candidates.clear();
            return Ok(scan);
        }
        // Nothing is folded on here: the events between the two checkpoints are needed.
        walk.advance(&self.sources.store, after.checkpoint.position, self.pace, self.progress).await?;
        let partition = (self.oracle)(walk).partition(self.at);
        if after.checkpoint.sequence > partition.walked && !(is_partial && partition.walked == 0) {
            let detail = format!("the event table has {} events here", partition.walked);
            scan.note(Kind::Ahead, format!("checkpoint at sequence {}", after.checkpoint.sequence), None, None, detail);
        }
        let mut later: HashMap<&P::Key, Vec<&Later<P::Key>>> = HashMap::new();
        if !pending.is_empty() {
            for event in &partition.later {
                later.entry(&event.key).or_default().push(event);
            }
        }
        for (key, row) in pending {
            let (version, digest) = row;
            let events = later.get(&key).map_or(&[][..], Vec::as_slice);
            let known = events.iter().map(|event| event.version).chain(partition.keys.get(&key).map(|key| key.version));
            let told = match (events.iter().find(|event| event.version == version), known.max()) {
                (Some(event), _) if event.sequence > after.checkpoint.sequence => {
                    (Kind::Ahead, format!("version {version} is above the checkpoint"))
                }
                (Some(event), _) if event.digest == digest => continue,
                (Some(_), _) => (Kind::Altered, format!("another content than version {version}")),
                (None, None) if is_partial => continue,
                (None, None) => (Kind::Unexplained, "no event has this key".to_owned()),
                (None, Some(newest)) if version > newest => {
                    (Kind::Ahead, format!("at version {version}, the event table ends at version {newest}"))
                }
                (None, Some(_)) => (Kind::Altered, format!("no event has version {version}")),
            };
            scan.note(told.0, P::shown(&key), Some(key.clone()), Some(row), told.1);
        }
        scan.report.digest = format!("{:032x}", partition.digest());
        scan.report.keys = partition.keys.len() as u64;
        Ok(scan)
    }

    /// Meets every row, tells those that differ, and returns those that are newer than the first checkpoint.
    async fn meet_rows(
        &self,
        oracle: &mut Oracle<P>,
        scan: &mut Scan<P::Key>,
    ) -> Result<Vec<(P::Key, (u64, u128))>, AuditError> {
        let partition = oracle.partition(self.at);
        partition.scans += 1;
        let number = partition.scans;
        let mut newer: HashMap<P::Key, (u64, u128)> = HashMap::new();
        let mut from: Option<String> = None;
        loop {
            let begun = Instant::now();
            let page = self.model.rows(self.at, from.as_deref(), PAGE).await?;
            let items = page.rows.len();
            Progress::add(&self.progress.rows, items);
            for what in page.foreign {
                scan.report.rows += 1;
                scan.note(Kind::Unexplained, what, None, None, "it has no key that a row could have".to_owned());
            }
            for (key, row) in page.rows {
                scan.report.rows += 1;
                let wanted = partition.keys.get_mut(&key);
                let row = match row {
                    Ok(row) => (P::version(&row), row_digest::<P>(&key, &row)),
                    Err(why) => {
                        wanted.into_iter().for_each(|wanted| wanted.met_in = number);
                        scan.note(Kind::Altered, P::shown(&key), Some(key), None, format!("does not read: {why}"));
                        continue;
                    }
                };
                let Some(wanted) = wanted else {
                    newer.insert(key, row);
                    continue;
                };
                wanted.met_in = number;
                let (version, digest) = row;
                if version > wanted.version {
                    newer.insert(key, row);
                } else if version < wanted.version {
                    let detail = format!("at version {version}, the checkpoint has version {}", wanted.version);
                    scan.note(Kind::Stale, P::shown(&key), Some(key), Some(row), detail);
                } else if digest != wanted.digest {
                    let detail = format!("another content than version {version}");
                    scan.note(Kind::Altered, P::shown(&key), Some(key), Some(row), detail);
                }
            }
            self.pace.rest(begun, items).await;
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        for (key, wanted) in partition.keys.iter().filter(|(_, wanted)| wanted.met_in != number) {
            let detail = format!("version {} should be there", wanted.version);
            scan.note(Kind::Missing, P::shown(key), Some(key.clone()), None, detail);
        }
        Ok(newer.into_iter().collect())
    }

    /// What the fold gives of a key at an older version.
    async fn digest_at(&self, key: &P::Key, version: u64, fold: u32) -> Result<Option<u128>, AuditError> {
        let events = self.sources.store.read_stream(&P::stream(key), version, 1).await?;
        let Some(event) = events.first().filter(|event| event.version == version) else { return Ok(None) };
        let decoded =
            schemas::WriterSchema::of(event.schema).and_then(|schema| schemas::decode_event(schema, &event.body).ok());
        let facts = Facts { version, time: event.time };
        let row = decoded.and_then(|decoded| contained(|| P::project(fold, None, &decoded, facts)).ok().flatten());
        Ok(row.map(|row| row_digest::<P>(key, &row)))
    }

    /// Streams and versions of the events that were parked, and of those that were discarded from there.
    async fn not_folded(&self) -> Result<HashSet<(String, u64)>, AuditError> {
        let letters = self.model.dead_letters();
        let mut found = HashSet::new();
        let mut note = |event: &ParkedEvent| {
            if let Ok(envelope) = EventEnvelope::from_headers(&event.headers.iter().cloned().collect()) {
                found.insert((envelope.subject, envelope.stream_version));
            }
            Some(event.place())
        };
        let mut after = None;
        loop {
            let page = letters.parked(self.at, after, LETTERS_PAGE).await?;
            if page.is_empty() {
                break;
            }
            after = page.iter().filter_map(&mut note).last();
        }
        after = None;
        loop {
            let page = letters.discarded(self.at, after, LETTERS_PAGE).await?;
            if page.is_empty() {
                break;
            }
            after = page.iter().filter_map(|discarded| note(&discarded.event)).last();
        }
        Ok(found)
    }
}

// === impl Scan ===

impl<K> Scan<K> {
    fn note(&mut self, kind: Kind, what: String, key: Option<K>, row: Option<(u64, u128)>, detail: String) {
        self.candidates.insert((kind, what), Candidate { key, row, detail });
    }
}

#[cfg(test)]
mod tests;
