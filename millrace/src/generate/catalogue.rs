//! Generated products: what a grocer sells, who makes it, what it costs and where it lies.

use std::collections::HashSet;

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use schemas::command::{ReceiveStock, RegisterProduct, SetPrice};
use schemas::{Command, RegionId, Sku, WarehouseId};
use uuid::Uuid;

use super::Sample;

/// Names the ids of generated commands.
const COMMAND_IDS: Uuid = Uuid::from_u128(0x2b0e_91d7_6f43_5a18_b7c2_08de_e35a_4419);
/// Draws for a name that no product has yet; past them a name may come twice, as in real catalogues.
const DRAWS: usize = 20;

/// A region, its currency, what a euro's worth costs there in hundredths of its currency, and its warehouses.
pub struct Region {
    pub id: &'static str,
    currency: &'static str,
    cents_per_euro: i64,
    pub warehouses: &'static [&'static str],
}

pub const REGIONS: [Region; 5] = [
    Region { id: "eu", currency: "EUR", cents_per_euro: 100, warehouses: &["eu-1", "eu-2", "eu-3"] },
    Region { id: "uk", currency: "GBP", cents_per_euro: 86, warehouses: &["uk-1", "uk-2"] },
    Region { id: "us", currency: "USD", cents_per_euro: 112, warehouses: &["us-1", "us-2", "us-3"] },
    Region { id: "in", currency: "INR", cents_per_euro: 9_400, warehouses: &["in-1", "in-2"] },
    Region { id: "au", currency: "AUD", cents_per_euro: 172, warehouses: &["au-1"] },
];

/// A shelf: its categories, SKU code, makers, kinds, things, packs, and prices in euro cents.
struct Shelf {
    category: [&'static str; 2],
    code: &'static str,
    brands: &'static [&'static str],
    kinds: &'static [&'static str],
    things: &'static [&'static str],
    packs: &'static [&'static str],
    cents: (i64, i64),
}

const SHELVES: [Shelf; 12] = [
    Shelf {
        category: ["Fruits & Vegetables", "Vegetables"],
        code: "VEG",
        brands: &["Fresho", "Green Acre", "Hofgut", "Market Day"],
        kinds: &["Red", "Organic", "Baby", "Washed", "Local", "Winter"],
        things: &[
            "Onions",
            "Tomatoes",
            "Carrots",
            "Potatoes",
            "Spinach",
            "Cauliflower",
            "Peppers",
            "Beetroot",
            "Leeks",
        ],
        packs: &["250 g", "500 g", "1 kg", "2 kg"],
        cents: (79, 499),
    },
    Shelf {
        category: ["Fruits & Vegetables", "Fruit"],
        code: "FRU",
        brands: &["Fresho", "Orchard Lane", "Sunny Isle", "Market Day"],
        kinds: &["Ripe", "Organic", "Sweet", "Seedless", "Premium"],
        things: &["Apples", "Bananas", "Grapes", "Oranges", "Pears", "Mangoes", "Lemons", "Blueberries"],
        packs: &["125 g", "500 g", "1 kg"],
        cents: (99, 699),
    },
    Shelf {
        category: ["Dairy & Eggs", "Milk & Cream"],
        code: "MLK",
        brands: &["Alpenhof", "Amberley", "Daisy Farm", "Clover & Co"],
        kinds: &["Whole", "Semi-Skimmed", "Lactose-Free", "Organic", "Barista"],
        things: &["Milk", "Cream", "Buttermilk", "Oat Drink", "Soya Drink", "Kefir"],
        packs: &["200 ml", "500 ml", "1 l", "2 l"],
        cents: (69, 349),
    },
    Shelf {
        category: ["Dairy & Eggs", "Cheese & Yoghurt"],
        code: "CHE",
        brands: &["Alpenhof", "Fromagerie Lune", "Daisy Farm", "Skyr House"],
        kinds: &["Mild", "Mature", "Smoked", "Low-Fat", "Greek-Style", "Organic"],
        things: &["Cheddar", "Gouda", "Yoghurt", "Feta", "Mozzarella", "Quark", "Paneer"],
        packs: &["125 g", "200 g", "400 g"],
        cents: (119, 699),
    },
    Shelf {
        category: ["Bakery", "Bread & Rolls"],
        code: "BRE",
        brands: &["Mill Lane", "Backstube Nord", "Old Oven", "Daily Loaf"],
        kinds: &["Sourdough", "Wholemeal", "Seeded", "Rye", "Gluten-Free"],
        things: &["Bread", "Rolls", "Baguette", "Toast", "Flatbread", "Bagels"],
        packs: &["250 g", "400 g", "750 g"],
        cents: (99, 549),
    },
    Shelf {
        category: ["Pantry", "Pasta, Rice & Grains"],
        code: "PAS",
        brands: &["Nonna Pia", "Golden Sheaf", "Basmati House", "Campo Largo"],
        kinds: &["Wholegrain", "Organic", "Classic", "Quick-Cook", "Bronze-Cut"],
        things: &["Spaghetti", "Penne", "Basmati Rice", "Couscous", "Quinoa", "Rolled Oats", "Red Lentils", "Noodles"],
        packs: &["400 g", "500 g", "1 kg", "5 kg"],
        cents: (89, 899),
    },
    Shelf {
        category: ["Pantry", "Oils, Sauces & Spices"],
        code: "SAU",
        brands: &["Casa Verde", "Nonna Pia", "Spice Route", "Kettle & Crock"],
        kinds: &["Hot", "Smoky", "Classic", "Extra", "Sweet", "Garlic"],
        things: &[
            "Olive Oil",
            "Tomato Sauce",
            "Pesto",
            "Mustard",
            "Curry Paste",
            "Soy Sauce",
            "Paprika",
            "Garam Masala",
        ],
        packs: &["50 g", "190 g", "350 g", "500 ml"],
        cents: (109, 1_299),
    },
    Shelf {
        category: ["Snacks", "Biscuits & Chocolate"],
        code: "SNA",
        brands: &["Crumbly's", "Cocoa Peak", "Oaty", "Brewster & Sons"],
        kinds: &["Dark", "Milk", "Hazelnut", "Salted Caramel", "Ginger", "Double"],
        things: &["Chocolate", "Cookies", "Oat Bars", "Shortbread", "Wafers", "Digestives"],
        packs: &["80 g", "100 g", "200 g", "3 x 40 g"],
        cents: (79, 499),
    },
    Shelf {
        category: ["Snacks", "Crisps & Nuts"],
        code: "NUT",
        brands: &["Crackle", "Nutcase", "Spice Route", "Kettle & Crock"],
        kinds: &["Salted", "Roasted", "Chilli", "Sour Cream", "Unsalted"],
        things: &["Crisps", "Almonds", "Cashews", "Peanuts", "Popcorn", "Tortilla Chips", "Mixed Nuts"],
        packs: &["40 g", "150 g", "300 g"],
        cents: (89, 799),
    },
    Shelf {
        category: ["Beverages", "Tea & Coffee"],
        code: "TEA",
        brands: &["Harbour Roast", "Nilgiri Gold", "Morning Cup", "Brewster & Sons"],
        kinds: &["Dark Roast", "Decaf", "Earl Grey", "Green", "Single-Origin", "Breakfast"],
        things: &["Coffee Beans", "Ground Coffee", "Tea Bags", "Instant Coffee", "Loose Tea"],
        packs: &["100 g", "250 g", "500 g", "1 kg"],
        cents: (199, 1_799),
    },
    Shelf {
        category: ["Beverages", "Juice & Water"],
        code: "JUI",
        brands: &["Clearspring", "Sunny Isle", "Fizzwell", "Orchard Lane"],
        kinds: &["Still", "Sparkling", "Cloudy", "No Added Sugar", "Pressed"],
        things: &["Apple Juice", "Orange Juice", "Mineral Water", "Lemonade", "Tonic", "Grape Juice"],
        packs: &["330 ml", "1 l", "6 x 1.5 l"],
        cents: (59, 549),
    },
    Shelf {
        category: ["Household", "Cleaning"],
        code: "CLE",
        brands: &["Brightside", "EcoSuds", "Spotless", "Nordlicht"],
        kinds: &["Lemon", "Sensitive", "Fresh Linen", "Concentrated", "Fragrance-Free"],
        things: &[
            "Washing-Up Liquid",
            "Laundry Liquid",
            "Bathroom Cleaner",
            "Dishwasher Tablets",
            "Glass Cleaner",
            "Hand Soap",
        ],
        packs: &["500 ml", "1 l", "30 pieces"],
        cents: (149, 1_499),
    },
];

pub struct Product {
    pub sku: String,
    pub name: String,
    pub brand: &'static str,
    pub category: [&'static str; 2],
    pub description: String,
    pub pack: &'static str,
    tags: Vec<String>,
    /// In euro cents.
    pub cents: i64,
    /// Indexes into [`REGIONS`].
    regions: Vec<usize>,
    /// Where it lies, and how many at first.
    pub stocked: Vec<Stocked>,
}

#[derive(Clone, Copy)]
pub struct Stocked {
    pub region: usize,
    pub warehouse: &'static str,
    pub units: i64,
}

pub struct Catalogue {
    seed: u64,
    /// The most popular first.
    pub products: Vec<Product>,
}

// === impl Catalogue ===

impl Catalogue {
    pub fn draw(seed: u64, count: usize, random: &mut ChaCha8Rng) -> Self {
        let mut names = HashSet::new();
        let products = (0..count).map(|number| Product::draw(number, &mut names, random)).collect();
        Self { seed, products }
    }

    /// Registers, prices and stocks a product.
    pub fn commands_of(&self, product: &Product) -> Vec<String> {
        let sku = sku(&product.sku);
        let register = Command::RegisterProduct(RegisterProduct {
            sku: sku.clone(),
            name: product.name.clone(),
            brand: Some(product.brand.to_owned()),
            category_path: product.category.map(str::to_owned).to_vec(),
            description: Some(product.description.clone()),
            pack_size: Some(product.pack.to_owned()),
            tags: product.tags.clone(),
        });
        let prices = product.regions.iter().map(|&region| {
            let region = &REGIONS[region];
            let amount_minor = (product.cents * region.cents_per_euro / 100).max(1);
            Command::SetPrice(SetPrice {
                sku: sku.clone(),
                region: region_id(region.id),
                currency: region.currency.to_owned(),
                amount_minor,
            })
        });
        let stock = product.stocked.iter().map(|stocked| {
            Command::ReceiveStock(ReceiveStock {
                sku: sku.clone(),
                warehouse: warehouse_id(stocked.warehouse),
                region: Some(region_id(REGIONS[stocked.region].id)),
                quantity: stocked.units,
            })
        });
        std::iter::once(register)
            .chain(prices)
            .chain(stock)
            .enumerate()
            .map(|(part, command)| json(command_id(&format!("product {} {} {part}", self.seed, product.sku)), command))
            .collect()
    }

    pub fn sample(&self) -> Sample {
        let product = &self.products[0];
        let word = product.name.split(' ').next_back().unwrap_or(&product.name).to_lowercase();
        Sample {
            sku: product.sku.clone(),
            region: REGIONS[0].id.to_owned(),
            word,
            warehouse: REGIONS[0].warehouses[0].to_owned(),
        }
    }
}

// === impl Product ===

impl Product {
    fn draw(number: usize, names: &mut HashSet<String>, random: &mut ChaCha8Rng) -> Self {
        let shelf = &SHELVES[random.random_range(0..SHELVES.len())];
        let mut drawn = (
            pick(shelf.brands, random),
            pick(shelf.kinds, random),
            pick(shelf.things, random),
            pick(shelf.packs, random),
        );
        for _ in 0..DRAWS {
            let (brand, kind, thing, pack) = drawn;
            if names.insert(format!("{brand} {kind} {thing} {pack}")) {
                break;
            }
            drawn = (
                pick(shelf.brands, random),
                pick(shelf.kinds, random),
                pick(shelf.things, random),
                pick(shelf.packs, random),
            );
        }
        let (brand, kind, thing, pack) = drawn;
        let (least, most) = shelf.cents;
        // Prices end in 9, as they do.
        let cents = random.random_range(least..=most) / 10 * 10 + 9;
        let is_everywhere = number == 0;
        let mut regions = Vec::new();
        let mut stocked = Vec::new();
        for (index, region) in REGIONS.iter().enumerate() {
            if !is_everywhere && !random.random_bool(0.8) {
                continue;
            }
            regions.push(index);
            for warehouse in region.warehouses {
                if is_everywhere || random.random_bool(0.6) {
                    stocked.push(Stocked { region: index, warehouse, units: random.random_range(20..500) });
                }
            }
        }
        if regions.is_empty() {
            regions.push(0);
        }
        if stocked.is_empty() {
            let region = regions[0];
            stocked.push(Stocked {
                region,
                warehouse: REGIONS[region].warehouses[0],
                units: random.random_range(20..500),
            });
        }
        let mut tags: Vec<String> = Vec::new();
        for (word, tag) in [
            ("Organic", "organic"),
            ("Gluten-Free", "gluten-free"),
            ("Lactose-Free", "lactose-free"),
            ("Local", "local"),
        ] {
            if kind == word {
                tags.push(tag.to_owned());
            }
        }
        if random.random_bool(0.1) {
            tags.push("new".to_owned());
        }
        Self {
            sku: format!("{}-{:06}", shelf.code, number + 1),
            name: format!("{brand} {kind} {thing}"),
            brand,
            category: shelf.category,
            description: format!("{kind} {} by {brand}, {pack}. {}.", thing.to_lowercase(), shelf.category[1]),
            pack,
            tags,
            cents,
            regions,
            stocked,
        }
    }
}

/// An id that comes from what it stands for.
pub fn command_id(name: &str) -> Uuid {
    Uuid::new_v5(&COMMAND_IDS, name.as_bytes())
}

/// A command as one line of JSON.
pub fn json(id: Uuid, command: Command) -> String {
    // A command of texts and numbers is always JSON.
    let command = serde_json::to_string(&command).unwrap_or_default();
    format!(r#"{{"id":"{id}","actor":"generate",{}"#, command.strip_prefix('{').unwrap_or("}"))
}

fn pick(from: &'static [&'static str], random: &mut ChaCha8Rng) -> &'static str {
    from.choose(random).copied().unwrap_or_default()
}

#[expect(clippy::expect_used, reason = "made of letters, digits and - above")]
pub fn sku(text: &str) -> Sku {
    Sku::new(text).expect("a generated SKU follows the grammar of ids")
}

#[expect(clippy::expect_used, reason = "a constant above")]
pub fn region_id(text: &str) -> RegionId {
    RegionId::new(text).expect("a listed region follows the grammar of ids")
}

#[expect(clippy::expect_used, reason = "a constant above")]
pub fn warehouse_id(text: &str) -> WarehouseId {
    WarehouseId::new(text).expect("a listed warehouse follows the grammar of ids")
}
