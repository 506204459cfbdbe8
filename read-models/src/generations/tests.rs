use super::*;

fn generation(number: u32) -> Generation {
    Generation { name: "stock".to_owned(), number, fold_version: number, partitions: 4 }
}

fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::of_built(Some(&generation(1)));
    catalogue.generations.insert(2, GenerationEntry::fed(&generation(2)));
    catalogue
}

fn asked(key: &str, region: Option<&str>) -> ReadChoice {
    let region = region.map(|region| RegionId::new(region).unwrap());
    ReadChoice { generation: None, key: key.to_owned(), region }
}

fn verdict(action: Action) -> Verdict {
    let evidence = serde_json::json!({"keys": 7});
    Verdict { at: 5, who: "ann".to_owned(), action, generation: generation(2), reason: "r".to_owned(), evidence }
}

#[test]
fn a_stage_takes_its_share_and_nothing_else() {
    let mut catalogue = catalogue();
    assert_eq!(catalogue.choose("stock", &asked("A", None)).unwrap(), 1);
    let share = |share| Some(Candidate { generation: 2, share, mirror_percent: 0, meant: Vec::new(), since: 0 });

    catalogue.candidate = share(Share::Percent(30));
    let taken = (0..10_000).filter(|sku| catalogue.choose("stock", &asked(&sku.to_string(), None)).unwrap() == 2);
    let taken = taken.count();
    assert!((2_800..3_200).contains(&taken), "{taken} of 10,000");

    catalogue.candidate = share(Share::Regions(vec![RegionId::new("eu").unwrap()]));
    assert_eq!(catalogue.choose("stock", &asked("A", Some("eu"))).unwrap(), 2);
    assert_eq!(catalogue.choose("stock", &asked("A", Some("us"))).unwrap(), 1);
    assert_eq!(catalogue.choose("stock", &asked("A", None)).unwrap(), 1);
}

#[test]
fn who_is_in_a_smaller_share_is_in_every_larger_one() {
    for sku in 0..1_000 {
        let sku = sku.to_string();
        assert!(!Share::Percent(5).takes(&asked(&sku, None)) || Share::Percent(6).takes(&asked(&sku, None)));
        assert!(Share::Percent(100).takes(&asked(&sku, None)) && !Share::Percent(0).takes(&asked(&sku, None)));
    }
}

#[test]
fn the_hash_of_a_key_never_changes() {
    assert_eq!((hundredth("SKU-1"), hundredth("")), (13, 52));
}

#[test]
fn a_generation_may_be_asked_for_by_its_number_while_it_is_fed() {
    let mut catalogue = catalogue();
    let wanted = |number| ReadChoice { generation: Some(number), ..asked("A", None) };
    assert_eq!(catalogue.choose("stock", &wanted(2)).unwrap(), 2);
    let unknown = catalogue.choose("stock", &wanted(3)).unwrap_err();
    assert_eq!(unknown.to_string(), "there is no stock@3; there is stock@1, stock@2");
    catalogue.generations.get_mut(&2).unwrap().state = GenerationState::Retired;
    assert!(catalogue.choose("stock", &wanted(2)).is_err());
}

#[test]
fn a_number_is_never_used_again() {
    let mut catalogue = catalogue();
    catalogue.generations.get_mut(&2).unwrap().state = GenerationState::Removed;
    assert_eq!(catalogue.next_number(), 3);
    assert_eq!(Catalogue::of_built(None).next_number(), 2);
}

#[test]
fn decisions_are_chained_over_several_changes() {
    let first = Catalogue::of_built(Some(&generation(1)));
    let (second, one) = first.decided(first.clone(), vec![verdict(Action::Started)]);
    let (third, two) = second.decided(second.clone(), vec![verdict(Action::Verified), verdict(Action::Approved)]);
    assert_eq!((second.version, third.version, third.decisions), (1, 2, 3));
    assert_eq!((second.id == third.id, second.id.is_nil()), (true, false));
    let all: Vec<Decision> = one.into_iter().chain(two).collect();
    assert_eq!(check_chain(&all), Ok(()));

    let mut changed = all.clone();
    changed[1].who = "mallory".to_owned();
    assert_eq!(check_chain(&changed).unwrap_err().number, 2);
    // Hashed anew, it no longer is what the next one names.
    changed[1].hash = changed[1].own_hash();
    assert_eq!(check_chain(&changed).unwrap_err().number, 3);
    let mut without = all.clone();
    without.remove(1);
    assert_eq!(check_chain(&without).unwrap_err().number, 2);
}

#[test]
fn actions_are_called_what_stored_decisions_call_them() {
    let names = [
        "started",
        "verified",
        "approved",
        "stage_entered",
        "cut_over",
        "rolled_back",
        "retired",
        "aborted",
        "repaired",
        "removed",
        "restored_after_loss",
    ];
    assert_eq!(Action::ALL.map(Action::as_str), names);
    assert_eq!(names.map(|name| name.parse::<Action>().unwrap()), Action::ALL);
    let unknown = "cutover".parse::<Action>().unwrap_err();
    assert_eq!(unknown.to_string(), "\"cutover\" is no action of this release");
}

#[test]
fn a_catalogue_reads_back() {
    let (mut catalogue, _) = catalogue().decided(catalogue(), vec![verdict(Action::Started)]);
    let position = "inventory-0-0.10".parse().unwrap();
    catalogue.generations.get_mut(&2).unwrap().until = Some(Until::Position(position));
    let json = serde_json::to_string(&catalogue).unwrap();
    assert_eq!(serde_json::from_str::<Catalogue>(&json).unwrap(), catalogue);
}
