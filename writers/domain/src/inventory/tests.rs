use proptest::prelude::*;
use schemas::{Command, Context, Event};

use super::*;
use crate::State;
use crate::testing::when;

fn command(command_type: &str, fields: &str) -> Command {
    Command::from_json(command_type, format!(r#"{{"sku":"A","warehouse":"w"{fields}}}"#).as_bytes()).unwrap()
}

fn receive(quantity: i64) -> Command {
    command("ReceiveStock", &format!(r#","region":"eu","quantity":{quantity}"#))
}

fn reserve(id: &str, quantity: i64) -> Command {
    command("ReserveStock", &format!(r#","reservation_id":"{id}","quantity":{quantity},"expires_at":1000"#))
}

fn release(id: &str) -> Command {
    command("ReleaseReservation", &format!(r#","reservation_id":"{id}""#))
}

fn ship(id: &str) -> Command {
    command("ShipReservation", &format!(r#","reservation_id":"{id}""#))
}

/// Folds accepted commands into the state, from an empty stream.
fn after(commands: &[Command]) -> State {
    commands.iter().fold(State::initial(Context::Inventory), |state, command| when(&state, command, 0).unwrap().1)
}

fn stock(state: &State) -> &StockState {
    match state {
        State::Stock(stock) => stock,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reserved_units_are_shipped_or_come_back() {
    let state = after(&[receive(10), reserve("r1", 4), reserve("r2", 3), ship("r1"), release("r2")]);
    assert_eq!((stock(&state).on_hand, stock(&state).reserved), (6, 0));
    assert!(stock(&state).open.is_empty());
}

#[test]
fn more_than_available_is_refused_with_the_numbers() {
    let rejection = when(&after(&[receive(10), reserve("r1", 7)]), &reserve("r2", 7), 0).unwrap_err();
    assert_eq!((rejection.code, rejection.message.as_str()), ("insufficient_stock", "7 asked, 3 available"));
}

#[test]
fn a_reservation_id_is_open_once() {
    let state = after(&[receive(10), reserve("r1", 1)]);
    assert_eq!(when(&state, &reserve("r1", 1), 0).unwrap_err().code, "reservation_exists");
    assert_eq!(when(&state, &ship("r9"), 0).unwrap_err().code, "reservation_not_open");
}

#[test]
fn a_reservation_that_has_ended_is_refused() {
    assert_eq!(when(&after(&[receive(1)]), &reserve("r1", 1), 1000).unwrap_err().code, "reservation_expired");
}

#[test]
fn counts_and_adjustments_leave_what_is_reserved() {
    let state = after(&[receive(10), reserve("r1", 4)]);
    let count = |counted: i64| command("CountStock", &format!(r#","counted":{counted}"#));
    let adjust = |delta: i64| command("AdjustStock", &format!(r#","delta":{delta},"reason":"broken""#));
    assert_eq!(when(&state, &count(3), 0).unwrap_err().code, "count_below_reserved");
    assert_eq!(when(&state, &adjust(-7), 0).unwrap_err().code, "adjustment_below_reserved");
    assert_eq!(stock(&when(&state, &count(4), 0).unwrap().1).on_hand, 4);
    assert_eq!(stock(&when(&state, &adjust(-6), 0).unwrap().1).on_hand, 4);
}

#[test]
fn a_warehouse_stays_in_its_region() {
    let other = command("ReceiveStock", r#","region":"us","quantity":1"#);
    let rejection = when(&after(&[receive(1)]), &other, 0).unwrap_err();
    assert_eq!(rejection.code, "warehouse_in_other_region");
    let nameless = command("ReceiveStock", r#","quantity":1"#);
    assert_eq!(when(&State::initial(Context::Inventory), &nameless, 0).unwrap_err().code, "warehouse_unknown");
    assert!(when(&after(&[receive(1)]), &nameless, 0).is_ok());
}

fn any_command() -> impl Strategy<Value = Command> {
    let id = prop::sample::select(vec!["r1", "r2", "r3"]);
    prop_oneof![
        (1_i64..20).prop_map(receive),
        (id.clone(), 1_i64..15).prop_map(|(id, quantity)| reserve(id, quantity)),
        id.clone().prop_map(release),
        id.prop_map(ship),
        (0_i64..20).prop_map(|counted| command("CountStock", &format!(r#","counted":{counted},"region":"eu""#))),
        (-20_i64..20)
            .prop_filter("0 is not an adjustment", |delta| *delta != 0)
            .prop_map(|delta| command("AdjustStock", &format!(r#","delta":{delta},"reason":"x""#))),
    ]
}

proptest! {
    /// W3, and the sum that makes it true: what is reserved is what the open reservations hold.
    #[test]
    fn stock_is_never_oversold(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut state = State::initial(Context::Inventory);
        for command in commands {
            if let Ok((events, next)) = when(&state, &command, 0) {
                for event in &events {
                    let Event::StockUpdated(event) = event else { panic!("{event:?}") };
                    prop_assert!(event.on_hand >= event.reserved && event.reserved >= 0);
                }
                state = next;
            }
            let stock = stock(&state);
            prop_assert!(stock.on_hand >= stock.reserved && stock.reserved >= 0);
            prop_assert_eq!(stock.reserved, stock.open.values().map(|reservation| reservation.quantity).sum::<i64>());
        }
    }
}
