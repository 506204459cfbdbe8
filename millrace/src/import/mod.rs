//! `millrace import products`: what a customer has, as commands.
//!
//! Two readings of the file. The first checks every row and finds the last good row of each SKU; the second sends
//! those rows, in batches of which several are under way at once. Every bad row is written down with its line and its
//! reason, and costs nothing but itself. Command ids come from the file's digest and the rows: the same file again
//! changes nothing, and another file takes effect even where an earlier one said the same (a price that goes up and
//! down again).

pub mod args;
mod batch;
mod csv_rows;
pub mod decimal;
mod delivery;
mod duplicates;
pub mod field_map;
mod lines;
mod ndjson_rows;
pub mod product_row;
pub mod record;
mod report;
pub mod rows;
mod target;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use command_api::{CommandHandler, HandlerSettings};
use futures::StreamExt;
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use args::{ImportArgs, ImportWhat, ProductsArgs};

use crate::data_dir::DataDir;
use crate::exit::Exit;
use crate::output;
use crate::stores::{self, Connector};
use args::PriceUnit;
use batch::{Batch, Settled};
use delivery::Delivery;
use duplicates::LastRows;
use field_map::FieldMap;
use product_row::{ProductRow, RowSettings};
use report::{Rejects, Summary};
use rows::SourceFile;
use target::{CommandApi, Target};

/// Batches under way at once: enough to fill the writer's groups while answers travel.
const BATCHES_UNDER_WAY: usize = 4;
/// Batches read ahead.
const BATCHES_AHEAD: usize = 4;
/// How long the first contact may take. Later ones have `--retry-for`: a server that was there comes back.
const FIRST_CONTACT: Duration = Duration::from_secs(5);

pub async fn run(args: ImportArgs) -> anyhow::Result<Exit> {
    match args.what {
        ImportWhat::Products(args) => products(*args).await,
    }
}

async fn products(args: ProductsArgs) -> anyhow::Result<Exit> {
    let rejects_file = args.rejects_file();
    if rejects_file == args.file {
        eprintln!("millrace: --rejects {} is the file to import; name another", rejects_file.display());
        return Ok(Exit::Usage);
    }
    let source = SourceFile::of(&args);
    if !source.is_regular()? {
        eprintln!(
            "millrace: {} is read more than once, so a regular file is needed: no pipe, no directory; write it to a file first",
            args.file.display()
        );
        return Ok(Exit::Usage);
    }
    let columns = blocking({
        let source = source.clone();
        move || source.columns()
    })
    .await?;
    let map = match FieldMap::find(&args.map, &args.sku_from, &columns) {
        Ok(map) => map,
        Err(error) => {
            eprintln!("millrace: {}: {error}", args.file.display());
            return Ok(Exit::Usage);
        }
    };
    let started = Instant::now();
    let stamp = source.stamp()?;
    let delivery = match args.delivery.clone() {
        Some(name) => name,
        None => {
            let source = source.clone();
            blocking(move || source.digest()).await?
        }
    };
    let settings = Arc::new(RowSettings {
        map,
        price_decimals: match args.price_unit {
            PriceUnit::Major => decimal::minor_decimals(&args.currency),
            PriceUnit::Minor => 0,
        },
        currency: args.currency.clone(),
        region: args.region.clone(),
        warehouse: args.warehouse.clone(),
        delivery,
    });

    let (last_rows, rows) = first_reading(&args, &source, &settings).await?;
    let mut way = if args.dry_run { None } else { Some(Way::open(&args).await?) };
    let mut import = Import {
        summary: Summary { dry_run: args.dry_run, ..Summary::default() },
        rejects: Rejects::new(rejects_file),
        bar: report::progress_bar(rows),
    };
    let batches = second_reading(&source, &settings, last_rows);
    let sent = import.send(batches, way.as_ref().map(|way| Arc::clone(&way.delivery)), &settings).await;
    if let Some(way) = way.take() {
        way.close().await;
    }
    import.bar.finish_and_clear();
    let rejects_file = import.rejects.finish()?;
    import.summary.finish(started.elapsed(), rejects_file);
    if sent.is_err() || args.json {
        // What went in before an error is worth knowing, too.
        if args.json {
            output::json(&import.summary)?;
        }
    } else {
        import.summary.print(&mut std::io::stdout().lock())?;
    }
    sent?;
    if source.stamp()? != stamp {
        bail!("{} changed while it was read; import it again", args.file.display());
    }
    Ok(if import.summary.rejected > 0 { Exit::Failed } else { Exit::Done })
}

/// Finds the last good row of each SKU, and counts the rows.
async fn first_reading(
    args: &ProductsArgs,
    source: &SourceFile,
    settings: &Arc<RowSettings>,
) -> anyhow::Result<(LastRows, u64)> {
    let bar = report::spinner(format!("reading {}", args.file.display()));
    let (source, settings) = (source.clone(), Arc::clone(settings));
    blocking(move || {
        let mut rows = source.rows()?;
        let mut last_rows = LastRows::default();
        let mut count = 0;
        while let Some(record) = rows.next_record()? {
            if let Ok(cells) = &record.cells
                && let Ok(row) = ProductRow::read(cells, &settings)
            {
                last_rows.note(&row.product.sku, count, row.content());
            }
            count += 1;
            if count % 1_000 == 0 {
                bar.tick();
            }
        }
        bar.finish_and_clear();
        Ok((last_rows, count))
    })
    .await
}

/// Reads the rows again, as batches, a little ahead of their sending.
fn second_reading(
    source: &SourceFile,
    settings: &Arc<RowSettings>,
    last_rows: LastRows,
) -> mpsc::Receiver<anyhow::Result<Batch>> {
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    let (source, settings) = (source.clone(), Arc::clone(settings));
    tokio::task::spawn_blocking(move || {
        // A receiver that is gone has given up: nobody waits for the rest.
        if let Err(error) =
            batch::read_batches(&source, &settings, &last_rows, |batch| sender.blocking_send(Ok(batch)).is_ok())
        {
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("reading the file panicked")?
}

/// An import under way.
struct Import {
    summary: Summary,
    rejects: Rejects,
    bar: ProgressBar,
}

// === impl Import ===

impl Import {
    /// Sends batch after batch, the first ones alone, and counts what becomes of their rows in the file's order.
    async fn send(
        &mut self,
        batches: mpsc::Receiver<anyhow::Result<Batch>>,
        delivery: Option<Arc<Delivery>>,
        settings: &Arc<RowSettings>,
    ) -> anyhow::Result<()> {
        let mut batches = batches;
        while delivery.as_ref().is_some_and(|delivery| !delivery.knows_its_beginning()) {
            let Some(batch) = batches.recv().await else { return Ok(()) };
            let settled = batch::settle(batch?, delivery.clone(), settings).await?;
            self.count(settled)?;
        }
        let read =
            futures::stream::unfold(batches, |mut batches| async move { Some((batches.recv().await?, batches)) });
        let mut settled = std::pin::pin!(
            read.map(|batch| {
                let (delivery, settings) = (delivery.clone(), Arc::clone(settings));
                async move {
                    let settling = tokio::spawn(async move { batch::settle(batch?, delivery, &settings).await });
                    settling.await.context("a batch panicked")?
                }
            })
            .buffered(BATCHES_UNDER_WAY)
        );
        while let Some(settled) = settled.next().await {
            self.count(settled?)?;
        }
        Ok(())
    }

    fn count(&mut self, settled: Settled) -> anyhow::Result<()> {
        for reject in &settled.rejects {
            self.rejects.write(reject)?;
        }
        self.rejects.flush()?;
        settled.add_to(&mut self.summary);
        self.bar.inc(settled.rows);
        self.bar.set_message(format!("{} rejected", self.summary.rejected));
        Ok(())
    }
}

/// The way that commands take, and what has to be closed behind them.
struct Way {
    delivery: Arc<Delivery>,
    direct: Option<Direct>,
}

/// A command handler of our own.
struct Direct {
    shutdown: CancellationToken,
    handler: tokio::task::JoinHandle<()>,
    _held: Option<DataDir>,
}

// === impl Way ===

impl Way {
    async fn open(args: &ProductsArgs) -> anyhow::Result<Self> {
        let (target, direct) = match &args.to {
            Some(url) => (Target::Http(CommandApi::new(url)?), None),
            None => {
                let (target, direct) = Direct::open(args).await?;
                (target, Some(direct))
            }
        };
        let contact = Delivery::new(target.clone(), FIRST_CONTACT.min(args.retry_for));
        contact.contact().await.context("nothing was imported")?;
        Ok(Self { delivery: Arc::new(Delivery::new(target, args.retry_for)), direct })
    }

    async fn close(self) {
        let Self { delivery, direct } = self;
        drop(delivery);
        if let Some(direct) = direct {
            direct.shutdown.cancel();
            if let Err(error) = direct.handler.await {
                tracing::warn!(%error, "the command handler ended badly");
            }
        }
    }
}

// === impl Direct ===

impl Direct {
    async fn open(args: &ProductsArgs) -> anyhow::Result<(Target, Self)> {
        let mut connector = Connector::new(args.data.clone());
        let store = connector.event_store(&args.event_store).await?;
        // It publishes nothing, and needs no log: one that is there may say that this store is not the right one.
        let log = stores::event_log_to_read(&args.data, &args.event_log).await.ok();
        // As at the start of a role: whoever comes first fixes it for all.
        let topology = stores::topology(store.as_ref(), log.as_deref(), &args.event_store, &args.event_log).await?;
        let shutdown = CancellationToken::new();
        let settings = HandlerSettings::default();
        let (commands, handler) = CommandHandler::start(store, topology, settings, shutdown.clone());
        Ok((Target::Direct(commands), Self { shutdown, handler, _held: connector.into_held() }))
    }
}
