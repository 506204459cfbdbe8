//! The program behind `millrace`: settings, wiring and shutdown; everything else is in the crates.
//!
//! A library, so that what reads files and settings can be given hostile ones without a process for each.

pub mod address;
mod audit;
pub mod cli;
mod contracts;
mod data_dir;
mod dead_letters;
mod demo;
mod exit;
mod generate;
pub mod import;
mod output;
mod reconcile;
mod replay;
mod roles;
pub mod settings;
mod status;
mod stores;
mod tail;

use std::process::ExitCode;
use std::time::Duration;

use resilience::guard;

use crate::cli::Command;
use crate::exit::Exit;

/// How long blocking store calls that outlive the drain may hold the process.
pub const BLOCKING_END: Duration = Duration::from_millis(500);

/// Runs the command line that the process was started with.
pub fn run() -> ExitCode {
    let cli = match settings::parse() {
        Ok(cli) => cli,
        Err(refused) => return refused.report(),
    };
    if let Err(error) = telemetry::init_logging(&cli.log, cli.log_format.into()) {
        eprintln!("millrace: {error}");
        return Exit::Usage.into();
    }
    if let Err(error) = guard::turn_off_named(&std::env::var(guard::VARIABLE).unwrap_or_default()) {
        eprintln!("millrace: {error}");
        return Exit::Usage.into();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("millrace: the runtime cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let result = runtime.block_on(run_command(cli.command));
    runtime.shutdown_timeout(BLOCKING_END);
    match result {
        Ok(exit) => exit.into(),
        // `| head` has seen enough.
        Err(error) if output::is_closed_pipe(&error) => Exit::Done.into(),
        Err(error) => {
            eprintln!("millrace: {}", exit::one_line(&error));
            if replay::is_slip(&error) { Exit::Usage.into() } else { Exit::Failed.into() }
        }
    }
}

async fn run_command(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Up(args) => roles::up::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Write(args) => roles::write::run(args).await,
        Command::Relay(args) => roles::relay::run(args).await,
        Command::Project(args) => roles::project::run(args).await,
        Command::Serve(args) => roles::serve::run(args).await,
        Command::Import(args) => import::run(args).await,
        Command::Generate(args) => generate::run(args).await,
        Command::Replay(args) => replay::run(args).await,
        Command::Audit(args) => audit::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::DeadLetters(args) => dead_letters::run(args).await,
        Command::Tail(args) => tail::run(args).await,
        Command::Contracts(args) => contracts::run(args).await,
    }
}
