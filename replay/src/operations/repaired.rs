//! Keys folded anew in the generation that serves: nothing in the catalogue changes by it, and it is decided all the
//! same.

use std::collections::BTreeSet;

use read_models::generations::{Action, Catalogue, Verdict};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::by::By;
use crate::decide::{Decided, Ruling};
use crate::error::ReplayError;
use crate::gates::Missing;
use crate::outcome::Reversal;
use crate::repair::Selection;
use crate::replayed::Selected;

/// Named SKUs that a decision lists; of more it has the number, and the digest of all keys.
const MAX_SKUS: usize = 500;

/// Notes who has which keys of `generation` folded anew, and why. Refused where another one serves by now.
pub(super) fn repaired(
    name: &str,
    catalogue: &Catalogue,
    generation: u32,
    selection: &Selection,
    selected: &Selected,
    by: &By,
) -> Result<Ruling, ReplayError> {
    let serving = catalogue.serving;
    let built = catalogue.fed_entry(serving).and_then(|_| catalogue.generation(name, serving));
    let Some(built) = built.filter(|_| serving == generation) else {
        let sentence = format!("{name}@{serving} serves, not {name}@{generation} any more; look again what is wrong");
        return Ok(Ruling::Refuse(vec![Missing::new("serves_no_more", sentence)]));
    };
    let keys: BTreeSet<&str> = selected.values().flatten().map(String::as_str).collect();
    let skus = match selection.skus.len() {
        named if named > MAX_SKUS => json!(format!("{named}, too many to be listed")),
        _ => json!(selection.skus),
    };
    let evidence = json!({
        "skus": skus,
        "regions": selection.regions,
        "since": selection.since,
        "until": selection.until,
        "keys": keys.len(),
        "keys_sha256": digest(&keys),
    });
    let verdicts = vec![Verdict {
        at: by.at(),
        who: by.who().to_owned(),
        action: Action::Repaired,
        generation: built,
        reason: by.reason().to_owned(),
        evidence,
    }];
    let done = format!("{} keys of {name}@{serving} are folded anew", keys.len());
    // What is written is what the log says, which the same again would write.
    let reversal = Reversal::Reversible;
    Ok(Ruling::Change(Box::new(Decided { to: catalogue.clone(), verdicts, done, reversal })))
}

/// SHA-256, in hex, of the keys in order, a line each.
fn digest(keys: &BTreeSet<&str>) -> Value {
    let mut digest = Sha256::new();
    for key in keys {
        digest.update(key.as_bytes());
        digest.update(b"\n");
    }
    json!(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use read_models::{Generations, PartitionRef};
    use schemas::{Context, RegionId, Sku};

    use super::*;
    use crate::history::History;
    use crate::memory::{MemoryGenerations, by, ownership};
    use crate::operations::Operations;

    #[tokio::test]
    async fn a_repair_is_a_decision_like_every_other() {
        let stored = Arc::new(MemoryGenerations::new());
        let operations = Operations::new(stored.clone(), Arc::new(ownership()));
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
        let at = |partition| PartitionRef { context: Context::Inventory, partition };
        let selected = BTreeMap::from([(at(0), keys(&["B"])), (at(1), keys(&["A"]))]);
        let selection = Selection {
            skus: ["A", "B"].map(|sku| Sku::new(sku).unwrap()).to_vec(),
            regions: vec![RegionId::new("eu").unwrap()],
            since: Some(3),
            until: None,
        };
        let outcome = operations.note_repair(1, &selection, &selected, &by("ann", 7)).await.unwrap();
        assert_eq!(outcome.done().unwrap().action, "repaired", "{outcome:?}");
        let decision = stored.all_decisions().remove(0);
        assert_eq!((decision.who.as_str(), decision.at, decision.generation.as_str()), ("ann", 7, "stock@1"));
        assert_eq!(decision.reason, by("ann", 7).reason());
        // `printf 'A\nB\n' | sha256sum`
        let sha256 = "daee1cd25194ae952d046ad9b9c81d3c07dc5332440b58d6d7461b248be56712";
        let evidence = json!({
            "skus": ["A", "B"], "regions": ["eu"], "since": 3, "until": null, "keys": 2, "keys_sha256": sha256,
        });
        assert_eq!(decision.evidence, evidence);
        let history = History::read(&*stored).await.unwrap();
        assert_eq!((history.decisions.len(), history.tampered), (1, Vec::new()));

        // Many names are not listed: what is too long could not be published.
        let many = (0..20_000).map(|number| Sku::new(format!("SKU-{number}")).unwrap()).collect();
        let many = Selection { skus: many, ..Selection::default() };
        operations.note_repair(1, &many, &selected, &by("ann", 8)).await.unwrap();
        assert_eq!(stored.all_decisions()[1].evidence["skus"], "20000, too many to be listed");

        // Another one serves by now: its rows are not those that somebody found wrong.
        let refused = operations.note_repair(2, &selection, &selected, &by("ann", 9)).await.unwrap();
        assert_eq!(refused.missing()[0].code, "serves_no_more");
        assert_eq!(stored.catalogue().await.unwrap().decisions, 2);
    }
}
