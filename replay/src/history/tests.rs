use std::sync::Arc;

use read_models::generations::{GenerationState, Share, Verdict};
use schemas::id::ProjectionId;
use serde_json::json;

use super::*;
use crate::decide::CutoverRequest;
use crate::evidence::ParityEvidence;
use crate::memory::{MemoryGenerations, by, clean, level, ownership, request};
use crate::operations::Operations;
use crate::record::ReplayRecord;
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
    history.compare("stock", &catalogue, &events, 2);
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
    rewritten.compare("stock", &catalogue, &events, 3);
    assert_eq!(rewritten.tampered, ["decision 1: platform.events recorded another one"]);
    let mut lost = history.clone();
    lost.compare("stock", &catalogue, &events[1..], 3);
    assert_eq!(lost.tampered, ["decision 1: platform.events does not have it"]);
    let mut cut = History { decisions: history.decisions[..2].to_vec(), ..history.clone() };
    cut.compare("stock", &catalogue, &events[1..], 0);
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

#[tokio::test]
async fn what_a_catalogue_that_is_gone_decided_is_told() {
    let (catalogue, history) = history().await;
    let events: Vec<_> = history.decisions.iter().map(|decision| recorded(&catalogue, decision)).collect();

    // The store was emptied, and nobody brought the catalogue back.
    let emptied = Catalogue::of_built(None);
    let mut nothing = History { decisions: Vec::new(), ..history.clone() };
    nothing.compare("stock", &emptied, &events, 0);
    assert_eq!(nothing.elsewhere.len(), 1);
    assert_eq!((nothing.elsewhere[0].catalogue_id, nothing.elsewhere[0].decisions.len()), (catalogue.id, 3));
    assert!(nothing.tampered[0].contains("3 decisions of an earlier catalogue"), "{:?}", nothing.tampered);
    assert!(nothing.tampered[0].contains("emptied or replaced"), "{:?}", nothing.tampered);

    // It was brought back under another id, with all decisions or with some.
    let back = Catalogue { id: Uuid::from_u128(5), ..catalogue.clone() };
    let mut whole = history.clone();
    whole.compare("stock", &back, &events, 0);
    assert_eq!((whole.tampered.len(), whole.elsewhere.len()), (0, 0), "{whole:?}");
    let mut partly = History { decisions: history.decisions[..2].to_vec(), ..history.clone() };
    partly.compare("stock", &back, &events, 0);
    assert_eq!((partly.tampered.len(), partly.elsewhere[0].decisions[0].number), (1, 3), "{partly:?}");

    // Each directory of search has a catalogue of its own: others are told of, and are no finding.
    let of_search: Vec<_> = events
        .iter()
        .map(|event| DecisionRecorded { projection: ProjectionId::new("search").unwrap(), ..event.clone() })
        .collect();
    let mut search = History { decisions: Vec::new(), ..history.clone() };
    search.compare("search", &emptied, &of_search, 0);
    assert_eq!((search.tampered.len(), search.elsewhere.len()), (0, 1), "{search:?}");
    // And those of one read model are none of another.
    let mut stock = History { decisions: Vec::new(), ..history };
    stock.compare("stock", &emptied, &of_search, 0);
    assert_eq!((stock.tampered.len(), stock.elsewhere.len()), (0, 0), "{stock:?}");
}

/// A tenth is answered from the candidate, approved by ann.
async fn served() -> Arc<MemoryGenerations> {
    let stored = Arc::new(MemoryGenerations::new());
    let operations = Operations::new(stored.clone(), Arc::new(ownership()));
    let plan = "[[stage]]\nname = \"tenth\"\nshare = { percent = 10 }\n[[stage]]\nname = \"all\"\nshare = \"all\"\n";
    operations.start(&request(plan), &by("eve", 1)).await.unwrap();
    operations.note_parity(&clean(2, 1, 2), &Rules::default(), &by("eve", 2)).await.unwrap();
    operations.approve(2, None, &by("ann", 3)).await.unwrap();
    enter(&operations, 4).await;
    stored
}

async fn enter(operations: &Operations, at: i64) {
    let request = CutoverRequest { generation: 2, ..CutoverRequest::default() };
    let entered = operations.cutover(&request, &level(), &by("eve", at)).await.unwrap();
    assert!(entered.done().is_some(), "{entered:?}");
}

/// What is found where the catalogue is written by hand.
async fn found(stored: &MemoryGenerations, change: impl FnOnce(&mut Catalogue)) -> Vec<String> {
    let (mut catalogue, history) = (stored.catalogue().await.unwrap(), History::read(stored).await.unwrap());
    assert_eq!(history.tampered, Vec::<String>::new());
    change(&mut catalogue);
    derived::contradictions("stock", &catalogue, &history.decisions)
}

#[tokio::test]
async fn a_catalogue_that_says_what_nobody_decided_is_seen() {
    let stored = served().await;
    let by_hand = found(&stored, |catalogue| catalogue.serving = 2).await;
    assert_eq!(by_hand, ["the catalogue says that stock@2 serves; no decision cut over to it"]);
    let by_hand = found(&stored, |catalogue| catalogue.candidate = None).await;
    assert!(by_hand[0].contains("nothing is being cut over to; by the decisions stock@2 is given"), "{by_hand:?}");
    let all = |catalogue: &mut Catalogue| catalogue.candidate.as_mut().unwrap().share = Share::Percent(100);
    assert!(found(&stored, all).await[0].contains(r#"by the decisions stock@2 is given {"percent":10}"#));

    let operations = Operations::new(stored.clone(), Arc::new(ownership()));
    enter(&operations, 5).await;
    let by_hand = found(&stored, |catalogue| catalogue.serving = 1).await;
    assert_eq!(by_hand, ["the catalogue says that stock@1 serves; by the decisions it is stock@2"]);
    operations.rollback(None, &by("carl", 6)).await.unwrap();
    let by_hand = found(&stored, |catalogue| catalogue.serving = 2).await;
    assert_eq!(by_hand, ["the catalogue says that stock@2 serves; by the decisions it is stock@1"]);
    operations.note_parity(&clean(2, 1, 7), &Rules::default(), &by("eve", 7)).await.unwrap();
    operations.approve(2, None, &by("ann", 8)).await.unwrap();

    let of_record = |change: fn(&mut ReplayRecord)| {
        move |catalogue: &mut Catalogue| {
            let entry = catalogue.generations.get_mut(&2).unwrap();
            let mut record = ReplayRecord::of(entry).unwrap().unwrap();
            change(&mut record);
            entry.replay = record.to_value().unwrap();
        }
    };
    let by_hand = found(&stored, of_record(|record| record.approvals[0].by = "bob".to_owned())).await;
    assert_eq!(by_hand[0], "the catalogue has an approval of stock@2 by bob; nobody gave it");
    assert_eq!(by_hand[1], "the catalogue does not have the approval of stock@2 by ann");
    let by_hand = found(&stored, of_record(|record| record.parity.as_mut().unwrap().compared_keys += 1)).await;
    assert_eq!(by_hand, ["the comparison of stock@2 in the catalogue is not the one that was noted last"]);
    let third = |catalogue: &mut Catalogue| {
        let entry = catalogue.generations[&2].clone();
        catalogue.generations.insert(3, entry);
    };
    assert!(found(&stored, third).await[0].contains("stock@3; no decision started it"));
    assert!(found(&stored, |catalogue| drop(catalogue.generations.remove(&2))).await[0].contains("does not have it"));
    let ended = |catalogue: &mut Catalogue| {
        catalogue.generations.get_mut(&2).unwrap().state = GenerationState::Removed;
    };
    assert!(found(&stored, ended).await[0].contains("no decision ended it"));

    operations.retire(2, None, &by("eve", 9)).await.unwrap();
    let fed = |catalogue: &mut Catalogue| {
        catalogue.generations.get_mut(&2).unwrap().state = GenerationState::Fed;
    };
    assert!(found(&stored, fed).await[0].contains("was ended, and the catalogue says that it is fed"));

    // Whoever reads the history is told.
    let mut by_hand = stored.catalogue().await.unwrap();
    (by_hand.version, by_hand.serving) = (by_hand.version + 1, 2);
    stored.change(&by_hand, &[]).await.unwrap();
    let history = History::read(&*stored).await.unwrap();
    assert!(history.tampered[0].contains("by the decisions it is stock@1"), "{:?}", history.tampered);
}

#[tokio::test]
async fn a_comparison_that_takes_a_stage_back_agrees_with_its_catalogue() {
    let stored = served().await;
    let operations = Operations::new(stored.clone(), Arc::new(ownership()));
    let differs = ParityEvidence { differing_keys: 1, ..clean(2, 1, 9) };
    operations.note_parity(&differs, &Rules::default(), &by("eve", 9)).await.unwrap();
    assert_eq!(stored.actions().last().unwrap(), "rolled_back");
    assert_eq!(found(&stored, |_| {}).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_generation_that_is_removed_hides_nothing_else() {
    let stored = served().await;
    let operations = Operations::new(stored.clone(), Arc::new(ownership()));
    operations.rollback(None, &by("carl", 6)).await.unwrap();
    operations.abort(2, &by("eve", 7)).await.unwrap();
    let catalogue = stored.catalogue().await.unwrap();
    let verdict = Verdict {
        at: 8,
        who: "millrace".to_owned(),
        action: Action::Removed,
        generation: catalogue.generation("stock", 2).unwrap(),
        reason: String::new(),
        evidence: json!({}),
    };
    let (mut to, decisions) = catalogue.decided(catalogue.clone(), vec![verdict]);
    to.generations.get_mut(&2).unwrap().state = GenerationState::Removed;
    stored.change(&to, &decisions).await.unwrap();
    let by_hand = found(&stored, |catalogue| catalogue.serving = 2).await;
    assert_eq!(by_hand, ["the catalogue says that stock@2 serves; by the decisions it is stock@1"]);
}

#[tokio::test]
async fn behind_what_is_not_known_only_what_comes_after_it_follows() {
    let stored = served().await;
    for action in [Action::RestoredAfterLoss.as_str(), "of_a_newer_release"] {
        let (catalogue, mut decisions) = (stored.catalogue().await.unwrap(), stored.all_decisions());
        let generation = catalogue.generation("stock", 2).unwrap();
        let verdict = Verdict {
            at: 9,
            who: "millrace".to_owned(),
            action: Action::RestoredAfterLoss,
            generation,
            reason: String::new(),
            evidence: json!({}),
        };
        let (to, mut more) =
            catalogue.decided(Catalogue { serving: 2, candidate: None, ..catalogue.clone() }, vec![verdict]);
        action.clone_into(&mut more[0].action);
        decisions.extend(more);
        assert_eq!(derived::contradictions("stock", &to, &decisions), Vec::<String>::new(), "{action}");
    }
}
