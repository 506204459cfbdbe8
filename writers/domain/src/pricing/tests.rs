use schemas::{Command, Context, Event};

use crate::State;
use crate::testing::when;

fn set(currency: &str, amount_minor: i64) -> Command {
    let json = format!(r#"{{"sku":"A","region":"eu","currency":"{currency}","amount_minor":{amount_minor}}}"#);
    Command::from_json("SetPrice", json.as_bytes()).unwrap()
}

#[test]
fn a_price_is_set_and_set_again() {
    let (events, state) = when(&State::initial(Context::Pricing), &set("EUR", 100), 0).unwrap();
    assert!(matches!(&events[..], [Event::PriceSet(price)] if price.amount_minor == 100));
    let (events, _) = when(&state, &set("EUR", 120), 0).unwrap();
    assert_eq!(events.len(), 1);
}

#[test]
fn the_same_price_again_is_accepted_without_an_event() {
    let (_, state) = when(&State::initial(Context::Pricing), &set("EUR", 100), 0).unwrap();
    assert_eq!(when(&state, &set("EUR", 100), 0).unwrap().0, []);
}

#[test]
fn another_currency_is_refused_with_both_named() {
    let (_, state) = when(&State::initial(Context::Pricing), &set("EUR", 100), 0).unwrap();
    let rejection = when(&state, &set("INR", 100), 0).unwrap_err();
    assert_eq!(rejection.code, "currency_differs");
    assert!(rejection.message.contains("EUR") && rejection.message.contains("INR"));
}
