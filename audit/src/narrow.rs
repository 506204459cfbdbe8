//! One block of a topic partition, event by event: which one differs, and how.

use std::collections::{BTreeMap, HashMap};

use event_log::TopicPartition;
use event_store::Topology;
use schemas::StorePosition;
use uuid::Uuid;

use crate::digest::Face;
use crate::error::AuditError;
use crate::report::{Difference, Findings, Kind};
use crate::side::{BLOCK, Block, block_of};
use crate::topics::{Sources, difference};
use crate::walk;

/// Records of one read.
const PAGE: usize = 2_000;

/// What a block came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Narrowed {
    pub(crate) findings: Findings,
}

/// A record of the block.
struct Found {
    offset: u64,
    face: Face,
}

/// `first` is the sequence of the block's first row in the table; what is below `from` is expired. `is_shifted` when
/// the table lost or gained rows, so that sequences of later ones moved.
#[expect(clippy::too_many_arguments, reason = "two sides of one block, and where each begins")]
pub(crate) async fn narrow(
    sources: &Sources,
    at: &TopicPartition,
    topology: Topology,
    table: Option<Block<StorePosition>>,
    topic: Option<Block<u64>>,
    first: u64,
    from: u64,
    is_shifted: bool,
) -> Result<Narrowed, AuditError> {
    let mut wanted = BTreeMap::new();
    if let Some(block) = table {
        rows(sources, at, topology, block, first, &mut wanted).await?;
    }
    wanted.retain(|sequence, _| *sequence >= from);
    let mut found: BTreeMap<u64, Vec<Found>> = BTreeMap::new();
    if let Some(block) = topic {
        records(sources, at, block, block_of(first), &mut found).await?;
    }
    found.retain(|sequence, _| *sequence >= from);
    Ok(compare(at, &wanted, &found, is_shifted))
}

async fn rows(
    sources: &Sources,
    at: &TopicPartition,
    topology: Topology,
    block: Block<StorePosition>,
    first: u64,
    wanted: &mut BTreeMap<u64, Face>,
) -> Result<(), AuditError> {
    let mut sequence = first;
    // Behind the place just before the first row.
    let mut position = StorePosition { position: block.first.position.saturating_sub(1), ..block.first };
    while position < block.last {
        let page = sources.store.read_committed(position, walk::PAGE).await?;
        let Some(last) = page.last() else { break };
        position = last.position;
        for event in page.iter().filter(|event| event.topic == at.topic && event.position <= block.last) {
            if topology.partition_of(&event.key) == at.partition {
                wanted.insert(sequence, Face::of_row(event, sequence));
                sequence += 1;
            }
        }
    }
    Ok(())
}

async fn records(
    sources: &Sources,
    at: &TopicPartition,
    block: Block<u64>,
    number: u64,
    found: &mut BTreeMap<u64, Vec<Found>>,
) -> Result<(), AuditError> {
    let mut offset = block.first;
    while offset <= block.last {
        let page = sources.log.read(at, offset, PAGE).await?;
        let Some(last) = page.last() else { break };
        offset = last.offset + 1;
        for record in page.iter().filter(|record| record.offset <= block.last) {
            if let Ok(face) = sources.schemas.face(record).await?
                && face.sequence > number * BLOCK
                && block_of(face.sequence) == number
            {
                found.entry(face.sequence).or_default().push(Found { offset: record.offset, face });
            }
        }
    }
    Ok(())
}

/// Pure: what differs between the rows and the records of one block.
fn compare(
    at: &TopicPartition,
    wanted: &BTreeMap<u64, Face>,
    found: &BTreeMap<u64, Vec<Found>>,
    is_shifted: bool,
) -> Narrowed {
    let in_table: HashMap<Uuid, &Face> = wanted.values().map(|face| (face.id, face)).collect();
    let on_topic: HashMap<Uuid, &Face> =
        found.values().flatten().map(|record| (record.face.id, &record.face)).collect();
    let is_elsewhere = |face: &Face, side: &HashMap<Uuid, &Face>| {
        side.get(&face.id).is_some_and(|other| other.sequence != face.sequence && other.is_but_for_sequence(face))
    };
    // The edge of a block that moved lies in the next one.
    let edge = wanted.keys().chain(found.keys()).max().copied().unwrap_or(0);
    let mut narrowed = Narrowed::default();
    for (sequence, face) in wanted {
        let is_told_elsewhere = is_elsewhere(face, &on_topic) || (is_shifted && *sequence == edge);
        if !found.contains_key(sequence) && !is_told_elsewhere {
            let detail = "in the event table, not on the topic".to_owned();
            narrowed
                .findings
                .push(Difference { sequence: Some(*sequence), ..difference(at, Kind::Lost, face.shown(), detail) });
        }
    }
    for (sequence, records) in found {
        for Found { offset, face } in records {
            let (kind, detail) = match wanted.get(sequence) {
                Some(row) if row == face => continue,
                // It stands where the count of the table's rows would not put it: told once, by the count.
                _ if is_shifted && (is_elsewhere(face, &in_table) || *sequence == edge) => continue,
                // Its event, or that of the row, is found at another sequence: this one is nobody's.
                Some(row) if row.id != face.id && is_elsewhere(row, &on_topic) => {
                    (Kind::Extra, "on the topic, not in the event table".to_owned())
                }
                Some(row) if face.is_but_for_schema_id(row) => {
                    (Kind::Undecodable, "its schema id is not in the registry".to_owned())
                }
                Some(row) => {
                    (Kind::Altered, format!("{} differs from the event table", face.differing(row).join(", ")))
                }
                None if is_elsewhere(face, &in_table) => {
                    (Kind::Altered, "sequence differs from the event table".to_owned())
                }
                None => (Kind::Extra, "on the topic, not in the event table".to_owned()),
            };
            let told = difference(at, kind, face.shown(), detail);
            narrowed.findings.push(Difference { sequence: Some(*sequence), offset: Some(*offset), ..told });
        }
    }
    narrowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::UNKNOWN_ID;

    fn face(sequence: u64, id: u128) -> Face {
        Face {
            sequence,
            id: Uuid::from_u128(id),
            schema: "s".to_owned(),
            schema_version: 1,
            stream: format!("stream-{id}"),
            version: 1,
            key: b"k".to_vec(),
            position: StorePosition { xid: 0, position: id as u64 },
            body: id,
        }
    }

    fn table(ids: &[u128]) -> BTreeMap<u64, Face> {
        (1..).zip(ids).map(|(sequence, id)| (sequence, face(sequence, *id))).collect()
    }

    fn topic(records: &[(u64, Face)]) -> BTreeMap<u64, Vec<Found>> {
        let mut found: BTreeMap<u64, Vec<Found>> = BTreeMap::new();
        for (offset, (sequence, face)) in records.iter().enumerate() {
            found.entry(*sequence).or_default().push(Found { offset: offset as u64, face: face.clone() });
        }
        found
    }

    fn told(wanted: &BTreeMap<u64, Face>, records: &[(u64, Face)], is_shifted: bool) -> Vec<(Kind, u64)> {
        let at = TopicPartition::new("t", 0);
        let narrowed = compare(&at, wanted, &topic(records), is_shifted);
        narrowed.findings.kept().iter().map(|it| (it.kind, it.sequence.unwrap())).collect()
    }

    #[test]
    fn each_kind_is_told_by_its_sequence() {
        let at = |sequence: u64, id: u128| (sequence, face(sequence, id));
        let altered = (2, Face { body: 99, ..face(2, 2) });
        assert_eq!(told(&table(&[1, 2, 3]), &[at(1, 1), at(2, 2), at(3, 3)], false), []);
        assert_eq!(told(&table(&[1, 2, 3]), &[at(1, 1), at(3, 3)], false), [(Kind::Lost, 2)]);
        assert_eq!(told(&table(&[1, 2]), &[at(1, 1), at(2, 2), at(3, 7)], false), [(Kind::Extra, 3)]);
        assert_eq!(told(&table(&[1, 2]), &[at(1, 1), altered.clone()], false), [(Kind::Altered, 2)]);
        // A twin is fine, one with another content is not.
        assert_eq!(told(&table(&[1, 2]), &[at(1, 1), at(2, 2), at(2, 2)], false), []);
        assert_eq!(told(&table(&[1, 2]), &[at(1, 1), at(2, 2), altered], false), [(Kind::Altered, 2)]);
        let undecodable = (2, Face { schema_version: UNKNOWN_ID, ..face(2, 2) });
        assert_eq!(told(&table(&[1, 2]), &[at(1, 1), undecodable.clone()], false), [(Kind::Undecodable, 2)]);
        for altered_too in [Face { body: 99, ..undecodable.1 }, Face { schema_version: 0, ..face(2, 2) }] {
            assert_eq!(told(&table(&[1, 2]), &[at(1, 1), (2, altered_too)], false), [(Kind::Altered, 2)]);
        }
        // One event under another sequence is not a loss and a stranger.
        assert_eq!(told(&table(&[1, 2]), &[at(1, 1), (9, face(9, 2))], false), [(Kind::Altered, 9)]);
    }

    #[test]
    fn a_row_that_left_the_table_is_told_alone() {
        let records: Vec<_> = (1..=6_u64).map(|sequence| (sequence, face(sequence, u128::from(sequence)))).collect();
        assert_eq!(told(&table(&[1, 2, 4, 5, 6]), &records, true), [(Kind::Extra, 3)]);
    }
}
