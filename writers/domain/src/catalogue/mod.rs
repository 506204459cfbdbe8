//! Catalogue: a product is registered, revised, discontinued, and may be registered again.

use schemas::command::ReviseProduct;
use schemas::event::{Product, ProductDiscontinued};
use schemas::{Command, Event};
use serde::{Deserialize, Serialize};

use crate::aggregate::misrouted;
use crate::rejection::Rejection;

/// The life of one SKU in the catalogue.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub enum ProductState {
    #[default]
    Unknown,
    Active(Product),
    Discontinued,
}

pub(crate) fn decide(state: &ProductState, command: &Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::RegisterProduct(data) => match state {
            ProductState::Active(_) => Err(Rejection::new(
                "product_already_registered",
                format!("{} is registered; revise it instead", data.sku),
            )),
            ProductState::Unknown | ProductState::Discontinued => {
                let data = data.clone();
                Ok(vec![Event::ProductRegistered(Product {
                    sku: data.sku,
                    name: data.name,
                    brand: data.brand,
                    category_path: data.category_path,
                    description: data.description,
                    pack_size: data.pack_size,
                    tags: data.tags,
                })])
            }
        },
        Command::ReviseProduct(data) => {
            let current = active(state, command)?;
            let revised = revise(current, data);
            if revised == *current { Ok(Vec::new()) } else { Ok(vec![Event::ProductRevised(revised)]) }
        }
        Command::DiscontinueProduct(data) => {
            active(state, command)?;
            let event = ProductDiscontinued { sku: data.sku.clone(), reason: data.reason.clone() };
            Ok(vec![Event::ProductDiscontinued(event)])
        }
        other => Err(misrouted(other)),
    }
}

pub(crate) fn apply(state: &mut ProductState, event: &Event) {
    match event {
        Event::ProductRegistered(product) | Event::ProductRevised(product) => {
            *state = ProductState::Active(product.clone());
        }
        Event::ProductDiscontinued(_) => *state = ProductState::Discontinued,
        Event::StockUpdated(_) | Event::PriceSet(_) | Event::DecisionRecorded(_) => {}
    }
}

fn active<'a>(state: &'a ProductState, command: &Command) -> Result<&'a Product, Rejection> {
    let sku = command.key();
    match state {
        ProductState::Active(product) => Ok(product),
        ProductState::Unknown => Err(Rejection::new("product_unknown", format!("{sku} is not registered"))),
        ProductState::Discontinued => Err(Rejection::new("product_discontinued", format!("{sku} is discontinued"))),
    }
}

fn revise(current: &Product, data: &ReviseProduct) -> Product {
    let keep = |new: &Option<String>, old: &Option<String>| new.clone().or_else(|| old.clone());
    Product {
        sku: current.sku.clone(),
        name: data.name.clone().unwrap_or_else(|| current.name.clone()),
        brand: keep(&data.brand, &current.brand),
        category_path: data.category_path.clone().unwrap_or_else(|| current.category_path.clone()),
        description: keep(&data.description, &current.description),
        pack_size: keep(&data.pack_size, &current.pack_size),
        tags: data.tags.clone().unwrap_or_else(|| current.tags.clone()),
    }
}

#[cfg(test)]
mod tests;
