//! `millrace generate`: believable groceries from a seed. The same seed gives the same bytes.

mod args;
mod catalogue;
mod movements;
mod product_file;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use anyhow::Context;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use args::{CommandsArgs, GenerateArgs, GenerateWhat, ProductFileArgs};
pub use movements::Movements;

use crate::exit::Exit;
use crate::output;
use catalogue::Catalogue;

/// What is generated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerateSettings {
    pub seed: u64,
    pub products: usize,
    /// Zipf exponent of the products' popularity: 0 moves all alike, 1 moves the first twice as often as the second.
    pub skew: f64,
}

/// Products in five regions, and what happens to their stock.
pub struct Generator {
    catalogue: Arc<Catalogue>,
    skew: f64,
}

/// A product that is priced and stocked everywhere, to show queries with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub sku: String,
    pub region: String,
    /// A word of its name.
    pub word: String,
    pub warehouse: String,
}

// === impl GenerateSettings ===

impl Default for GenerateSettings {
    fn default() -> Self {
        Self { seed: 1, products: 1_000, skew: 1.0 }
    }
}

// === impl Generator ===

impl Generator {
    pub fn new(settings: GenerateSettings) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        let catalogue = Catalogue::draw(settings.seed, settings.products.max(1), &mut random);
        Self { catalogue: Arc::new(catalogue), skew: settings.skew }
    }

    /// Commands that register, price and stock every product, as JSON.
    pub fn products(&self) -> impl Iterator<Item = String> + '_ {
        self.catalogue.products.iter().flat_map(|product| self.catalogue.commands_of(product))
    }

    /// Endless stock movements of the products, as JSON commands; the popular ones move most. Ids differ from seed to
    /// seed. `start_ms` (milliseconds since 1970) is when they begin: reservations end some days later.
    pub fn movements(&self, seed: u64, start_ms: i64) -> Movements {
        Movements::new(Arc::clone(&self.catalogue), self.skew, seed, start_ms)
    }

    pub fn sample(&self) -> Sample {
        self.catalogue.sample()
    }
}

pub async fn run(args: GenerateArgs) -> anyhow::Result<Exit> {
    let written = tokio::task::spawn_blocking(move || match args.what {
        GenerateWhat::Commands(args) => commands(&args),
        GenerateWhat::Products(args) => products(&args),
    })
    .await
    .context("the generator panicked")?;
    match written {
        // `| head` has enough.
        Err(error) if output::is_closed_pipe(&error) => Ok(Exit::Done),
        other => other.map(|()| Exit::Done),
    }
}

fn commands(args: &CommandsArgs) -> anyhow::Result<()> {
    let generator = Generator::new(GenerateSettings { seed: args.seed, products: args.products, skew: args.skew });
    let mut out = open(args.out.as_deref())?;
    let movements = generator.movements(args.seed, args.start).take(args.movements);
    for command in generator.products().filter(|_| !args.only_movements).chain(movements) {
        out.write_all(command.as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

fn products(args: &ProductFileArgs) -> anyhow::Result<()> {
    let generator = Generator::new(GenerateSettings { seed: args.seed, products: args.products, ..Default::default() });
    let mut out = open(args.out.as_deref())?;
    match args.dirty {
        true => product_file::write_dirty(&generator.catalogue, args.seed, &mut out)?,
        false => product_file::write_clean(&generator.catalogue, &mut out)?,
    }
    out.flush()?;
    Ok(())
}

fn open(path: Option<&std::path::Path>) -> anyhow::Result<Box<dyn Write>> {
    Ok(match path {
        Some(path) => {
            let file = File::create(path)
                .with_context(|| format!("{} cannot be written; name another file with --out", path.display()))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(BufWriter::new(std::io::stdout())),
    })
}

#[cfg(test)]
mod tests;
