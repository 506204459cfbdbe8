//! Settings: the file, the flags, the addresses of stores.

use std::ffi::OsString;
use std::path::PathBuf;

use event_log::KafkaSettings;
use millrace::address::StoreUrl;
use millrace::settings::{Refused, parse_with};
use read_models::stock::RedisStock;

use super::import::in_memory;
use crate::target::{Target, refusal};

const WORDS: &[&str] = &[
    "event-store",
    "event_log",
    "stock-store",
    "schema-registry",
    "listen",
    "partitions",
    "position-wait",
    "data",
    "log",
    "sqlite:",
    "postgres://u:p@h:1/d",
    "kafka://h:1,h:2",
    "redis+cluster://h:1,h:2",
    "http://h:1/x",
    "7s",
    "= ",
    "\"",
    "'''",
    "\"\"\"",
    "[",
    "[[",
    "1979-05-27",
    "0x",
    "1_0",
    "+inf",
    "--",
    "=",
    "up",
    "serve",
    "write",
    "project",
    "import",
    "products",
    "--limit",
];

/// `millrace.toml`.
pub struct SettingsFile {
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl SettingsFile {
    pub fn new() -> Self {
        let folder = in_memory();
        Self { file: folder.path().join("millrace.toml"), _folder: folder }
    }
}

fn line(words: &[&str]) -> Vec<OsString> {
    std::iter::once("millrace").chain(words.iter().copied()).map(OsString::from).collect()
}

impl Target for SettingsFile {
    fn name(&self) -> &'static str {
        "settings-file"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        [
            "listen = \"127.0.0.1:9\"\npartitions = 6\nposition-wait = \"7s\"\n",
            "event-store = \"postgres://u:p@h:1/d\"\nevent-log = \"kafka://h:1,h:2\"\nstock-store = 'redis://h:1'\nno-command-topics = true\n",
            "# text\ndata = '''x'''\nlog = \"warn,projectors=debug\"\nprojector-batch = 1_000\n",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    fn words(&self) -> &'static [&'static str] {
        WORDS
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        std::fs::write(&self.file, input).map_err(|error| error.to_string())?;
        match parse_with(&line(&["up"]), Some(&self.file)) {
            Ok(_) => Ok(()),
            Err(error @ Refused::File { .. }) => refusal(error, &["millrace.toml"]),
            Err(error) => refusal(error, &[]),
        }
    }
}

/// A command line, a word a line.
pub struct Flags;

impl Target for Flags {
    fn name(&self) -> &'static str {
        "settings-flags"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        [
            "up\n--listen\n127.0.0.1:9\n--partitions=4\n--event-log\nkafka://h:1?sasl.username=u",
            "serve\n--position-wait=7s\n--stock-store\nredis://h:1/2?prefix=x",
            "import\nproducts\np.csv\n--map\nname=a,sku=b\n--delimiter\n;\n--encoding\nlatin1\n--to\nhttp://h:1\n--currency\nEUR",
            "project\nstock\n--projector-batch=7",
            "tail\n--limit\n0",
            "generate\n--help",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    fn words(&self) -> &'static [&'static str] {
        WORDS
    }

    fn largest(&self) -> usize {
        32 * 1024
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(input);
        let words: Vec<&str> = text.split('\n').collect();
        match parse_with(&line(&words), None) {
            Ok(_) => Ok(()),
            Err(error) => refusal(error, &[]),
        }
    }
}

/// The address of a store, with the password `hunter2` wherever an address can have one.
pub struct Address;

impl Target for Address {
    fn name(&self) -> &'static str {
        "store-url"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        [
            "postgres://u:hunter2@db:5432/events?sslmode=require",
            "kafka://a:9092,[::1]:9093?sasl.username=u&sasl.password=hunter2&security.protocol=sasl_plaintext",
            "redis://u:hunter2@h:6379/2?prefix=shop",
            "rediss+cluster://:hunter2@a:1,b:2,c:3",
            "sqlite:a.db",
            "http://u:hunter2@registry:8080/apis/ccompat/v7",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    fn words(&self) -> &'static [&'static str] {
        &[
            "://",
            "@",
            ":",
            ",",
            "?",
            "&",
            "=",
            "[",
            "]",
            "%40",
            "hunter2",
            "sasl.password=",
            "prefix=",
            "/",
            "#",
            "redis+cluster://",
            "kafka://",
        ]
    }

    fn largest(&self) -> usize {
        16 * 1024
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(input).into_owned();
        if let Ok(url) = text.parse::<StoreUrl>() {
            let _ = (url.to_string(), url.shown_kind(), format!("{url:?}"));
        }
        if let Err(error) = KafkaSettings::parse(&text) {
            refusal(error, &["event-log"])?;
        }
        match RedisStock::check_address(&text) {
            Ok(()) => Ok(()),
            Err(error) => refusal(error, &["stock-store"]),
        }
    }
}
