//! The contract suite: what it runs on, and the commands that it appends.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod commands;
pub mod postgres;
pub mod relay;
pub mod streams;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use event_store::{
    AppendBatch, DecidedCommand, EventStore, EventStoreError, LoadRequest, LoadedStream, NewEvent, PostgresEventStore,
    SqliteEventStore, StoredEvent, StreamId, Topology,
};
use schemas::command::SetPrice;
use schemas::event::{DecisionRecorded, PriceSet};
use schemas::{
    Command, Context, Event, Outcome, OutcomeKind, ProjectionId, RegionId, Sku, StorePosition, encode_event,
};
use uuid::Uuid;

/// Longest time that anything in these tests may take.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const PARTITIONS: u32 = 8;

/// Milliseconds since 1970.
pub const NOW: i64 = 1_750_000_000_000;

/// A place for one test's event store.
pub struct Fixture {
    place: Place,
}

enum Place {
    File { path: PathBuf, _folder: tempfile::TempDir },
    Database { url: String, name: String },
    Elsewhere { open: Box<dyn Fn() -> Arc<dyn EventStore> + Send + Sync>, another: fn() -> Fixture },
}

// === impl Fixture ===

impl Fixture {
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { place: Place::File { path: folder.path().join("events.sqlite"), _folder: folder } }
    }

    /// A database of its own.
    pub async fn postgres() -> Self {
        let name = format!("event_store_{}", Uuid::new_v4().simple());
        administer(&format!("CREATE DATABASE {name}")).await;
        let (server, _) = server_url();
        Self { place: Place::Database { url: format!("{server}/{name}"), name } }
    }

    /// A store that is opened in a way of its own; `another` makes a new one.
    pub fn opening(open: impl Fn() -> Arc<dyn EventStore> + Send + Sync + 'static, another: fn() -> Self) -> Self {
        Self { place: Place::Elsewhere { open: Box::new(open), another } }
    }

    /// A place of the same kind.
    pub async fn another(&self) -> Self {
        match &self.place {
            Place::File { .. } => Self::sqlite(),
            Place::Database { .. } => Self::postgres().await,
            Place::Elsewhere { another, .. } => another(),
        }
    }

    pub fn url(&self) -> &str {
        match &self.place {
            Place::Database { url, .. } => url,
            Place::File { .. } | Place::Elsewhere { .. } => panic!("only a database has a URL"),
        }
    }

    /// Opens the store, as one process does.
    pub async fn open(&self) -> Arc<dyn EventStore> {
        match &self.place {
            Place::File { path, .. } => Arc::new(SqliteEventStore::open(path).unwrap()),
            Place::Database { url, .. } => Arc::new(PostgresEventStore::connect(url).await.unwrap()),
            Place::Elsewhere { open, .. } => open(),
        }
    }

    /// Opens the store and fixes its topology.
    pub async fn started(&self) -> Arc<dyn EventStore> {
        let store = self.open().await;
        store.fix_topology(Topology { partitions: PARTITIONS }).await.unwrap();
        store
    }

    /// The store as a process sees it that only reads, and could not write.
    pub async fn reading(&self) -> Arc<dyn EventStore> {
        match &self.place {
            Place::File { path, .. } => {
                let reading = SqliteEventStore::open_read_only(path).unwrap();
                assert!(reading.append(&batch(vec![set_prices("b", 0, &[1])])).await.is_err());
                Arc::new(reading)
            }
            Place::Elsewhere { open, .. } => open(),
            Place::Database { url, .. } => {
                let reading = PostgresEventStore::connect_read_only(url).await.unwrap();
                let refused = reading.append(&batch(vec![set_prices("b", 0, &[1])])).await.unwrap_err().to_string();
                assert!(refused.contains("read-only transaction"), "{refused}");
                Arc::new(reading)
            }
        }
    }

    pub async fn drop_database(self) {
        if let Place::Database { name, .. } = &self.place {
            administer(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
        }
    }

    /// A connection beside the store's.
    pub async fn raw(&self) -> tokio_postgres::Client {
        connect_raw(self.url()).await
    }
}

pub async fn connect_raw(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Address of the test server without a database, and the database to administer it from.
fn server_url() -> (String, String) {
    let url = std::env::var("MILLRACE_TEST_POSTGRES").expect("MILLRACE_TEST_POSTGRES is set by make test");
    let (server, database) = url.rsplit_once('/').expect("postgres://user@host:port/database");
    (server.to_owned(), database.to_owned())
}

async fn administer(sql: &str) {
    let (server, database) = server_url();
    connect_raw(&format!("{server}/{database}")).await.batch_execute(sql).await.unwrap();
}

/// The stream of the price of a SKU in region `north`.
pub fn price_stream(sku: &str) -> StreamId {
    StreamId::of(&price_command(sku))
}

fn price_command(sku: &str) -> Command {
    Command::SetPrice(SetPrice {
        sku: Sku::new(sku).unwrap(),
        region: RegionId::new("north").unwrap(),
        currency: "EUR".to_owned(),
        amount_minor: 1,
    })
}

pub fn price_event(sku: &str, amount: i64) -> Event {
    Event::PriceSet(PriceSet {
        sku: Sku::new(sku).unwrap(),
        region: RegionId::new("north").unwrap(),
        currency: "EUR".to_owned(),
        amount_minor: amount,
    })
}

/// A command that sets one price per amount, on a stream that is at `expected_version`.
pub fn set_prices(sku: &str, expected_version: u64, amounts: &[i64]) -> DecidedCommand {
    let id = Uuid::new_v4();
    let events = amounts.iter().map(|amount| {
        let encoded = encode_event(&price_event(sku, *amount)).unwrap();
        NewEvent {
            id: Uuid::new_v4(),
            context: Context::Pricing,
            key: sku.to_owned(),
            schema: encoded.schema,
            body: encoded.body,
            time: NOW + amount,
            correlation_id: Some(format!("order {amount}")),
            causation_id: Some(id.to_string()),
            actor: None,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        }
    });
    let events: Vec<NewEvent> = events.collect();
    DecidedCommand {
        id,
        digest: [7; 32],
        received_at: NOW,
        stream: price_stream(sku),
        expected_version,
        outcome: Outcome {
            id,
            outcome: OutcomeKind::Accepted,
            position: None,
            stream: Some(price_stream(sku).to_string()),
            version: Some(expected_version + amounts.len() as u64),
            reason: None,
        },
        events,
        claims: Vec::new(),
        timers: Vec::new(),
        snapshot: None,
        publish_outcome_on: None,
        outcome_key: sku.to_owned(),
        command_type: Some("SetPrice".to_owned()),
    }
}

/// Decision `number` on stock, on a stream that has those before it.
pub fn record_decision(number: u64) -> DecidedCommand {
    let hash = |number: u64| format!("{number:064x}");
    let event = Event::DecisionRecorded(DecisionRecorded {
        projection: ProjectionId::new("stock").unwrap(),
        catalogue_id: Uuid::nil(),
        number: number as i64,
        at: NOW,
        who: "ada".to_owned(),
        action: "started".to_owned(),
        generation: "stock@2".to_owned(),
        reason: String::new(),
        evidence: "{}".to_owned(),
        previous: if number == 1 { String::new() } else { hash(number - 1) },
        hash: hash(number),
    });
    let encoded = encode_event(&event).unwrap();
    let mut command = set_prices("stock", number - 1, &[1]);
    command.stream = StreamId::from_stored(format!("decisions-stock-{}", Uuid::nil()));
    let NewEvent { context, schema, body, .. } = &mut command.events[0];
    (*context, *schema, *body) = (event.context(), encoded.schema, encoded.body);
    command
}

/// A refused command: an outcome and no event.
pub fn refused(sku: &str) -> DecidedCommand {
    let mut command = set_prices(sku, 0, &[]);
    command.outcome = Outcome::refused(command.id, OutcomeKind::Rejected, "currency_differs", "EUR, not \u{0} SEK");
    command
}

pub fn batch(commands: Vec<DecidedCommand>) -> AppendBatch {
    AppendBatch { commands, ..AppendBatch::default() }
}

pub async fn load_stream(store: &dyn EventStore, stream: &StreamId) -> LoadedStream {
    let request = LoadRequest { streams: vec![stream.clone()], ..LoadRequest::default() };
    store.load(&request).await.unwrap().streams.remove(stream).unwrap()
}

/// All rows that a relay would publish.
pub async fn committed(store: &dyn EventStore) -> Vec<StoredEvent> {
    let mut rows: Vec<StoredEvent> = Vec::new();
    loop {
        let cursor = rows.last().map_or(StorePosition::default(), |row| row.position);
        let page = store.read_committed(cursor, 1000).await.unwrap();
        if page.is_empty() {
            return rows;
        }
        rows.extend(page);
    }
}

/// Waits until a relay would see that many rows: sessions of other tests hold the same server's horizon.
pub async fn committed_when(store: &dyn EventStore, count: usize) -> Vec<StoredEvent> {
    let waiting = async {
        loop {
            let rows = committed(store).await;
            if rows.len() >= count {
                return rows;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect("the rows are there before the deadline")
}

/// The subject of the conflict that an append must end in.
pub async fn conflict_of(store: &dyn EventStore, batch: &AppendBatch) -> String {
    match store.append(batch).await {
        Err(EventStoreError::Conflict { what }) => what,
        other => panic!("a conflict was expected, not {other:?}"),
    }
}
