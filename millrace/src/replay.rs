//! `millrace replay`: generations of a read model built beside the live one, compared, switched and switched back.
//! Works on the stores directly, beside whatever runs; the projectors that run do the building.

mod args;
mod connect;
mod decide;
mod dry_run;
mod history;
mod keys;
mod list;
mod start;
mod status;
mod verify;

pub use args::ReplayArgs;
use args::{AtArgs, ReplayAction};
pub use connect::ownership;

use read_models::{search, stock};
use replay::ReplayError;

use crate::cli::{EventLogArgs, ProjectionName};
use crate::exit::Exit;

pub async fn run(args: ReplayArgs) -> anyhow::Result<Exit> {
    match args.action {
        ReplayAction::Start(args) if args.into_live => keys::run(args).await,
        ReplayAction::Start(args) => start::run(args).await,
        ReplayAction::Status(args) => status::run(args).await,
        ReplayAction::Verify(args) => verify::run(args).await,
        ReplayAction::Approve(args) => decide::approve(args).await,
        ReplayAction::Cutover(args) => decide::cutover(args).await,
        ReplayAction::Rollback(args) => decide::rollback(args).await,
        ReplayAction::Retire(args) => decide::retire(args).await,
        ReplayAction::Abort(args) => decide::abort(args).await,
        ReplayAction::List(args) => list::run(args).await,
        ReplayAction::History(args) => history::run(args).await,
        ReplayAction::DryRun(args) => dry_run::run(args).await,
    }
}

/// Whether an error is a slip on the command line: a file, a name or an owner that cannot be used.
pub fn is_slip(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<ReplayError>(),
        Some(ReplayError::File { .. } | ReplayError::Setting { .. } | ReplayError::Ownership { .. })
    )
}

// === impl ReplayArgs ===

impl ReplayArgs {
    pub fn at(&self) -> &AtArgs {
        self.action.at()
    }

    pub fn event_log(&self) -> Option<&EventLogArgs> {
        self.action.event_log()
    }
}

// === impl ProjectionName ===

impl ProjectionName {
    pub fn as_str(self) -> &'static str {
        match self {
            ProjectionName::Stock => stock::NAME,
            ProjectionName::Search => search::NAME,
        }
    }
}
