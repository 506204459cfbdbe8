//! What `millrace generate` takes.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    #[command(subcommand)]
    pub what: GenerateWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum GenerateWhat {
    /// NDJSON commands: products with prices and stock in five regions, then stock movements
    ///
    /// Give them to a command API: curl --data-binary @FILE -H 'content-type: application/x-ndjson' URL/v1/commands
    Commands(CommandsArgs),
    /// A CSV file of products, as `millrace import products` takes it
    Products(ProductFileArgs),
}

#[derive(Debug, Clone, Args)]
pub struct CommandsArgs {
    /// Products to register, price and stock: about ten commands each
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub products: usize,
    /// Stock movements after the products
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub movements: usize,
    /// Leave the products out: for a system that has them
    #[arg(long)]
    pub only_movements: bool,
    /// The same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Zipf exponent of the products' popularity: 0 moves all alike, 1 the first twice as often as the second
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0)]
    pub skew: f64,
    /// When the movements begin; reservations end within three days of their movement
    #[arg(long, value_name = "RFC3339", default_value = "2100-01-01T00:00:00Z", value_parser = instant)]
    pub start: i64,
    /// File to write; standard output unless given
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct ProductFileArgs {
    /// Products in the file
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub products: usize,
    /// As files come from customers: blank and malformed numbers, ragged rows, open quotes, wrong bytes, duplicates
    #[arg(long)]
    pub dirty: bool,
    /// The same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// File to write; standard output unless given
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Milliseconds since 1970.
fn instant(text: &str) -> Result<i64, String> {
    chrono::DateTime::parse_from_rfc3339(text)
        .map(|instant| instant.timestamp_millis())
        .map_err(|error| format!("{error}; an instant such as 2030-01-31T12:00:00Z is wanted"))
}
