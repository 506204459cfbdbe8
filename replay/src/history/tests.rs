use std::sync::Arc;

use schemas::id::ProjectionId;

use super::*;
use crate::memory::{MemoryGenerations, by, clean, ownership, request};
use crate::operations::Operations;
use crate::rules::Rules;

async fn history() -> (Catalogue, History) {
    let stored = Arc::new(MemoryGenerations::new());
    let operations = Operations::new(stored.clone(), Arc::new(ownership()));
    operations.start(&request(""), &by("eve", 1)).await.unwrap();
    operations.note_parity(&clean(2, 1, 2), &Rules::default(), &by("eve", 2)).await.unwrap();
    operations.approve(2, None, &by("ann", 3)).await.unwrap();
    (stored.catalogue().await.unwrap(), History::read(&*stored).await.unwrap())
}

fn recorded(catalogue: &Catalogue, decision: &Decision) -> DecisionRecorded {
    DecisionRecorded {
        projection: ProjectionId::new("stock").unwrap(),
        catalogue_id: catalogue.id,
        number: decision.number as i64,
        at: decision.at,
        who: decision.who.clone(),
        action: decision.action.clone(),
        generation: decision.generation.clone(),
        reason: decision.reason.clone(),
        evidence: decision.evidence.to_string(),
        previous: decision.previous.clone(),
        hash: decision.hash.clone(),
    }
}

#[tokio::test]
async fn an_untouched_past_is_whole() {
    let (catalogue, mut history) = history().await;
    assert_eq!((history.decisions.len(), history.tampered.len()), (3, 0));
    let events: Vec<_> = history.decisions.iter().take(2).map(|decision| recorded(&catalogue, decision)).collect();
    history.compare(&catalogue, &events, 2);
    assert!(history.tampered.is_empty(), "{:?}", history.tampered);
}

#[tokio::test]
async fn tampering_is_seen_in_the_store_and_beside_the_log() {
    let (catalogue, history) = history().await;
    let mut changed = history.decisions.clone();
    changed[1].who = "ann".to_owned();
    assert_eq!(broken(&catalogue, &changed).len(), 1);
    assert!(broken(&catalogue, &changed[..2])[0].contains("changed after it was made"));
    assert!(broken(&catalogue, &history.decisions[..2])[0].contains("missing at the end"));

    // Whoever writes the whole chain anew, with the catalogue, is seen beside the log.
    let mut events: Vec<_> = history.decisions.iter().map(|decision| recorded(&catalogue, decision)).collect();
    events[0].hash = "f".repeat(64);
    let mut rewritten = history.clone();
    rewritten.compare(&catalogue, &events, 3);
    assert_eq!(rewritten.tampered, ["decision 1: platform.events recorded another one"]);
    let mut lost = history.clone();
    lost.compare(&catalogue, &events[1..], 3);
    assert_eq!(lost.tampered, ["decision 1: platform.events does not have it"]);
    let mut cut = History { decisions: history.decisions[..2].to_vec(), tampered: Vec::new() };
    cut.compare(&catalogue, &events[1..], 0);
    assert_eq!(cut.tampered, ["decision 3: platform.events has it, the store does not"]);
}

#[tokio::test]
async fn page_by_page_the_whole_chain_is_checked() {
    let stored = Arc::new(MemoryGenerations::new());
    let operations = Operations::new(stored.clone(), Arc::new(ownership()));
    operations.start(&request(""), &by("eve", 1)).await.unwrap();
    for at in 2..7 {
        operations.note_parity(&clean(2, 1, at), &Rules::default(), &by("eve", at)).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut after = 0;
    loop {
        let page = History::page(&*stored, after, 4).await.unwrap();
        assert_eq!(page.tampered, Vec::<String>::new());
        seen.extend(page.decisions.iter().map(|decision| decision.number));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(seen, [1, 2, 3, 4, 5, 6]);
    assert_eq!(History::page(&*stored, 6, 4).await.unwrap().next, None);

    // The last one of a page was replaced: the next page begins with one that does not follow on it.
    stored.tamper(4, |decision| decision.hash = "f".repeat(64));
    assert!(History::page(&*stored, 4, 4).await.unwrap().tampered[0].contains("decision 5"));
    assert!(History::page(&*stored, 0, 4).await.unwrap().tampered[0].contains("decision 4"));
    stored.tamper(6, |decision| decision.number = 9);
    let page = History::page(&*stored, 5, 4).await.unwrap();
    assert!(page.tampered[0].contains("decision 6"), "{page:?}");
}
