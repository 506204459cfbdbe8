//! The edges, by what comes in there.

mod commands;
mod events;
mod import;
mod reads;
mod settings;
mod stored;
mod texts;

use crate::target::Target;

/// Makes a target with what it needs around it.
pub type Make = fn() -> Box<dyn Target>;

/// Every target by name, in the order of an event's path.
pub fn all() -> Vec<(&'static str, Make)> {
    vec![
        ("command-json", || Box::new(commands::CommandJson)),
        ("command-api", || Box::new(commands::CommandApi::new())),
        ("command-record", || Box::new(commands::CommandRecord::new())),
        ("event-record", || Box::new(events::EventRecord::new())),
        ("event-schema", || Box::new(events::EventSchema)),
        ("event-headers", || Box::new(events::EventHeaders)),
        ("outcome", || Box::new(events::OutcomeBody)),
        ("position-token", || Box::new(texts::Token)),
        ("id", || Box::new(texts::Id)),
        ("query-api", || Box::new(reads::Queries::new())),
        ("stock-redis", || Box::new(stored::RedisFields)),
        ("stock-file", || Box::new(stored::StockFile::new())),
        ("search-commit", || Box::new(stored::SearchCommit)),
        ("import-csv", || Box::new(import::ImportFile::csv())),
        ("import-ndjson", || Box::new(import::ImportFile::ndjson())),
        ("import-number", || Box::new(import::Number)),
        ("settings-file", || Box::new(settings::SettingsFile::new())),
        ("settings-flags", || Box::new(settings::Flags)),
        ("store-url", || Box::new(settings::Address)),
    ]
}
