//! `millrace demo`: the whole pipeline in this process, on generated groceries, with addresses to try.
//!
//! The generated commands go through the same HTTP route, handler, relay and projectors as anybody's.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use schemas::{CommandEnvelope, Outcome, OutcomeKind, PositionToken};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cli::{
    CommandTopicsArgs, DataArgs, DemoArgs, EventLogArgs, EventStoreArgs, IntakeArgs, ProjectorArgs, QueryArgs,
    RelayBatchArgs, SearchArgs, StockArgs, UpArgs,
};
use crate::exit::Exit;
use crate::generate::{GenerateSettings, Generator};
use crate::output;
use crate::roles::up::{self, Running};
use crate::roles::{Process, bind, now};

/// Commands given at once while the catalogue is filled.
const CHUNK: usize = 500;
/// How long the first data may take to show.
const FIRST_DATA: Duration = Duration::from_secs(60);

pub async fn run(args: DemoArgs) -> anyhow::Result<Exit> {
    let process = Process::on(bind_or_free(&args.listen).await?)?;
    let running = up::start(process, &as_up(&args)).await?;
    let address = running.process.address()?;
    let shutdown = running.process.shutdown.clone();
    let demo = tokio::spawn(show(
        args,
        running.handler.clone(),
        running.stock.clone(),
        running.search.clone(),
        address,
        shutdown,
    ));
    let exit = serve_with(running, demo).await?;
    Ok(exit)
}

async fn serve_with(mut running: Running, demo: tokio::task::JoinHandle<anyhow::Result<()>>) -> anyhow::Result<Exit> {
    running.process.spawn("demo", async move { demo.await.context("the demo's generator panicked")? });
    running.serve().await
}

/// Fills the catalogue, says what to try, then keeps the stock moving.
async fn show(
    args: DemoArgs,
    handler: command_api::CommandHandler,
    stock: read_models::stock::SharedStock,
    search: std::sync::Arc<read_models::search::SearchReader>,
    address: SocketAddr,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut generator =
        Generator::new(GenerateSettings { seed: args.seed, products: args.products, ..Default::default() });
    output::line(format!("Millrace demo: {} products in {}", args.products, args.demo_data.display()))?;
    let started = Instant::now();
    let commands: Vec<String> = generator.products().collect();
    let mut last = PositionToken::default();
    let (mut accepted, mut repeated) = (0_usize, 0_usize);
    for chunk in commands.chunks(CHUNK) {
        if shutdown.is_cancelled() {
            return Ok(());
        }
        for outcome in give(&handler, chunk).await? {
            match outcome.outcome {
                OutcomeKind::Accepted => accepted += 1,
                OutcomeKind::Rejected => repeated += 1,
                OutcomeKind::Invalid | OutcomeKind::Failed => {
                    bail!("a generated command was not taken: {:?}", outcome.reason.map(|reason| reason.message))
                }
            }
            last.merge(&outcome.position.unwrap_or_default());
        }
    }
    if repeated > 0 {
        tracing::debug!(repeated, "generated commands were refused");
    }
    let visible = tokio::try_join!(stock.wait_for(&last, FIRST_DATA), search.wait_for(&last, FIRST_DATA));
    if shutdown.is_cancelled() {
        return Ok(());
    }
    if !matches!(visible, Ok((true, true))) {
        bail!("the read models did not show the generated data within {} s", FIRST_DATA.as_secs());
    }
    output::line(format!(
        "{accepted} commands accepted and visible in stock and search after {:.1} s (a second start finds them done)\n",
        started.elapsed().as_secs_f64()
    ))?;
    print_addresses(&generator, address, &args)?;
    move_stock(&args, &mut generator, &handler, &shutdown).await
}

fn print_addresses(generator: &Generator, address: SocketAddr, args: &DemoArgs) -> anyhow::Result<()> {
    let base = format!("http://{address}");
    let sample = generator.sample();
    output::line("Try:")?;
    output::line(format!("  curl -s '{base}/v1/stock/{}'", sample.sku))?;
    output::line(format!("  curl -s '{base}/v1/products/{}?region={}'", sample.sku, sample.region))?;
    output::line(format!("  curl -s '{base}/v1/search?q={}&region={}&in_stock=true'", sample.word, sample.region))?;
    output::line(format!("  curl -s '{base}/v1/status'"))?;
    output::line("Give a command, and read your own write with the position that it answers:")?;
    output::line(format!(
        "  curl -s '{base}/v1/commands' -H 'content-type: application/json' -d '{{\"id\":\"{}\",\"type\":\"ReceiveStock\",\"data\":{{\"sku\":\"{}\",\"warehouse\":\"{}\",\"quantity\":5}}}}'",
        uuid::Uuid::new_v4(),
        sample.sku,
        sample.warehouse
    ))?;
    output::line(format!("  curl -s '{base}/v1/stock/{}' -H 'Millrace-Min-Position: <position>'", sample.sku))?;
    output::line(format!(
        "See the events:  millrace tail --data {} --from beginning --limit 5",
        args.demo_data.display()
    ))?;
    if args.rate > 0 {
        output::line(format!(
            "Stock moves {} times a second. Ctrl-C stops it; the next start goes on with this data.",
            args.rate
        ))?;
    }
    Ok(())
}

/// A steady trickle of stock movements, until the end.
async fn move_stock(
    args: &DemoArgs,
    generator: &mut Generator,
    handler: &command_api::CommandHandler,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    if args.rate == 0 {
        shutdown.cancelled().await;
        return Ok(());
    }
    // Seeded by the clock: a second start moves on instead of repeating the first one's commands.
    let mut movements = generator.movements(now() as u64, now());
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / args.rate);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let Some(command) = movements.next() else { return Ok(()) };
        give(handler, std::slice::from_ref(&command)).await?;
    }
}

async fn give(handler: &command_api::CommandHandler, commands: &[String]) -> anyhow::Result<Vec<Outcome>> {
    let commands: Result<Vec<CommandEnvelope>, _> =
        commands.iter().map(|json| CommandEnvelope::from_json(json.as_bytes(), None, now())).collect();
    Ok(handler.handle_all(commands.context("the generator wrote no command")?).await)
}

async fn bind_or_free(listen: &str) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(listen).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let host = listen.rsplit_once(':').map_or("127.0.0.1", |(host, _)| host);
            output::line(format!("{listen} is in use, a free port is taken"))?;
            bind(&format!("{host}:0")).await
        }
        // The same again, for its message.
        Err(_) => bind(listen).await,
    }
}

/// Everything in the demo's directory: no setting of a real store counts here.
fn as_up(args: &DemoArgs) -> UpArgs {
    UpArgs {
        data: DataArgs { data: args.demo_data.clone() },
        event_store: EventStoreArgs { event_store: None, partitions: None },
        event_log: EventLogArgs { event_log: None, schema_registry: None, registry_cache: None },
        stock: StockArgs { stock_store: None },
        search: SearchArgs { search_dir: None },
        intake: IntakeArgs {
            group_commands: 1_000,
            command_queue: 4_096,
            snapshot_every: 100,
            outcome_retention: Duration::from_secs(7 * 24 * 3600),
        },
        command_topics: CommandTopicsArgs { no_command_topics: false },
        relay: RelayBatchArgs { relay_batch: 2_000 },
        projector: ProjectorArgs { projector_batch: 500, parked_keys_limit: 1_000 },
        query: QueryArgs { position_wait: Duration::from_secs(2) },
        listen: args.listen.clone(),
    }
}
