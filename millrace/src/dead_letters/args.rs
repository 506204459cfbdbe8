//! The command line of `millrace dead-letters`.

use clap::{Args, Subcommand};
use replay::Target;
use url::Url;

use crate::address::http_url;

#[derive(Debug, Clone, Args)]
pub struct DeadLettersArgs {
    #[command(subcommand)]
    pub action: DeadLettersAction,
}

#[derive(Debug, Clone, Subcommand)]
pub enum DeadLettersAction {
    /// Keys whose events wait, and why
    ///
    /// An event that a projection cannot fold waits in its read model, with every later event of its SKU in order. The
    /// SKU stays at its last good state and all others go on.
    List(ListArgs),
    /// The queue of one key: each event as far as it can be read, and what was done with it
    Show(ShowArgs),
    /// Fold what waits, in order, once the cause is mended
    ///
    /// Deploy the projector that can read the event first. Its projector takes the request up within seconds and folds
    /// event after event, with this release's upcasters; new events of the key keep their place behind them. At the
    /// first that still cannot be folded it stops, and the rest stays in order.
    #[command(
        after_help = "Exit codes: 0 level, 1 failed or not answered in time, 2 usage, 3 events are still parked.\n\
                            Example: millrace dead-letters redrive ONION-1KG"
    )]
    Redrive(RedriveArgs),
    /// Take out what will never be folded, with a reason that is recorded
    ///
    /// The event is not folded into this read model, ever; it stays in the event table, on its topic, and in the record
    /// of discards that `show` prints. What it should have said must come as a new command.
    #[command(
        after_help = "Example: millrace dead-letters discard ONION-1KG --first --reason 'written by a broken import'\n\
                            then:    millrace dead-letters redrive ONION-1KG"
    )]
    Discard(DiscardArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub at: AtArgs,
}

#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// SKU whose events wait; '!foreign' for records that are no events of ours
    #[arg(value_name = "KEY")]
    pub key: String,
    /// Events to show
    #[arg(long = "events", value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub events: u32,
    #[command(flatten)]
    pub at: AtArgs,
}

#[derive(Debug, Clone, Args)]
pub struct RedriveArgs {
    /// SKU whose events wait
    #[arg(value_name = "KEY", required_unless_present = "all", conflicts_with = "all")]
    pub key: Option<String>,
    /// Every key that is parked
    #[arg(long)]
    pub all: bool,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Who asks, for the record
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true)]
    pub by: Option<String>,
    #[command(flatten)]
    pub at: AtArgs,
}

#[derive(Debug, Clone, Args)]
pub struct DiscardArgs {
    /// SKU whose events wait; '!foreign' for records that are no events of ours
    #[arg(value_name = "KEY")]
    pub key: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Only the first event of the queue; the rest can be redriven then
    #[arg(long)]
    pub first: bool,
    /// Who asks, for the record
    #[arg(long, value_name = "NAME", env = "USER", hide_env_values = true)]
    pub by: Option<String>,
    #[command(flatten)]
    pub at: AtArgs,
}

/// Where, and how it is told.
#[derive(Debug, Clone, Args)]
pub struct AtArgs {
    /// Only in this read model, stock or search, or in one generation of it, as in stock@2 [default: in each]
    ///
    /// What is shown without a number is of the generation that serves; what is asked for without one is asked of every
    /// generation that is fed.
    #[arg(long, value_name = "NAME")]
    pub projection: Option<Target>,
    /// Query API to ask
    #[arg(long, value_name = "URL", env = "MILLRACE_URL", default_value = "http://127.0.0.1:8080", value_parser = http_url)]
    pub url: Url,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
