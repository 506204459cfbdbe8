//! `millrace demo`: the whole pipeline in this process, on generated groceries, with addresses to try.
//!
//! The generated commands go through the same HTTP route, handler, relay and projectors as anybody's.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, FromArgMatches};
use read_models::ReadChoice;
use schemas::{CommandEnvelope, Outcome, OutcomeKind, PositionToken};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{DemoArgs, UpArgs};
use crate::exit::Exit;
use crate::generate::{GenerateSettings, Generator};
use crate::output;
use crate::roles::up::{self, Running};
use crate::roles::{Process, bind, now};

/// Commands given at once while the catalogue is filled.
const CHUNK: usize = 500;
/// Shortest time between two looks at what is due.
const TICK: Duration = Duration::from_millis(10);
/// Groups of movements under way at once.
const GIVEN_AT_ONCE: usize = 64;
/// How long the first data may take to show.
const FIRST_DATA: Duration = Duration::from_secs(60);

pub async fn run(args: DemoArgs) -> anyhow::Result<Exit> {
    let up_args = as_up(&args)?;
    let ownership = crate::replay::ownership(&up_args.ownership)?;
    let process = Process::on(bind_or_free(&args.listen).await?)?;
    let running = up::start(process, &up_args, ownership).await?;
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
    let settings = GenerateSettings { seed: args.seed, products: args.products, ..Default::default() };
    let drawn = tokio::select! {
        drawn = tokio::task::spawn_blocking(move || Generator::new(settings)) => drawn,
        () = shutdown.cancelled() => return Ok(()),
    };
    let generator = drawn.context("the generator panicked")?;
    output::notice(format!("Millrace demo: {} products in {}", args.products, args.demo_data.display()));
    let started = Instant::now();
    let mut last = PositionToken::default();
    let (mut accepted, mut repeated) = (0_usize, 0_usize);
    let mut commands = generator.products();
    loop {
        let chunk: Vec<String> = commands.by_ref().take(CHUNK).collect();
        if chunk.is_empty() {
            break;
        }
        let outcomes = give(&handler, &chunk).await;
        // A handler that is told to stop fails what it has not begun: no fault of the demo.
        if shutdown.is_cancelled() {
            return Ok(());
        }
        for outcome in outcomes? {
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
    drop(commands);
    if repeated > 0 {
        tracing::debug!(repeated, "generated commands were refused");
    }
    let unchosen = ReadChoice::default();
    let shown = async {
        tokio::try_join!(stock.wait_for(&last, &unchosen, FIRST_DATA), search.wait_for(&last, &unchosen, FIRST_DATA),)
    };
    let visible = tokio::select! {
        visible = shown => visible,
        () = shutdown.cancelled() => return Ok(()),
    };
    if !matches!(visible, Ok((true, true))) {
        bail!("the read models did not show the generated data within {} s", FIRST_DATA.as_secs());
    }
    output::notice(format!(
        "{accepted} commands accepted and visible in stock and search after {:.1} s (a second start finds them done)\n",
        started.elapsed().as_secs_f64()
    ));
    print_addresses(&generator, address, &args);
    move_stock(&args, &generator, &handler, &shutdown).await
}

fn print_addresses(generator: &Generator, address: SocketAddr, args: &DemoArgs) {
    let base = format!("http://{address}");
    let sample = generator.sample();
    output::notice("Try:");
    output::notice(format!("  curl -s '{base}/v1/stock/{}'", sample.sku));
    output::notice(format!("  curl -s '{base}/v1/products/{}?region={}'", sample.sku, sample.region));
    output::notice(format!("  curl -s '{base}/v1/search?q={}&region={}&in_stock=true'", sample.word, sample.region));
    output::notice(format!("  curl -s '{base}/v1/status'"));
    output::notice("Give a command, and read your own write with the position that it answers:");
    output::notice(format!(
        "  curl -s '{base}/v1/commands' -H 'content-type: application/json' -d '{{\"id\":\"{}\",\"type\":\"ReceiveStock\",\"data\":{{\"sku\":\"{}\",\"warehouse\":\"{}\",\"quantity\":5}}}}'",
        uuid::Uuid::new_v4(),
        sample.sku,
        sample.warehouse
    ));
    output::notice(format!("  curl -s '{base}/v1/stock/{}' -H 'Millrace-Min-Position: <position>'", sample.sku));
    output::notice(format!(
        "See the events:  millrace tail --data {} --from beginning --limit 5",
        args.demo_data.display()
    ));
    if args.rate > 0 {
        output::notice(format!(
            "Stock moves {} times a second. Ctrl-C stops it; the next start goes on with this data.",
            args.rate
        ));
    }
}

/// A steady trickle of stock movements, until the end. Several at once, so that the rate holds whatever a commit takes.
async fn move_stock(
    args: &DemoArgs,
    generator: &Generator,
    handler: &command_api::CommandHandler,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    if args.rate == 0 {
        shutdown.cancelled().await;
        return Ok(());
    }
    // Seeded by the clock: a second start moves on instead of repeating the first one's commands.
    let mut movements = generator.movements(now() as u64, now());
    let mut pace = Pace::new(args.rate);
    let mut ticks = tokio::time::interval(TICK.max(Duration::from_secs(1) / args.rate));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let started = tokio::time::Instant::now();
    let mut given = JoinSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Some(joined) = given.join_next() => {
                joined.context("giving a movement panicked")??;
                continue;
            }
            () = shutdown.cancelled() => return Ok(()),
        }
        if given.len() >= GIVEN_AT_ONCE {
            continue;
        }
        let due: Vec<String> = movements.by_ref().take(pace.due(started.elapsed())).collect();
        if !due.is_empty() {
            let handler = handler.clone();
            given.spawn(async move { give(&handler, &due).await.map(drop) });
        }
    }
}

/// How many movements are due at a rate.
struct Pace {
    rate: u32,
    given: u64,
}

// === impl Pace ===

impl Pace {
    fn new(rate: u32) -> Self {
        Self { rate, given: 0 }
    }

    /// What is due at `elapsed` and was not given yet. What a machine cannot keep up with is left out after a second:
    /// it would only pile up.
    fn due(&mut self, elapsed: Duration) -> usize {
        let in_all = u64::try_from(elapsed.as_nanos() * u128::from(self.rate) / 1_000_000_000).unwrap_or(u64::MAX);
        let due = in_all.saturating_sub(self.given).min(u64::from(self.rate));
        self.given = in_all;
        due as usize
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
            output::notice(format!("{listen} is in use, a free port is taken"));
            bind(&format!("{host}:0")).await
        }
        // The same again, for its message.
        Err(_) => bind(listen).await,
    }
}

/// `up` with its defaults, in the demo's directory: no setting of a real store counts here.
fn as_up(args: &DemoArgs) -> anyhow::Result<UpArgs> {
    let mut up = UpArgs::from_arg_matches(&unset_up().try_get_matches_from(["up"])?)?;
    up.data.data.clone_from(&args.demo_data);
    up.listen.clone_from(&args.listen);
    Ok(up)
}

/// `up` without what the environment sets.
fn unset_up() -> clap::Command {
    UpArgs::augment_args(clap::Command::new("up")).mut_args(|argument| argument.env(None::<&'static str>))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;

    #[test]
    fn the_demo_is_up_without_any_setting_but_its_own() {
        let parsed = |command: &str| {
            let line = ["millrace", command, "--data", "here", "--listen", "127.0.0.1:1"];
            crate::settings::parse_with(&line.map(Into::into), None).unwrap().command
        };
        let (Command::Demo(demo), Command::Up(up)) = (parsed("demo"), parsed("up")) else { panic!("others") };
        assert_eq!(format!("{:?}", as_up(&demo).unwrap()), format!("{up:?}"));
        assert!(unset_up().get_arguments().all(|argument| argument.get_env().is_none()));
    }

    #[test]
    fn a_pace_holds_its_rate_and_leaves_out_what_is_too_late() {
        for rate in [1, 3, 50, 10_000] {
            let mut pace = Pace::new(rate);
            let given: usize = (1..=1_000).map(|tick| pace.due(Duration::from_millis(tick * 10))).sum();
            assert_eq!(given, rate as usize * 10);
            assert_eq!(pace.due(Duration::from_secs(10)), 0);
            assert_eq!(pace.due(Duration::from_secs(1_000)), rate as usize);
        }
    }
}
