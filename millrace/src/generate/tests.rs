use std::collections::{HashMap, HashSet};

use domain::{State, StreamId, decide};
use schemas::{Command, CommandEnvelope};

use super::*;

const START: i64 = 4_102_444_800_000;

fn generator(seed: u64) -> Generator {
    Generator::new(GenerateSettings { seed, products: 200, ..Default::default() })
}

fn read(json: &str) -> CommandEnvelope {
    CommandEnvelope::from_json(json.as_bytes(), None, START).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
    let all = |seed: u64| -> Vec<String> {
        let generator = generator(seed);
        generator.products().chain(generator.movements(seed, START).take(500)).collect()
    };
    assert_eq!(all(7), all(7));
    assert_ne!(all(7), all(8));
}

/// The aggregates themselves accept everything, in order.
#[test]
fn every_command_is_accepted() {
    let generator = generator(3);
    let mut states: HashMap<StreamId, State> = HashMap::new();
    let mut ids = HashSet::new();
    let mut kinds: HashMap<&str, usize> = HashMap::new();
    for json in generator.products().chain(generator.movements(3, START).take(20_000)) {
        let envelope = read(&json);
        assert!(ids.insert(envelope.id), "{json}");
        *kinds.entry(envelope.command.command_type()).or_default() += 1;
        let stream = StreamId::of(&envelope.command);
        let state = states.entry(stream).or_insert_with(|| State::initial(envelope.command.context()));
        fill_region(state, &envelope.command);
        let events = decide(state, &envelope.command, START).unwrap_or_else(|refused| panic!("{json}: {refused:?}"));
        events.iter().for_each(|event| domain::apply(state, event));
    }
    for kind in
        Command::TYPES.iter().filter(|kind| !["ReviseProduct", "DiscontinueProduct", "RecordDecision"].contains(kind))
    {
        assert!(kinds.get(kind).copied().unwrap_or_default() >= 200, "{kind}: {kinds:?}");
    }
}

/// The command handler knows the regions of warehouses; here the command's own warehouse says it.
fn fill_region(state: &mut State, command: &Command) {
    let warehouse = match command {
        Command::AdjustStock(data) => data.warehouse.as_str(),
        Command::CountStock(data) => data.warehouse.as_str(),
        _ => return,
    };
    let region = warehouse.split('-').next().unwrap_or_default();
    if let State::Stock(stock) = state {
        stock.region.get_or_insert_with(|| catalogue::region_id(region));
    }
}

#[test]
fn each_warehouse_is_in_one_region_and_all_five_regions_are_used() {
    let mut regions: HashMap<String, HashSet<String>> = HashMap::new();
    for json in generator(1).products() {
        if let Command::ReceiveStock(data) = read(&json).command {
            let region = data.region.unwrap().to_string();
            regions.entry(data.warehouse.to_string()).or_default().insert(region);
        }
    }
    assert!(regions.values().all(|regions| regions.len() == 1), "{regions:?}");
    let all: HashSet<&String> = regions.values().flatten().collect();
    assert_eq!((regions.len(), all.len()), (11, 5));
}

#[test]
fn popular_products_move_most() {
    let generator = generator(1);
    let mut moves: HashMap<String, usize> = HashMap::new();
    for json in generator.movements(5, START).take(20_000) {
        *moves.entry(read(&json).command.key().to_owned()).or_default() += 1;
    }
    let first = moves[&generator.sample().sku];
    let median = {
        let mut counts: Vec<usize> = moves.values().copied().collect();
        counts.sort_unstable();
        counts[counts.len() / 2]
    };
    assert!(first > 10 * median, "{first} of the first, {median} in the middle");
}

#[test]
fn movements_of_another_seed_have_other_ids() {
    let ids = |seed| -> HashSet<uuid::Uuid> {
        generator(1).movements(seed, START).take(300).map(|json| read(&json).id).collect()
    };
    assert!(ids(1).is_disjoint(&ids(2)));
}

#[test]
fn the_sample_is_priced_and_stocked_where_it_says() {
    let generator = generator(9);
    let sample = generator.sample();
    let commands: Vec<CommandEnvelope> = generator.products().map(|json| read(&json)).collect();
    let of_sample: Vec<&Command> =
        commands.iter().map(|envelope| &envelope.command).filter(|command| command.key() == sample.sku).collect();
    assert!(
        of_sample
            .iter()
            .any(|command| matches!(command, Command::SetPrice(data) if data.region.as_str() == sample.region))
    );
    assert!(
        of_sample.iter().any(
            |command| matches!(command, Command::ReceiveStock(data) if data.warehouse.as_str() == sample.warehouse)
        )
    );
    assert!(of_sample.iter().any(
        |command| matches!(command, Command::RegisterProduct(data) if data.name.to_lowercase().contains(&sample.word))
    ));
}

#[test]
fn a_dirty_file_has_a_bit_of_everything() {
    let generator = Generator::new(GenerateSettings { seed: 1, products: 2_000, ..Default::default() });
    let (mut dirty, mut again, mut clean) = (Vec::new(), Vec::new(), Vec::new());
    product_file::write_dirty(&generator.catalogue, 1, &mut dirty).unwrap();
    product_file::write_dirty(&generator.catalogue, 1, &mut again).unwrap();
    product_file::write_clean(&generator.catalogue, &mut clean).unwrap();
    assert_eq!(dirty, again);
    assert!(std::str::from_utf8(&dirty).is_err() && std::str::from_utf8(&clean).is_ok());
    let mut reader = csv::Reader::from_reader(&clean[..]);
    assert_eq!(reader.records().map(|record| record.unwrap()).filter(|record| record.len() == 7).count(), 2_000);
    let text = String::from_utf8_lossy(&dirty);
    for part in ["\u{feff}sku", "€ ", "n/a", "Keep cool", ",\"", "\r\n"] {
        assert!(text.contains(part), "{part:?}");
    }
}

#[test]
fn products_start_in_stock() {
    let received =
        generator(2).products().filter(|json| matches!(read(json).command, Command::ReceiveStock(_))).count();
    assert!(received >= 200, "{received}");
}
