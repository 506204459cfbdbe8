//! Where the data, the stores and the log are: flags that most subcommands share.

use std::path::PathBuf;

use clap::Args;

use crate::address::StoreUrl;

/// Where embedded stores live.
#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// Directory of every store that is not set otherwise; one process at a time
    #[arg(long, value_name = "DIR", env = "MILLRACE_DATA", default_value = "millrace-data")]
    pub data: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub struct EventStoreArgs {
    /// Event store: sqlite:PATH or postgres://user:password@host:port/database [default: in the data directory]
    #[arg(long, value_name = "URL", env = "MILLRACE_EVENT_STORE", hide_env_values = true, hide_default_value = true)]
    pub event_store: Option<StoreUrl>,
    /// Partitions of every topic, fixed at the first start [default: 4 on a SQLite log, 12 on Kafka]
    #[arg(long, value_name = "N", env = "MILLRACE_PARTITIONS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub partitions: Option<u32>,
}

#[derive(Debug, Clone, Args)]
pub struct EventLogArgs {
    /// Event log: sqlite:PATH or kafka://host:port,host:port [default: in the data directory]
    #[arg(long, value_name = "URL", env = "MILLRACE_EVENT_LOG", hide_env_values = true, hide_default_value = true)]
    pub event_log: Option<StoreUrl>,
    /// Replicas of topics made on Kafka; waits until so many brokers are up [default: as many as are up, at most 3]
    #[arg(long, value_name = "N", env = "MILLRACE_KAFKA_REPLICAS", value_parser = clap::value_parser!(u32).range(1..=9))]
    pub kafka_replicas: Option<u32>,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

#[derive(Debug, Clone, Default, Args)]
pub struct RegistryArgs {
    /// Schema registry with the Confluent API: http(s)://host:port/… [default: schemas compiled in]
    #[arg(
        long,
        value_name = "URL",
        env = "MILLRACE_SCHEMA_REGISTRY",
        hide_env_values = true,
        hide_default_value = true
    )]
    pub schema_registry: Option<StoreUrl>,
    /// File that keeps registry ids, so that known ones are served while the registry is down
    #[arg(long, value_name = "FILE", env = "MILLRACE_REGISTRY_CACHE")]
    pub registry_cache: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct StockArgs {
    /// Stock read model: sqlite:PATH, redis://host:port or redis+cluster://host:port,host:port [default: in the data
    /// directory]
    #[arg(long, value_name = "URL", env = "MILLRACE_STOCK_STORE", hide_env_values = true, hide_default_value = true)]
    pub stock_store: Option<StoreUrl>,
}

#[derive(Debug, Clone, Args)]
pub struct SearchArgs {
    /// Directory of the search read model [default: in the data directory]
    #[arg(long, value_name = "DIR", env = "MILLRACE_SEARCH_DIR")]
    pub search_dir: Option<PathBuf>,
}

/// Who owns what, and who may approve.
#[derive(Debug, Clone, Default, Args)]
pub struct OwnershipArgs {
    /// Owners, escalation contacts and approvers of every context, topic, projection and contract [default: compiled
    /// in]
    #[arg(long, value_name = "FILE", env = "MILLRACE_OWNERSHIP")]
    pub ownership: Option<PathBuf>,
}
