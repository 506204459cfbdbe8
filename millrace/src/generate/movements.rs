//! Stock movements: what happens in warehouses, the popular products most.
//!
//! A model of the stock goes along, so that on a system with the generated products every movement is accepted: nothing
//! is reserved that is not there, nothing shipped that was not reserved.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};
use schemas::command::{AdjustStock, CountStock, ReceiveStock, ReleaseReservation, ReserveStock, ShipReservation};
use schemas::{Command, ReservationId};
use uuid::Uuid;

use super::catalogue::{Catalogue, command_id, json, region_id, sku, warehouse_id};

/// Time between two movements, in milliseconds.
const STEP: i64 = 20;
/// Open reservations past which the oldest is closed before another is made.
const MOST_OPEN: usize = 2_000;
const HOUR: i64 = 3_600_000;
const REASONS: [&str; 4] = ["damaged", "expired", "lost", "found again"];

/// An endless iterator of commands as JSON.
pub struct Movements {
    catalogue: Arc<Catalogue>,
    seed: u64,
    random: ChaCha8Rng,
    popularity: Option<Zipf<f64>>,
    clock: i64,
    number: u64,
    /// Stock that moved, by product and place.
    stock: HashMap<(usize, usize), Stock>,
    open: VecDeque<Open>,
}

#[derive(Clone, Copy)]
struct Stock {
    on_hand: i64,
    reserved: i64,
}

/// A reservation that is neither shipped nor released.
struct Open {
    product: usize,
    place: usize,
    id: String,
    quantity: i64,
    expires_at: i64,
}

// === impl Movements ===

impl Movements {
    pub(super) fn new(catalogue: Arc<Catalogue>, skew: f64, seed: u64, start_ms: i64) -> Self {
        let popularity = Zipf::new(catalogue.products.len() as f64, skew.max(0.0)).ok();
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self {
            catalogue,
            seed,
            random,
            popularity,
            clock: start_ms,
            number: 0,
            stock: HashMap::new(),
            open: VecDeque::new(),
        }
    }

    fn draw_product(&mut self) -> usize {
        let rank = self.popularity.map_or(1.0, |popularity| popularity.sample(&mut self.random));
        (rank as usize).clamp(1, self.catalogue.products.len()) - 1
    }

    fn stock(&mut self, product: usize, place: usize) -> &mut Stock {
        let units = self.catalogue.products[product].stocked[place].units;
        self.stock.entry((product, place)).or_insert(Stock { on_hand: units, reserved: 0 })
    }

    fn next_command(&mut self) -> Command {
        while self.open.front().is_some_and(|open| open.expires_at <= self.clock) {
            // The system releases it by itself at about this time.
            if let Some(expired) = self.open.pop_front() {
                self.stock(expired.product, expired.place).reserved -= expired.quantity;
            }
        }
        let kind = self.random.random_range(0..100);
        if self.open.len() >= MOST_OPEN || (kind < 36 && !self.open.is_empty()) {
            return self.close(kind % 4 != 0);
        }
        let product = self.draw_product();
        let place = self.random.random_range(0..self.catalogue.products[product].stocked.len());
        let Stock { on_hand, reserved } = *self.stock(product, place);
        let available = on_hand - reserved;
        match kind {
            88..94 if on_hand > reserved + 5 => self.adjust(product, place),
            94..100 => self.count(product, place),
            36..80 if available > 0 => self.reserve(product, place, available),
            0..36 if available > 0 => self.reserve(product, place, available),
            _ => self.receive(product, place),
        }
    }

    fn receive(&mut self, product: usize, place: usize) -> Command {
        let quantity = self.random.random_range(1..=20) * 12;
        self.stock(product, place).on_hand += quantity;
        let stocked = self.catalogue.products[product].stocked[place];
        let region = Some(region_id(super::catalogue::REGIONS[stocked.region].id));
        Command::ReceiveStock(ReceiveStock {
            sku: self.sku(product),
            warehouse: warehouse_id(stocked.warehouse),
            region,
            quantity,
        })
    }

    fn adjust(&mut self, product: usize, place: usize) -> Command {
        let reason = REASONS[self.random.random_range(0..REASONS.len())];
        let units = self.random.random_range(1..=3);
        let delta = if reason == "found again" { units } else { -units };
        self.stock(product, place).on_hand += delta;
        let warehouse = warehouse_id(self.catalogue.products[product].stocked[place].warehouse);
        Command::AdjustStock(AdjustStock { sku: self.sku(product), warehouse, delta, reason: reason.to_owned() })
    }

    /// Mostly what was expected.
    fn count(&mut self, product: usize, place: usize) -> Command {
        let off = self.random.random_range(-4_i64..=2).min(0);
        let stock = self.stock(product, place);
        stock.on_hand = (stock.on_hand + off).max(stock.reserved);
        let counted = stock.on_hand;
        let warehouse = warehouse_id(self.catalogue.products[product].stocked[place].warehouse);
        Command::CountStock(CountStock { sku: self.sku(product), warehouse, region: None, counted })
    }

    fn reserve(&mut self, product: usize, place: usize, available: i64) -> Command {
        let quantity = self.random.random_range(1..=4).min(available);
        // All reservations last as long, so that the oldest is the first to end.
        let expires_at = self.clock + 72 * HOUR;
        let id = format!("r-{}", Uuid::new_v5(&self.id("reservation"), b"").simple());
        self.stock(product, place).reserved += quantity;
        self.open.push_back(Open { product, place, id: id.clone(), quantity, expires_at });
        let warehouse = warehouse_id(self.catalogue.products[product].stocked[place].warehouse);
        Command::ReserveStock(ReserveStock {
            sku: self.sku(product),
            warehouse,
            reservation_id: reservation_id(&id),
            quantity,
            expires_at,
        })
    }

    /// Ships or releases one of the older reservations.
    fn close(&mut self, ships: bool) -> Command {
        let oldest = self.open.len().min(20);
        let index = self.random.random_range(0..oldest.max(1));
        let Some(open) = self.open.remove(index) else { return self.receive(0, 0) };
        let stock = self.stock(open.product, open.place);
        stock.reserved -= open.quantity;
        if ships {
            stock.on_hand -= open.quantity;
        }
        let warehouse = warehouse_id(self.catalogue.products[open.product].stocked[open.place].warehouse);
        let (sku, reservation_id) = (self.sku(open.product), reservation_id(&open.id));
        match ships {
            true => Command::ShipReservation(ShipReservation { sku, warehouse, reservation_id }),
            false => Command::ReleaseReservation(ReleaseReservation {
                sku,
                warehouse,
                reservation_id,
                reason: Some("order cancelled".to_owned()),
            }),
        }
    }

    fn sku(&self, product: usize) -> schemas::Sku {
        sku(&self.catalogue.products[product].sku)
    }

    fn id(&self, what: &str) -> Uuid {
        command_id(&format!("{what} {} {}", self.seed, self.number))
    }
}

impl Iterator for Movements {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.number += 1;
        self.clock += STEP;
        let command = self.next_command();
        Some(json(self.id("movement"), command))
    }
}

#[expect(clippy::expect_used, reason = "r- and the hex digits of a UUID")]
fn reservation_id(text: &str) -> ReservationId {
    ReservationId::new(text).expect("a generated reservation id follows the grammar of ids")
}
