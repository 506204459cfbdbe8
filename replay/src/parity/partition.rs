//! One partition of two generations, compared at one checkpoint while both go on.
//!
//! The scan meets every row of both, at no one moment: what it says of a row is right unless an event touched the row
//! after the scan began. So rows that were touched, and rows that differ, are read again in rounds: each side's with
//! the checkpoint that they are true at, as one; the side that is behind is folded forward in memory, over the events
//! between the two checkpoints, by its own fold. That comparison is exact at the higher checkpoint. When every row that
//! was touched since the round before was among those read, everything that is known holds at that one checkpoint.
//! Neither side waits for anything.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use event_log::TopicPartition;
use projectors::contained;
use read_models::generations::meant::Kind;
use read_models::{Checkpoint, PartitionRef};

use super::listed::{Listed, Room};
use super::tail::{Tail, TailEvent};
use super::{Progress, Sides};
use crate::error::ReplayError;
use crate::fields::{self, Fields};
use crate::log_reader::LogReader;
use crate::report::{DifferenceKind, KeyDifference, PartitionParity};
use crate::rules::Rules;
use crate::sides::Compared;

const PAGE: usize = 1_000;
/// Rows read as one: a read of the store that others wait behind.
const AT_ONCE: usize = 20_000;
/// After so many rounds events come faster than rows are read.
const MOST_ROUNDS: u32 = 200;
/// Between two looks at a side that has not come to what the other one has parked.
const PARKED_PAUSE: Duration = Duration::from_millis(50);
/// Sequences that a candidate may be behind.
const MOST_BEHIND: u64 = 100_000;

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    Equal,
    /// Only in ways that rules cover.
    Excused,
    Differs,
    /// On neither side: an event that no row follows from.
    Nowhere,
}

/// Met by the scan on the live side, and not yet on the other one.
struct Scanned {
    digest: u64,
    /// Of what no rule of every row covers.
    reduced: u64,
    known: Option<Known>,
}

/// One partition while it is compared.
struct Compare<'a, P: Compared> {
    sides: &'a Sides<'a, P>,
    rules: &'a Rules,
    progress: &'a Progress,
    partition: PartitionRef,
    known: HashMap<P::Key, Known>,
    listed: Listed<'a, P::Key>,
    foreign: Vec<KeyDifference>,
    live_parked: HashSet<String>,
    candidate_parked: HashSet<String>,
}

/// What one partition's comparison found.
pub(crate) struct Found {
    pub(crate) parity: PartitionParity,
    pub(crate) kinds: BTreeMap<DifferenceKind, u64>,
    /// Those that there was room for, and those without a row.
    pub(crate) listed: Vec<KeyDifference>,
}

pub(super) async fn compare<P: Compared>(
    sides: &Sides<'_, P>,
    log: &LogReader,
    rules: &Rules,
    progress: &Progress,
    room: &Room,
    partition: PartitionRef,
) -> Result<Found, ReplayError> {
    let mut compare = Compare {
        sides,
        rules,
        progress,
        partition,
        known: HashMap::new(),
        listed: Listed::new(room),
        foreign: Vec::new(),
        live_parked: HashSet::new(),
        candidate_parked: HashSet::new(),
    };
    let (live, candidate) = compare.checkpoints().await?;
    let behind = live.sequence.abs_diff(candidate.sequence);
    if behind > MOST_BEHIND {
        return Err(ReplayError::NotLevel { partition: partition.to_string(), behind });
    }
    let from = if live.sequence < candidate.sequence { live } else { candidate };
    let at = TopicPartition::new(partition.context.events_topic(), partition.partition);
    let mut tail = Tail::<P>::new(log, at, &from);
    let scanned = compare.scan().await?;
    compare.sum_up(scanned);
    let (reached, rounds) = compare.narrow(&mut tail, from).await?;
    Ok(compare.finish(reached, rounds))
}

// === impl Compare ===

impl<P: Compared> Compare<'_, P> {
    async fn checkpoints(&self) -> Result<(Checkpoint, Checkpoint), ReplayError> {
        let live = self.sides.live.load(self.partition, &[]).await?.checkpoint;
        Ok((live, self.sides.candidate.load(self.partition, &[]).await?.checkpoint))
    }

    async fn scan(&mut self) -> Result<HashMap<P::Key, Scanned>, ReplayError> {
        let mut scanned: HashMap<P::Key, Scanned> = HashMap::new();
        let mut from: Option<String> = None;
        loop {
            let page = self.sides.live.rows(self.partition, from.as_deref(), PAGE).await?;
            self.progress.rows(page.rows.len());
            for (key, row) in page.rows {
                let known = row.is_err().then_some(Known::Differs);
                let (digest, reduced) = row.map_or((0, 0), |row| self.digests(&fields::of_row(&row), Side::Live));
                scanned.insert(key, Scanned { digest, reduced, known });
            }
            self.note_foreign(page.foreign, Side::Live);
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        loop {
            let page = self.sides.candidate.rows(self.partition, from.as_deref(), PAGE).await?;
            self.progress.rows(page.rows.len());
            for (key, row) in page.rows {
                let found = row.as_ref().ok().map(|row| self.digests(&fields::of_row(row), Side::Candidate));
                match (scanned.get_mut(&key), found) {
                    (Some(live), Some((digest, reduced))) if live.known != Some(Known::Differs) => {
                        live.known = Some(if live.digest == digest {
                            Known::Equal
                        } else if live.reduced == reduced {
                            Known::Excused
                        } else {
                            Known::Differs
                        });
                    }
                    _ => {
                        scanned.insert(key, Scanned { digest: 0, reduced: 0, known: Some(Known::Differs) });
                    }
                }
            }
            self.note_foreign(page.foreign, Side::Candidate);
            from = page.next;
            if from.is_none() {
                return Ok(scanned);
            }
        }
    }

    /// What the scan did not meet on both sides, or met as different, is looked at again.
    fn sum_up(&mut self, scanned: HashMap<P::Key, Scanned>) {
        let known = scanned.into_iter().map(|(key, scanned)| (key, scanned.known.unwrap_or(Known::Differs)));
        self.known = known.collect();
    }

    fn digests(&self, found: &Fields, side: Side) -> (u64, u64) {
        let digest = fields::digest(found);
        let mut reduced = found.clone();
        for rule in self.rules.iter().filter(|rule| rule.meant.regions.is_empty()) {
            let is_meant = matches!(
                (rule.meant.kind, side),
                (Kind::Any, _) | (Kind::New, Side::Candidate) | (Kind::Removed, Side::Live)
            );
            if is_meant {
                reduced.remove(&rule.meant.field);
            }
        }
        (digest, fields::digest(&reduced))
    }

    fn note_foreign(&mut self, foreign: Vec<String>, side: Side) {
        let kind = match side {
            Side::Live => DifferenceKind::Missing,
            Side::Candidate => DifferenceKind::Extra,
        };
        self.foreign.extend(foreign.into_iter().map(|name| KeyDifference {
            key: name,
            sku: None,
            partition: self.partition.to_string(),
            kind,
            fields: Vec::new(),
            live: None,
            candidate: None,
            problem: Some("its name is none that a row could have".to_owned()),
        }));
    }

    /// Rounds over what differs or was touched. The checkpoint that all of it is true at, and how many it took.
    async fn narrow(&mut self, tail: &mut Tail<'_, P>, from: Checkpoint) -> Result<(Checkpoint, u32), ReplayError> {
        // What is known holds at `known_at`, but for these.
        let differing = self.known.iter().filter(|(_, known)| **known == Known::Differs);
        let mut unknown: HashSet<P::Key> = differing.map(|(key, _)| key.clone()).collect();
        let mut known_at = from;
        let mut is_first = true;
        // A key that one side alone has parked differs once the other one is beyond that: it may not have come to it
        // yet.
        let (mut both_beyond, mut parked_until) = (0, None);
        for round in 1..=MOST_ROUNDS {
            let beyond_before = both_beyond;
            tail.read_to_end().await?;
            // Of the first round: since before the scan.
            unknown.extend(if is_first { tail.touched() } else { tail.touched_after(known_at.sequence) });
            is_first = false;
            self.progress.round(unknown.len());
            let (lowest, reached, left) = self.compare_at_one_checkpoint(tail, unknown, &from, &known_at).await?;
            tail.forget_to(lowest);
            known_at = reached;
            unknown = left;
            both_beyond = lowest;
            if !unknown.is_empty() {
                continue;
            }
            let is_settled = self.live_parked == self.candidate_parked
                || *parked_until.get_or_insert(reached.sequence) <= beyond_before;
            if is_settled || round == MOST_ROUNDS {
                return Ok((known_at, round));
            }
            tokio::time::sleep(PARKED_PAUSE).await;
        }
        Err(ReplayError::TooBusy { partition: self.partition.to_string(), rounds: MOST_ROUNDS })
    }

    /// Compares rows, in pieces of which each is exact at a checkpoint of its own. Answers the sequence that both sides
    /// are beyond, the last piece's checkpoint, and the rows that were touched since they were read, which the next
    /// round takes.
    async fn compare_at_one_checkpoint(
        &mut self,
        tail: &mut Tail<'_, P>,
        keys: HashSet<P::Key>,
        from: &Checkpoint,
        known_at: &Checkpoint,
    ) -> Result<(u64, Checkpoint, HashSet<P::Key>), ReplayError> {
        self.live_parked = self.sides.live.parked_keys(self.partition).await?;
        self.candidate_parked = self.sides.candidate.parked_keys(self.partition).await?;
        let keys: Vec<P::Key> = keys.into_iter().collect();
        let mut read_at: HashMap<P::Key, u64> = HashMap::new();
        let mut reached = *known_at;
        let mut lowest = u64::MAX;
        let pieces: Vec<&[P::Key]> = if keys.is_empty() { vec![&[]] } else { keys.chunks(AT_ONCE).collect() };
        for piece in pieces {
            let live = self.sides.live.load(self.partition, piece).await?;
            let candidate = self.sides.candidate.load(self.partition, piece).await?;
            let (low, high) = if live.checkpoint.sequence < candidate.checkpoint.sequence {
                (live.checkpoint, candidate.checkpoint)
            } else {
                (candidate.checkpoint, live.checkpoint)
            };
            if high.sequence < reached.sequence || low.sequence < from.sequence {
                // A store that lost its last second: what was known of it is no more.
                return Err(ReplayError::SteppedBack { partition: self.partition.to_string() });
            }
            tail.read_to(high.sequence).await?;
            let later = tail.by_row(low.sequence, high.sequence);
            let rows = live.rows.into_iter().zip(candidate.rows);
            for (key, (live_row, candidate_row)) in piece.iter().zip(rows) {
                let later = later.get(key).map_or(&[][..], Vec::as_slice);
                let live_row = self.forward(later, live_row, live.checkpoint, Side::Live);
                let candidate_row = self.forward(later, candidate_row, candidate.checkpoint, Side::Candidate);
                self.judge(key, live_row, candidate_row);
                read_at.insert(key.clone(), high.sequence);
            }
            lowest = lowest.min(low.sequence);
            reached = high;
        }
        let touched = tail.touched_between(known_at.sequence, reached.sequence);
        let left = touched.into_iter().filter(|(key, last)| read_at.get(key).is_none_or(|at| at < last));
        Ok((lowest, reached, left.map(|(key, _)| key).collect()))
    }

    /// A row as its generation will hold it once it has taken all of `later`; it has what is not after `at`.
    fn forward(
        &self,
        later: &[&TailEvent<P::Key>],
        mut row: Option<P::Row>,
        at: Checkpoint,
        side: Side,
    ) -> Option<P::Row> {
        let (fold, parked) = match side {
            Side::Live => (self.sides.live_fold, &self.live_parked),
            Side::Candidate => (self.sides.candidate_fold, &self.candidate_parked),
        };
        for event in later.iter().filter(|event| event.sequence > at.sequence) {
            if parked.contains(&event.partition_key) {
                break;
            }
            match contained(|| P::project(fold, row.as_ref(), &event.event, event.facts)) {
                Ok(Some(new)) => row = Some(new),
                Ok(None) => {}
                // It will be parked, and the row stays as it is.
                Err(_) => break,
            }
        }
        row
    }

    fn judge(&mut self, key: &P::Key, live: Option<P::Row>, candidate: Option<P::Row>) {
        self.listed.forget(key);
        let region = live.as_ref().or(candidate.as_ref()).and_then(|row| P::region(key, row)).cloned();
        let (live, candidate) = (live.map(|row| fields::of_row(&row)), candidate.map(|row| fields::of_row(&row)));
        let (kind, differing) = match (&live, &candidate) {
            (None, None) => {
                self.known.insert(key.clone(), Known::Nowhere);
                return;
            }
            (Some(live), Some(candidate)) => {
                let (uncovered, is_covered) = self.rules.uncovered(region.as_ref(), live, candidate);
                if uncovered.is_empty() {
                    let known = if is_covered { Known::Excused } else { Known::Equal };
                    self.known.insert(key.clone(), known);
                    return;
                }
                (DifferenceKind::Differs, uncovered)
            }
            (Some(_), None) => (DifferenceKind::Missing, Vec::new()),
            (None, Some(_)) => (DifferenceKind::Extra, Vec::new()),
        };
        self.known.insert(key.clone(), Known::Differs);
        let partition = self.partition.to_string();
        self.listed.note(key, kind, || KeyDifference {
            key: P::shown(key),
            sku: Some(P::sku(key).clone()),
            partition,
            kind,
            fields: differing,
            live,
            candidate,
            problem: None,
        });
    }

    fn finish(mut self, reached: Checkpoint, rounds: u32) -> Found {
        let (mut kinds, mut listed) = self.listed.into_parts();
        let mut without_row = self.foreign;
        for (mine, others, kind) in [
            (&self.live_parked, &self.candidate_parked, DifferenceKind::ParkedInLive),
            (&self.candidate_parked, &self.live_parked, DifferenceKind::ParkedInCandidate),
        ] {
            without_row.extend(mine.difference(others).map(|key| KeyDifference {
                key: key.clone(),
                sku: None,
                partition: self.partition.to_string(),
                kind,
                fields: Vec::new(),
                live: None,
                candidate: None,
                problem: None,
            }));
        }
        for difference in &without_row {
            *kinds.entry(difference.kind).or_insert(0) += 1;
        }
        listed.extend(without_row);
        self.known.retain(|_, known| *known != Known::Nowhere);
        let count = |wanted: Known| self.known.values().filter(|known| **known == wanted).count() as u64;
        let parity = PartitionParity {
            partition: self.partition,
            at: reached,
            compared: self.known.len() as u64,
            equal: count(Known::Equal),
            excused: count(Known::Excused),
            differing: kinds.values().sum(),
            rounds,
        };
        Found { parity, kinds, listed }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Side {
    Live,
    Candidate,
}
