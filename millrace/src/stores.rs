//! From settings to connected stores: the one place that picks adapters and their defaults.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use event_log::{EventLog, EventLogError, EventTable, SchemaRegistry};
use event_store::{EventStore, SqliteEventStore, Topology};
use outbox_relay::{ConnectStore, PublishedRows};
use read_models::search::SearchReader;
use read_models::stock::SharedStock;
use tokio_util::sync::CancellationToken;

use crate::address::StoreUrl;
use crate::cli::{DataArgs, EventLogArgs, EventStoreArgs, RegistryArgs, SearchArgs, StockArgs};
use crate::data_dir::DataDir;
use crate::roles::feeding::SearchGenerations;

/// Partitions of an embedded log: enough to fold on two cores at once, few enough to share commits.
const EMBEDDED_PARTITIONS: u32 = 4;
/// Partitions on Kafka: room to spread over machines, since the count is fixed for good.
const KAFKA_PARTITIONS: u32 = 12;

/// Connects stores, and holds the data directory as soon as one of them lives there.
pub struct Connector {
    data: DataArgs,
    held: Option<DataDir>,
}

impl Connector {
    pub fn new(data: DataArgs) -> Self {
        Self { data, held: None }
    }

    /// Keep it as long as the stores are used.
    pub fn into_held(self) -> Option<DataDir> {
        self.held
    }

    fn in_data_dir(&mut self, name: &str) -> anyhow::Result<PathBuf> {
        if self.held.is_none() {
            self.held = Some(DataDir::hold(&self.data.data)?);
        }
        Ok(self.held.as_ref().map(|held| held.join(name)).unwrap_or_default())
    }

    fn url_or(&mut self, url: Option<&StoreUrl>, file: &str) -> anyhow::Result<String> {
        match url {
            Some(url) => Ok(url.expose().to_owned()),
            None => Ok(format!("sqlite:{}", self.in_data_dir(file)?.display())),
        }
    }

    pub async fn event_store(&mut self, args: &EventStoreArgs) -> anyhow::Result<Arc<dyn EventStore>> {
        let url = self.url_or(args.event_store.as_ref(), "events.db")?;
        Ok(event_store::connect_event_store(&url).await?)
    }

    pub async fn event_log(&mut self, args: &EventLogArgs) -> anyhow::Result<Arc<dyn EventLog>> {
        let url = self.url_or(args.event_log.as_ref(), "log.db")?;
        Ok(event_log::connect_event_log_with(&url, args.kafka_replicas).await?)
    }

    /// The log for one that publishes and has to hear of every lost connection: to Kafka a connection of its own. `log`
    /// is that of the others; of a file there can only be one.
    pub async fn event_log_beside(
        &mut self,
        log: &Arc<dyn EventLog>,
        args: &EventLogArgs,
    ) -> anyhow::Result<Arc<dyn EventLog>> {
        if self.url_or(args.event_log.as_ref(), "log.db")?.starts_with("sqlite:") {
            return Ok(Arc::clone(log));
        }
        self.event_log(args).await
    }

    pub async fn stock(&mut self, args: &StockArgs) -> anyhow::Result<SharedStock> {
        let url = self.url_or(args.stock_store.as_ref(), "stock.db")?;
        Ok(read_models::stock::connect_stock(&url).await?)
    }

    fn search_dir(&mut self, args: &SearchArgs) -> anyhow::Result<PathBuf> {
        match &args.search_dir {
            Some(path) => Ok(path.clone()),
            None => self.in_data_dir("search"),
        }
    }

    pub async fn search_generations(&mut self, args: &SearchArgs) -> anyhow::Result<SearchGenerations> {
        let dir = self.search_dir(args)?;
        Ok(SearchGenerations::take(dir).await?)
    }

    /// Waits until the directory is free, or its holder frozen. `None` when the process is stopped meanwhile.
    pub async fn search_generations_when_free(
        &mut self,
        args: &SearchArgs,
        frozen_after: Duration,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<SearchGenerations>> {
        let dir = self.search_dir(args)?;
        Ok(SearchGenerations::take_when_free(dir, frozen_after, shutdown).await?)
    }

    pub async fn search_reader(&mut self, args: &SearchArgs) -> anyhow::Result<Arc<SearchReader>> {
        let dir = self.search_dir(args)?;
        Ok(Arc::new(SearchReader::open(&dir).await?))
    }
}

pub fn registry(args: &RegistryArgs) -> anyhow::Result<Arc<dyn SchemaRegistry>> {
    let url = args.schema_registry.as_ref().map(StoreUrl::expose);
    Ok(event_log::connect_registry(url, args.registry_cache.clone())?)
}

/// The topology: as it was fixed, or as asked for at the first start.
pub async fn topology(
    store: &dyn EventStore,
    log: Option<&dyn EventLog>,
    args: &EventStoreArgs,
    log_args: &EventLogArgs,
) -> anyhow::Result<Topology> {
    if let Some(log) = log
        && store.topology().await?.is_none()
    {
        check_nothing_was_published(store, log).await?;
    }
    if let Some(partitions) = args.partitions {
        return Ok(store.fix_topology(Topology { partitions }).await?);
    }
    if let Some(fixed) = store.topology().await? {
        return Ok(fixed);
    }
    let is_kafka = log_args.event_log.as_ref().is_some_and(|url| url.expose().starts_with("kafka:"));
    let partitions = if is_kafka { KAFKA_PARTITIONS } else { EMBEDDED_PARTITIONS };
    Ok(store.fix_topology(Topology { partitions }).await?)
}

/// An event store that was never set up, beside topics with events, is the wrong one, or what is left of the right one:
/// what it took now would be a second history.
async fn check_nothing_was_published(store: &dyn EventStore, log: &dyn EventLog) -> anyhow::Result<()> {
    for topic in outbox_relay::stamped_topics() {
        match log.ends(topic).await {
            // Another role may have set it up meanwhile.
            Ok(ends) if ends.iter().any(|ends| ends.next > 0) && store.topology().await?.is_none() => anyhow::bail!(
                "the event store is empty, and {topic} has events: check --event-store, --event-log and --data; where the store \
                 is lost, restore it from a backup, then `millrace relay reconcile --restore-from-log` puts back what the topics \
                 have beyond it, or all that they have where there is no backup"
            ),
            Ok(_) | Err(EventLogError::UnknownTopic { .. }) => {}
            // The relay finds it, too.
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "not known whether anything was published before");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A projector without an event store learns the partition count from the topics.
pub async fn partitions_of_log(log: &dyn EventLog) -> Result<u32, EventLogError> {
    let ends = log.ends(schemas::Context::Inventory.events_topic()).await?;
    Ok(ends.len() as u32)
}

/// An event log for reading only: the embedded one may be read beside the process that holds it.
pub async fn event_log_to_read(data: &DataArgs, args: &EventLogArgs) -> anyhow::Result<Arc<dyn EventLog>> {
    match to_read(data, args.event_log.as_ref(), "log.db") {
        Ok(path) => Ok(Arc::new(event_log::SqliteEventLog::open_read_only(&path)?)),
        Err(url) => Ok(event_log::connect_event_log(&url).await?),
    }
}

/// An event store for reading only, as [`event_log_to_read`].
pub async fn event_store_to_read(data: &DataArgs, args: &EventStoreArgs) -> anyhow::Result<Arc<dyn EventStore>> {
    match to_read(data, args.event_store.as_ref(), "events.db") {
        Ok(path) => Ok(Arc::new(SqliteEventStore::open_read_only(&path)?)),
        Err(url) => Ok(event_store::connect_event_store_read_only(&url).await?),
    }
}

/// What was published, of an event store that is open.
pub fn event_table_of(store: &Arc<dyn EventStore>, registry: &Arc<dyn SchemaRegistry>) -> Arc<dyn EventTable> {
    let store = Arc::clone(store);
    let connect: ConnectStore = Box::new(move || Box::pin(std::future::ready(Ok(Arc::clone(&store)))));
    Arc::new(PublishedRows::new(connect, Arc::clone(registry)))
}

/// What was published, of an event store that is connected to, for reading, once somebody needs it.
pub fn event_table_at(url: &StoreUrl, registry: &Arc<dyn SchemaRegistry>) -> Arc<dyn EventTable> {
    let url = url.expose().to_owned();
    let connect: ConnectStore = Box::new(move || {
        let url = url.clone();
        Box::pin(async move { event_store::connect_event_store_read_only(&url).await })
    });
    Arc::new(PublishedRows::new(connect, Arc::clone(registry)))
}

/// A stock store for reading only, as [`event_log_to_read`].
pub async fn stock_to_read(data: &DataArgs, args: &StockArgs) -> anyhow::Result<SharedStock> {
    match to_read(data, args.stock_store.as_ref(), "stock.db") {
        Ok(path) => Ok(Arc::new(read_models::stock::SqliteStock::open_read_only(&path)?)),
        Err(url) => Ok(read_models::stock::connect_stock(&url).await?),
    }
}

/// A stock store to decide on, beside the process that writes its rows. Nothing is made where none is.
pub async fn stock_beside(data: &DataArgs, args: &StockArgs) -> anyhow::Result<SharedStock> {
    let url = match to_read(data, args.stock_store.as_ref(), "stock.db") {
        Ok(path) => {
            let shown = path.display();
            anyhow::ensure!(path.exists(), "there is no stock read model at {shown}; check --data and --stock-store");
            format!("sqlite:{shown}")
        }
        Err(url) => url,
    };
    Ok(read_models::stock::connect_stock(&url).await?)
}

/// A search directory to decide on, as [`stock_beside`].
pub fn search_dir_beside(data: &DataArgs, args: &SearchArgs) -> anyhow::Result<PathBuf> {
    let dir = args.search_dir.clone().unwrap_or_else(|| data.data.join("search"));
    anyhow::ensure!(dir.exists(), "there is no search read model at {}; check --data and --search-dir", dir.display());
    Ok(dir)
}

pub async fn search_to_read(data: &DataArgs, args: &SearchArgs) -> anyhow::Result<Arc<SearchReader>> {
    let dir = args.search_dir.clone().unwrap_or_else(|| data.data.join("search"));
    Ok(Arc::new(SearchReader::open(&dir).await?))
}

/// The file to read, or the address of a server.
fn to_read(data: &DataArgs, url: Option<&StoreUrl>, file: &str) -> Result<PathBuf, String> {
    match url.map(StoreUrl::expose) {
        None => Ok(data.data.join(file)),
        Some(url) => url.strip_prefix("sqlite:").map(PathBuf::from).ok_or_else(|| url.to_owned()),
    }
}
