//! `millrace relay`: committed events to their topics.

use axum::Router;

use super::parts;
use super::process::{OnFailure, Process};
use crate::cli::{RelayAction, RelayArgs};
use crate::exit::Exit;
use crate::output;
use crate::stores::{self, Connector};

pub async fn run(args: RelayArgs) -> anyhow::Result<Exit> {
    if let Some(RelayAction::Reconcile(args)) = args.action {
        return crate::reconcile::run(args).await;
    }
    crate::replay::ownership(&args.ownership)?;
    let mut process = Process::start(&args.listen).await?;
    let mut connector = Connector::new(args.data.clone());
    let store = connector.event_store(&args.event_store).await?;
    let log = connector.event_log(&args.event_log).await?;
    let registry = stores::registry(&args.event_log.registry)?;
    let topology = stores::topology(store.as_ref(), Some(&*log), &args.event_store, &args.event_log).await?;
    parts::relay(&mut process, &store, &log, &registry, topology, args.relay.settings(), OnFailure::EndProcess);
    let _held = connector.into_held();
    output::notice(format!("millrace relay answers for its health on http://{}", process.address()?));
    process.serve(Router::new()).await
}
