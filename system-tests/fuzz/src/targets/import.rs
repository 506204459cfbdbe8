//! Files of a customer: CSV and NDJSON, and the numbers in them.

use std::path::{Path, PathBuf};

use millrace::cli::{Cli, Command};
use millrace::import::args::ProductsArgs;
use millrace::import::decimal::{self, NumberText};
use millrace::import::field_map::FieldMap;
use millrace::import::product_row::{ProductRow, RowSettings};
use millrace::import::rows::SourceFile;
use millrace::import::{ImportWhat, args};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::mutation::{one_of, text};
use crate::target::{Target, refusal};

/// A little more than the longest line.
const LARGEST: usize = (1 << 20) + 4_096;

/// A file, as `import products` reads it.
pub struct ImportFile {
    name: &'static str,
    path: PathBuf,
    args: ProductsArgs,
    _folder: tempfile::TempDir,
}

impl ImportFile {
    pub fn csv() -> Self {
        Self::new("import-csv", "p.csv")
    }

    pub fn ndjson() -> Self {
        Self::new("import-ndjson", "p.ndjson")
    }

    fn new(name: &'static str, file: &str) -> Self {
        let folder = in_memory();
        let path = folder.path().join(file);
        let line =
            ["millrace", "import", "products"].map(Into::into).into_iter().chain([path.clone().into_os_string()]);
        let Ok(Cli { command: Command::Import(args::ImportArgs { what: ImportWhat::Products(args) }), .. }) =
            millrace::settings::parse_with(&line.collect::<Vec<_>>(), None)
        else {
            unreachable!("the line is that of an import")
        };
        Self { name, path, args: *args, _folder: folder }
    }
}

/// A folder without a disk behind it, where there is one: a file is written for every input.
pub fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a folder is made")
}

const CELLS: &[&str] = &[
    "A-1",
    "Milk",
    "3.99",
    "\"a \"\"b\"\" c\"",
    "\"two\nlines\"",
    "\"open",
    "12",
    "",
    "1,234.50",
    "12\" pizza",
    " ",
    "€ 3,99",
    "\u{0}",
];

impl Target for ImportFile {
    fn name(&self) -> &'static str {
        self.name
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let csv =
            b"sku,name,brand,category,price,stock\nA,Milk,\"B, Inc\",Dairy,1.50,7\nB,\"two\nlines\",,,\"3,99\",\n";
        let ndjson = b"{\"sku\":\"A\",\"name\":\"Milk\",\"price\":1.50,\"stock\":7,\"category\":[\"Dairy\",\"Milk\"]}\n\n{\"sku\":\"B\",\"name\":\"Tea\",\"price\":\"3,99\"}";
        let text = if self.name == "import-csv" { csv.as_slice() } else { ndjson.as_slice() };
        let marked = [b"\xef\xbb\xbf".as_slice(), text].concat();
        let wide = String::from_utf8_lossy(text).encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        vec![text.to_vec(), marked, [b"\xff\xfe".to_vec(), wide].concat()]
    }

    fn words(&self) -> &'static [&'static str] {
        &[
            "\"",
            "\"\"",
            ",\"",
            "\",",
            "\r",
            "\nA,Milk,,,,\n",
            "sku,",
            "\"sku\":",
            "\"name\":",
            "\"price\":",
            "[[",
            "€",
            "1.234",
            "\u{0}",
        ]
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        if self.name == "import-ndjson" {
            let row = serde_json::json!({ "sku": "A", "name": text(random), "price": text(random), "category": [text(random), null] });
            return Some(row.to_string().into_bytes());
        }
        let mut file = "sku,name,price,stock\n".to_owned();
        // Millions of columns, now and then.
        let wide = random.random_range(0..2_000_u32) == 0;
        for _ in 0..random.random_range(1..8_u32) {
            let cells = if wide { random.random_range(1..250_000) } else { random.random_range(2..6) };
            let cells: Vec<&str> = (0..cells).map(|_| one_of(random, CELLS)).collect();
            file.push_str(&cells.join(","));
            file.push('\n');
        }
        Some(file.into_bytes())
    }

    fn largest(&self) -> usize {
        LARGEST
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        std::fs::write(&self.path, input).map_err(|error| error.to_string())?;
        let source = SourceFile::of(&self.args);
        let columns = match source.columns() {
            Ok(columns) => columns,
            Err(error) => return refusal(format!("{error:#}"), &["p.csv", "p.ndjson"]),
        };
        let map = match FieldMap::find(&self.args.map, &self.args.sku_from, &columns) {
            Ok(map) => map,
            Err(error) if error.to_string().len() > 64 * 1024 => return Err("the refusal repeats the file".to_owned()),
            Err(error) => return refusal(error, &["--map"]),
        };
        let settings = RowSettings {
            map,
            currency: self.args.currency.clone(),
            price_decimals: 2,
            region: self.args.region.clone(),
            warehouse: self.args.warehouse.clone(),
            delivery: "d".to_owned(),
        };
        let mut rows = source.rows().map_err(|error| format!("the columns were read, the rows are not: {error:#}"))?;
        let lines = input.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u64 + 1;
        let mut last = 0;
        while let Some(record) = rows.next_record().map_err(|error| error.to_string())? {
            if record.line <= last || record.line > lines {
                return Err(format!("line {} follows {last} of {lines}", record.line));
            }
            last = record.line;
            match record.cells {
                Err(problem) => refusal(problem, &[])?,
                Ok(cells) => match ProductRow::read(&cells, &settings) {
                    Err(problem) if problem.len() > 16_000 => return Err("a refusal repeats the row".to_owned()),
                    Err(problem) => refusal(problem, &[])?,
                    Ok(row) => drop(row.commands("d")),
                },
            }
        }
        Ok(())
    }
}

pub struct Number;

impl Target for Number {
    fn name(&self) -> &'static str {
        "import-number"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        ["3.99", "1,234.50", "1.234,50", "€ 3,99", "Rs. 45", "EUR 3.99", "1 234,50", "-5", "007"]
            .map(|text| text.as_bytes().to_vec())
            .to_vec()
    }

    fn words(&self) -> &'static [&'static str] {
        &["€", "$", "Rs.", "EUR", "GBP", "'", "’", "\u{a0}", "\u{202f}", "−", "000"]
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let given = String::from_utf8_lossy(input);
        for is_json in [true, false] {
            let number = NumberText { text: &given, is_json };
            for read in [decimal::price(number, "EUR", 2), decimal::price(number, "KWD", 3), decimal::whole(number)] {
                match read {
                    Ok(value) if !(0..=schemas::command::MAX_NUMBER).contains(&value) => {
                        return Err(format!("{value} is out of range"));
                    }
                    Ok(_) => {}
                    Err(error) if error.to_string().len() > 4_000 => {
                        return Err("the refusal repeats a long text".to_owned());
                    }
                    Err(error) => refusal(error, &[])?,
                }
            }
        }
        Ok(())
    }
}
