//! The commands of a seed, and when, to whom and how often each is given.

use std::time::Duration;

use schemas::command::{
    AdjustStock, CountStock, DiscontinueProduct, ReceiveStock, RegisterProduct, ReleaseReservation, ReserveStock,
    ReviseProduct, SetPrice, ShipReservation,
};
use schemas::{Command, IdError, RegionId, ReservationId, Sku, WarehouseId};
use uuid::Uuid;

use crate::world::{EPOCH, mixed};

/// One command as it is given.
#[derive(Debug, Clone)]
pub struct Given {
    pub id: Uuid,
    pub command: Command,
    pub at: Duration,
    /// By its command topic, where nobody waits for an answer; else by a call to a handler.
    pub by_topic: bool,
    /// How often it is given in all; the later ones, perhaps, while the first is still decided.
    pub times: u32,
}

/// Writes, and when they are given: the first seconds of a seed.
pub const WRITING: Duration = Duration::from_secs(20);

/// The commands of a seed. Few SKUs and warehouses, so that they meet.
pub fn commands(seed: u64) -> Result<Vec<Given>, IdError> {
    let mut dice = fastrand::Rng::with_seed(mixed(seed, "workload", 0));
    let skus: Vec<Sku> =
        (0..dice.usize(2..6)).map(|number| Sku::new(format!("SKU-{number}"))).collect::<Result<_, _>>()?;
    let places = [("north-1", "north"), ("south-1", "south")];
    let count = dice.usize(10..60);
    let mut given: Vec<Given> = Vec::with_capacity(count);
    for _ in 0..count {
        let sku = skus[dice.usize(..skus.len())].clone();
        let (warehouse, region) = places[dice.usize(..places.len())];
        let (warehouse, region) = (WarehouseId::new(warehouse)?, RegionId::new(region)?);
        let reservation_id = ReservationId::new(format!("r-{}", dice.u8(..8)))?;
        let at = Duration::from_millis(dice.u64(..WRITING.as_millis() as u64));
        let command = match dice.u8(..20) {
            0..6 => {
                Command::ReceiveStock(ReceiveStock { sku, warehouse, region: Some(region), quantity: dice.i64(1..50) })
            }
            6..8 => Command::AdjustStock(AdjustStock {
                sku,
                warehouse,
                delta: dice.i64(-20..20) | 1,
                reason: "broken".to_owned(),
            }),
            8 => Command::CountStock(CountStock { sku, warehouse, region: Some(region), counted: dice.i64(0..60) }),
            9..13 => Command::ReserveStock(ReserveStock {
                sku,
                warehouse,
                reservation_id,
                quantity: dice.i64(1..20),
                expires_at: EPOCH + at.as_millis() as i64 + dice.i64(500..60_000),
            }),
            13 => Command::ReleaseReservation(ReleaseReservation { sku, warehouse, reservation_id, reason: None }),
            14 => Command::ShipReservation(ShipReservation { sku, warehouse, reservation_id }),
            15 => Command::RegisterProduct(RegisterProduct {
                name: format!("Product {}", dice.u8(..)),
                sku,
                brand: None,
                category_path: Vec::new(),
                description: None,
                pack_size: None,
                tags: Vec::new(),
            }),
            16 => Command::ReviseProduct(ReviseProduct {
                sku,
                name: Some(format!("Revised {}", dice.u8(..))),
                brand: None,
                category_path: None,
                description: None,
                pack_size: None,
                tags: None,
            }),
            17 => Command::DiscontinueProduct(DiscontinueProduct { sku, reason: None }),
            _ => Command::SetPrice(SetPrice {
                sku,
                region,
                currency: "EUR".to_owned(),
                amount_minor: dice.i64(1..5_000),
            }),
        };
        // Now and then an id is used for a second command.
        let id = match given.last() {
            Some(earlier) if dice.u8(..40) == 0 => earlier.id,
            _ => Uuid::from_u64_pair(dice.u64(..), dice.u64(..)),
        };
        let times = if dice.u8(..4) == 0 { 2 } else { 1 };
        given.push(Given { id, command, at, by_topic: dice.u8(..4) == 0, times });
    }
    Ok(given)
}
