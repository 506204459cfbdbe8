use schemas::{Command, Context, Event};

use crate::State;
use crate::testing::when;

fn command(command_type: &str, json: &str) -> Command {
    Command::from_json(command_type, json.as_bytes()).unwrap()
}

fn register() -> Command {
    command("RegisterProduct", r#"{"sku":"A","name":"Onion","brand":"Fresho","category_path":["Vegetables"]}"#)
}

fn registered() -> State {
    when(&State::initial(Context::Catalogue), &register(), 0).unwrap().1
}

#[test]
fn a_product_is_registered_once() {
    let rejection = when(&registered(), &register(), 0).unwrap_err();
    assert_eq!(rejection.code, "product_already_registered");
}

#[test]
fn a_revision_keeps_what_it_does_not_name() {
    let (events, _) = when(&registered(), &command("ReviseProduct", r#"{"sku":"A","name":"Red onion"}"#), 0).unwrap();
    let [Event::ProductRevised(product)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(product.name, "Red onion");
    assert_eq!(product.brand.as_deref(), Some("Fresho"));
    assert_eq!(product.category_path, ["Vegetables"]);
}

#[test]
fn a_revision_that_changes_nothing_has_no_event() {
    let (events, _) = when(&registered(), &command("ReviseProduct", r#"{"sku":"A","name":"Onion"}"#), 0).unwrap();
    assert_eq!(events, []);
}

#[test]
fn an_unknown_product_can_be_neither_revised_nor_discontinued() {
    let unknown = State::initial(Context::Catalogue);
    for (command_type, json) in
        [("ReviseProduct", r#"{"sku":"A","name":"x"}"#), ("DiscontinueProduct", r#"{"sku":"A"}"#)]
    {
        assert_eq!(when(&unknown, &command(command_type, json), 0).unwrap_err().code, "product_unknown");
    }
}

#[test]
fn a_discontinued_product_may_be_registered_again() {
    let (_, discontinued) = when(&registered(), &command("DiscontinueProduct", r#"{"sku":"A"}"#), 0).unwrap();
    let rejection = when(&discontinued, &command("ReviseProduct", r#"{"sku":"A","name":"x"}"#), 0).unwrap_err();
    assert_eq!(rejection.code, "product_discontinued");
    assert_eq!(when(&discontinued, &register(), 0).unwrap().0.len(), 1);
}
