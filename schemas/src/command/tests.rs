use proptest::prelude::*;

use super::*;
use crate::id::{Sku, WarehouseId};

fn parse(json: &str) -> Result<CommandEnvelope, CommandError> {
    CommandEnvelope::from_json(json.as_bytes(), None, 1_000)
}

const ID: &str = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";

#[test]
fn a_command_is_read_with_its_sending() {
    let json = format!(
        r#"{{"id":"{ID}","type":"ReceiveStock","data":{{"sku":"A","warehouse":"w1","region":"eu","quantity":5}},"correlation_id":"c1"}}"#
    );
    let envelope = parse(&json).unwrap();
    assert_eq!(envelope.id.to_string(), ID);
    assert_eq!(envelope.correlation_id.as_deref(), Some("c1"));
    assert_eq!(envelope.command.key(), "A");
    assert_eq!(envelope.command.context(), Context::Inventory);
    assert_eq!(envelope.command.full_name(), "millrace.inventory.commands.ReceiveStock");
}

#[test]
fn bad_commands_are_refused_with_a_code_and_the_place() {
    let cases = [
        ("not json", "malformed_command", "line 1"),
        (r#"{"id":"x","type":"SetPrice","data":{}}"#, "malformed_command", "UUID"),
        (&format!(r#"{{"id":"{ID}","type":"SetPrise","data":{{}}}}"#), "unknown_command_type", "SetPrice"),
        (&format!(r#"{{"id":"{ID}","type":"SetPrice","data":{{}},"extra":1}}"#), "malformed_command", "extra"),
        (
            &format!(r#"{{"id":"{ID}","type":"DiscontinueProduct","data":{{"sku":"A","why":1}}}}"#),
            "invalid_data",
            "why",
        ),
        (&format!(r#"{{"id":"{ID}","type":"DiscontinueProduct","data":{{"sku":"A B"}}}}"#), "invalid_data", "A B"),
        (
            &format!(r#"{{"id":"{ID}","type":"ReceiveStock","data":{{"sku":"A","warehouse":"w","quantity":0}}}}"#),
            "invalid_field",
            "quantity",
        ),
        (
            &format!(
                r#"{{"id":"{ID}","type":"SetPrice","data":{{"sku":"A","region":"eu","currency":"eur","amount_minor":1}}}}"#
            ),
            "invalid_field",
            "currency",
        ),
        (
            &format!(
                r#"{{"id":"{ID}","type":"ReserveStock","data":{{"sku":"A","warehouse":"w","reservation_id":"r","quantity":1,"expires_at":"soon"}}}}"#
            ),
            "invalid_data",
            "RFC 3339",
        ),
    ];
    for (json, code, place) in cases {
        let error = parse(json).unwrap_err();
        assert_eq!(error.code(), code, "{json}");
        assert!(error.to_string().contains(place), "{error}");
    }
}

#[test]
fn a_malformed_decision_is_refused_by_its_field() {
    let good = serde_json::json!({
        "projection": "stock", "catalogue_id": ID, "number": 1, "at": "1970-01-01T00:00:01Z", "who": "ada", "action": "started",
        "generation": "stock@2", "reason": "", "evidence": "null", "previous": "", "hash": "0f".repeat(32),
    });
    let read = |data: &serde_json::Value| Command::from_json("RecordDecision", data.to_string().as_bytes());
    let Ok(Command::RecordDecision(decision)) = read(&good) else { panic!("{:?}", read(&good)) };
    assert_eq!((decision.at, decision.catalogue_id.to_string().as_str()), (1_000, ID));
    let long = format!("\"{}\"", "x".repeat(MAX_EVIDENCE));
    for (field, bad) in [
        ("projection", "a b"),
        ("catalogue_id", "7"),
        ("who", " "),
        ("action", "cut over"),
        ("generation", "stock"),
        ("generation", "stock@0"),
        ("generation", "stock@+1"),
        ("generation", "search@2"),
        ("evidence", ""),
        ("evidence", "{"),
        ("evidence", long.as_str()),
        ("reason", "\u{7}"),
        ("previous", "0f"),
        ("hash", ""),
        ("hash", "0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F"),
    ] {
        let mut data = good.clone();
        data[field] = bad.into();
        let error = read(&data).unwrap_err();
        assert!(matches!(error.code(), "invalid_field" | "invalid_data"), "{field} {bad}: {error}");
        if let CommandError::Field { field: named, .. } = error {
            assert_eq!(named, field);
        }
    }
    let mut data = good.clone();
    data["number"] = 0.into();
    assert!(read(&data).unwrap_err().to_string().contains("number"));
}

#[test]
fn an_instant_reads_the_same_as_text_and_as_number() {
    let reserve = |expires_at: &str| {
        format!(
            r#"{{"id":"{ID}","type":"ReserveStock","data":{{"sku":"A","warehouse":"w","reservation_id":"r","quantity":1,"expires_at":{expires_at}}}}}"#
        )
    };
    let text = parse(&reserve("\"1970-01-01T00:00:01Z\"")).unwrap();
    let number = parse(&reserve("1000")).unwrap();
    assert_eq!(text, number);
    assert_eq!(text.command.digest(), number.command.digest());
}

#[test]
fn another_body_has_another_digest() {
    let command = |quantity: i64| {
        Command::ReceiveStock(ReceiveStock {
            sku: Sku::new("A").unwrap(),
            warehouse: WarehouseId::new("w").unwrap(),
            region: None,
            quantity,
        })
    };
    assert_eq!(command(1).digest(), command(1).digest());
    assert_ne!(command(1).digest(), command(2).digest());
}

proptest! {
    #[test]
    fn any_bytes_are_a_command_or_a_clear_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = CommandEnvelope::from_json(&bytes, None, 0);
    }
}
