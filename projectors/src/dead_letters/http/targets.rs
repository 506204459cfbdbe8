//! Whom a redrive or a discard is asked of: partitions of generations, and what of their queues is meant.

use std::collections::BTreeMap;
use std::sync::Arc;

use read_models::{DeadLetterAction, DeadLetters, FOREIGN_KEY, ParkedPlace, PartitionRef, ReadModelError};

use super::{MAX_PAGE, Meant};

/// A partition whose owner is asked for something.
pub(super) struct Target {
    pub(super) generation: u32,
    pub(super) read_model: Arc<dyn DeadLetters>,
    pub(super) partition: PartitionRef,
    pub(super) action: DeadLetterAction,
}

/// What could not be asked: of one partition, or of a generation.
pub(super) struct Failed {
    pub(super) generation: u32,
    pub(super) partition: Option<PartitionRef>,
    pub(super) error: ReadModelError,
}

/// Whom to ask for what. The first of `generations` is the one that is shown, and its error is an error of all; that of
/// another one is its own.
pub(super) async fn targets(
    meant: &Meant<'_>,
    generations: &[u32],
    key: &str,
    action: &DeadLetterAction,
) -> Result<(Vec<Target>, Vec<Failed>), ReadModelError> {
    let (mut targets, mut failed) = (Vec::new(), Vec::new());
    // The queues of the one that is shown, which is what somebody has looked at.
    let mut shown = BTreeMap::new();
    for (index, &generation) in generations.iter().enumerate() {
        let read_model = (meant.projection.of)(generation);
        let looked_at = (index > 0).then_some(&shown);
        match targets_of(read_model.as_ref(), key, action, looked_at).await {
            Ok(found) => {
                if index == 0 {
                    shown = found.iter().map(|found| (found.partition, (found.first, found.last))).collect();
                }
                targets.extend(found.into_iter().map(|Queue { partition, action, .. }| Target {
                    generation,
                    read_model: Arc::clone(&read_model),
                    partition,
                    action,
                }));
            }
            Err(error) if index == 0 => return Err(error),
            // Nobody has begun to build it.
            Err(ReadModelError::Rebuilding { .. }) => {}
            Err(error) => failed.push(Failed { generation, partition: None, error }),
        }
    }
    Ok((targets, failed))
}

/// Events of a key that wait in one partition of a generation, and what is asked of its owner.
struct Queue {
    partition: PartitionRef,
    first: ParkedPlace,
    last: ParkedPlace,
    action: DeadLetterAction,
}

/// The queues of one generation that the action is for. A discard takes out of another generation only what was looked
/// at in the one that is shown: the same events, told by their sequences, as the offsets of a log that was filled again
/// are others.
async fn targets_of(
    read_model: &dyn DeadLetters,
    key: &str,
    action: &DeadLetterAction,
    looked_at: Option<&BTreeMap<PartitionRef, (ParkedPlace, ParkedPlace)>>,
) -> Result<Vec<Queue>, ReadModelError> {
    let mut queues = Vec::new();
    for partition in read_model.partitions().await? {
        let Some(first) = read_model.parked_of(partition, key, None, 1).await?.pop() else { continue };
        let (first, mut last) = (first.place(), first.place());
        let mut action = action.clone();
        if let DeadLetterAction::Discard { first_only, to, .. } = &mut action {
            let up_to = match looked_at {
                None => u64::MAX,
                // Records of nobody have no sequence of their own to be told by.
                Some(_) if key == FOREIGN_KEY => continue,
                Some(looked_at) => match looked_at.get(&partition) {
                    Some((shown, _)) if *first_only && shown.sequence == first.sequence => first.sequence,
                    Some((shown, last)) if !*first_only && shown.sequence <= first.sequence => last.sequence,
                    _ => continue,
                },
            };
            if !*first_only {
                last = last_of(read_model, partition, key, first, up_to).await?;
            }
            if last.sequence > up_to {
                continue;
            }
            *to = Some(last);
        }
        queues.push(Queue { partition, first, last, action });
    }
    Ok(queues)
}

/// The last event of a key's queue as it is now, of those up to a sequence; `first` where there is none behind it.
async fn last_of(
    read_model: &dyn DeadLetters,
    partition: PartitionRef,
    key: &str,
    first: ParkedPlace,
    up_to: u64,
) -> Result<ParkedPlace, ReadModelError> {
    let mut last = first;
    loop {
        let page = read_model.parked_of(partition, key, Some(last), MAX_PAGE).await?;
        let Some(event) = page.iter().rfind(|event| event.sequence <= up_to) else { return Ok(last) };
        last = event.place();
    }
}
