//! A store that lost its catalogue gets it back from a process that knows it.
//!
//! A store of rows may be wiped: everything in it is built again from the log. Its catalogue is in no log: without it
//! the first generation would serve again, of whatever fold. So each process that feeds keeps the catalogue and all of
//! its decisions, and writes them back, with one more decision that says so. Versions go on from the one that it knew:
//! stages are named by them, and what is back must not look lost to anybody.

use read_models::generations::{Action, Decision, Verdict, check_chain};
use read_models::{Catalogue, Generation, Generations, ReadModelError};
use uuid::Uuid;

use crate::worker::now;

/// A catalogue as it was read, with the decisions that led to it.
pub(super) struct Known {
    pub(super) catalogue: Catalogue,
    decisions: Vec<Decision>,
}

/// Decisions of one page.
const PAGE: usize = 500;

/// Keeps what was found, or brings back what is missing. The catalogue to follow.
pub(super) async fn follow(
    store: &dyn Generations,
    known: &mut Option<Known>,
    found: Catalogue,
) -> Result<Catalogue, ReadModelError> {
    if let Some(known) = known
        && is_lost(&known.catalogue, &found)
    {
        let (restored, decisions) = restoration(store.name(), known, &found);
        match store.replace(found.version, &restored, &decisions).await {
            Ok(()) => {
                tracing::warn!(read_model = store.name(), version = restored.version, "the lost catalogue is back");
            }
            // Another process was faster.
            Err(ReadModelError::CatalogueMoved { .. }) => {}
            Err(error) => return Err(error),
        }
        // As the store has it, next time.
        return Ok(known.catalogue.clone());
    }
    let known = known.get_or_insert_with(|| Known { catalogue: found.clone(), decisions: Vec::new() });
    if known.catalogue.id != found.id {
        known.decisions.clear();
    }
    while (known.decisions.len() as u64) < found.decisions {
        let after = known.decisions.len() as u64;
        let page = store.decisions(after, PAGE).await?;
        known.decisions.extend(page.into_iter().filter(|decision| decision.number > after));
        if known.decisions.len() as u64 == after {
            break;
        }
    }
    // Another chain than the one that is kept: somebody who knew less brought the catalogue back.
    let joins_up = || check_chain(&known.decisions).is_ok();
    let is_own = || known.decisions.last().is_none_or(|last| last.hash == found.last_hash) && joins_up();
    if known.catalogue != found && !is_own() {
        known.decisions = all_decisions(store, found.decisions).await?;
    }
    known.catalogue = found.clone();
    Ok(found)
}

async fn all_decisions(store: &dyn Generations, to: u64) -> Result<Vec<Decision>, ReadModelError> {
    let mut decisions: Vec<Decision> = Vec::new();
    loop {
        let after = decisions.len() as u64;
        let page = if after < to { store.decisions(after, PAGE).await? } else { Vec::new() };
        if page.is_empty() {
            return Ok(decisions);
        }
        decisions.extend(page);
    }
}

/// Whether the store went back: it was wiped, or came back without what it was told last, or was brought back by one
/// who knew less.
fn is_lost(known: &Catalogue, found: &Catalogue) -> bool {
    let is_other = found.version == known.version && found.last_hash != known.last_hash;
    known.version > 0 && (found.version < known.version || is_other) && (found.version == 0 || found.id == known.id)
}

fn restoration(name: &str, known: &Known, found: &Catalogue) -> (Catalogue, Vec<Decision>) {
    let mut to = known.catalogue.clone();
    if found.version == 0 {
        // It is another one: so everybody sees that something happened.
        to.id = Uuid::nil();
    }
    let verdict = Verdict {
        at: now(),
        who: "millrace".to_owned(),
        action: Action::RestoredAfterLoss,
        generation: Generation { name: name.to_owned(), number: to.serving, fold_version: 0, partitions: 0 },
        reason: format!(
            "the store had version {} of the catalogue, a process that feeds it knew version {}",
            found.version, known.catalogue.version
        ),
        evidence: serde_json::json!({ "found": found.version, "known": known.catalogue.version }),
    };
    let last_of_found = known.decisions.iter().find(|decision| decision.number == found.decisions);
    let is_beginning = found.decisions == 0 || last_of_found.is_some_and(|last| last.hash == found.last_hash);
    if !is_beginning {
        // Its chain goes on: what it was told meanwhile stays said.
        let base = Catalogue { decisions: found.decisions, ..known.catalogue.clone() };
        return base.decided(Catalogue { last_hash: found.last_hash.clone(), ..to }, vec![verdict]);
    }
    let (to, restored) = known.catalogue.decided(to, vec![verdict]);
    let lost = known.decisions.iter().filter(|decision| decision.number > found.decisions).cloned();
    (to, lost.chain(restored).collect())
}
