//! Inventory: the stock of one SKU in one warehouse. Always `on_hand >= reserved >= 0` (invariant W3).
//!
//! The warehouse's region is a fact about the warehouse, not about the SKU: whoever loads the state of a new
//! stream fills in [`StockState::region`] from the claim on the warehouse, and `decide` only compares.

use std::collections::BTreeMap;

use schemas::command::{
    AdjustStock, CountStock, MAX_NUMBER, ReceiveStock, ReleaseReservation, ReserveStock, ShipReservation,
};
use schemas::event::{StockChange, StockUpdated};
use schemas::{Command, Event, RegionId, ReservationId, Sku, WarehouseId};
use serde::{Deserialize, Serialize};

use crate::aggregate::misrouted;
use crate::rejection::Rejection;

/// Stock of one SKU in one warehouse.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StockState {
    /// Region of the warehouse, once known.
    pub region: Option<RegionId>,
    /// Units in the warehouse.
    pub on_hand: i64,
    /// Units of `on_hand` promised to reservations.
    pub reserved: i64,
    /// Reservations that are neither released nor shipped.
    pub open: BTreeMap<ReservationId, Reservation>,
}

/// An open promise of units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reservation {
    pub quantity: i64,
    /// Milliseconds since 1970.
    pub expires_at: i64,
}

/// Decides a stock command at `now` (milliseconds since 1970). An accepted command makes one event.
pub(crate) fn decide(state: &StockState, command: &Command, now: i64) -> Result<Vec<Event>, Rejection> {
    let event = match command {
        Command::ReceiveStock(data) => receive(state, data)?,
        Command::AdjustStock(data) => adjust(state, data)?,
        Command::CountStock(data) => count(state, data)?,
        Command::ReserveStock(data) => reserve(state, data, now)?,
        Command::ReleaseReservation(data) => release(state, data)?,
        Command::ShipReservation(data) => ship(state, data)?,
        other => return Err(misrouted(other)),
    };
    Ok(vec![Event::StockUpdated(event)])
}

pub(crate) fn apply(state: &mut StockState, event: &Event) {
    let Event::StockUpdated(event) = event else { return };
    state.region = Some(event.region.clone());
    state.on_hand = event.on_hand;
    state.reserved = event.reserved;
    let Some(reservation_id) = &event.reservation_id else { return };
    match event.change {
        StockChange::Reserved => {
            let reservation =
                Reservation { quantity: event.quantity, expires_at: event.expires_at.unwrap_or(i64::MAX) };
            state.open.insert(reservation_id.clone(), reservation);
        }
        StockChange::Released | StockChange::Shipped => {
            state.open.remove(reservation_id);
        }
        StockChange::Received | StockChange::Adjusted | StockChange::Counted => {}
    }
}

// === impl StockState ===

impl StockState {
    /// Units that may still be reserved.
    pub fn available(&self) -> i64 {
        self.on_hand - self.reserved
    }

    /// The warehouse's region, from what is known and what the command says.
    fn agreed_region(&self, named: Option<&RegionId>, warehouse: &WarehouseId) -> Result<RegionId, Rejection> {
        match (&self.region, named) {
            (Some(known), Some(named)) if known != named => Err(Rejection::new(
                "warehouse_in_other_region",
                format!("warehouse {warehouse} is in region {known}, not {named}"),
            )),
            (Some(known), _) => Ok(known.clone()),
            (None, Some(named)) => Ok(named.clone()),
            (None, None) => Err(Rejection::new(
                "warehouse_unknown",
                format!("warehouse {warehouse} has no region yet; receive or count stock there with a region first"),
            )),
        }
    }

    fn open_reservation(&self, id: &ReservationId) -> Result<&Reservation, Rejection> {
        self.open.get(id).ok_or_else(|| {
            Rejection::new(
                "reservation_not_open",
                format!("reservation {id} was never made, or is released or shipped"),
            )
        })
    }

    /// An event with the units as they are now: each command overrides those that it changes.
    fn event(
        &self,
        sku: &Sku,
        warehouse: &WarehouseId,
        region: RegionId,
        change: StockChange,
        quantity: i64,
    ) -> StockUpdated {
        StockUpdated {
            sku: sku.clone(),
            warehouse: warehouse.clone(),
            region,
            change,
            quantity,
            on_hand: self.on_hand,
            reserved: self.reserved,
            reservation_id: None,
            expires_at: None,
            reason: None,
        }
    }
}

fn receive(state: &StockState, data: &ReceiveStock) -> Result<StockUpdated, Rejection> {
    let region = state.agreed_region(data.region.as_ref(), &data.warehouse)?;
    let on_hand = state.on_hand.saturating_add(data.quantity);
    within_bounds(on_hand)?;
    let event = state.event(&data.sku, &data.warehouse, region, StockChange::Received, data.quantity);
    Ok(StockUpdated { on_hand, ..event })
}

fn adjust(state: &StockState, data: &AdjustStock) -> Result<StockUpdated, Rejection> {
    let region = state.agreed_region(None, &data.warehouse)?;
    let on_hand = state.on_hand.saturating_add(data.delta);
    within_bounds(on_hand)?;
    if on_hand < state.reserved {
        return Err(Rejection::new(
            "adjustment_below_reserved",
            format!(
                "{} on hand adjusted by {} leaves {on_hand}, {} are reserved",
                state.on_hand, data.delta, state.reserved
            ),
        ));
    }
    let event = state.event(&data.sku, &data.warehouse, region, StockChange::Adjusted, data.delta);
    Ok(StockUpdated { on_hand, reason: Some(data.reason.clone()), ..event })
}

fn count(state: &StockState, data: &CountStock) -> Result<StockUpdated, Rejection> {
    let region = state.agreed_region(data.region.as_ref(), &data.warehouse)?;
    if data.counted < state.reserved {
        return Err(Rejection::new(
            "count_below_reserved",
            format!("{} counted, {} are reserved; release reservations first", data.counted, state.reserved),
        ));
    }
    let event = state.event(&data.sku, &data.warehouse, region, StockChange::Counted, data.counted);
    Ok(StockUpdated { on_hand: data.counted, ..event })
}

fn reserve(state: &StockState, data: &ReserveStock, now: i64) -> Result<StockUpdated, Rejection> {
    let region = state.agreed_region(None, &data.warehouse)?;
    if data.expires_at <= now {
        return Err(Rejection::new(
            "reservation_expired",
            format!("the reservation ends {} ms before the command came", now - data.expires_at),
        ));
    }
    if state.open.contains_key(&data.reservation_id) {
        return Err(Rejection::new(
            "reservation_exists",
            format!("reservation {} is open already", data.reservation_id),
        ));
    }
    let available = state.available();
    if data.quantity > available {
        return Err(Rejection::new("insufficient_stock", format!("{} asked, {available} available", data.quantity)));
    }
    let event = state.event(&data.sku, &data.warehouse, region, StockChange::Reserved, data.quantity);
    Ok(StockUpdated {
        reserved: state.reserved + data.quantity,
        reservation_id: Some(data.reservation_id.clone()),
        expires_at: Some(data.expires_at),
        ..event
    })
}

fn release(state: &StockState, data: &ReleaseReservation) -> Result<StockUpdated, Rejection> {
    let region = state.agreed_region(None, &data.warehouse)?;
    let quantity = state.open_reservation(&data.reservation_id)?.quantity;
    let event = state.event(&data.sku, &data.warehouse, region, StockChange::Released, quantity);
    Ok(StockUpdated {
        reserved: state.reserved - quantity,
        reservation_id: Some(data.reservation_id.clone()),
        reason: data.reason.clone(),
        ..event
    })
}

fn ship(state: &StockState, data: &ShipReservation) -> Result<StockUpdated, Rejection> {
    let region = state.agreed_region(None, &data.warehouse)?;
    let quantity = state.open_reservation(&data.reservation_id)?.quantity;
    let event = state.event(&data.sku, &data.warehouse, region, StockChange::Shipped, quantity);
    Ok(StockUpdated {
        on_hand: state.on_hand - quantity,
        reserved: state.reserved - quantity,
        reservation_id: Some(data.reservation_id.clone()),
        ..event
    })
}

/// Keeps sums far from an overflow in every reader, JavaScript's 2^53 included.
fn within_bounds(on_hand: i64) -> Result<(), Rejection> {
    if on_hand > MAX_NUMBER {
        return Err(Rejection::new(
            "stock_too_large",
            format!("{on_hand} on hand would pass the limit of {MAX_NUMBER}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
