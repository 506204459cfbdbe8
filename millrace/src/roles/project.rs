//! `millrace project <stock|search>`: one projection, fed from the log.

use std::time::Duration;

use event_log::{EventLog, EventLogError};
use projectors::ProjectorSettings;
use replay::Replayed;

use super::process::{OnFailure, Process};
use super::{feeding, parts, replays};
use crate::cli::{ProjectArgs, ProjectionName};
use crate::exit::Exit;
use crate::output;
use crate::stores::{self, Connector};

/// How often a projector that started before the relay looks for its topics.
const TOPIC_PATIENCE: Duration = Duration::from_secs(1);

pub async fn run(args: ProjectArgs) -> anyhow::Result<Exit> {
    let ownership = crate::replay::ownership(&args.ownership)?;
    let mut process = Process::start(args.listen()).await?;
    let mut connector = Connector::new(args.data.clone());
    let log = connector.event_log(&args.event_log).await?;
    let registry = stores::registry(&args.event_log.registry)?;
    let Some(partitions) = wait_for_topics(log.as_ref(), &process).await? else { return Ok(Exit::Done) };
    let event_table = args.event_store.as_ref().map(|url| stores::event_table_at(url, &registry));
    let settings = ProjectorSettings { event_table, ..args.projector.settings(partitions) };
    let replayed = match args.projection {
        ProjectionName::Stock => {
            let stock = connector.stock(&args.stock).await?;
            feeding::stock_projector(&mut process, &stock, &log, &registry, settings, OnFailure::EndProcess);
            Replayed::stock(stock, ownership)
        }
        ProjectionName::Search => {
            let opened =
                connector.search_generations_when_free(&args.search, args.search_frozen_after, &process.shutdown);
            let Some(search) = opened.await? else { return Ok(Exit::Done) };
            feeding::search_projector(&mut process, search, &log, &registry, settings, OnFailure::EndProcess);
            let reader = connector.search_reader(&args.search).await?;
            Replayed::search(reader.as_ref().clone(), ownership)
        }
    };
    replays::watch(&mut process, replayed.clone(), &log, partitions, OnFailure::EndProcess);
    let routes = replays::routes(vec![replayed], Some(replays::reader(&log, &registry)));
    let _held = connector.into_held();
    output::notice(format!("millrace project answers for its health on http://{}", process.address()?));
    process.serve(routes.merge(parts::openapi(&[parts::REPLAYS]))).await
}

/// The relay makes the topics; a projector may well start first. `None` when the process is stopped meanwhile.
async fn wait_for_topics(log: &dyn EventLog, process: &Process) -> anyhow::Result<Option<u32>> {
    let mut told: Option<String> = None;
    loop {
        let waits_for = match stores::partitions_of_log(log).await {
            Ok(partitions) if partitions > 0 => return Ok(Some(partitions)),
            Ok(_) => "topics without partitions".to_owned(),
            Err(error @ EventLogError::UnknownTopic { .. }) => error.to_string(),
            Err(error) if error.is_transient() => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        // Once for each trouble, not once a second.
        if told.as_ref() != Some(&waits_for) {
            tracing::warn!("projector waits: {waits_for}");
            told = Some(waits_for);
        }
        tokio::select! {
            () = tokio::time::sleep(TOPIC_PATIENCE) => {}
            () = process.shutdown.cancelled() => return Ok(None),
        }
    }
}
