use read_models::Generation;
use read_models::generations::{GenerationEntry, Share};

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);
const DEADLINE: Duration = Duration::from_secs(5);

fn watch(mirror_percent: u8, since: u64) -> Watch {
    let watch = Watch::new(Stores::Own);
    catalogue(&watch, since, Share::None, mirror_percent, since);
    watch
}

/// Of two generations; the stage of the second began with the version `since`.
fn catalogue(watch: &Watch, version: u64, share: Share, mirror_percent: u8, since: u64) {
    let built = |number| Generation { name: "stock".to_owned(), number, fold_version: 1, partitions: 4 };
    let mut catalogue = Catalogue::of_built(Some(&built(1)));
    catalogue.version = version;
    catalogue.generations.insert(2, GenerationEntry::fed(&built(2)));
    catalogue.candidate = Some(Candidate { generation: 2, share, mirror_percent, meant: Vec::new(), since });
    watch.catalogue.store(Some(Arc::new(catalogue)));
}

fn failed() -> ReadModelError {
    ReadModelError::Unavailable { name: "stock".to_owned(), address: "a".to_owned(), problem: "away".to_owned() }
}

fn figures(figures: ReadFigures) -> (u64, u64, u64) {
    (figures.requests, figures.errors, figures.differing)
}

#[test]
fn a_share_of_the_requests_is_mirrored_and_none_twice() {
    let watch = watch(30, 1);
    let mirrored = (0..1_000).filter(|_| watch.order(1).is_some()).count();
    assert_eq!(mirrored, 300);
    assert!((0..100).all(|_| watch.order(2).is_none()), "the candidate answered itself");
    let held: Vec<MirrorOrder> = (0..1_000).filter_map(|_| watch.order(1)).collect();
    assert_eq!(held.len(), MIRRORED_AT_ONCE);
}

#[test]
fn counts_begin_again_with_each_stage_and_with_nothing_else() {
    let watch = watch(100, 1);
    let first = watch.order(1).unwrap();
    watch.mirrored(&first, MILLISECOND, Mirroring::Differs("A".to_owned()));
    watch.mirrored(&first, MILLISECOND, Mirroring::Differs("A".to_owned()));
    watch.mirrored(&first, MILLISECOND, Mirroring::Failed);
    watch.mirrored(&first, MILLISECOND, Mirroring::Passed);
    // Somebody noted something else in the catalogue.
    catalogue(&watch, 2, Share::None, 100, 1);
    watch.mirrored(&watch.order(1).unwrap(), MILLISECOND, Mirroring::Same);
    let report = watch.report(9).mirror.unwrap();
    assert_eq!((figures(report.whole), report.stage, figures(report.lately.minute)), ((4, 1, 2), 1, (4, 1, 2)));
    assert_eq!(report.samples, ["A"]);

    catalogue(&watch, 3, Share::None, 100, 3);
    watch.mirrored(&watch.order(1).unwrap(), MILLISECOND, Mirroring::Same);
    watch.mirrored(&first, MILLISECOND, Mirroring::Failed);
    let report = watch.report(9).mirror.unwrap();
    assert_eq!((figures(report.whole), report.stage, figures(report.lately.minute)), ((1, 0, 0), 3, (1, 0, 0)));
}

#[test]
fn a_stage_of_a_lower_number_counts_where_it_is_the_one_of_now() {
    let watch = watch(100, 9);
    watch.mirrored(&watch.order(1).unwrap(), MILLISECOND, Mirroring::Same);
    // The store was wiped, and its versions began anew.
    catalogue(&watch, 2, Share::None, 100, 2);
    watch.mirrored(&watch.order(1).unwrap(), MILLISECOND, Mirroring::Failed);
    let report = watch.report(9).mirror.unwrap();
    assert_eq!((figures(report.whole), report.stage), ((1, 1, 0), 2));
}

#[test]
fn what_is_older_than_its_span_does_not_linger() {
    let watch = watch(100, 1);
    watch.note(1, Duration::from_secs(1), true);
    let order = watch.order(1).unwrap();
    watch.mirrored(&order, MILLISECOND, Mirroring::Differs("A".to_owned()));
    watch.turn(SHORT as u64);
    watch.note(1, MILLISECOND, false);
    watch.mirrored(&order, MILLISECOND, Mirroring::Same);
    let report = watch.report(0);
    let (answered, mirrored) = (report.reads[&1], report.mirror.unwrap());
    assert_eq!((figures(answered.seconds), figures(answered.minute)), ((1, 0, 0), (2, 1, 0)));
    assert!(answered.seconds.p99_ms < 3.0 && answered.minute.p99_ms > 900.0, "{answered:?}");
    assert_eq!((figures(mirrored.lately.seconds), figures(mirrored.lately.minute)), ((1, 0, 0), (2, 0, 1)));
    watch.turn(LONG as u64);
    let report = watch.report(0);
    assert!(report.reads.is_empty(), "{report:?}");
    let mirrored = report.mirror.unwrap();
    assert_eq!(
        (figures(mirrored.whole), figures(mirrored.lately.minute)),
        ((2, 0, 1), (0, 0, 0)),
        "the stage forgets nothing"
    );
}

#[test]
fn reads_are_told_apart_by_the_generation_that_answers_or_was_to() {
    let watch = Watch::new(Stores::Own);
    catalogue(&watch, 1, Share::Regions(vec!["eu".parse().unwrap()]), 0, 1);
    let (any, eu) =
        (ReadChoice::default(), ReadChoice { region: Some("eu".parse().unwrap()), ..ReadChoice::default() });
    watch.begin(&any, DEADLINE).ended(Ok(1));
    watch.begin(&any, DEADLINE).ended(Err(&failed()));
    watch.begin(&eu, DEADLINE).ended(Ok(2));
    watch.begin(&eu, DEADLINE).ended(Err(&failed()));
    watch.begin(&eu, DEADLINE).ended(Err(&failed()));
    // What the caller got wrong, and a caller that did not wait, are nobody's errors.
    let unknown = ReadModelError::UnknownGeneration { name: "stock".to_owned(), wanted: 7, there: String::new() };
    watch.begin(&eu, DEADLINE).ended(Err(&unknown));
    drop(watch.begin(&eu, DEADLINE));
    // One that was given up at its deadline is.
    drop(watch.begin(&any, Duration::ZERO));
    let reads = watch.report(0).reads;
    assert_eq!((figures(reads[&1].seconds), figures(reads[&2].seconds)), ((3, 2, 0), (3, 2, 0)));
}

#[test]
fn a_store_that_is_away_from_all_generations_is_held_against_none() {
    let watch = Watch::new(Stores::Shared);
    catalogue(&watch, 1, Share::None, 0, 1);
    let any = ReadChoice::default();
    watch.begin(&any, DEADLINE).ended(Err(&failed()));
    let reads = watch.report(0).reads;
    assert_eq!(reads.keys().collect::<Vec<_>>(), [&OF_THE_STORE], "but builds are told");
    assert_eq!(figures(reads[&OF_THE_STORE].seconds), (1, 1, 0));
    // Rows that are wrong are those of one generation.
    let damaged = ReadModelError::Damaged { name: "stock".to_owned(), problem: "a row has no version".to_owned() };
    watch.begin(&any, DEADLINE).ended(Err(&damaged));
    assert_eq!(figures(watch.report(0).reads[&1].seconds), (1, 1, 0));
}
