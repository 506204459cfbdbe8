//! `millrace write`: commands over HTTP and from command topics, committed to the event store.

use command_api::TopicIntakeSettings;

use super::parts;
use super::process::{OnFailure, Process};
use crate::cli::WriteArgs;
use crate::exit::Exit;
use crate::output;
use crate::stores::{self, Connector};

pub async fn run(args: WriteArgs) -> anyhow::Result<Exit> {
    crate::replay::ownership(&args.ownership)?;
    let mut process = Process::start(&args.listen).await?;
    let mut connector = Connector::new(args.data.clone());
    let store = connector.event_store(&args.event_store).await?;
    let log = match args.command_topics.no_command_topics {
        true => None,
        false => Some(connector.event_log(&args.event_log).await?),
    };
    let topology = stores::topology(store.as_ref(), log.as_deref(), &args.event_store, &args.event_log).await?;
    let (handler, routes) = parts::command_side(&mut process, &store, topology, &args.intake);
    if let Some(log) = log {
        let registry = stores::registry(&args.event_log.registry)?;
        let settings = TopicIntakeSettings { topology, outcome_retention: args.intake.outcome_retention };
        parts::command_topics(&mut process, handler, &store, &log, &registry, settings, OnFailure::EndProcess);
    }
    let _held = connector.into_held();
    output::notice(format!("millrace write listens on http://{}", process.address()?));
    process.serve(routes.merge(parts::openapi(&[parts::COMMANDS]))).await
}
