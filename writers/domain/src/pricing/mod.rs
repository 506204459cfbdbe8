//! Pricing: the price of a SKU in a region, in one currency for good.

use schemas::event::PriceSet;
use schemas::{Command, Event};
use serde::{Deserialize, Serialize};

use crate::aggregate::misrouted;
use crate::rejection::Rejection;

/// The price last set, if any.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PriceState {
    pub price: Option<PriceSet>,
}

pub(crate) fn decide(state: &PriceState, command: &Command) -> Result<Vec<Event>, Rejection> {
    let Command::SetPrice(data) = command else { return Err(misrouted(command)) };
    let new = PriceSet {
        sku: data.sku.clone(),
        region: data.region.clone(),
        currency: data.currency.clone(),
        amount_minor: data.amount_minor,
    };
    match &state.price {
        Some(old) if *old == new => Ok(Vec::new()),
        // Minor units of another currency are another number: a slip here would sell at a hundredth.
        Some(old) if old.currency != new.currency => Err(Rejection::new(
            "currency_differs",
            format!("{} in {} is priced in {}, not {}", new.sku, new.region, old.currency, new.currency),
        )),
        _ => Ok(vec![Event::PriceSet(new)]),
    }
}

pub(crate) fn apply(state: &mut PriceState, event: &Event) {
    if let Event::PriceSet(price) = event {
        state.price = Some(price.clone());
    }
}

#[cfg(test)]
mod tests;
