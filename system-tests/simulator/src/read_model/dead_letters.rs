//! Dead letters of a simulated read model: part of its partition, so that they are written and lost with it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use read_models::{
    DeadLetterAnswer, DeadLetterRequest, DeadLetters, DiscardedEvent, KEPT_ANSWERS, MAX_REQUESTS, ParkedEvent,
    ParkedKey, ParkedPlace, PartitionRef, ReadModelError, Resolution,
};

use super::{Part, SimulatedReadModel};
use crate::projection::Modelled;

/// What is kept beside the parked events.
#[derive(Clone, Default)]
pub(super) struct Letters {
    discarded: BTreeMap<ParkedPlace, DiscardedEvent>,
    requests: Vec<DeadLetterRequest>,
    /// The oldest first.
    answers: Vec<DeadLetterAnswer>,
    mirrored: Option<ParkedPlace>,
}

// === impl Part ===

impl<M: Modelled> Part<M> {
    /// What a batch does to events that are parked already.
    pub(super) fn resolve(&mut self, resolution: &Resolution) {
        for (resolved, note) in &resolution.discarded {
            if let Some(event) = self.parked.remove(&resolved.place) {
                let discarded = DiscardedEvent { event, note: note.clone() };
                self.letters.discarded.insert(resolved.place, discarded);
            }
        }
        for resolved in &resolution.redriven {
            self.parked.remove(&resolved.place);
        }
        for kept in &resolution.kept {
            if let Some(event) = self.parked.get_mut(&kept.place()) {
                event.reason.clone_from(&kept.reason);
            }
        }
        for answer in &resolution.answers {
            let waiting = self.letters.requests.len();
            self.letters.requests.retain(|request| request.id != answer.request.id);
            if self.letters.requests.len() < waiting {
                self.letters.answers.push(answer.clone());
            }
        }
        let surplus = self.letters.answers.len().saturating_sub(KEPT_ANSWERS);
        self.letters.answers.drain(..surplus);
    }
}

fn is_behind(after: Option<ParkedPlace>) -> impl Fn(&ParkedPlace) -> bool {
    move |place| after.is_none_or(|after| *place > after)
}

// === impl SimulatedReadModel ===

impl<M: Modelled> SimulatedReadModel<M> {
    /// Reads a partition of the generation that this process writes, or of the one that serves.
    pub(super) async fn reading<T>(
        &self,
        operation: &'static str,
        partition: PartitionRef,
        read: impl FnOnce(&Part<M>) -> T,
    ) -> Result<T, ReadModelError> {
        self.at_once(operation, |state| {
            let number = self.told_of(state)?.number;
            let nothing = Part::default();
            Ok(read(state.parts.get(&(number, partition)).unwrap_or(&nothing)))
        })
        .await
    }

    async fn writing<T>(
        &self,
        operation: &'static str,
        partition: PartitionRef,
        write: impl FnOnce(&mut Part<M>) -> Result<T, ReadModelError>,
    ) -> Result<T, ReadModelError> {
        self.at_once(operation, |state| {
            let generation = self.told_of(state)?;
            generation.check_partition(partition, M::CONTEXTS)?;
            state.remember((generation.number, partition));
            write(state.parts.entry((generation.number, partition)).or_default())
        })
        .await
    }
}

#[async_trait]
impl<M: Modelled> DeadLetters for SimulatedReadModel<M> {
    async fn partitions(&self) -> Result<Vec<PartitionRef>, ReadModelError> {
        self.at_once("partitions", |state| {
            let count = self.told_of(state)?.partitions;
            let of_context = |&context| (0..count).map(move |partition| PartitionRef { context, partition });
            Ok(M::CONTEXTS.iter().flat_map(of_context).collect())
        })
        .await
    }

    async fn parked(
        &self,
        partition: PartitionRef,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadModelError> {
        let is_behind = is_behind(after);
        self.reading("parked", partition, |part| {
            let behind = part.parked.iter().filter(|(place, _)| is_behind(place));
            behind.take(limit).map(|(_, event)| event.clone()).collect()
        })
        .await
    }

    async fn parked_of(
        &self,
        partition: PartitionRef,
        key: &str,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<ParkedEvent>, ReadModelError> {
        let is_behind = is_behind(after);
        self.reading("parked_of", partition, |part| {
            let behind = part.parked.iter().filter(|(place, event)| is_behind(place) && event.key == key);
            behind.take(limit).map(|(_, event)| event.clone()).collect()
        })
        .await
    }

    async fn parked_keys(
        &self,
        partition: PartitionRef,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ParkedKey>, ReadModelError> {
        self.reading("parked_keys", partition, |part| {
            let mut keys: BTreeMap<&str, ParkedKey> = BTreeMap::new();
            for (place, event) in &part.parked {
                let key = keys.entry(&event.key).or_insert_with(|| ParkedKey {
                    key: event.key.clone(),
                    events: 0,
                    first: *place,
                    reason: event.reason.clone(),
                    parked_at: event.parked_at,
                });
                key.events += 1;
            }
            let behind = keys.into_iter().filter(|(key, _)| after.is_none_or(|after| *key > after));
            behind.take(limit).map(|(_, key)| key).collect()
        })
        .await
    }

    async fn discarded(
        &self,
        partition: PartitionRef,
        after: Option<ParkedPlace>,
        limit: usize,
    ) -> Result<Vec<DiscardedEvent>, ReadModelError> {
        let is_behind = is_behind(after);
        self.reading("discarded", partition, |part| {
            let behind = part.letters.discarded.iter().filter(|(place, _)| is_behind(place));
            behind.take(limit).map(|(_, event)| event.clone()).collect()
        })
        .await
    }

    async fn request_dead_letter(
        &self,
        partition: PartitionRef,
        request: &DeadLetterRequest,
    ) -> Result<(), ReadModelError> {
        self.writing("request_dead_letter", partition, |part| {
            let requests = &mut part.letters.requests;
            let waiting = requests.len();
            if waiting >= MAX_REQUESTS {
                let name = M::NAME.to_owned();
                return Err(ReadModelError::TooManyRequests { name, partition, waiting });
            }
            if !requests.iter().any(|known| known.id == request.id) {
                requests.push(request.clone());
            }
            Ok(())
        })
        .await
    }

    async fn dead_letter_requests(&self, partition: PartitionRef) -> Result<Vec<DeadLetterRequest>, ReadModelError> {
        self.reading("dead_letter_requests", partition, |part| part.letters.requests.clone()).await
    }

    async fn dead_letter_answers(
        &self,
        partition: PartitionRef,
        limit: usize,
    ) -> Result<Vec<DeadLetterAnswer>, ReadModelError> {
        self.reading("dead_letter_answers", partition, |part| {
            part.letters.answers.iter().rev().take(limit).cloned().collect()
        })
        .await
    }

    async fn mirrored(&self, partition: PartitionRef) -> Result<Option<ParkedPlace>, ReadModelError> {
        self.reading("mirrored", partition, |part| part.letters.mirrored).await
    }

    async fn set_mirrored(&self, partition: PartitionRef, place: ParkedPlace) -> Result<(), ReadModelError> {
        self.writing("set_mirrored", partition, |part| {
            part.letters.mirrored = part.letters.mirrored.max(Some(place));
            Ok(())
        })
        .await
    }
}
