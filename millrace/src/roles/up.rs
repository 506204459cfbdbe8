//! `millrace up`: every role in one process. The process stands and falls with its command side and its listener; of
//! the rest each part may fail by itself, and is then not ready.

use std::sync::Arc;

use audit::{AuditSettings, Auditor};
use axum::Router;
use command_api::{CommandHandler, TopicIntakeSettings};
use projectors::ProjectorSettings;
use read_models::search::SearchReader;
use read_models::stock::SharedStock;
use replay::{Ownership, Replayed};

use super::process::{OnFailure, Process};
use super::{feeding, parts, replays};
use crate::cli::UpArgs;
use crate::data_dir::DataDir;
use crate::exit::Exit;
use crate::output;
use crate::stores::{self, Connector};

/// Every role, wired and running; `serve` its routes.
pub struct Running {
    pub process: Process,
    pub routes: Router,
    pub handler: CommandHandler,
    pub stock: SharedStock,
    pub search: Arc<SearchReader>,
    /// Held until everything has ended.
    pub data: Option<DataDir>,
}

pub async fn run(args: UpArgs) -> anyhow::Result<Exit> {
    let ownership = crate::replay::ownership(&args.ownership)?;
    let process = Process::start(&args.listen).await?;
    let running = start(process, &args, ownership).await?;
    output::notice(format!("millrace is up on http://{} (Ctrl-C stops it)", running.process.address()?));
    running.serve().await
}

/// Wires every role onto a process.
pub async fn start(mut process: Process, args: &UpArgs, ownership: Arc<Ownership>) -> anyhow::Result<Running> {
    let mut connector = Connector::new(args.data.clone());
    let store = connector.event_store(&args.event_store).await?;
    let log = connector.event_log(&args.event_log).await?;
    let registry = stores::registry(&args.event_log.registry)?;
    let stock = connector.stock(&args.stock).await?;
    let search_generations = connector.search_generations(&args.search).await?;
    let search = connector.search_reader(&args.search).await?;
    let topology = stores::topology(store.as_ref(), Some(&*log), &args.event_store, &args.event_log).await?;
    let relay_log = connector.event_log_beside(&log, &args.event_log).await?;
    if Arc::ptr_eq(&log, &relay_log) {
        // A file, and nobody else's: before anybody reads it. Elsewhere only the relay that leads may make topics.
        outbox_relay::make_topics(&*log, store.as_ref(), topology).await?;
    }

    let (handler, commands) = parts::command_side(&mut process, &store, topology, &args.intake);
    if !args.command_topics.no_command_topics {
        let settings = TopicIntakeSettings { topology, outcome_retention: args.intake.outcome_retention };
        parts::command_topics(&mut process, handler.clone(), &store, &log, &registry, settings, OnFailure::StayDown);
    }
    parts::relay(&mut process, &store, &relay_log, &registry, topology, args.relay.settings(), OnFailure::StayDown);
    let event_table = Some(stores::event_table_of(&store, &registry));
    let settings = ProjectorSettings { event_table, ..args.projector.settings(topology.partitions) };
    feeding::stock_projector(&mut process, &stock, &log, &registry, settings.clone(), OnFailure::StayDown);
    feeding::search_projector(&mut process, search_generations, &log, &registry, settings, OnFailure::StayDown);
    let replayed = vec![
        Replayed::stock(Arc::clone(&stock), Arc::clone(&ownership)),
        Replayed::search(search.as_ref().clone(), Arc::clone(&ownership)),
    ];
    for replayed in &replayed {
        replays::watch(&mut process, replayed.clone(), &log, topology.partitions, OnFailure::StayDown);
    }
    let queries = parts::query_routes(&mut process, &stock, &search, args.query.settings());
    let dead_letters = parts::dead_letter_routes(&stock, &search, &registry);
    let replays = replays::routes(replayed, Some(replays::reader(&log, &registry)));
    if !args.audit.audit_every.is_zero() {
        let settings = AuditSettings { share: args.audit.audit_share, since: None };
        let (stock, search) = (Some(Arc::clone(&stock)), Some(Arc::clone(&search)));
        let auditor = Auditor::new(Arc::clone(&store), Arc::clone(&log), registry, stock, search, settings);
        parts::rolling_audit(&mut process, auditor, args.audit.audit_every, OnFailure::StayDown);
    }
    let routes = commands.merge(queries).merge(dead_letters).merge(replays).merge(parts::openapi(&parts::EVERY_API));
    Ok(Running { process, routes, handler, stock, search, data: connector.into_held() })
}

// === impl Running ===

impl Running {
    pub async fn serve(self) -> anyhow::Result<Exit> {
        let exit = self.process.serve(self.routes).await;
        drop(self.data);
        exit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;

    #[tokio::test]
    async fn owners_are_looked_at_before_the_address() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap().to_string();
        let line = ["millrace", "up", "--listen", &listen, "--ownership", "/nowhere/ownership.toml"];
        let cli = crate::settings::parse_with(&line.map(Into::into), None).unwrap();
        let Command::Up(args) = cli.command else { panic!("not up") };
        let error = run(args).await.unwrap_err();
        assert!(crate::replay::is_slip(&error), "{error:#}");
    }
}
