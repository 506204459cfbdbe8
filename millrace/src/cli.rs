//! The command line: every subcommand and flag, with the help that teaches them.
//!
//! Each long flag is also a setting: `MILLRACE_<FLAG>` in the environment, `<flag> = …` in `millrace.toml`. A flag that
//! means something else in one command has a variable of its own there, and the setting is called like the variable.

mod addresses;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use outbox_relay::RelaySettings;
use projectors::{ProjectorSettings, Throttle, ThrottleSettings};
use query_api::QuerySettings;
use url::Url;

use crate::address::{AddressOf, StoreUrl, http_url};
use crate::audit::{AuditArgs, RoundArgs};
use crate::dead_letters::DeadLettersArgs;
use crate::generate::GenerateArgs;
use crate::import::{ImportArgs, ImportWhat};
use crate::replay::ReplayArgs;

pub use addresses::{DataArgs, EventLogArgs, EventStoreArgs, OwnershipArgs, RegistryArgs, SearchArgs, StockArgs};

/// Event-sourced stock, prices and products: commands in, events out, read models beside.
///
/// `millrace demo` shows it on generated groceries. `millrace up` runs everything in one process on one data
/// directory. The roles `write`, `relay`, `project` and `serve` run alone against Postgres, Kafka, Redis and a
/// schema registry.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// Settings file; flags and MILLRACE_* variables go before it
    #[arg(long, global = true, value_name = "FILE", env = "MILLRACE_CONFIG")]
    pub config: Option<PathBuf>,
    /// What is logged on standard error: error, warn, info, debug, or a filter such as warn,projectors=debug
    #[arg(long, global = true, value_name = "FILTER", env = "MILLRACE_LOG", default_value = "warn")]
    pub log: String,
    /// Log lines for people or one JSON object a line
    #[arg(long, global = true, value_enum, value_name = "FORMAT", env = "MILLRACE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormatArg,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run every role in one process
    Up(UpArgs),
    /// Show the whole pipeline on generated groceries
    Demo(DemoArgs),
    /// Take commands over HTTP and from command topics
    Write(WriteArgs),
    /// Publish committed events to their topics
    Relay(RelayArgs),
    /// Fold topics into a read model
    Project(ProjectArgs),
    /// Answer queries
    Serve(ServeArgs),
    /// Bring in what a customer has
    Import(ImportArgs),
    /// Write generated groceries
    Generate(GenerateArgs),
    /// Show position, lag and freshness of each projection
    Status(StatusArgs),
    /// Show, redrive or discard events that could not be folded
    DeadLetters(DeadLettersArgs),
    /// Build a read model anew beside the live one, compare, switch, switch back
    Replay(ReplayArgs),
    /// Compare event table, topics and read models, and name what differs
    Audit(AuditArgs),
    /// Print events as they come
    Tail(TailArgs),
    /// Check, register and export the contracts
    Contracts(ContractsArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    Text,
    Json,
}

impl From<LogFormatArg> for telemetry::LogFormat {
    fn from(format: LogFormatArg) -> Self {
        match format {
            LogFormatArg::Text => Self::Text,
            LogFormatArg::Json => Self::Json,
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct IntakeArgs {
    /// Most commands in one transaction
    #[arg(long, value_name = "N", env = "MILLRACE_GROUP_COMMANDS", default_value_t = 1000, value_parser = positive)]
    pub group_commands: usize,
    /// Submissions that may wait before HTTP answers 429
    #[arg(long, value_name = "N", env = "MILLRACE_COMMAND_QUEUE", default_value_t = 4096, value_parser = positive)]
    pub command_queue: usize,
    /// Events that may wait for the relay before commands wait too; at most 100000
    #[arg(long, value_name = "N", env = "MILLRACE_MAX_RELAY_LAG_EVENTS", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub max_relay_lag_events: u64,
    /// Events of a stream between two snapshots
    #[arg(long, value_name = "N", env = "MILLRACE_SNAPSHOT_EVERY", default_value_t = 100, value_parser = positive)]
    pub snapshot_every: usize,
    /// How long outcomes are kept for repeats, as in 7days or 12h
    #[arg(long, value_name = "TIME", env = "MILLRACE_OUTCOME_RETENTION", default_value = "7days", value_parser = humantime::parse_duration)]
    pub outcome_retention: Duration,
}

#[derive(Debug, Clone, Args)]
pub struct CommandTopicsArgs {
    /// Take commands over HTTP only, not from command topics
    #[arg(long, env = "MILLRACE_NO_COMMAND_TOPICS")]
    pub no_command_topics: bool,
}

#[derive(Debug, Clone, Args)]
pub struct RelayBatchArgs {
    /// Most events in one batch of the relay
    #[arg(long, value_name = "N", env = "MILLRACE_RELAY_BATCH", default_value_t = 2000, value_parser = positive)]
    pub relay_batch: usize,
}

#[derive(Debug, Clone, Args)]
pub struct ProjectorArgs {
    /// Most events in one write to the generation that serves; one that is built beside takes up to 5000
    #[arg(long, value_name = "N", env = "MILLRACE_PROJECTOR_BATCH", default_value_t = 500, value_parser = positive)]
    pub projector_batch: usize,
    /// Parked keys of one partition at which the projection halts
    #[arg(long, value_name = "N", env = "MILLRACE_PARKED_KEYS_LIMIT", default_value_t = 1000, value_parser = positive)]
    pub parked_keys_limit: usize,
    /// Records behind the log's end from which on a projector is not ready
    #[arg(long, value_name = "N", env = "MILLRACE_NOT_READY_BEHIND", default_value_t = 100_000)]
    pub not_ready_behind: u64,
    /// Events that may wait for what serves before the building of a shadow generation yields
    #[arg(long, value_name = "N", env = "MILLRACE_REPLAY_LIVE_LAG_EVENTS", default_value_t = 2_000)]
    pub replay_live_lag_events: u64,
    /// Milliseconds that the 99th of a hundred reads may take before the building of a shadow generation yields
    #[arg(long, value_name = "MS", env = "MILLRACE_REPLAY_READ_P99_MS", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub replay_read_p99_ms: u32,
    /// Events per second that this process builds shadow generations with at most, while commands or reads come
    /// [default: 5000 for each processor]
    #[arg(long, value_name = "N", env = "MILLRACE_REPLAY_RATE_BESIDE_LIVE", value_parser = clap::value_parser!(u32).range(1000..))]
    pub replay_rate_beside_live: Option<u32>,
}

#[derive(Debug, Clone, Args)]
pub struct QueryArgs {
    /// How long a read waits for Millrace-Min-Position, as in 500ms or 2s
    #[arg(long, value_name = "TIME", env = "MILLRACE_POSITION_WAIT", default_value = "2s", value_parser = humantime::parse_duration)]
    pub position_wait: Duration,
}

#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub ownership: OwnershipArgs,
    #[command(flatten)]
    pub event_store: EventStoreArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
    #[command(flatten)]
    pub stock: StockArgs,
    #[command(flatten)]
    pub search: SearchArgs,
    #[command(flatten)]
    pub intake: IntakeArgs,
    #[command(flatten)]
    pub command_topics: CommandTopicsArgs,
    #[command(flatten)]
    pub relay: RelayBatchArgs,
    #[command(flatten)]
    pub projector: ProjectorArgs,
    #[command(flatten)]
    pub query: QueryArgs,
    #[command(flatten)]
    pub audit: RoundArgs,
    /// Address of the command and query API; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", env = "MILLRACE_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: String,
}

#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Directory of the demo's data, never that of other commands; a second start goes on with it
    ///
    /// The setting is called demo-data, so that a shared data setting does not fill a real store with groceries.
    #[arg(long = "data", value_name = "DIR", env = "MILLRACE_DEMO_DATA", default_value = "millrace-demo")]
    pub demo_data: PathBuf,
    /// Address to listen on; a free port is taken when this one is in use
    #[arg(long, value_name = "HOST:PORT", env = "MILLRACE_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: String,
    /// Products to generate at the first start
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = positive)]
    pub products: usize,
    /// Stock movements a second; 0 for none
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub rate: u32,
    /// Seed of the generator
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Clone, Args)]
pub struct WriteArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub ownership: OwnershipArgs,
    #[command(flatten)]
    pub event_store: EventStoreArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
    #[command(flatten)]
    pub intake: IntakeArgs,
    #[command(flatten)]
    pub command_topics: CommandTopicsArgs,
    /// Address of the command API; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", env = "MILLRACE_LISTEN", default_value = "127.0.0.1:8081")]
    pub listen: String,
}

#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RelayArgs {
    #[command(subcommand)]
    pub action: Option<RelayAction>,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub ownership: OwnershipArgs,
    #[command(flatten)]
    pub event_store: EventStoreArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
    #[command(flatten)]
    pub relay: RelayBatchArgs,
    /// Address of health and metrics; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", env = "MILLRACE_LISTEN", default_value = "127.0.0.1:8082")]
    pub listen: String,
}

#[derive(Debug, Clone, Subcommand)]
pub enum RelayAction {
    /// Bring event table, topics and the relay's cursor level after one of them lost a part of its past
    ///
    /// Compares every event of the table with what the topics hold, and sets the cursor back where published events are
    /// gone, so that the relay publishes them again with the same ids and sequences. Needs the lead: the relay must be
    /// stopped or halted. Ends with exit code 3 when something was found and not repaired.
    Reconcile(ReconcileArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ReconcileArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub event_store: EventStoreArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
    /// Only say what is found
    #[arg(long)]
    pub dry_run: bool,
    /// Put events back into the event table that only the topics have, if no command was taken since it was restored
    #[arg(long)]
    pub restore_from_log: bool,
    /// Publish again from this sequence of each partition on, also what retention removed
    #[arg(long, value_name = "N", conflicts_with = "from_start")]
    pub from_sequence: Option<u64>,
    /// Publish again all that retention removed
    #[arg(long)]
    pub from_start: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ProjectArgs {
    /// Which read model to feed
    #[arg(value_enum)]
    pub projection: ProjectionName,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub ownership: OwnershipArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
    /// Event store that generations of `replay start --from event-table` are built from: sqlite:PATH or postgres://…;
    /// only read, and only once one of them needs it
    #[arg(long, value_name = "URL", env = "MILLRACE_EVENT_STORE", hide_env_values = true, hide_default_value = true)]
    pub event_store: Option<StoreUrl>,
    #[command(flatten)]
    pub stock: StockArgs,
    #[command(flatten)]
    pub search: SearchArgs,
    #[command(flatten)]
    pub projector: ProjectorArgs,
    /// After how long without a sign of life the holder of the search directory is left behind
    #[arg(long, value_name = "TIME", env = "MILLRACE_SEARCH_FROZEN_AFTER", default_value = "30s", value_parser = humantime::parse_duration)]
    pub search_frozen_after: Duration,
    /// Address of health and metrics; port 0 takes a free one [default: 127.0.0.1:8083 for stock, 127.0.0.1:8084 for
    /// search]
    #[arg(long, value_name = "HOST:PORT", env = "MILLRACE_LISTEN")]
    pub listen: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProjectionName {
    /// Stock per SKU, warehouse and region
    Stock,
    /// Product search, and the product part of product pages
    Search,
}

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub ownership: OwnershipArgs,
    #[command(flatten)]
    pub stock: StockArgs,
    #[command(flatten)]
    pub search: SearchArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
    #[command(flatten)]
    pub query: QueryArgs,
    /// Address of the query API; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", env = "MILLRACE_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: String,
}

#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Query API to ask
    #[arg(long, value_name = "URL", env = "MILLRACE_URL", default_value = "http://127.0.0.1:8080", value_parser = http_url)]
    pub url: Url,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Example: millrace tail --topic inventory.events --sku ONION-1KG --from beginning")]
pub struct TailArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
    /// Topic to print; all event topics unless given
    #[arg(long, value_name = "TOPIC")]
    pub topic: Vec<String>,
    /// Only events of this SKU
    #[arg(long, value_name = "SKU")]
    pub sku: Option<schemas::Sku>,
    /// Where to begin
    #[arg(long, value_enum, default_value = "end")]
    pub from: TailFrom,
    /// Stop at the log's end as it is now
    #[arg(long)]
    pub no_follow: bool,
    /// Stop after so many events
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TailFrom {
    Beginning,
    End,
}

#[derive(Debug, Clone, Args)]
pub struct ContractsArgs {
    #[command(subcommand)]
    pub action: ContractsAction,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ContractsAction {
    /// Check each schema against all its earlier versions, and against a registry when one is given
    ///
    /// Exit code 3 when something is incompatible.
    Check {
        /// Registry to check against, too
        #[arg(
            long,
            value_name = "URL",
            env = "MILLRACE_SCHEMA_REGISTRY",
            hide_env_values = true,
            hide_default_value = true
        )]
        schema_registry: Option<StoreUrl>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Register every schema with a registry; registering again changes nothing
    Register {
        /// Registry to register with
        #[arg(
            long,
            value_name = "URL",
            env = "MILLRACE_SCHEMA_REGISTRY",
            hide_env_values = true,
            hide_default_value = true
        )]
        schema_registry: Option<StoreUrl>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the AsyncAPI 3 document of the topics, or the OpenAPI document of the HTTP API
    Export {
        /// Which document
        #[arg(long, value_enum, default_value = "asyncapi")]
        format: ExportFormat,
        /// File to write; standard output unless given
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    Asyncapi,
    Openapi,
}

// === impl Command ===

impl Command {
    /// The addresses that are set for it.
    pub fn addresses(&self) -> Vec<(AddressOf, &StoreUrl)> {
        let (mut store, mut table, mut log, mut stock, mut registry) = (None, None, None, None, None);
        match self {
            Command::Up(args) => {
                (store, log, stock) = (Some(&args.event_store), Some(&args.event_log), Some(&args.stock))
            }
            Command::Write(args) => (store, log) = (Some(&args.event_store), Some(&args.event_log)),
            Command::Relay(args) => match &args.action {
                Some(RelayAction::Reconcile(args)) => {
                    (store, log) = (Some(&args.event_store), Some(&args.event_log));
                }
                None => (store, log) = (Some(&args.event_store), Some(&args.event_log)),
            },
            Command::Project(args) => {
                (table, log, stock) = (args.event_store.as_ref(), Some(&args.event_log), Some(&args.stock))
            }
            Command::Serve(args) => (stock, registry) = (Some(&args.stock), args.registry.schema_registry.as_ref()),
            Command::Audit(args) => {
                (store, log, stock) = (Some(&args.event_store), Some(&args.event_log), Some(&args.stock))
            }
            Command::Replay(args) => (log, stock) = (args.event_log(), Some(&args.at().stock)),
            Command::Tail(args) => log = Some(&args.event_log),
            Command::Import(args) => match &args.what {
                ImportWhat::Products(args) => (store, log) = (Some(&args.event_store), Some(&args.event_log)),
            },
            Command::Contracts(args) => match &args.action {
                ContractsAction::Check { schema_registry, .. } | ContractsAction::Register { schema_registry, .. } => {
                    registry = schema_registry.as_ref();
                }
                ContractsAction::Export { .. } => {}
            },
            Command::Demo(_) | Command::Generate(_) | Command::Status(_) | Command::DeadLetters(_) => {}
        }
        let set = [
            (AddressOf::EventStore, table.or(store.and_then(|args: &EventStoreArgs| args.event_store.as_ref()))),
            (AddressOf::EventLog, log.and_then(|args| args.event_log.as_ref())),
            (AddressOf::StockStore, stock.and_then(|args| args.stock_store.as_ref())),
            (AddressOf::SchemaRegistry, registry.or(log.and_then(|args| args.registry.schema_registry.as_ref()))),
        ];
        set.into_iter().filter_map(|(kind, url)| Some((kind, url?))).collect()
    }
}

// === impl ProjectArgs ===

impl ProjectArgs {
    /// Both projections run on one machine without a setting.
    pub fn listen(&self) -> &str {
        let default = match self.projection {
            ProjectionName::Stock => "127.0.0.1:8083",
            ProjectionName::Search => "127.0.0.1:8084",
        };
        self.listen.as_deref().unwrap_or(default)
    }
}

// === impl ProjectorArgs ===

impl ProjectorArgs {
    fn throttle(&self) -> ThrottleSettings {
        let default = ThrottleSettings::default();
        ThrottleSettings {
            live_lag_events: self.replay_live_lag_events,
            read_p99_ms: self.replay_read_p99_ms.into(),
            rate_beside_live: self.replay_rate_beside_live.map_or(default.rate_beside_live, f64::from),
        }
    }

    pub fn settings(&self, partitions: u32) -> ProjectorSettings {
        ProjectorSettings {
            partitions,
            batch: self.projector_batch,
            parked_keys_limit: self.parked_keys_limit,
            not_ready_behind: self.not_ready_behind,
            // One for all that is built in this process.
            throttle: Some(Throttle::new(self.throttle())),
            ..ProjectorSettings::default()
        }
    }
}

// === impl RelayBatchArgs ===

impl RelayBatchArgs {
    pub fn settings(&self) -> RelaySettings {
        RelaySettings { batch: self.relay_batch, ..RelaySettings::default() }
    }
}

// === impl QueryArgs ===

impl QueryArgs {
    pub fn settings(&self) -> QuerySettings {
        let deadline = self.position_wait + QuerySettings::default().deadline;
        QuerySettings { position_wait: self.position_wait, deadline }
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) | Err(_) => Err("a whole number from 1 on is needed".to_owned()),
        Ok(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
