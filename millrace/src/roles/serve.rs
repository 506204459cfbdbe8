//! `millrace serve`: queries, from the read models alone.

use std::sync::Arc;

use replay::Replayed;

use super::process::Process;
use super::{parts, replays};
use crate::cli::ServeArgs;
use crate::exit::Exit;
use crate::output;
use crate::stores::{self, Connector};

pub async fn run(args: ServeArgs) -> anyhow::Result<Exit> {
    let ownership = crate::replay::ownership(&args.ownership)?;
    let mut process = Process::start(&args.listen).await?;
    let mut connector = Connector::new(args.data.clone());
    let stock = connector.stock(&args.stock).await?;
    let search = connector.search_reader(&args.search).await?;
    let routes = parts::query_routes(&mut process, &stock, &search, args.query.settings());
    let registry = stores::registry(&args.registry)?;
    let routes = routes.merge(parts::dead_letter_routes(&stock, &search, &registry));
    let replayed = vec![
        Replayed::stock(Arc::clone(&stock), Arc::clone(&ownership)),
        Replayed::search(search.as_ref().clone(), ownership),
    ];
    // Reads never touch the event log, so that nothing is compared here.
    let routes = routes.merge(replays::routes(replayed, None));
    let _held = connector.into_held();
    output::notice(format!("millrace serve answers on http://{}", process.address()?));
    let described = parts::openapi(&[parts::QUERIES, parts::DEAD_LETTERS, parts::REPLAYS]);
    process.serve(routes.merge(described)).await
}
