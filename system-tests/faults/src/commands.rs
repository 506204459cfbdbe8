//! Commands from a seed: what warehouses and shops do, some of it refused, as in life.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::command::{
    AdjustStock, CountStock, ReceiveStock, RegisterProduct, ReleaseReservation, ReserveStock, ReviseProduct, SetPrice,
    ShipReservation,
};
use schemas::{Command, RegionId, ReservationId, Sku, WarehouseId};
use serde_json::{Value, json};
use uuid::Uuid;

/// Warehouses and the region of each.
pub const WAREHOUSES: [(&str, &str); 3] = [("ham-1", "north"), ("muc-1", "south"), ("muc-2", "south")];
/// Regions that have prices.
pub const REGIONS: [&str; 2] = ["north", "south"];
/// 2099-01-01: no reservation of a scenario ends by itself unless it is meant to.
const FAR: i64 = 4_070_908_800_000;

/// A command with its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    pub id: Uuid,
    pub command: Command,
}

/// An endless stream of commands: the same ones for the same seed and worker.
pub struct Commands {
    random: ChaCha8Rng,
    skus: usize,
    /// (sku, warehouse, reservation) that may be open.
    open: Vec<(usize, usize, String)>,
}

// === impl Given ===

impl Given {
    pub fn to_json(&self) -> Value {
        let mut body = serde_json::to_value(&self.command).unwrap_or_default();
        body["id"] = json!(self.id);
        body
    }

    pub fn sku(&self) -> &str {
        self.command.key()
    }
}

pub fn sku(number: usize) -> Sku {
    parsed(format!("SKU-{number:05}"))
}

/// Ids of this crate are well formed by how they are made.
pub fn parsed<T: std::str::FromStr>(text: impl AsRef<str>) -> T
where
    T::Err: std::fmt::Debug,
{
    text.as_ref().parse().expect("an id of letters, digits and hyphens")
}

/// What every scenario begins with: each SKU registered, priced, and with stock in each warehouse.
pub fn preload(seed: u64, skus: usize) -> Vec<Given> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut commands = Vec::new();
    for number in 0..skus {
        let product = RegisterProduct {
            sku: sku(number),
            name: format!("Product {number}"),
            brand: Some(format!("Brand {}", number % 17)),
            category_path: vec!["Food".to_owned(), format!("Shelf {}", number % 31)],
            description: None,
            pack_size: Some("500 g".to_owned()),
            tags: vec!["fault".to_owned()],
        };
        commands.push(Command::RegisterProduct(product));
        for region in REGIONS {
            let amount_minor = random.random_range(50..5_000);
            let price = SetPrice { sku: sku(number), region: parsed(region), currency: "EUR".to_owned(), amount_minor };
            commands.push(Command::SetPrice(price));
        }
        for (warehouse, region) in WAREHOUSES {
            let quantity = random.random_range(20..200);
            commands.push(Command::ReceiveStock(ReceiveStock {
                sku: sku(number),
                warehouse: parsed(warehouse),
                region: Some(parsed(region)),
                quantity,
            }));
        }
    }
    commands.into_iter().map(|command| Given { id: id(&mut random), command }).collect()
}

fn id(random: &mut ChaCha8Rng) -> Uuid {
    let mut bytes = [0; 16];
    random.fill_bytes(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

// === impl Commands ===

impl Commands {
    pub fn new(seed: u64, worker: u64, skus: usize) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(worker + 1));
        Self { random, skus, open: Vec::new() }
    }

    /// One of so many.
    pub fn chance(&mut self, of: u32) -> bool {
        self.random.random_ratio(1, of)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end.max(1))
    }

    pub fn next(&mut self) -> Given {
        let number = self.random.random_range(0..self.skus);
        let place = self.random.random_range(0..WAREHOUSES.len());
        let (sku, warehouse): (Sku, WarehouseId) = (sku(number), parsed(WAREHOUSES[place].0));
        let command = match self.random.random_range(0..100) {
            0..30 => {
                let region: Option<RegionId> = self.random.random_bool(0.5).then(|| parsed(WAREHOUSES[place].1));
                let quantity = self.random.random_range(1..=60);
                Command::ReceiveStock(ReceiveStock { sku, warehouse, region, quantity })
            }
            30..58 => {
                let reservation = format!("r-{:016x}", self.random.next_u64());
                self.open.push((number, place, reservation.clone()));
                let reservation_id: ReservationId = parsed(reservation);
                // Now and then more than anybody has.
                let quantity = if self.chance(40) { 1_000_000 } else { self.random.random_range(1..=6) };
                Command::ReserveStock(ReserveStock { sku, warehouse, reservation_id, quantity, expires_at: FAR })
            }
            58..80 if !self.open.is_empty() => self.close(),
            58..86 => {
                let delta =
                    if self.chance(3) { -self.random.random_range(1..=5) } else { self.random.random_range(1..=8) };
                let reason = "counted wrong".to_owned();
                Command::AdjustStock(AdjustStock { sku, warehouse, delta, reason })
            }
            86..90 => {
                let counted = self.random.random_range(0..400);
                Command::CountStock(CountStock { sku, warehouse, region: None, counted })
            }
            90..95 => {
                let region = parsed(REGIONS[self.below(REGIONS.len())]);
                let amount_minor = self.random.random_range(50..5_000);
                Command::SetPrice(SetPrice { sku, region, currency: "EUR".to_owned(), amount_minor })
            }
            _ => {
                let name = Some(format!("Product {number} edition {}", self.random.random_range(2..1_000_000)));
                let (brand, category_path, description, pack_size, tags) = (None, None, None, None, None);
                Command::ReviseProduct(ReviseProduct { sku, name, brand, category_path, description, pack_size, tags })
            }
        };
        Given { id: id(&mut self.random), command }
    }

    /// Ships or releases a reservation; one time in ten it stays in mind, and the second close is refused.
    fn close(&mut self) -> Command {
        let at = self.below(self.open.len());
        let (number, place, reservation) =
            if self.chance(10) { self.open[at].clone() } else { self.open.swap_remove(at) };
        let (sku, warehouse) = (sku(number), parsed(WAREHOUSES[place].0));
        let reservation_id = parsed(reservation);
        if self.chance(3) {
            Command::ReleaseReservation(ReleaseReservation { sku, warehouse, reservation_id, reason: None })
        } else {
            Command::ShipReservation(ShipReservation { sku, warehouse, reservation_id })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_and_a_worker_give_the_same_commands() {
        let some = |seed, worker| {
            let mut commands = Commands::new(seed, worker, 50);
            (0..500).map(|_| commands.next()).collect::<Vec<_>>()
        };
        assert_eq!(some(7, 1), some(7, 1));
        assert_ne!(some(7, 1), some(7, 2));
        assert_ne!(some(7, 1), some(8, 1));
        assert_eq!(preload(7, 5), preload(7, 5));
    }

    #[test]
    fn what_is_given_reads_back_as_a_command() {
        let mut commands = Commands::new(1, 1, 50);
        for given in std::iter::repeat_with(|| commands.next()).take(500) {
            let text = given.to_json().to_string();
            let read = schemas::CommandEnvelope::from_json(text.as_bytes(), None, 0).unwrap();
            assert_eq!((read.id, read.command), (given.id, given.command));
        }
    }
}
