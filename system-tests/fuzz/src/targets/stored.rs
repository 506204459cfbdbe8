//! What stores give back: fields of Redis, rows of SQLite, the payload of an index commit. A store is trusted more than a
//! caller, but a damaged one may not take the process with it.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use read_models::stock::{SqliteStock, StockReader, redis_codec as codec};
use read_models::{ParkedEvent, ReadChoice};
use schemas::{Sku, StorePosition};
use tokio::runtime::Runtime;

use super::reads::filled;
use crate::mutation::{number, text};
use crate::target::{Target, reads_back, refusal};

pub struct RedisFields;

impl Target for RedisFields {
    fn name(&self) -> &'static str {
        "stock-redis"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let parked = ParkedEvent {
            key: "TEA".to_owned(),
            sequence: 3,
            offset: 7,
            position: StorePosition { xid: 1, position: 3 },
            headers: vec![("ce_id".to_owned(), "a\nb\"".to_owned())],
            value: vec![0, b'\n', b'{', 255],
            reason: "line\nfeed".to_owned(),
            parked_at: -1,
        };
        vec![
            codec::parked(&parked).unwrap_or_default(),
            b"north:7:2:3".to_vec(),
            b"1:12".to_vec(),
            b"1\n2\n3\n4\n5".to_vec(),
        ]
    }

    fn words(&self) -> &'static [&'static str] {
        &[":", "\n", "\"key\":", "\"headers\":[[", "\"position\":", "north"]
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        if let Some(parked) = codec::parked_of(input) {
            let bytes = codec::parked(&parked).map_err(|error| error.to_string())?;
            reads_back(&parked, codec::parked_of(&bytes).ok_or("nothing"))?;
        }
        let text = String::from_utf8_lossy(input);
        if let Some(row) = codec::row_of(&text) {
            reads_back(&row, codec::row_of(&codec::row(&row)).ok_or("nothing"))?;
        }
        if let Some(generation) = codec::generation(1, &text) {
            reads_back(&generation, codec::generation(1, &codec::built(&generation)).ok_or("nothing"))?;
        }
        let fields: Vec<Option<String>> = text.split('\n').map(|field| Some(field.to_owned())).collect();
        if let Some(checkpoint) = codec::checkpoint(&fields) {
            let written = codec::checkpoint_fields(&checkpoint).map(Some);
            reads_back(&checkpoint, codec::checkpoint(&written).ok_or("nothing"))?;
        }
        Ok(())
    }
}

/// A row of the stock file with other values than Millrace writes: `column=value` lines.
pub struct StockFile {
    runtime: Runtime,
    stock: SqliteStock,
    file: rusqlite::Connection,
    _folder: tempfile::TempDir,
}

const COLUMNS: [&str; 4] = ["region", "on_hand", "reserved", "version"];

impl StockFile {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        let folder = tempfile::tempdir().expect("a folder is made");
        let _ = runtime.block_on(filled(folder.path())).expect("the read models are filled");
        let path = folder.path().join("stock.db");
        let stock = SqliteStock::open(&path).expect("the stock opens");
        let file = rusqlite::Connection::open(&path).expect("the file opens");
        // The bytes are what counts here, not that they last.
        file.execute_batch("PRAGMA synchronous = OFF").expect("a setting is taken");
        Self { runtime, stock, file, _folder: folder }
    }
}

impl Target for StockFile {
    fn name(&self) -> &'static str {
        "stock-file"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        vec![b"region=north\non_hand=7\nreserved=2\nversion=3".to_vec(), b"version=-1".to_vec()]
    }

    fn words(&self) -> &'static [&'static str] {
        &["region=", "on_hand=", "reserved=", "version=", "\n"]
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        let value = if random.random() { number(random).to_string() } else { text(random) };
        Some(format!("{}={value}", COLUMNS[random.random_range(0..COLUMNS.len())]).into_bytes())
    }

    fn largest(&self) -> usize {
        16 * 1024
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let written = String::from_utf8_lossy(input);
        for (column, value) in written.lines().filter_map(|line| line.split_once('=')) {
            if !COLUMNS.contains(&column) {
                continue;
            }
            let update = format!("UPDATE stock SET {column} = ?1 WHERE sku = 'S-1'");
            // A value that the table itself refuses never comes to be read.
            let _ = match value.parse::<i64>() {
                Ok(number) => self.file.execute(&update, [number]),
                Err(_) => self.file.execute(&update, [value]),
            };
        }
        let Ok(sku) = Sku::new("S-1") else { return Ok(()) };
        match self.runtime.block_on(self.stock.stock(&[sku], &ReadChoice::default())) {
            Ok(_) => Ok(()),
            Err(error) => refusal(error, &[]),
        }
    }
}

/// The meta file of a search index, whose payload says what it holds.
pub struct SearchCommit;

impl Target for SearchCommit {
    fn name(&self) -> &'static str {
        "search-commit"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let payload = r#"{"layout":1,"index":"i","store":"s","generation":1,"row_version":9,"live":true,"position":"inventory-7-812.4021"}"#;
        let meta = serde_json::json!({ "segments": [], "opstamp": 3, "payload": payload });
        vec![meta.to_string().into_bytes(), payload.as_bytes().to_vec()]
    }

    fn words(&self) -> &'static [&'static str] {
        &["\"payload\":", "\\\"layout\\\":1", "\\\"position\\\":\\\"-\\\"", "\\\"row_version\\\":"]
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        // Whether it is read or not: an index that cannot be read is made again.
        let _ = read_models::search::reads_commit(input);
        Ok(())
    }
}
