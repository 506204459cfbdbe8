use std::path::PathBuf;

use apache_avro::types::Value;
use proptest::prelude::*;

use super::*;
use crate::contract::ContractKind;
use crate::event::StockChange;
use crate::id::{ProjectionId, RegionId, ReservationId, Sku, WarehouseId};

fn product() -> Product {
    Product {
        sku: Sku::new("ONION-1KG").unwrap(),
        name: "Onion".to_owned(),
        brand: Some("Fresho".to_owned()),
        category_path: vec!["Fruits & Vegetables".to_owned(), "Onions".to_owned()],
        description: None,
        pack_size: Some("1 kg".to_owned()),
        tags: vec!["fresh".to_owned()],
    }
}

fn datum(schema: &apache_avro::Schema, value: Value) -> Vec<u8> {
    let writer = apache_avro::writer::datum::GenericDatumWriter::builder(schema).build().unwrap();
    writer.write_value_to_vec(value).unwrap()
}

/// One event of each kind, with every field filled somewhere.
pub(crate) fn samples() -> Vec<Event> {
    vec![
        Event::ProductRegistered(product()),
        Event::ProductRevised(Product { description: Some("Red onions".to_owned()), brand: None, ..product() }),
        Event::ProductDiscontinued(ProductDiscontinued {
            sku: Sku::new("ONION-1KG").unwrap(),
            reason: Some("season".to_owned()),
        }),
        Event::StockUpdated(StockUpdated {
            sku: Sku::new("ONION-1KG").unwrap(),
            warehouse: WarehouseId::new("ams-1").unwrap(),
            region: RegionId::new("eu").unwrap(),
            change: StockChange::Reserved,
            quantity: 3,
            on_hand: 40,
            reserved: 7,
            reservation_id: Some(ReservationId::new("r-1").unwrap()),
            expires_at: Some(1_900_000_000_000),
            reason: None,
        }),
        Event::PriceSet(PriceSet {
            sku: Sku::new("ONION-1KG").unwrap(),
            region: RegionId::new("eu").unwrap(),
            currency: "EUR".to_owned(),
            amount_minor: 129,
        }),
        Event::DecisionRecorded(DecisionRecorded {
            projection: ProjectionId::new("stock").unwrap(),
            catalogue_id: uuid::uuid!("6f9619ff-8b86-4d01-b42d-00cf4fc964ff"),
            number: 2,
            at: 1_900_000_000_000,
            who: "ada".to_owned(),
            action: "cut_over".to_owned(),
            generation: "stock@2".to_owned(),
            reason: "the new field".to_owned(),
            evidence: r#"{"differing":0,"rows":1200}"#.to_owned(),
            previous: "a1".repeat(32),
            hash: "0f".repeat(32),
        }),
    ]
}

fn golden(schema: SchemaRef) -> Vec<u8> {
    let short = schema.name.rsplit('.').next().unwrap();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/{short}.v{}.avro", schema.version));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The sample that the golden bytes of an old version become.
fn upcast_sample(schema: SchemaRef) -> Event {
    match (schema.name, schema.version) {
        ("millrace.catalogue.ProductRegistered", 1) => {
            Event::ProductRegistered(Product { tags: Vec::new(), ..product() })
        }
        _ => samples().into_iter().find(|event| event.schema() == schema).unwrap(),
    }
}

#[test]
fn golden_bytes_of_every_event_version_decode_to_the_newest_shape() {
    for contract in CONTRACTS.iter().filter(|contract| contract.kind == ContractKind::Event) {
        let writer = WriterSchema::of(contract.schema).unwrap();
        let event = decode_event(writer, &golden(contract.schema)).unwrap();
        assert_eq!(event, upcast_sample(contract.schema), "{}", contract.schema);
    }
}

#[test]
fn the_newest_version_is_still_written_byte_for_byte() {
    for event in samples() {
        assert_eq!(encode_event(&event).unwrap().body, golden(event.schema()), "{}", event.schema());
    }
}

#[test]
fn apache_avro_reads_what_we_write() {
    for event in samples() {
        let encoded = encode_event(&event).unwrap();
        let schema = apache_avro::Schema::parse_str(encoded.schema.contract().avsc).unwrap();
        let mut body = encoded.body.as_slice();
        let reader = apache_avro::reader::datum::GenericDatumReader::builder(&schema).build().unwrap();
        let Value::Record(fields) = reader.read_value(&mut body).unwrap() else { panic!("not a record") };
        assert!(body.is_empty());
        let apache_avro::Schema::Record(record) = &schema else { panic!("not a record") };
        let json = event.to_json();
        // Field by field: the schema file and the Rust type name the same fields, none more.
        assert_eq!(fields.len(), json.as_object().unwrap().len(), "{}", encoded.schema);
        for field in &record.fields {
            assert!(json.get(&field.name).is_some(), "{}: {} is missing in the Rust type", encoded.schema, field.name);
        }
    }
}

#[test]
fn a_version_newer_than_this_build_is_read_by_the_fields_it_knows() {
    let newer = r#"{"type":"record","name":"PriceSet","namespace":"millrace.pricing","fields":[
        {"name":"sku","type":"string"},{"name":"region","type":"string"},{"name":"currency","type":"string"},
        {"name":"amount_minor","type":"long"},{"name":"valid_from","type":["null","long"],"default":null}]}"#;
    let writer = WriterSchema::parse(newer).unwrap();
    assert_eq!(writer.known(), None);
    let schema = apache_avro::Schema::parse_str(newer).unwrap();
    let value = Value::Record(vec![
        ("sku".to_owned(), Value::String("A".to_owned())),
        ("region".to_owned(), Value::String("eu".to_owned())),
        ("currency".to_owned(), Value::String("EUR".to_owned())),
        ("amount_minor".to_owned(), Value::Long(5)),
        ("valid_from".to_owned(), Value::Union(1, Box::new(Value::Long(9)))),
    ]);
    let body = datum(&schema, value);
    let Event::PriceSet(price) = decode_event(&writer, &body).unwrap() else { panic!("not a price") };
    assert_eq!(price.amount_minor, 5);
}

#[test]
fn a_registry_text_of_ours_is_known_whatever_its_white_space() {
    for contract in CONTRACTS {
        let compact: serde_json::Value = serde_json::from_str(contract.avsc).unwrap();
        let writer = WriterSchema::parse(&compact.to_string()).unwrap();
        assert_eq!(writer.known(), Some(contract.schema), "{}", contract.file);
    }
}

#[test]
fn a_command_reads_the_same_from_avro_and_from_json() {
    let schema = SchemaRef::newest("millrace.inventory.commands.ReserveStock").unwrap();
    let avro = apache_avro::Schema::parse_str(schema.contract().avsc).unwrap();
    let record = Value::Record(vec![
        ("sku".to_owned(), Value::String("A".to_owned())),
        ("warehouse".to_owned(), Value::String("w".to_owned())),
        ("reservation_id".to_owned(), Value::String("r".to_owned())),
        ("quantity".to_owned(), Value::Long(2)),
        ("expires_at".to_owned(), Value::TimestampMillis(1000)),
    ]);
    let body = datum(&avro, record);
    let from_avro = decode_command(WriterSchema::of(schema).unwrap(), &body).unwrap();
    let json = br#"{"sku":"A","warehouse":"w","reservation_id":"r","quantity":2,"expires_at":"1970-01-01T00:00:01Z"}"#;
    assert_eq!(from_avro, Command::from_json("ReserveStock", json).unwrap());
    let surplus: Vec<u8> = body.iter().copied().chain([0]).collect();
    assert!(matches!(
        decode_command(WriterSchema::of(schema).unwrap(), &surplus),
        Err(CodecError::Surplus { surplus: 1, .. })
    ));
}

proptest! {
    /// The command and the event say the same in the same fields: one schema body serves both.
    #[test]
    fn a_decision_reads_back_from_avro_as_event_and_as_command(
        (projection, id) in ("[A-Za-z0-9._-]{1,64}", any::<u128>()),
        (number, at) in (1..=crate::command::MAX_NUMBER, 0..4_000_000_000_000_i64),
        (who, reason, text) in ("[^\\p{Cc}\\s]{1,40}", "[^\\p{Cc}\\s]{0,40}", ".{0,200}"),
        (hash, is_first) in ("[0-9a-f]{64}", any::<bool>()),
    ) {
        let decision = DecisionRecorded {
            generation: format!("{projection}@7"),
            projection: ProjectionId::new(projection).unwrap(),
            catalogue_id: uuid::Uuid::from_u128(id),
            number,
            at,
            who,
            action: "rolled_back".to_owned(),
            reason,
            evidence: serde_json::json!({ "said": text }).to_string(),
            previous: if is_first { String::new() } else { hash.chars().rev().collect() },
            hash,
        };
        let event = Event::DecisionRecorded(decision);
        let encoded = encode_event(&event).unwrap();
        prop_assert_eq!(&decode_event(WriterSchema::of(encoded.schema).unwrap(), &encoded.body).unwrap(), &event);
        let schema = SchemaRef::newest("millrace.platform.commands.RecordDecision").unwrap();
        let from_avro = decode_command(WriterSchema::of(schema).unwrap(), &encoded.body).unwrap();
        let from_json = Command::from_json("RecordDecision", event.to_json().to_string().as_bytes()).unwrap();
        prop_assert_eq!(from_avro, from_json);
    }
}

#[test]
fn every_command_type_has_its_schema_and_the_same_fields() {
    for command_type in Command::TYPES {
        let contract = CONTRACTS
            .iter()
            .find(|contract| contract.schema.name.ends_with(&format!(".commands.{command_type}")))
            .unwrap_or_else(|| panic!("{command_type} has no schema"));
        let apache_avro::Schema::Record(record) = apache_avro::Schema::parse_str(contract.avsc).unwrap() else {
            panic!("no record")
        };
        // An unknown field is refused, so a null for each field shows whether the Rust type knows it.
        for field in &record.fields {
            let json = serde_json::json!({ field.name.as_str(): null }).to_string();
            let problem = Command::from_json(command_type, json.as_bytes()).unwrap_err().to_string();
            assert!(!problem.contains("unknown field"), "{command_type}: {problem}");
        }
    }
}

#[test]
fn an_outcome_reads_back() {
    let outcome =
        Outcome::refused(uuid::Uuid::nil(), OutcomeKind::Rejected, "insufficient_stock", "7 asked, 3 available");
    let encoded = encode_outcome(&outcome, Some("ReserveStock")).unwrap();
    let body = decode_outcome(WriterSchema::of(encoded.schema).unwrap(), &encoded.body).unwrap();
    assert_eq!(body.outcome, OutcomeKind::Rejected);
    assert_eq!(body.reason_message.as_deref(), Some("7 asked, 3 available"));
}

proptest! {
    #[test]
    fn any_bytes_decode_or_give_a_clear_error(which in 0_usize..CONTRACTS.len(), body in prop::collection::vec(any::<u8>(), 0..200)) {
        let writer = WriterSchema::of(CONTRACTS[which].schema).unwrap();
        let _ = decode_event(writer, &body);
        let _ = decode_command(writer, &body);
        let _ = decode_outcome(writer, &body);
    }
}
