//! What `millrace import` takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use encoding_rs::Encoding;
use schemas::{RegionId, WarehouseId};
use url::Url;

use crate::address::http_url;
use crate::cli::{DataArgs, EventLogArgs, EventStoreArgs};

#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    #[command(subcommand)]
    pub what: ImportWhat,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ImportWhat {
    /// Bring in a file of products, with their prices and stock
    ///
    /// Each good row registers its product (or revises it, where it is registered with other content) and sets price
    /// and stock where the row has them. Bad rows go to the rejects file with line and reason; the others go in. A row
    /// that reads well can still be refused by a rule, such as a warehouse of another region: it is rejected with what
    /// the rule says, and those of its commands that were accepted stand.
    /// Command ids come from the file and its rows, so the same file again changes nothing, for as long as outcomes are
    /// kept (--outcome-retention of the command side, 7 days by default); later its rows take effect again. A file that
    /// differs in any byte is a new delivery: its prices and counts hold, though an earlier one had the same. Where
    /// rows of a file share a SKU, the last good one counts. A blank cell leaves what is known as it is.
    ///
    /// Numbers: 3.99, 3,99, 1,234.50, 1.234,50, 1 234.50 and a sign or code of the currency are read; 1.234 and 1,234
    /// may be two numbers and are rejected.
    ///
    /// Exit code 1 when a row was rejected.
    Products(Box<ProductsArgs>),
}

#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example: millrace import products groceries.csv --map name=name,category=Category,price=mrp,stock=availableQuantity \\
         --sku-from name,weightInGms --price-unit minor --currency INR --region in --warehouse in-1 --to http://127.0.0.1:8080"
)]
pub struct ProductsArgs {
    /// CSV with a header line, or NDJSON
    pub file: PathBuf,
    /// Which column is what: FIELD=COLUMN[,FIELD=COLUMN...] with the fields sku, name, brand, category, description,
    /// price, stock; category=A/B joins columns into a path [default: columns named like the fields]
    #[arg(long, value_name = "FIELD=COLUMN,...")]
    pub map: Vec<String>,
    /// Derive the SKU from these fields or columns where a row has none: a readable part and a short hash
    #[arg(long, value_name = "FIELD,...", value_delimiter = ',')]
    pub sku_from: Vec<String>,
    /// Whether prices are in units as in 3.99 or in the smallest ones as in 399
    #[arg(long, value_enum, default_value = "major")]
    pub price_unit: PriceUnit,
    /// Currency of the prices, ISO 4217
    #[arg(long, value_name = "CODE", default_value = "EUR", value_parser = currency)]
    pub currency: String,
    /// Region of prices and warehouse
    #[arg(long, value_name = "REGION", default_value = "eu")]
    pub region: RegionId,
    /// Warehouse of the stock
    #[arg(long, value_name = "WAREHOUSE", default_value = "eu-1")]
    pub warehouse: WarehouseId,
    /// Command API to import through; without it the event store of the settings is written directly
    #[arg(long, value_name = "URL", value_parser = http_url)]
    pub to: Option<Url>,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub event_store: EventStoreArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
    /// Where rejected rows go [default: FILE.rejects.csv]
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,
    /// Character between CSV fields; \t is a tab [default: a comma, a tab for .tsv files]
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// Encoding of the file, such as windows-1252 [default: by byte-order mark, else UTF-8]
    #[arg(long, value_name = "LABEL", value_parser = encoding)]
    pub encoding: Option<&'static Encoding>,
    /// Format of the file [default: ndjson for .ndjson, .jsonl and .json files, else csv]
    #[arg(long = "format", value_enum)]
    pub format: Option<FileFormat>,
    /// Name of this delivery, part of the command ids: the same rows under another name take effect again, and under
    /// the same name they do not [default: made from the file's bytes]
    #[arg(long, value_name = "NAME")]
    pub delivery: Option<String>,
    /// Read only so many rows
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// How long to try again while a command API that once answered cannot be reached; at first contact 5 seconds
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = humantime::parse_duration)]
    pub retry_for: Duration,
    /// Check every row and write the rejects, but import nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PriceUnit {
    Major,
    Minor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    Csv,
    Ndjson,
}

// === impl ProductsArgs ===

impl ProductsArgs {
    pub fn file_format(&self) -> FileFormat {
        self.format.unwrap_or(match self.extension().as_str() {
            "ndjson" | "jsonl" | "json" => FileFormat::Ndjson,
            _ => FileFormat::Csv,
        })
    }

    pub fn csv_delimiter(&self) -> u8 {
        self.delimiter.unwrap_or(if self.extension() == "tsv" { b'\t' } else { b',' })
    }

    pub fn rejects_file(&self) -> PathBuf {
        self.rejects.clone().unwrap_or_else(|| {
            let mut name = self.file.clone().into_os_string();
            name.push(".rejects.csv");
            name.into()
        })
    }

    fn extension(&self) -> String {
        self.file.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase()
    }
}

fn currency(text: &str) -> Result<String, String> {
    match text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase()) {
        true => Ok(text.to_owned()),
        false => Err("three capital letters are wanted, such as EUR".to_owned()),
    }
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text {
        "\\t" | "tab" => Ok(b'\t'),
        _ => match text.as_bytes() {
            [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
            _ => Err("one ASCII character is wanted, such as ; or \\t".to_owned()),
        },
    }
}

fn encoding(label: &str) -> Result<&'static Encoding, String> {
    Encoding::for_label(label.as_bytes()).ok_or_else(|| {
        "a label of the WHATWG Encoding Standard is wanted, such as utf-8, windows-1252 or utf-16le".to_owned()
    })
}
