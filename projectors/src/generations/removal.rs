//! The data of retired generations goes, some rows at a time, once nobody can be feeding them any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use read_models::generations::{Action, GenerationState, Verdict};
use read_models::{Catalogue, Generations, ReadModelError};
use resilience::Policy;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::GenerationStores;
use crate::projection::Projection;
use crate::worker::now;

/// What is being removed.
pub(super) struct Removals {
    after: Duration,
    /// Retired generations, since when they are seen to be, and whether their removal has begun.
    seen: BTreeMap<u32, (Instant, bool)>,
    running: JoinSet<()>,
}

/// Rows of one step: so few that reads and writes beside it do not wait for long.
const ROWS: usize = 2_000;
/// Pause between two steps.
const PAUSE: Duration = Duration::from_millis(10);

// === impl Removals ===

impl Removals {
    pub(super) fn new(after: Duration) -> Self {
        Self { after, seen: BTreeMap::new(), running: JoinSet::new() }
    }

    pub(super) fn follow<P: Projection, S: GenerationStores<P>>(&mut self, catalogue: &Catalogue, stores: &Arc<S>) {
        let retired = |number: &u32| {
            let entry = catalogue.generations.get(number);
            entry.is_some_and(|entry| entry.state == GenerationState::Retired)
        };
        self.seen.retain(|number, _| retired(number));
        for number in catalogue.generations.keys().filter(|number| retired(number)) {
            let (since, has_begun) = self.seen.entry(*number).or_insert_with(|| (Instant::now(), false));
            if !*has_begun && since.elapsed() >= self.after {
                *has_begun = true;
                let (stores, number) = (Arc::clone(stores), *number);
                self.running.spawn(async move { remove(stores.catalogue(), number).await });
            }
        }
        while self.running.try_join_next().is_some() {}
    }

    pub(super) fn stop(&mut self) {
        self.running.abort_all();
    }
}

/// Removes everything, and says in the catalogue that it is gone. Goes on after every trouble.
async fn remove(store: &dyn Generations, number: u32) {
    let mut delays = Policy::STORE.backoff();
    loop {
        let removed = async {
            while store.remove_some(number, ROWS).await? {
                tokio::time::sleep(PAUSE).await;
            }
            note_removed(store, number).await
        };
        match removed.await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(read_model = store.name(), generation = number, %error, "retired data stays for now");
                delays.wait().await;
            }
        }
    }
}

async fn note_removed(store: &dyn Generations, number: u32) -> Result<(), ReadModelError> {
    loop {
        let found = store.catalogue().await?;
        let mut to = found.clone();
        let entry = to.generations.get_mut(&number).filter(|entry| entry.state == GenerationState::Retired);
        let (Some(entry), Some(generation)) = (entry, found.generation(store.name(), number)) else { return Ok(()) };
        entry.state = GenerationState::Removed;
        let verdict = Verdict {
            at: now(),
            who: "millrace".to_owned(),
            action: Action::Removed,
            generation,
            reason: "nothing is left of it in the store".to_owned(),
            evidence: serde_json::Value::Null,
        };
        let (to, decisions) = found.decided(to, vec![verdict]);
        match store.change(&to, &decisions).await {
            Err(ReadModelError::CatalogueMoved { .. }) => {}
            changed => return changed,
        }
    }
}
