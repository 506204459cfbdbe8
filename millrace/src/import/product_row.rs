//! From a row to commands: what is said about one product, with ids that come from what is said.

use schemas::command::{CountStock, RegisterProduct, ReviseProduct, SetPrice};
use schemas::{Command, CommandEnvelope, RegionId, Sku, WarehouseId};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::decimal;
use super::field_map::FieldMap;
use super::record::{Cells, Column};

/// Names the ids of imported commands. Never change it: files imported before would take effect again.
const COMMAND_IDS: Uuid = Uuid::from_u128(0x7d1c_3a52_94fe_5c0e_8a61_3f0b_52c9_d7e4);
/// Largest command that the command API takes, in bytes.
const MAX_COMMAND_BYTES: usize = command_api::http::MAX_COMMAND_BYTES;
/// Hex digits of the hash in a derived SKU: 48 bits tell a million products apart.
const SKU_HASH_DIGITS: usize = 12;

/// What is the same for all rows of an import.
#[derive(Debug, Clone)]
pub struct RowSettings {
    pub map: FieldMap,
    pub currency: String,
    /// Decimals that a price may have: 0 when prices are in minor units.
    pub price_decimals: u32,
    pub region: RegionId,
    pub warehouse: WarehouseId,
    /// Part of the command ids.
    pub delivery: String,
}

/// A good row.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductRow {
    pub product: RegisterProduct,
    pub price: Option<SetPrice>,
    pub count: Option<CountStock>,
}

/// A command ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub id: Uuid,
    pub kind: PreparedKind,
    pub json: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreparedKind {
    Register,
    Revise,
    Price,
    Count,
}

// === impl ProductRow ===

impl ProductRow {
    /// Reads a row, or says what is wrong with it.
    pub fn read(cells: &Cells, settings: &RowSettings) -> Result<Self, String> {
        let map = &settings.map;
        let text = |column: &Option<Column>| -> Result<Option<String>, String> {
            match column {
                Some(column) => Ok(cells.text(column)?.map(|text| text.into_owned())),
                None => Ok(None),
            }
        };
        let name = text(&map.name)?.ok_or("the name is blank")?;
        let sku = match text(&map.sku)? {
            Some(sku) => Sku::new(sku).map_err(|error| error.to_string())?,
            None if map.sku_from.is_empty() => return Err("the SKU is blank".to_owned()),
            None => derive_sku(cells, &map.sku_from)?,
        };
        let mut category_path = Vec::new();
        for column in &map.category {
            category_path.extend(cells.texts(column)?);
        }
        let product = RegisterProduct {
            sku: sku.clone(),
            name,
            brand: text(&map.brand)?,
            category_path,
            description: text(&map.description)?,
            pack_size: None,
            tags: Vec::new(),
        };
        let number = |column: &Option<Column>| match column {
            Some(column) => cells.number(column),
            None => Ok(None),
        };
        let price = match number(&map.price)? {
            None => None,
            Some(cell) => {
                let amount_minor = decimal::price(cell.as_text(), &settings.currency, settings.price_decimals)
                    .map_err(|error| format!("price {error}"))?;
                let (region, currency) = (settings.region.clone(), settings.currency.clone());
                Some(SetPrice { sku: sku.clone(), region, currency, amount_minor })
            }
        };
        let count = match number(&map.stock)? {
            None => None,
            Some(cell) => {
                let counted = decimal::whole(cell.as_text()).map_err(|error| format!("stock {error}"))?;
                let (warehouse, region) = (settings.warehouse.clone(), Some(settings.region.clone()));
                Some(CountStock { sku: sku.clone(), warehouse, region, counted })
            }
        };
        let row = Self { product, price, count };
        row.check()?;
        Ok(row)
    }

    /// The commands that the row stands for. Their streams differ, so their order does not matter.
    pub fn commands(&self, delivery: &str) -> Vec<Prepared> {
        let register = Prepared::new(PreparedKind::Register, Command::RegisterProduct(self.product.clone()), delivery);
        let price =
            self.price.clone().map(|price| Prepared::new(PreparedKind::Price, Command::SetPrice(price), delivery));
        let count =
            self.count.clone().map(|count| Prepared::new(PreparedKind::Count, Command::CountStock(count), delivery));
        std::iter::once(register).chain(price).chain(count).collect()
    }

    /// For a product that is registered already: says what the row says, and leaves what it leaves blank.
    pub fn revise(&self, delivery: &str) -> Prepared {
        let product = self.product.clone();
        let revise = ReviseProduct {
            sku: product.sku,
            name: Some(product.name),
            brand: product.brand,
            category_path: Some(product.category_path).filter(|path| !path.is_empty()),
            description: product.description,
            pack_size: None,
            tags: None,
        };
        Prepared::new(PreparedKind::Revise, Command::ReviseProduct(revise), delivery)
    }

    /// About what it holds in memory.
    pub fn bytes(&self) -> usize {
        let product = &self.product;
        let texts = [Some(&product.name), product.brand.as_ref(), product.description.as_ref()];
        let texts = texts.into_iter().flatten().chain(&product.category_path).map(String::len).sum::<usize>();
        size_of::<Self>() + texts
    }

    /// Tells rows that say the same from rows that do not.
    pub fn content(&self) -> u64 {
        let ids: Vec<u8> = self.commands("").iter().flat_map(|command| command.id.into_bytes()).collect();
        let digest = Sha256::digest(&ids);
        digest.iter().take(8).fold(0, |content, byte| content << 8 | u64::from(*byte))
    }

    /// The checks that the command API makes: what it would refuse is refused here, with the row at hand.
    fn check(&self) -> Result<(), String> {
        for command in self.commands("") {
            if command.json.len() > MAX_COMMAND_BYTES {
                return Err(format!(
                    "the row makes a command of {} bytes, at most {MAX_COMMAND_BYTES} fit",
                    command.json.len()
                ));
            }
            CommandEnvelope::from_json(command.json.as_bytes(), None, 0).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

// === impl Prepared ===

impl Prepared {
    fn new(kind: PreparedKind, command: Command, delivery: &str) -> Self {
        let id = Uuid::new_v5(&COMMAND_IDS, identity(&command, delivery).as_bytes());
        // A command of texts and numbers is always JSON; were it not, the API would refuse the row by name.
        let command = serde_json::to_string(&command).unwrap_or_default();
        let json = format!(r#"{{"id":"{id}","actor":"import",{}"#, command.strip_prefix('{').unwrap_or("}"));
        Self { id, kind, json }
    }
}

/// The text that an id is made of. Written out by hand: a field that commands get later must not change the ids of
/// rows that do not have it.
fn identity(command: &Command, delivery: &str) -> String {
    let text = |tag: &str, value: &Option<String>| match value {
        Some(value) => format!("{tag}{}:{value}", value.len()),
        None => String::new(),
    };
    let path = |path: &[String]| -> String { path.iter().map(|level| format!("c{}:{level}", level.len())).collect() };
    let said = match command {
        Command::RegisterProduct(data) => {
            let name = Some(data.name.clone());
            [text("n", &name), text("b", &data.brand), path(&data.category_path), text("d", &data.description)].concat()
        }
        Command::ReviseProduct(data) => {
            let levels = data.category_path.as_deref().unwrap_or_default();
            [text("n", &data.name), text("b", &data.brand), path(levels), text("d", &data.description)].concat()
        }
        Command::SetPrice(data) => format!("{} {} {}", data.region, data.currency, data.amount_minor),
        Command::CountStock(data) => format!("{} {}", data.warehouse, data.counted),
        other => serde_json::to_string(other).unwrap_or_default(),
    };
    format!("{delivery}\n{} {}\n{said}", command.command_type(), command.key())
}

fn derive_sku(cells: &Cells, columns: &[Column]) -> Result<Sku, String> {
    let mut parts = Vec::new();
    for column in columns {
        parts.extend(cells.texts(column)?);
    }
    let words: Vec<&str> = parts.iter().flat_map(|part| part.split_whitespace()).collect();
    if words.is_empty() {
        return Err("the SKU cannot be derived: all of its columns are blank".to_owned());
    }
    // Spaces differ between deliveries of the same file; they do not make another product.
    let joined: Vec<String> = parts.iter().map(|part| part.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let digest = Sha256::digest(joined.join("\u{1f}").as_bytes());
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let room = schemas::id::MAX_ID_LENGTH - SKU_HASH_DIGITS - 1;
    let slug = slug(&words.join(" "), room);
    let sku = match slug.as_str() {
        "" => hash[..SKU_HASH_DIGITS].to_owned(),
        slug => format!("{slug}-{}", &hash[..SKU_HASH_DIGITS]),
    };
    Sku::new(sku).map_err(|error| error.to_string())
}

/// Lower-case ASCII letters and digits, with one `-` for all else.
fn slug(text: &str, room: usize) -> String {
    let mut slug = String::new();
    for character in text.chars() {
        if character.is_ascii_alphanumeric() {
            slug.push(character.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') && character != '\'' && character != '’' {
            slug.push('-');
        }
    }
    slug.truncate(room);
    slug.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests;
