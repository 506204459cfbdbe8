//! The invariants as functions from what is to what is wrong with it.

use std::collections::{BTreeMap, HashMap, HashSet};

use event_log::{EventEnvelope, frame::unframe};
use schemas::event::StockChange;
use schemas::{Command, Context, Event, OutcomeKind};
use uuid::Uuid;

use super::Violation;
use super::fold::{Expected, ProductView, decode};
use super::table::Table;
use super::topics::{LogPartition, Topics};
use super::views::StockView;
use crate::journal::Entry;

/// W1 and W3: versions without gap or twin, in the relay's order; no impossible stock. `made` are ids of events that the
/// harness wrote itself, which may be impossible on purpose.
pub fn streams(table: &Table, made: &HashSet<Uuid>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut last: HashMap<&str, u64> = HashMap::new();
    for event in &table.events {
        let stream = event.stream.as_str();
        let before = last.insert(stream, event.version).unwrap_or(0);
        if event.version != before + 1 {
            violations.push(Violation::new("W1", format!("{stream} goes from {before} to {}", event.version)));
        }
        if made.contains(&event.id) || !event.topic.ends_with(".events") {
            continue;
        }
        match decode(event) {
            Ok(Event::StockUpdated(stock)) if stock.reserved < 0 || stock.on_hand < stock.reserved => {
                let told = format!(
                    "{stream} version {}: {} on hand, {} reserved",
                    event.version, stock.on_hand, stock.reserved
                );
                violations.push(Violation::new("W3", told));
            }
            Ok(_) => {}
            Err(problem) => violations.push(Violation::new("W1", format!("{stream} {}: {problem}", event.version))),
        }
    }
    violations
}

/// W2: each accepted command has its events once, and the right ones; each refused one none; none is missing. No event is
/// there that nobody asked for.
///
/// `refusals_lost`: an event store that was restored and then filled up from the topics knows no command without event.
pub fn commands(
    table: &Table,
    journal: &HashMap<Uuid, Entry>,
    made: &HashSet<Uuid>,
    refusals_lost: bool,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut caused: HashMap<Uuid, Vec<usize>> = HashMap::new();
    let mut before: HashMap<&str, (i64, i64)> = HashMap::new();
    for (index, event) in table.events.iter().enumerate() {
        // Decisions come from the catalogues of the read models: `replay history --against-log` is their check.
        if !event.topic.ends_with(".events") || event.topic == Context::Platform.events_topic() {
            continue;
        }
        let cause = event.causation_id.as_deref().and_then(|id| id.parse::<Uuid>().ok());
        let decoded = decode(event).ok();
        let prior = before.get(event.stream.as_str()).copied().unwrap_or((0, 0));
        if let Some(Event::StockUpdated(stock)) = &decoded {
            before.insert(event.stream.as_str(), (stock.on_hand, stock.reserved));
        }
        if made.contains(&event.id) {
            continue;
        }
        match cause.and_then(|cause| Some((cause, journal.get(&cause)?))) {
            Some((cause, entry)) => {
                caused.entry(cause).or_default().push(index);
                if let Some(problem) = decoded.and_then(|event| unlike(&entry.command, &event, prior)) {
                    violations.push(Violation::new("W2", format!("{cause}: {problem}")));
                }
            }
            None => violations.push(Violation::new("W2", format!("event {} has no command that was given", event.id))),
        }
    }
    for (id, entry) in journal {
        let events = caused.get(id).map_or(&[][..], Vec::as_slice);
        violations.extend(entry.contradictions.iter().map(|told| Violation::new("W2", format!("{id}: {told}"))));
        let stored = table.outcomes.get(id);
        let Some(outcome) = entry.outcome.as_ref().or(stored) else {
            violations.push(Violation::new("W2", format!("{id} was given and has no outcome")));
            continue;
        };
        match stored {
            None if refusals_lost && events.is_empty() && outcome.outcome != OutcomeKind::Accepted => {}
            None => violations.push(Violation::new("W2", format!("{id} was acknowledged and is not stored"))),
            Some(stored) if stored != outcome => {
                violations.push(Violation::new("W2", format!("{id}: acknowledged {outcome:?}, stored {stored:?}")));
            }
            Some(_) => {}
        }
        let (least, most) = match outcome.outcome {
            OutcomeKind::Accepted if always_has_effect(&entry.command) => (1, 1),
            OutcomeKind::Accepted => (0, 1),
            _ => (0, 0),
        };
        if events.len() < least || events.len() > most {
            let told = format!("{id} is {} and has {} events", outcome.outcome.as_str(), events.len());
            violations.push(Violation::new("W2", told));
        }
        for index in events {
            let event = &table.events[*index];
            let is_it =
                outcome.stream.as_deref() == Some(event.stream.as_str()) && outcome.version == Some(event.version);
            if !is_it {
                let told = format!(
                    "{id} names {:?} {:?}, its event is {} {}",
                    outcome.stream, outcome.version, event.stream, event.version
                );
                violations.push(Violation::new("W2", told));
            }
        }
    }
    violations
}

/// Registering, revising and pricing as it is already changes nothing.
fn always_has_effect(command: &Command) -> bool {
    !matches!(command, Command::RegisterProduct(_) | Command::ReviseProduct(_) | Command::SetPrice(_))
}

/// What an event should be after a command on a stock of (on hand, reserved), if it is not that.
fn unlike(command: &Command, event: &Event, (on_hand, reserved): (i64, i64)) -> Option<String> {
    let wanted = match (command, event) {
        (Command::ReceiveStock(data), Event::StockUpdated(_)) => {
            (StockChange::Received, on_hand + data.quantity, reserved)
        }
        (Command::AdjustStock(data), Event::StockUpdated(_)) => (StockChange::Adjusted, on_hand + data.delta, reserved),
        (Command::CountStock(data), Event::StockUpdated(_)) => (StockChange::Counted, data.counted, reserved),
        (Command::ReserveStock(data), Event::StockUpdated(_)) => {
            (StockChange::Reserved, on_hand, reserved + data.quantity)
        }
        (Command::ReleaseReservation(_), Event::StockUpdated(event)) => {
            (StockChange::Released, on_hand, reserved - event.quantity)
        }
        (Command::ShipReservation(_), Event::StockUpdated(event)) => {
            (StockChange::Shipped, on_hand - event.quantity, reserved - event.quantity)
        }
        (Command::SetPrice(data), Event::PriceSet(event)) => {
            return (data.amount_minor != event.amount_minor).then(|| format!("asked {data:?}, came {event:?}"));
        }
        (Command::ReviseProduct(data), Event::ProductRevised(event)) => {
            let is_other = data.name.as_ref().is_some_and(|name| *name != event.name);
            return is_other.then(|| format!("asked {data:?}, came {event:?}"));
        }
        (Command::RegisterProduct(_), Event::ProductRegistered(_)) => return None,
        _ => return Some(format!("{} led to {event:?}", command.command_type())),
    };
    let Event::StockUpdated(found) = event else { return None };
    let is = (found.change, found.on_hand, found.reserved);
    (is != wanted).then(|| format!("{wanted:?} was due, {is:?} came"))
}

/// W4 and P1: first occurrences carry 1, 2, 3 … and are the table's events; all else are twins of those. Returns the
/// violations and the number of twins.
pub fn topics(table: &Table, expected: &Expected, topics: &Topics) -> (Vec<Violation>, u64) {
    let (mut violations, mut duplicates) = (Vec::new(), 0);
    for (at, log) in topics {
        let due = expected.partitions.get(at).map_or(&[][..], Vec::as_slice);
        let place = format!("{}/{}", at.0, at.1);
        let found = partition(table, due, log, &place);
        violations.extend(found.0);
        duplicates += found.1;
    }
    for (at, due) in &expected.partitions {
        if !topics.contains_key(at) {
            violations
                .push(Violation::new("W4", format!("{}/{} is not there, {} events are due", at.0, at.1, due.len())));
        }
    }
    (violations, duplicates)
}

fn partition(table: &Table, due: &[usize], log: &LogPartition, place: &str) -> (Vec<Violation>, u64) {
    let (mut violations, mut duplicates) = (Vec::new(), 0);
    let mut next: u64 = 1;
    let mut is_first = true;
    for record in &log.records {
        let envelope = match EventEnvelope::from_headers(&record.headers) {
            Ok(envelope) => envelope,
            Err(_) if log.foreign_allowed => continue,
            Err(error) => {
                violations.push(Violation::new("W4", format!("{place} offset {}: {error}", record.offset)));
                continue;
            }
        };
        // What retention took is not missed.
        if std::mem::take(&mut is_first) && log.first > 0 {
            next = envelope.sequence;
        }
        let Some(stored) = due.get(envelope.sequence as usize - 1).map(|index| &table.events[*index]) else {
            let told = format!("{place} offset {}: sequence {} was never committed", record.offset, envelope.sequence);
            violations.push(Violation::new("W4", told));
            continue;
        };
        let body = unframe(&record.value).map(|(_, body)| body).unwrap_or_default();
        let is_same = envelope.id == stored.id
            && envelope.subject == stored.stream.as_str()
            && envelope.stream_version == stored.version
            && envelope.position == stored.position
            && envelope.partition_key == stored.key
            && record.key.as_ref() == stored.key.as_bytes()
            && envelope.event_type == stored.schema.name
            && body == stored.body.as_slice();
        if !is_same {
            let told =
                format!("{place} offset {}: sequence {} is not event {}", record.offset, envelope.sequence, stored.id);
            violations.push(Violation::new("W4", told));
        }
        if envelope.sequence == next {
            next += 1;
        } else if envelope.sequence < next {
            duplicates += 1;
        } else {
            let told = format!("{place} offset {}: sequence {} where {next} is due", record.offset, envelope.sequence);
            violations.push(Violation::new("P1", told));
            next = envelope.sequence + 1;
        }
    }
    let missing = (due.len() as u64 + 1).saturating_sub(next);
    if missing > 0 {
        violations.push(Violation::new("W4", format!("{place} lacks {missing} of {} events", due.len())));
    }
    (violations, duplicates)
}

/// P2 for stock: at the end of every partition, and there the fold's rows, no fewer and no more.
pub fn stock(expected: &Expected, view: &StockView) -> Vec<Violation> {
    let mut violations = Vec::new();
    for ((topic, partition), due) in expected.partitions.iter().filter(|((topic, _), _)| topic == "inventory.events") {
        let sequence = view.checkpoints.get(partition).copied().unwrap_or(0);
        if sequence != due.len() as u64 {
            let told = format!("stock stands at sequence {sequence} of {topic}/{partition}, which has {}", due.len());
            violations.push(Violation::new("P2", told));
        }
    }
    violations.extend(differences("stock", &expected.stock, &view.rows));
    violations
}

/// Q1 for rows that were read while events went on: each is one that the fold held.
pub fn were_held(expected: &Expected, view: &StockView) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, row) in &view.rows {
        let steps = expected.history.get(key).map_or(&[][..], Vec::as_slice);
        let held = (row.version as usize).checked_sub(1).and_then(|index| steps.get(index));
        if held.is_none_or(|held| (held.on_hand, held.reserved) != (row.on_hand, row.reserved)) {
            let told = format!("stock {key:?} of the generation before was {row:?}, the fold held {held:?}");
            violations.push(Violation::new("Q1", told));
        }
    }
    violations
}

/// P2 for search: every product as its parts say.
pub fn products(expected: &BTreeMap<String, ProductView>, found: &BTreeMap<String, ProductView>) -> Vec<Violation> {
    differences("product", expected, found)
}

fn differences<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, due) in expected {
        match found.get(key) {
            None => violations.push(Violation::new("P2", format!("{what} {key:?} is missing: {due:?}"))),
            Some(is) if is != due => {
                violations.push(Violation::new("P2", format!("{what} {key:?} is {is:?}, {due:?} is right")));
            }
            Some(_) => {}
        }
    }
    for key in found.keys().filter(|key| !expected.contains_key(key)) {
        violations.push(Violation::new("P2", format!("{what} {key:?} is there and has no event")));
    }
    violations
}

/// What the index shows of each product: the expected view with the price of the asked region only.
pub fn shown(expected: &Expected, region: &str) -> BTreeMap<String, ProductView> {
    let with_product = expected.products.iter().filter(|(_, view)| view.product.is_some());
    with_product
        .map(|(sku, view)| {
            let mut view = view.clone();
            view.prices.retain(|at, _| at == region);
            // A hit has no description and no tags.
            if let Some(product) = &mut view.product {
                product.description = None;
                product.tags.clear();
            }
            (sku.clone(), view)
        })
        .collect()
}
