//! Products as a customer's CSV file: clean, or as such files come.

use std::io::{self, Write};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::catalogue::{Catalogue, Product};

const HEADER: [&str; 7] = ["sku", "name", "brand", "category", "description", "price", "stock"];
/// One row of so many has something wrong with it.
const DIRTY_ONE_OF: u32 = 12;

/// Every row is good.
pub fn write_clean(catalogue: &Catalogue, out: &mut dyn Write) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(HEADER)?;
    for product in &catalogue.products {
        writer.write_record(cells(product))?;
    }
    writer.flush()
}

/// Begins with a byte-order mark, ends lines as Windows does, and has a bad or odd row now and then.
pub fn write_dirty(catalogue: &Catalogue, seed: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xd117);
    out.write_all(b"\xef\xbb\xbf")?;
    line(out, &HEADER.map(str::to_owned))?;
    for product in &catalogue.products {
        let good = cells(product);
        if random.random_range(0..DIRTY_ONE_OF) != 0 {
            line(out, &good)?;
            continue;
        }
        let mut row = good.clone();
        match random.random_range(0..16) {
            0 => row[5] = String::new(),
            1 => row[6] = String::new(),
            2 => row[5] = ["n/a", "12.3.4,5", "free", "-2.49", "1.234"][random.random_range(0..5)].to_owned(),
            3 => row[6] = ["many", "-3", "2.5"][random.random_range(0..3)].to_owned(),
            4 => row[1] = " \u{a0} ".to_owned(),
            5 => row[0] = String::new(),
            6 => row[0] = format!("{} / b", row[0]),
            7 => row[1] = format!("  {}\u{a0}", row[1]),
            8 => row[5] = format!("€ {}", row[5].replace('.', ",")),
            9 => row[6] = format!("{}.0", row[6]),
            10 => row[4] = format!("{}\nKeep cool, \"always\"", row[4]),
            11 => line(out, &good)?,
            12 => {
                let mut other = good.clone();
                other[5] = "9.99".to_owned();
                line(out, &other)?;
            }
            13 => {
                write!(
                    out,
                    "{}\r\n",
                    row[..5].join(" ").replace(['"', ','], " ").split(' ').take(3).collect::<Vec<_>>().join(",")
                )?;
                continue;
            }
            14 => {
                write!(out, "{},\"{},{},,,1.00,1\r\n", row[0], row[1], row[2])?;
                continue;
            }
            _ => {
                write!(out, "{},Cr", row[0])?;
                out.write_all(b"\xe8me")?;
                write!(out, ",{},,,1.00,1\r\n", row[2])?;
                continue;
            }
        }
        line(out, &row)?;
    }
    Ok(())
}

fn line(out: &mut dyn Write, row: &[String; 7]) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(row)?;
    let bytes = writer.into_inner().map_err(|error| io::Error::other(error.to_string()))?;
    out.write_all(&bytes)
}

fn cells(product: &Product) -> [String; 7] {
    let units: i64 = product.stocked.iter().map(|stocked| stocked.units).sum();
    [
        product.sku.clone(),
        format!("{} {}", product.name, product.pack),
        product.brand.to_owned(),
        product.category[1].to_owned(),
        product.description.clone(),
        format!("{}.{:02}", product.cents / 100, product.cents % 100),
        units.to_string(),
    ]
}
