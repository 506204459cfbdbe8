//! The command line of `millrace replay`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use read_models::generations::{Source, Until};
use replay::Target;
use schemas::{RegionId, Sku};

use crate::cli::{DataArgs, EventLogArgs, OwnershipArgs, ProjectionName, SearchArgs, StockArgs};

#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    #[command(subcommand)]
    pub action: ReplayAction,
}

#[derive(Debug, Clone, Subcommand)]
pub enum ReplayAction {
    /// Build a new generation beside the one that serves, or fold some keys of the live one anew
    ///
    /// Only says that it is to be built: the projectors that run (`millrace up`, `millrace project`) see it within a
    /// second, build it from the first event of the log on, and feed it until it is retired. A killed one goes on
    /// where it was. Nobody is answered from it until `replay cutover`, but by `?generation=2`.
    ///
    /// With --from event-table it begins with what retention has removed from the topics, read from the event table,
    /// and goes on from the topics where they begin: for a whole rebuild after retention has passed (the projector's
    /// "retention removed it"). The processes that build it need the event store: `millrace up` has it,
    /// `millrace project` with --event-store.
    ///
    /// With --until it stands still there, for "what did we show at 14:05".
    ///
    /// With --into-live no generation is made: the keys that --sku, --region, --since and --until name are folded anew,
    /// each from all of its events, and their rows in the generation that serves replaced, while events go on. Exit
    /// codes then: 1 a key was left out, 3 a SKU has no event.
    #[command(after_help = "Examples:\n  \
        millrace replay start stock --as ann --reason 'rows tell when they changed' --plan stages.toml\n  \
        millrace replay start stock --as ann --as-of --until 2026-11-20T14:05:00Z\n  \
        millrace replay start stock --as ann --from event-table --reason 'the topics keep a week'\n  \
        millrace replay start stock --as ann --into-live --sku ONION-1KG,LEEK-1KG")]
    Start(StartArgs),
    /// Show how far a replay is built, and what is next
    ///
    /// Two looks, a second apart, tell how many events it takes a second.
    #[command(after_help = "Example: millrace replay status stock --watch")]
    Status(StatusArgs),
    /// Compare a generation with the one that serves, every key, at one position
    ///
    /// Both go on meanwhile. What differs and is meant to is declared in a file of rules (docs/replay.md, 1). The
    /// result is noted in the catalogue, where cutover looks for it; approvals of an earlier one are void.
    #[command(after_help = "Exit codes: 0 nothing differs but what rules cover, 1 it could not be compared, 2 usage, \
                            3 it differs.\nExample: millrace replay verify stock@2 --as ann --rules rules.toml --html parity.html")]
    Verify(VerifyArgs),
    /// Approve the newest comparison of a generation
    ///
    /// Only by an approver that ownership.toml names, and never by who started the replay. The embedded default lets
    /// anybody else approve. The approval is of that one report: a newer comparison voids it.
    #[command(
        after_help = "Example: millrace replay approve stock@2 --as bob --report 3f0c9a41 --reason 'as announced'"
    )]
    Approve(ApproveArgs),
    /// Enter the next stage of the plan; the last one gives all
    ///
    /// Refused with exit code 3 and the list of what is missing: parity, approval, lag, exit criteria of the stage
    /// before. Readers follow within 100 ms.
    #[command(after_help = "Example: millrace replay cutover stock@2 --as ann")]
    Cutover(CutoverArgs),
    /// Answer from the generation before again; one step, at once
    ///
    /// Takes back the stage that a replay is in, or the cutover itself. Nothing is lost: the generation before was fed.
    /// Without a number it goes back one step only: for a second one, name the generation to be left.
    #[command(after_help = "Example: millrace replay rollback stock --as ann --reason 'p99 doubled'")]
    Rollback(DecideArgs),
    /// Stop feeding a generation that answers nobody, and remove its rows
    ///
    /// The way back stays until the rollback window of the plan is over, unless an approver lets it go early. Behind it
    /// only a forward fix is left.
    #[command(after_help = "Example: millrace replay retire stock@1 --as ann")]
    Retire(RetireArgs),
    /// Give up a replay that never served, and remove its rows
    #[command(after_help = "Example: millrace replay abort stock@2 --as ann --reason 'wrong fold'")]
    Abort(DecideArgs),
    /// Show every generation of each read model
    #[command(after_help = "Example: millrace replay list --json")]
    List(ListArgs),
    /// Show every decision, and whether the chain of them is whole
    ///
    /// Each decision names the hash of the one before, and the catalogue must be what they lead to: what was changed
    /// afterwards is told, with exit code 3.
    #[command(after_help = "Example: millrace replay history stock --against-log")]
    History(HistoryArgs),
    /// Run a fold and the upcasters of this program over the real log in memory, writing nothing
    ///
    /// Tells what would not decode, which keys would be parked, which rows would differ, and what it costs. Exit code 3
    /// when something would fail or differ.
    #[command(after_help = "Example: millrace replay dry-run stock --fold 2 --rules rules.toml")]
    DryRun(DryRunArgs),
}

/// Where the read models, the log and the owners are.
#[derive(Debug, Clone, Args)]
pub struct AtArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub stock: StockArgs,
    #[command(flatten)]
    pub search: SearchArgs,
    #[command(flatten)]
    pub ownership: OwnershipArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Who decides, and why; both stand in `replay history` and on `platform.events`.
#[derive(Debug, Clone, Args)]
pub struct ByArgs {
    /// Who decides: the name that ownership.toml knows
    #[arg(long = "as", value_name = "NAME")]
    pub who: String,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
}

#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("keys").args(["sku", "region", "since", "until"]).multiple(true)))]
pub struct StartArgs {
    /// Read model
    #[arg(value_enum)]
    pub projection: ProjectionName,
    /// Version of the fold that builds it [default: the newest of this program]
    #[arg(long, value_name = "N", conflicts_with = "into_live")]
    pub fold: Option<u32>,
    /// Where its events come from: the topics, or what they have no more from the event table first
    #[arg(long, value_enum, value_name = "SOURCE", default_value = "log", conflicts_with = "into_live")]
    pub from: FromArg,
    /// Stages of the cutover, gates, triggers and rollback window [default: all at once, after parity and approval]
    #[arg(long, value_name = "FILE", conflicts_with = "into_live")]
    pub plan: Option<PathBuf>,
    /// Enter the stages without being told, as soon as their gates let it
    #[arg(long, conflicts_with_all = ["into_live", "until"])]
    pub auto: bool,
    /// Stand still there: a time such as 2026-11-20T14:05:00Z, or a position token; with --into-live a time
    #[arg(long, value_name = "TIME|TOKEN", value_parser = replay::until_of)]
    pub until: Option<Until>,
    /// What --until without --into-live does anyhow: a generation of the past, to be asked for by its number
    #[arg(long, requires = "until", conflicts_with = "into_live")]
    pub as_of: bool,
    /// Fold keys anew into the generation that serves
    #[arg(long, requires = "keys")]
    pub into_live: bool,
    /// These SKUs
    #[arg(long, value_name = "SKU,SKU", value_delimiter = ',', requires = "into_live")]
    pub sku: Vec<Sku>,
    /// Keys with an event of this region
    #[arg(long, value_name = "REGION,REGION", value_delimiter = ',', requires = "into_live")]
    pub region: Vec<RegionId>,
    /// Keys with an event of this time or later
    #[arg(long, value_name = "TIME", value_parser = replay::time_of, requires = "into_live")]
    pub since: Option<i64>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub at: AtArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FromArg {
    /// The topics, from their first record on
    Log,
    /// The event table up to where the topics begin, then the topics
    EventTable,
}

impl From<FromArg> for Source {
    fn from(from: FromArg) -> Self {
        match from {
            FromArg::Log => Source::Log,
            FromArg::EventTable => Source::EventTable,
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Generation such as stock@2, or stock for its replay under way [default: all that are fed]
    #[arg(value_name = "GENERATION")]
    pub target: Option<Target>,
    /// Follow until it has caught up
    #[arg(long)]
    pub watch: bool,
    #[command(flatten)]
    pub at: AtArgs,
}

#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Generation such as stock@2, or stock for its replay under way
    #[arg(value_name = "GENERATION")]
    pub target: Target,
    /// Differences that are meant
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Searches to ask of both generations, one a line; for search only
    #[arg(long, value_name = "FILE")]
    pub queries: Option<PathBuf>,
    /// Write the report as a page that a browser shows
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Differing keys to print
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub show: usize,
    /// Only compare: nothing is noted in the catalogue
    #[arg(long, alias = "dry")]
    pub dry_run: bool,
    /// Who compares: the name stands in the history
    #[arg(long = "as", value_name = "NAME", required_unless_present = "dry_run")]
    pub who: Option<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    #[command(flatten)]
    pub at: AtArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
}

#[derive(Debug, Clone, Args)]
pub struct DecideArgs {
    /// Generation such as stock@2, or stock for what is under way
    #[arg(value_name = "GENERATION")]
    pub target: Target,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub at: AtArgs,
}

#[derive(Debug, Clone, Args)]
pub struct ApproveArgs {
    /// Generation such as stock@2, or stock for its replay under way
    #[arg(value_name = "GENERATION")]
    pub target: Target,
    /// Only if the newest comparison is this one: its digest, or the first 8 digits or more of it
    #[arg(long, value_name = "DIGEST")]
    pub report: Option<String>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub at: AtArgs,
}

#[derive(Debug, Clone, Args)]
pub struct CutoverArgs {
    /// Generation such as stock@2, or stock for its replay under way
    #[arg(value_name = "GENERATION")]
    pub target: Target,
    /// Stage to enter [default: the next one]
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// Without parity and approval: only into a stage that answers nobody and mirrors reads, and with a --reason
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub at: AtArgs,
}

#[derive(Debug, Clone, Args)]
pub struct RetireArgs {
    /// Generation such as stock@1
    #[arg(value_name = "GENERATION")]
    pub target: Target,
    /// Approver who lets it go before the rollback window is over
    #[arg(long, value_name = "NAME")]
    pub early: Option<String>,
    #[command(flatten)]
    pub by: ByArgs,
    #[command(flatten)]
    pub at: AtArgs,
}

#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub at: AtArgs,
}

#[derive(Debug, Clone, Args)]
pub struct HistoryArgs {
    /// Only of this read model
    #[arg(value_enum)]
    pub projection: Option<ProjectionName>,
    /// Compare with what platform.events says, too: also of a catalogue that is gone
    #[arg(long)]
    pub against_log: bool,
    #[command(flatten)]
    pub at: AtArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
}

#[derive(Debug, Clone, Args)]
pub struct DryRunArgs {
    /// Read model
    #[arg(value_enum)]
    pub projection: ProjectionName,
    /// Version of the fold to run [default: the newest of this program]
    #[arg(long, value_name = "N")]
    pub fold: Option<u32>,
    /// Differences that are meant
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// Differing keys and failures to print
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub show: usize,
    #[command(flatten)]
    pub at: AtArgs,
    #[command(flatten)]
    pub event_log: EventLogArgs,
}

// === impl ReplayAction ===

impl ReplayAction {
    pub fn at(&self) -> &AtArgs {
        match self {
            ReplayAction::Start(args) => &args.at,
            ReplayAction::Status(args) => &args.at,
            ReplayAction::Verify(args) => &args.at,
            ReplayAction::Approve(args) => &args.at,
            ReplayAction::Rollback(args) | ReplayAction::Abort(args) => &args.at,
            ReplayAction::Cutover(args) => &args.at,
            ReplayAction::Retire(args) => &args.at,
            ReplayAction::List(args) => &args.at,
            ReplayAction::History(args) => &args.at,
            ReplayAction::DryRun(args) => &args.at,
        }
    }

    pub fn event_log(&self) -> Option<&EventLogArgs> {
        match self {
            ReplayAction::Start(args) => Some(&args.event_log),
            ReplayAction::Verify(args) => Some(&args.event_log),
            ReplayAction::History(args) => Some(&args.event_log),
            ReplayAction::DryRun(args) => Some(&args.event_log),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(line: &str) -> Result<ReplayAction, String> {
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        match cli.command {
            Command::Replay(args) => Ok(args.action),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn keys_and_a_whole_generation_are_not_mixed() {
        let ReplayAction::Start(args) = parsed("millrace replay start stock --as ann --into-live --sku A,B").unwrap()
        else {
            panic!()
        };
        assert_eq!((args.sku.len(), args.into_live), (2, true));
        for wrong in [
            "millrace replay start stock --as ann --sku A",
            "millrace replay start stock --as ann --into-live",
            "millrace replay start stock --as ann --into-live --sku A --fold 2",
            "millrace replay start stock --as ann --into-live --sku A --from event-table",
            "millrace replay start stock --as ann --from topics",
            "millrace replay start stock",
            "millrace replay start stock@2 --as ann",
            "millrace replay approve 2 --as ann",
            "millrace replay verify stock@2",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
        assert!(parsed("millrace replay verify stock@2 --dry-run").is_ok());
        assert!(parsed("millrace replay verify stock@2 --dry").is_ok(), "as it was called once");
    }
}
