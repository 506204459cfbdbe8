use serde_json::json;

use super::*;
use crate::generations::{Action, Verdict, check_chain};
use crate::read_model::Generation;

fn store() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(TABLES).unwrap();
    connection
}

fn generation() -> Generation {
    Generation { name: "search".to_owned(), number: 1, fold_version: 1, partitions: 2 }
}

fn verdict(reason: &str) -> Verdict {
    let (generation, reason) = (generation(), reason.to_owned());
    Verdict { at: 5, who: "ann".to_owned(), action: Action::Approved, generation, reason, evidence: json!({"keys": 7}) }
}

fn report(process: &str, at: i64) -> ProcessReport {
    ProcessReport { process: process.to_owned(), at, ..ProcessReport::default() }
}

/// The next version.
fn change(store: &Connection, to: &Catalogue, decisions: &[Decision]) -> Result<(), Abort> {
    replace(store, "search", to.version - 1, to, decisions)
}

#[test]
fn a_catalogue_moves_by_one_version_with_its_decisions_or_not_at_all() {
    let store = store();
    assert_eq!(catalogue(&store).unwrap(), None);
    let none = Catalogue::of_built(Some(&generation()));
    let (first, made) = none.decided(none.clone(), vec![verdict("a"), verdict("b")]);
    change(&store, &first, &made).unwrap();
    assert_eq!(catalogue(&store).unwrap().as_ref(), Some(&first));

    let (second, more) = first.decided(Catalogue { serving: 2, ..first.clone() }, vec![verdict("c")]);
    let other_store = Catalogue { id: Uuid::new_v4(), ..second.clone() };
    let too_far = Catalogue { version: 3, ..second.clone() };
    for refused in [&first, &other_store, &too_far] {
        match change(&store, refused, &more) {
            Err(Abort::Refused(ReadModelError::CatalogueMoved { expected, found, .. })) => {
                assert_eq!((expected, found), (refused.version - 1, 1));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(decisions(&store, 0, 10).unwrap(), made);
    change(&store, &second, &more).unwrap();
    assert_eq!(catalogue(&store).unwrap(), Some(second));
    let all = decisions(&store, 0, 10).unwrap();
    check_chain(&all).unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(decisions(&store, 1, 1).unwrap(), all[1..2]);
}

#[test]
fn a_catalogue_that_is_none_is_damage() {
    let store = store();
    let none = Catalogue::of_built(None);
    let (first, _) = none.decided(none.clone(), Vec::new());
    change(&store, &first, &[]).unwrap();
    store.execute("UPDATE catalogue SET document = '{}'", []).unwrap();
    assert!(matches!(catalogue(&store), Err(Abort::Sqlite(rusqlite::Error::FromSqlConversionFailure(..)))));
}

#[test]
fn the_mark_of_published_decisions_only_grows() {
    let store = store();
    assert_eq!(published_decisions(&store).unwrap(), 0);
    for (noted, expected) in [(3, 3), (2, 3), (7, 7)] {
        note_published(&store, noted).unwrap();
        assert_eq!(published_decisions(&store).unwrap(), expected);
    }
}

#[test]
fn a_report_replaces_the_one_before_and_old_ones_go() {
    let store = store();
    for (process, at) in [("a", 1_000), ("b", 2_000), ("a", 3_000)] {
        note_report(&store, "search", &report(process, at)).unwrap();
    }
    assert_eq!(reports(&store, 3_000, 1_000).unwrap(), [report("a", 3_000), report("b", 2_000)]);
    assert_eq!(reports(&store, 3_000, 999).unwrap(), [report("a", 3_000)]);
    note_report(&store, "search", &report("c", 2_001 + REPORTS_KEPT_MS)).unwrap();
    let kept: i64 = store.query_row("SELECT count(*) FROM read_reports", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 2);
    assert_eq!(reports(&store, 0, i64::MAX).unwrap().len(), 2);
}
