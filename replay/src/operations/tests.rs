//! Given a catalogue, when somebody decides, then that is done or refused, and nothing else changes.

use std::sync::atomic::Ordering;

use read_models::generations::{GenerationState, Share, Until, check_chain};

use super::*;
use crate::memory::{HOUR, MemoryGenerations, STAGES, by, clean, level, ownership, request};
use crate::outcome::Reversal;

struct Given {
    stored: Arc<MemoryGenerations>,
    operations: Operations,
}

fn given() -> Given {
    let stored = Arc::new(MemoryGenerations::new());
    Given { operations: Operations::new(stored.clone(), Arc::new(ownership())), stored }
}

impl Given {
    async fn catalogue(&self) -> Catalogue {
        self.stored.catalogue().await.unwrap()
    }

    async fn start(&self, stages: &str, at: i64) -> Done {
        done(self.operations.start(&request(stages), &by("eve", at)).await)
    }

    /// Compared and approved at `at`.
    async fn let_through(&self, generation: u32, at: i64) {
        let serving = self.catalogue().await.serving;
        done(self.operations.note_parity(&clean(generation, serving, at), &Rules::default(), &by("eve", at)).await);
        done(self.operations.approve(generation, None, &by("ann", at)).await);
    }

    async fn cutover(&self, generation: u32, at: i64) -> Outcome {
        let request = CutoverRequest { generation, ..CutoverRequest::default() };
        self.operations.cutover(&request, &level(), &by("eve", at)).await.unwrap()
    }

    async fn serves(&self, generation: u32) {
        self.start("", 0).await;
        self.let_through(generation, 0).await;
        done(Ok(self.cutover(generation, 0).await));
    }
}

fn done(outcome: Result<Outcome, ReplayError>) -> Done {
    let outcome = outcome.unwrap();
    outcome.done().cloned().unwrap_or_else(|| panic!("refused: {:?}", outcome.missing()))
}

fn codes(outcome: &Outcome) -> Vec<&'static str> {
    outcome.missing().iter().map(|missing| missing.code).collect()
}

#[tokio::test]
async fn a_replay_serves_after_parity_and_approval_and_goes_back_in_one_step() {
    let given = given();
    let started = given.start("", 0).await;
    assert_eq!((started.generation.as_str(), started.reversal), ("stock@2", Reversal::Reversible));
    assert_eq!(codes(&given.cutover(2, 1).await), ["no_parity", "not_approved"]);

    given.let_through(2, 1).await;
    let cut_over = done(Ok(given.cutover(2, 2).await));
    let catalogue = given.catalogue().await;
    assert_eq!((catalogue.serving, catalogue.previous, catalogue.candidate.clone()), (2, Some(1), None));
    assert!(catalogue.fed().eq([1, 2]), "the old generation is still fed");
    let commands: Vec<_> = cut_over.next.iter().map(|step| (step.command.as_str(), step.reversal)).collect();
    assert_eq!(commands, [("rollback stock", Reversal::Reversible), ("retire stock@1", Reversal::ForwardFixOnly)]);

    done(given.operations.rollback(None, &by("anyone", 3)).await);
    let catalogue = given.catalogue().await;
    assert_eq!((catalogue.serving, catalogue.previous), (1, Some(2)));
    assert!(catalogue.fed().eq([1, 2]), "what was rolled back is still fed");
    assert_eq!(given.stored.actions(), ["started", "verified", "approved", "cut_over", "rolled_back"]);
    check_chain(&given.stored.decisions(0, 100).await.unwrap()).unwrap();
}

#[tokio::test]
async fn a_rollback_never_leads_forward_again_and_a_second_cutover_needs_all_anew() {
    let given = given();
    given.serves(2).await;
    done(given.operations.rollback(None, &by("ann", 3)).await);

    let again = given.operations.rollback(None, &by("ann", 4)).await.unwrap();
    assert_eq!(codes(&again), ["no_way_back"]);
    assert_eq!(given.catalogue().await.serving, 1);
    assert_eq!(codes(&given.cutover(2, 5).await), ["no_parity", "not_approved"]);

    given.let_through(2, 6).await;
    done(Ok(given.cutover(2, 7).await));
    assert_eq!(given.catalogue().await.serving, 2);
}

#[tokio::test]
async fn several_cutovers_are_taken_back_one_by_one() {
    let given = given();
    given.serves(2).await;
    given.serves(3).await;
    let back = done(given.operations.rollback(None, &by("ann", 3)).await);
    assert_eq!(given.catalogue().await.serving, 2);
    // Said twice, it does not go two steps.
    let twice = given.operations.rollback(None, &by("bob", 4)).await.unwrap();
    assert_eq!(codes(&twice), ["name_it"]);
    let sentence = &twice.missing()[0].sentence;
    assert!(
        sentence.contains("from stock@2 to stock@1") && sentence.contains("`replay rollback stock@2`"),
        "{sentence}"
    );
    assert_eq!(given.catalogue().await.serving, 2);
    assert!(back.next.iter().any(|step| step.command == "rollback stock@2"), "{:?}", back.next);
    done(given.operations.rollback(Some(2), &by("ann", 4)).await);
    assert_eq!(given.catalogue().await.serving, 1);
}

#[tokio::test]
async fn a_candidate_that_is_taken_back_twice_is_taken_back_once() {
    let given = given();
    given.serves(2).await;
    given.start(STAGES, 1).await;
    given.let_through(3, 1).await;
    done(Ok(given.cutover(3, 1).await));
    done(given.operations.rollback(None, &by("ann", 2)).await);
    let twice = given.operations.rollback(None, &by("bob", 2)).await.unwrap();
    assert_eq!(codes(&twice), ["name_it"]);
    assert_eq!(given.catalogue().await.serving, 2);
    // Once nothing else is under way there is nothing to mistake.
    done(given.operations.abort(3, &by("eve", 3)).await);
    done(given.operations.rollback(None, &by("bob", 4)).await);
    assert_eq!(given.catalogue().await.serving, 1);
}

#[tokio::test]
async fn what_a_comparison_took_back_is_taken_back_like_any_other() {
    let given = given();
    given.serves(2).await;
    given.start(&stages("{ percent = 10 }"), 1).await;
    given.let_through(3, 1).await;
    done(Ok(given.cutover(3, 1).await));
    let unclean = ParityEvidence { differing_keys: 1, ..clean(3, 2, 2) };
    done(given.operations.note_parity(&unclean, &Rules::default(), &by("eve", 2)).await);
    assert_eq!(given.catalogue().await.candidate, None, "no stage answers from it any more");
    let meant = given.operations.rollback(None, &by("ann", 3)).await.unwrap();
    assert_eq!(codes(&meant), ["name_it"]);
    assert_eq!(given.catalogue().await.serving, 2);
}

#[tokio::test]
async fn what_is_only_built_beside_holds_up_no_rollback() {
    let given = given();
    given.serves(2).await;
    given.start(STAGES, 1).await;
    done(given.operations.rollback(None, &by("ann", 2)).await);
    assert_eq!(given.catalogue().await.serving, 1);
}

/// Mirrors at most `percent` of the requests, or answers them.
fn stages(share: &str) -> String {
    format!(
        "[[stage]]\nname = \"first\"\nshare = {share}\nmirror_percent = 10\n[[stage]]\nname = \"all\"\nshare = \"all\"\n"
    )
}

#[tokio::test]
async fn a_comparison_that_is_not_clean_takes_back_the_stage_that_answers() {
    let dirty = |at| ParityEvidence { differing_keys: 3, missing_keys: 1, ..clean(2, 1, at) };
    for (share, is_taken_back) in [("{ percent = 10 }", true), ("{ regions = [\"eu\"] }", true), ("\"none\"", false)] {
        let given = given();
        given.start(&stages(share), 0).await;
        given.let_through(2, 0).await;
        done(Ok(given.cutover(2, 1).await));
        done(given.operations.note_parity(&clean(2, 1, 2), &Rules::default(), &by("eve", 2)).await);
        assert!(given.catalogue().await.candidate.is_some(), "a clean one changes nothing");
        let noted = done(given.operations.note_parity(&dirty(3), &Rules::default(), &by("eve", 3)).await);
        let catalogue = given.catalogue().await;
        assert_eq!(catalogue.candidate.is_none(), is_taken_back, "{share}");
        let decisions = given.stored.all_decisions();
        check_chain(&decisions).unwrap();
        if is_taken_back {
            assert!(noted.done.contains("stock@1 answers everything again"), "{}", noted.done);
            let [verified, rolled_back] = &decisions[decisions.len() - 2..] else { panic!() };
            assert_eq!((verified.action.as_str(), verified.who.as_str()), ("verified", "eve"));
            assert_eq!((rolled_back.action.as_str(), rolled_back.who.as_str()), ("rolled_back", "trigger"));
            let reason = "the comparison is not clean: 3 of 100 keys differ, of which 1 are missing in the candidate";
            assert_eq!(rolled_back.reason, reason);
            // What it found is not forgotten with the stage.
            assert_eq!(codes(&given.cutover(2, 4).await), ["parity_differs", "not_approved"]);
        }
    }
}

#[tokio::test]
async fn who_names_a_report_approves_no_other() {
    let given = given();
    given.start("", 0).await;
    let rules = "[[difference]]\nprojection = \"stock\"\nfield = \"f\"\nkind = \"new\"\nreason = \"meant\"";
    let rules = Rules::parse(rules, "stock").unwrap();
    let evidence =
        ParityEvidence { report_sha256: "0123456789abcdef".repeat(4), rules_sha256: rules.sha256(), ..clean(2, 1, 1) };
    done(given.operations.note_parity(&evidence, &rules, &by("eve", 1)).await);
    let approve = async |report: &str| given.operations.approve(2, Some(report), &by("ann", 2)).await.unwrap();
    for other in ["0123456", "fedcba98", "", "0123456789abcdef0123456789abcdee"] {
        assert_eq!(codes(&approve(other).await), ["other_report"], "{other}");
    }
    done(Ok(approve("0123456789AB").await));
    let decisions = given.stored.all_decisions();
    let [verified, approved] = &decisions[1..] else { panic!() };
    assert_eq!(verified.evidence["rules"][0]["field"], "f");
    assert_eq!(verified.evidence["rules_sha256"], approved.evidence["rules_sha256"]);
    assert_eq!(approved.evidence["report_sha256"], evidence.report_sha256.as_str());
}

#[tokio::test]
async fn stages_are_entered_one_after_the_other() {
    let given = given();
    given.start(STAGES, 0).await;
    given.let_through(2, 0).await;
    let named = |stage: &str| CutoverRequest { generation: 2, stage: Some(stage.to_owned()), forced: false };
    let skipped = given.operations.cutover(&named("tenth"), &level(), &by("eve", 1)).await.unwrap();
    assert_eq!(codes(&skipped), ["stage_skipped"]);
    let unknown = given.operations.cutover(&named("half"), &level(), &by("eve", 1)).await.unwrap();
    assert_eq!(codes(&unknown), ["unknown_stage"]);

    let entered = done(Ok(given.cutover(2, 1).await));
    let candidate = given.catalogue().await.candidate.unwrap();
    assert_eq!((candidate.generation, candidate.share, candidate.mirror_percent), (2, Share::None, 100));
    assert!(entered.done.contains("stage mirror"), "{}", entered.done);
    assert_eq!(codes(&given.cutover(2, 2).await), ["too_early", "too_few_mirrored"]);
    let passed = given.operations.cutover(&named("mirror"), &level(), &by("eve", 2)).await.unwrap();
    assert!(codes(&passed).contains(&"stage_passed"));

    done(given.operations.rollback(None, &by("bob", 3)).await);
    let catalogue = given.catalogue().await;
    assert_eq!((catalogue.serving, catalogue.candidate.clone(), catalogue.fed().count()), (1, None, 2));
}

#[tokio::test]
async fn rules_of_a_newer_comparison_hold_for_the_running_stage_whose_reads_are_counted_anew() {
    let given = given();
    given.start(STAGES, 0).await;
    let forced = CutoverRequest { generation: 2, stage: None, forced: true };
    done(given.operations.cutover(&forced, &level(), &by("eve", 1)).await);
    let before = given.catalogue().await.candidate.unwrap();
    let rules = "[[difference]]\nprojection = \"stock\"\nfield = \"updated_at\"\nkind = \"new\"\nreason = \"fold 2\"\n";
    let rules = Rules::parse(rules, "stock").unwrap();
    let note = async |at| done(given.operations.note_parity(&clean(2, 1, at), &rules, &by("eve", at)).await);
    note(2).await;
    let catalogue = given.catalogue().await;
    let after = catalogue.candidate.clone().unwrap();
    assert_eq!((&after.meant, &after.share), (&rules.meant(), &before.share));
    assert!(after.since > before.since);
    let record = crate::ReplayRecord::in_catalogue(&catalogue, 2).unwrap().unwrap();
    assert_eq!(record.stage.unwrap().version, after.since);
    note(3).await;
    assert_eq!(given.catalogue().await.candidate.unwrap(), after, "the same rules change nothing");
}

#[tokio::test]
async fn only_a_stage_that_answers_nobody_may_be_forced_and_only_with_a_reason() {
    let given = given();
    given.start(STAGES, 0).await;
    let forced = CutoverRequest { generation: 2, stage: None, forced: true };
    let silent = By::new("eve", "", 1).unwrap();
    let refused = given.operations.cutover(&forced, &level(), &silent).await.unwrap();
    assert_eq!(codes(&refused), ["no_reason"]);
    done(given.operations.cutover(&forced, &level(), &by("eve", 1)).await);
    assert_eq!(given.catalogue().await.candidate.unwrap().share, Share::None);
    let refused = given.operations.cutover(&forced, &level(), &by("eve", 2)).await.unwrap();
    assert_eq!(codes(&refused), ["not_forcible"]);

    let other = self::given();
    other.start("", 0).await;
    let refused = other.operations.cutover(&forced, &level(), &by("eve", 1)).await.unwrap();
    assert_eq!(codes(&refused), ["not_forcible"]);
    assert_eq!(other.catalogue().await.serving, 1);
}

#[tokio::test]
async fn an_approval_is_of_a_named_other_person_and_of_the_newest_comparison() {
    let given = given();
    // Whoever may approve others may still not approve what they started.
    done(given.operations.start(&request(""), &by("ann", 0)).await);
    let approve = async |who: &str| codes(&given.operations.approve(2, None, &by(who, 1)).await.unwrap());
    assert_eq!(approve("bob").await, ["no_parity"]);
    done(given.operations.note_parity(&clean(2, 1, 1), &Rules::default(), &by("ann", 1)).await);
    assert_eq!(approve("ann").await, ["self_approved"]);
    assert_eq!(approve(" ANN").await, ["self_approved"]);
    assert_eq!(approve("mallory").await, ["no_approver"]);
    assert_eq!(approve("bob").await, [""; 0]);
    assert_eq!(approve("Bob").await, ["approved_already"]);

    // Who approved does not cut over.
    let request = CutoverRequest { generation: 2, ..CutoverRequest::default() };
    let refused = given.operations.cutover(&request, &level(), &by("bob", 2)).await.unwrap();
    assert_eq!(codes(&refused), ["not_approved"]);

    done(given.operations.note_parity(&clean(2, 1, 3), &Rules::default(), &by("ann", 3)).await);
    assert_eq!(codes(&given.cutover(2, 4).await), ["not_approved"]);
    let older = given.operations.note_parity(&clean(2, 1, 2), &Rules::default(), &by("ann", 4)).await.unwrap();
    assert_eq!(codes(&older), ["older_parity"]);

    let dirty = ParityEvidence { differing_keys: 1, ..clean(2, 1, 5) };
    done(given.operations.note_parity(&dirty, &Rules::default(), &by("ann", 5)).await);
    assert_eq!(approve("bob").await, ["parity_differs"]);
    assert_eq!(codes(&given.cutover(2, 6).await), ["parity_differs", "not_approved"]);
}

#[tokio::test]
async fn a_generation_of_the_past_never_serves() {
    let given = given();
    let past = StartRequest { until: Some(Until::Time(5)), ..request("") };
    done(given.operations.start(&past, &by("eve", 0)).await);
    given.let_through(2, 0).await;
    assert_eq!(codes(&given.cutover(2, 1).await), ["as_of"]);
    done(given.operations.abort(2, &by("eve", 2)).await);
    assert_eq!(given.catalogue().await.generations[&2].state, GenerationState::Retired);
}

#[tokio::test]
async fn what_is_retired_leaves_only_a_forward_fix() {
    let given = given();
    given.serves(2).await;
    let retire = async |number, early, at| given.operations.retire(number, early, &by("eve", at)).await.unwrap();
    assert_eq!(codes(&retire(2, None, 1).await), ["serves"]);
    assert_eq!(codes(&retire(1, None, 24 * HOUR - 1).await), ["rollback_window"]);
    for not_let in ["eve", "mallory"] {
        assert_eq!(codes(&retire(1, Some(not_let), 1).await), ["not_approved"]);
    }
    let retired = done(Ok(retire(1, None, 24 * HOUR).await));
    assert_eq!(retired.reversal, Reversal::ForwardFixOnly);
    assert!(retired.done.contains("only a forward fix is left"), "{}", retired.done);
    assert_eq!(retired.next.len(), 1);
    assert_eq!((retired.next[0].command.as_str(), retired.next[0].reversal), ("start stock", Reversal::ForwardFixOnly));
    let catalogue = given.catalogue().await;
    assert_eq!((catalogue.previous, catalogue.fed().collect::<Vec<_>>()), (None, vec![2]));

    let rollback = given.operations.rollback(None, &by("ann", 25 * HOUR)).await.unwrap();
    assert_eq!(codes(&rollback), ["no_way_back"]);
    assert!(rollback.missing()[0].sentence.contains("only a forward fix is left"));
    assert_eq!(codes(&retire(1, None, 25 * HOUR).await), ["retired"]);
}

#[tokio::test]
async fn an_approver_may_let_the_old_generation_go_early() {
    let given = given();
    given.serves(2).await;
    done(given.operations.retire(1, Some("bob"), &by("eve", 1)).await);
    assert_eq!(given.catalogue().await.generations[&1].state, GenerationState::Retired);
    assert_eq!(given.stored.all_decisions().last().unwrap().evidence["early"], "bob");
}

#[tokio::test]
async fn a_way_back_of_two_steps_stays_open_too() {
    let given = given();
    given.serves(2).await;
    given.start("", HOUR).await;
    given.let_through(3, HOUR).await;
    done(Ok(given.cutover(3, HOUR).await));
    let retire = async |number, at| codes(&given.operations.retire(number, None, &by("eve", at)).await.unwrap());
    assert_eq!(retire(1, 2 * HOUR).await, ["rollback_window"]);
    assert_eq!(retire(1, 24 * HOUR).await, [""; 0]);
    assert_eq!(retire(2, 24 * HOUR).await, ["rollback_window"]);
}

#[tokio::test]
async fn a_past_that_would_be_empty_is_not_begun() {
    let given = given();
    let until = |token: &str| StartRequest { until: Some(Until::Position(token.parse().unwrap())), ..request("") };
    for nothing in ["pricing-0-1.5", "-"] {
        let refused = given.operations.start(&until(nothing), &by("eve", 0)).await.unwrap();
        assert_eq!(codes(&refused), ["until_nothing"], "{nothing}");
    }
    let partly = done(given.operations.start(&until("inventory-1-3.9"), &by("eve", 0)).await);
    assert!(partly.done.contains("partitions that the token does not name stay empty"), "{}", partly.done);
}

#[tokio::test]
async fn of_several_replays_one_must_be_named() {
    let given = given();
    given.start("", 0).await;
    let both = given.start("", 1).await;
    let commands: Vec<&str> = both.next.iter().map(|step| step.command.as_str()).collect();
    assert!(commands.contains(&"verify stock@2") && commands.contains(&"verify stock@3"), "{commands:?}");
    let stock: crate::Target = "stock".parse().unwrap();
    let unnamed = stock.resolve(&given.catalogue().await).unwrap_err().to_string();
    assert!(unnamed.contains("stock@3"), "{unnamed}");

    // One that was rolled back is on its way no more.
    given.let_through(2, 2).await;
    done(Ok(given.cutover(2, 2).await));
    done(given.operations.rollback(Some(2), &by("ann", 3)).await);
    assert_eq!(stock.resolve(&given.catalogue().await).unwrap(), 3);
}

#[tokio::test]
async fn only_what_never_served_is_aborted() {
    let given = given();
    given.serves(2).await;
    let abort = async |number| codes(&given.operations.abort(number, &by("eve", 1)).await.unwrap());
    assert_eq!(abort(2).await, ["has_served"]);
    assert_eq!(abort(1).await, ["no_replay"]);
    assert_eq!(abort(9).await, ["unknown_generation"]);
    given.start(STAGES, 1).await;
    given.let_through(3, 1).await;
    done(Ok(given.cutover(3, 1).await));
    assert_eq!(abort(3).await, ["candidate"]);
    let other = given.start("", 1).await;
    given.let_through(other.number, 1).await;
    assert_eq!(codes(&given.cutover(other.number, 2).await), ["other_candidate"]);
    done(given.operations.rollback(Some(3), &by("eve", 2)).await);
    assert_eq!(abort(3).await, [""; 0]);
}

#[tokio::test]
async fn a_fold_that_is_not_there_is_not_started() {
    let given = given();
    let unknown = StartRequest { fold_version: 3, ..request("") };
    let refused = given.operations.start(&unknown, &by("eve", 0)).await.unwrap();
    assert_eq!(codes(&refused), ["unknown_fold"]);
    assert!(given.stored.actions().is_empty());
}

#[tokio::test]
async fn what_somebody_else_changed_meanwhile_is_decided_anew() {
    let given = given();
    given.stored.overtaken.store(3, Ordering::SeqCst);
    given.start("", 0).await;
    let catalogue = given.catalogue().await;
    assert_eq!((catalogue.version, catalogue.generations.len(), catalogue.decisions), (4, 2, 1));

    given.stored.overtaken.store(u32::MAX, Ordering::SeqCst);
    let error = given.operations.start(&request(""), &by("eve", 1)).await.unwrap_err();
    assert!(error.is_transient() && matches!(error, ReplayError::Contended { .. }), "{error}");
}

#[tokio::test]
async fn a_decision_whose_answer_is_lost_is_not_made_twice() {
    let given = given();
    given.stored.loses_answer.store(true, Ordering::SeqCst);
    given.start("", 0).await;
    assert_eq!(given.stored.actions(), ["started"]);
    assert_eq!(given.catalogue().await.generations.len(), 2);
}

#[tokio::test]
async fn of_many_who_decide_at_once_each_is_written_once_and_one_cuts_over() {
    let given = given();
    given.start("", 0).await;
    given.let_through(2, 0).await;
    let request = CutoverRequest { generation: 2, ..CutoverRequest::default() };
    let mut tasks = tokio::task::JoinSet::new();
    for at in 1..=8 {
        let (operations, request) = (given.operations.clone(), request.clone());
        tasks.spawn(async move { operations.cutover(&request, &level(), &by("eve", at)).await.unwrap() });
    }
    let outcomes = tasks.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.done().is_some()).count(), 1);
    check_chain(&given.stored.decisions(0, 100).await.unwrap()).unwrap();
    assert_eq!(given.stored.actions().iter().filter(|action| *action == "cut_over").count(), 1);
}

#[tokio::test]
async fn decisions_read_back_with_the_hash_that_they_were_made_with() {
    let given = given();
    given.start("", 0).await;
    let queries = crate::QueryEvidence { queries: 3, worst_overlap: 0.1 + 0.7, below_bound: 0 };
    for (at, worst_overlap) in (1..).zip([0.1 + 0.7, 1.0 / 3.0, 0.123_456_789_012_345_67, 2.0_f64.powi(-40)]) {
        let evidence = ParityEvidence {
            queries: Some(crate::QueryEvidence { worst_overlap, ..queries.clone() }),
            vector: "v".repeat(60_000),
            ..clean(2, 1, at)
        };
        done(given.operations.note_parity(&evidence, &Rules::default(), &by("eve", at)).await);
    }
    let read = given.stored.decisions(0, 100).await.unwrap();
    check_chain(&read).unwrap();
    assert!(read[1].evidence.to_string().len() < 1_000);
    assert_eq!(read[1].evidence["vector"], "too long to be published; the report has it");
}
