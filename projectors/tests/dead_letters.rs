//! Fault 11 and invariant P4, whole: poison parks its key in order, the others go on, and after a fixed projector is
//! there a redrive brings the key level, though events came meanwhile. Log, read model and routes in one process.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use event_log::frame::frame;
use event_log::{
    EmbeddedRegistry, EventEnvelope, EventLog, Headers, NewRecord, SqliteEventLog, TopicPartition, TopicSpec,
};
use projectors::dead_letters::http::{DeadLettersApi, ProjectionLetters, router};
use projectors::{
    DeadLetterMirror, Facts, FoldError, Projection, ProjectorSettings, Role, StockProjection, run_projector,
};
use read_models::generations::GenerationEntry;
use read_models::stock::{SharedStock, StockAnswer, StockKey, StockReadModel, StockRow, connect_stock};
use read_models::{
    DeadLetterAction, DeadLetterAnswer, DeadLetterOutcome, DeadLetterRequest, Generation, PartitionRef, ReadChoice,
    ReadModelStatus,
};
use schemas::contract::embedded_id;
use schemas::event::{StockChange, StockUpdated};
use schemas::{Context, Event, RegionId, Sku, StorePosition, WarehouseId, encode_event};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(60);
/// The count that the broken projector cannot fold.
const POISON: i64 = 13;

/// Stock that takes each version once, in order, so that nothing folded out of order can stay unseen.
struct Strict<const BROKEN: bool>;

impl<const BROKEN: bool> Projection for Strict<BROKEN> {
    type Key = StockKey;
    type Row = StockRow;

    const NAME: &'static str = "stock";
    const FOLDS: &'static [u32] = &[1];
    const CURRENT_FOLD: u32 = 1;
    const CONTEXTS: &'static [Context] = &[Context::Inventory];

    fn key(event: &Event) -> Option<StockKey> {
        StockProjection::key(event)
    }

    fn project(fold: u32, row: Option<&StockRow>, event: &Event, facts: Facts) -> Result<Option<StockRow>, FoldError> {
        let (version, last) = (facts.version, row.map_or(0, |row| row.version));
        if version != last + 1 {
            let rule = "a version follows the one before it";
            return Err(FoldError::Impossible { field: "version", value: version as i64, rule });
        }
        match StockProjection::project(fold, row, event, facts)? {
            Some(row) if BROKEN && row.on_hand == POISON => {
                Err(FoldError::Impossible { field: "on_hand", value: POISON, rule: "this build is broken" })
            }
            folded => Ok(folded),
        }
    }
}

struct Fixture {
    log: Arc<dyn EventLog>,
    stock: SharedStock,
    routes: Router,
    sequence: u64,
    _folder: tempfile::TempDir,
}

struct Running {
    shutdown: CancellationToken,
    projector: tokio::task::JoinHandle<()>,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
        let topics = [Context::Inventory.events_topic(), Context::Inventory.dead_letters_topic()];
        let topics = topics.map(|name| TopicSpec { name: name.to_owned(), partitions: 1 });
        log.ensure_topics(&topics).await.unwrap();
        let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
        let registry = Arc::new(EmbeddedRegistry::default());
        let of = stock.clone();
        let projections = vec![ProjectionLetters {
            name: "stock",
            generations: stock.clone(),
            of: Box::new(move |number| of.of_generation(number)),
        }];
        let routes = router(DeadLettersApi { projections, registry, now: || 1_700_000_000_000 });
        Self { log, stock, routes, sequence: 0, _folder: folder }
    }

    fn run<P: Projection<Key = StockKey, Row = StockRow>>(&self) -> Running {
        self.run_as::<P>(1, watch::channel(Role::Serving).1)
    }

    fn run_as<P>(&self, generation: u32, role: watch::Receiver<Role>) -> Running
    where
        P: Projection<Key = StockKey, Row = StockRow>,
    {
        let shutdown = CancellationToken::new();
        let settings = ProjectorSettings {
            group: format!("test-{generation}"),
            generation,
            role,
            partitions: 1,
            // Queues are worked off beside small batches.
            batch: 3,
            dead_letter_mirror: Some(DeadLetterMirror::new(self.log.clone())),
            ..ProjectorSettings::default()
        };
        let projector = run_projector::<P, dyn StockReadModel>(
            self.stock.of_generation(generation),
            self.log.clone(),
            Arc::new(EmbeddedRegistry::default()),
            settings,
            telemetry::Health::default().component("projector"),
            shutdown.clone(),
        );
        Running { shutdown, projector: tokio::spawn(async move { projector.await.unwrap() }) }
    }

    /// Publishes the next event of the log.
    async fn publish(&mut self, sku: &str, version: u64, on_hand: i64) {
        self.publish_as(sku, version, on_hand, |_| {}).await;
    }

    async fn publish_as(&mut self, sku: &str, version: u64, on_hand: i64, change: impl Fn(&mut NewRecord)) {
        self.sequence += 1;
        let event = Event::StockUpdated(StockUpdated {
            sku: Sku::new(sku).unwrap(),
            warehouse: WarehouseId::new("w").unwrap(),
            region: RegionId::new("eu").unwrap(),
            change: StockChange::Counted,
            quantity: on_hand,
            on_hand,
            reserved: 0,
            reservation_id: None,
            expires_at: None,
            reason: None,
        });
        let encoded = encode_event(&event).unwrap();
        let envelope = EventEnvelope {
            id: Uuid::from_u128(self.sequence.into()),
            source: "/millrace/inventory".to_owned(),
            event_type: encoded.schema.name.to_owned(),
            time: 1_700_000_000_000,
            subject: format!("stock-{sku}@w"),
            partition_key: sku.to_owned(),
            sequence: self.sequence,
            stream_version: version,
            position: StorePosition { xid: 0, position: self.sequence },
            correlation_id: None,
            causation_id: None,
            traceparent: None,
        };
        let mut record = NewRecord {
            at: TopicPartition::new(Context::Inventory.events_topic(), 0),
            key: sku.as_bytes().to_vec(),
            headers: envelope.to_headers(),
            value: frame(embedded_id(encoded.schema), &encoded.body),
            timestamp: 0,
        };
        change(&mut record);
        self.log.publish(vec![record]).await.unwrap();
    }

    /// Something that is no event of ours.
    async fn publish_foreign(&self) {
        let record = NewRecord {
            at: TopicPartition::new(Context::Inventory.events_topic(), 0),
            key: Vec::new(),
            headers: Headers::default(),
            value: b"hello".to_vec(),
            timestamp: 0,
        };
        self.log.publish(vec![record]).await.unwrap();
    }

    async fn stock(&self, sku: &str) -> StockAnswer {
        self.stock.stock(&[Sku::new(sku).unwrap()], &ReadChoice::default()).await.unwrap().answers.remove(0)
    }

    /// Writes the second generation into the catalogue.
    async fn add_second(&self) {
        let found = self.stock.catalogue().await.unwrap();
        let mut to = found.clone();
        let second = Generation { name: "stock".to_owned(), number: 2, fold_version: 1, partitions: 1 };
        to.generations.insert(2, GenerationEntry::fed(&second));
        let (to, decisions) = found.decided(to, Vec::new());
        self.stock.change(&to, &decisions).await.unwrap();
    }

    /// Waits until so many events are parked in a generation.
    async fn parked(&self, generation: u32, events: u64) {
        let begun = Instant::now();
        let store = self.stock.of_generation(generation);
        loop {
            let status = store.status().await;
            let is_so = |status: &ReadModelStatus| {
                status.partitions[0].checkpoint.sequence == self.sequence
                    && status.partitions[0].parked_events == events
            };
            if status.as_ref().is_ok_and(is_so) {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "stock@{generation}: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until everything that was published is applied or parked.
    async fn level(&self) {
        let begun = Instant::now();
        loop {
            if let Ok(status) = self.stock.status().await
                && status.partitions[0].checkpoint.sequence == self.sequence
                && status.partitions[0].live
            {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "not level with {}: {:?}", self.sequence, self.stock.status().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn mirrored(&self, count: usize) -> Vec<event_log::Record> {
        let begun = Instant::now();
        let at = TopicPartition::new(Context::Inventory.dead_letters_topic(), 0);
        loop {
            let found = self.log.read(&at, 0, 100).await.unwrap();
            if found.len() >= count {
                return found;
            }
            assert!(begun.elapsed() < DEADLINE, "{} of {count} are mirrored", found.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Has keys folded anew from all of their events.
    async fn refold(&self, keys: &[&str]) -> DeadLetterAnswer {
        let at = PartitionRef { context: Context::Inventory, partition: 0 };
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let (id, key) = (Uuid::new_v4(), keys[0].clone());
        let action = DeadLetterAction::Refold { keys };
        let request = DeadLetterRequest { id, key, action, by: None, note: None, requested_at: 0 };
        self.stock.request_dead_letter(at, &request).await.unwrap();
        let begun = Instant::now();
        loop {
            let answers = self.stock.dead_letter_answers(at, 9).await.unwrap();
            if let Some(answer) = answers.into_iter().find(|answer| answer.request.id == id) {
                return answer;
            }
            assert!(begun.elapsed() < DEADLINE, "nobody answers");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ask(&self, request: axum::http::request::Builder, body: Value) -> (u16, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = request.header("content-type", "application/json").body(body).unwrap();
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.ask(Request::get(path), Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Request::post(path), body).await
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.projector).await.unwrap().unwrap();
    }
}

fn row(answer: &StockAnswer) -> (i64, u64) {
    (answer.warehouses[0].1.on_hand, answer.warehouses[0].1.version)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_fixed_projector_is_deployed_a_redrive_brings_the_key_level_in_order() {
    let mut system = Fixture::new().await;
    system.publish("A", 1, 1).await;
    system.publish("A", 2, POISON).await;
    system.publish("B", 1, 7).await;
    system.publish("A", 3, 3).await;
    system.publish("A", 4, 4).await;
    let broken = system.run::<Strict<true>>();
    system.level().await;

    // The key is at its last good state and says so; the other one goes on.
    let (a, b) = (system.stock("A").await, system.stock("B").await);
    assert_eq!((row(&a), a.parked, row(&b), b.parked), ((1, 1), true, (7, 1), false));
    let (status, list) = system.get("/v1/dead-letters").await;
    assert_eq!((status, list["keys"].as_array().unwrap().len()), (200, 1), "{list}");
    let told = &list["keys"][0];
    assert_eq!(
        (&told["projection"], &told["key"], &told["partition"]),
        (&json!("stock"), &json!("A"), &json!("inventory.events/0"))
    );
    assert_eq!((&told["events"], &told["first_sequence"]), (&json!(3), &json!(2)));
    assert!(told["first_reason"].as_str().unwrap().contains("this build is broken"), "{told}");
    let (status, queue) = system.get("/v1/dead-letters/stock/A").await;
    let shown: Vec<_> = queue["events"].as_array().unwrap().iter().map(|event| &event["event"]["on_hand"]).collect();
    assert_eq!((status, shown), (200, vec![&json!(13), &json!(3), &json!(4)]));

    // Outside monitoring sees them as they came, with the reason.
    let mirrored = system.mirrored(3).await;
    assert_eq!(mirrored[0].headers.get("ce_sequence"), Some("00000000000000000002"));
    assert!(mirrored[0].headers.get("millrace-dead-letter-reason").unwrap().contains("broken"));
    assert_eq!(mirrored[2].headers.get("millrace-dead-letter-projection"), Some("stock"));
    assert_eq!(mirrored[0].key, "A");

    // While nothing is mended a redrive leaves everything where it is, and says why.
    let (status, asked) = system.post("/v1/dead-letters/stock/A/redrive?wait=true", json!({"by": "ann"})).await;
    let answer = &asked["requests"][0];
    assert_eq!((status, &answer["state"], &answer["left"]), (200, &json!("failed"), &json!(3)), "{asked}");
    assert!(answer["message"].as_str().unwrap().contains("sequence 2 "), "{answer}");
    assert_eq!(row(&system.stock("A").await), (1, 1));
    system.publish("A", 5, 5).await;
    system.level().await;
    broken.stop().await;

    // More comes while the fixed one is not there yet, and while it redrives.
    system.publish("A", 6, 6).await;
    let fixed = system.run::<Strict<false>>();
    let routes = system.routes.clone();
    let redriven = tokio::spawn(async move {
        let request = Request::post("/v1/dead-letters/stock/A/redrive?wait=true").body(Body::empty()).unwrap();
        let response = routes.oneshot(request).await.unwrap();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()
    });
    let mut version = 6;
    while !redriven.is_finished() {
        version += 1;
        system.publish("A", version, version as i64 * 100).await;
    }
    let asked = redriven.await.unwrap();
    let answer = &asked["requests"][0];
    assert_eq!((&answer["state"], &answer["left"]), (&json!("done"), &json!(0)), "{asked}");
    assert!(answer["resolved"].as_u64().unwrap() >= 4, "{answer}");
    version += 1;
    system.publish("A", version, 42).await;
    system.level().await;
    let a = system.stock("A").await;
    assert_eq!((row(&a), a.parked), ((42, version), false));
    assert_eq!(system.get("/v1/dead-letters").await.1, json!({"keys": []}));
    // Its history is still told.
    let (_, queue) = system.get("/v1/dead-letters/stock/A").await;
    let states: Vec<_> = queue["history"]["requests"].as_array().unwrap().iter().map(|one| &one["state"]).collect();
    assert_eq!(states, [&json!("done"), &json!("failed")]);
    assert_eq!(queue["history"]["requests"][1]["by"], "ann");
    fixed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_will_never_be_read_is_discarded_with_a_reason_and_the_rest_redriven() {
    let mut system = Fixture::new().await;
    system.publish_foreign().await;
    system.publish("A", 1, 1).await;
    system.publish_as("A", 2, 2, |record| record.value.truncate(7)).await;
    system.publish("A", 3, 3).await;
    system.publish("A", 4, 4).await;
    let running = system.run::<StockProjection>();
    system.level().await;
    let (_, first) = system.get("/v1/dead-letters?limit=1").await;
    assert_eq!((first["keys"][0]["key"].as_str(), first["keys"].as_array().unwrap().len()), (Some("!foreign"), 1));
    let next = first["next"].as_str().unwrap();
    let (_, second) = system.get(&format!("/v1/dead-letters?limit=1&after={next}")).await;
    assert_eq!((second["keys"][0]["key"].as_str(), second["next"].as_str()), (Some("A"), None), "{second}");
    let (_, queue) = system.get("/v1/dead-letters/stock/A?limit=2").await;
    assert_eq!((queue["events"].as_array().unwrap().len(), &queue["more"]), (2, &json!(true)));
    let letter = &queue["events"][0];
    assert!(letter["event"].is_null() && letter["error"].is_string(), "{letter}");
    assert_eq!((letter["value_hex"].as_str().unwrap().len(), &letter["value_bytes"]), (14, &json!(7)));

    for (path, body, status) in [
        ("/v1/dead-letters/stock/A/discard", json!({}), 422),
        ("/v1/dead-letters/stock/A/discard", json!({"reason": "  "}), 422),
        ("/v1/dead-letters/stock/A/discard", json!({"raison": "x"}), 422),
        ("/v1/dead-letters/stock/B/discard", json!({"reason": "x"}), 404),
        ("/v1/dead-letters/stock/B/redrive", json!({}), 404),
        ("/v1/dead-letters/prices/A/redrive", json!({}), 404),
    ] {
        let (found, problem) = system.post(path, body).await;
        assert_eq!((found, &problem["status"]), (status, &json!(status)), "{path}: {problem}");
    }
    assert_eq!(system.get("/v1/dead-letters/stock/B").await.0, 404);
    assert_eq!(system.get("/v1/dead-letters?after=x").await.0, 400);

    // Its answer was lost, so it is asked for twice while nobody is there to do it.
    running.stop().await;
    let body = json!({"reason": "cut off by a bad disk", "by": "ann", "first": true});
    for _ in 0..2 {
        let (status, asked) = system.post("/v1/dead-letters/stock/A/discard", body.clone()).await;
        assert_eq!(status, 202, "{asked}");
    }
    let running = system.run::<StockProjection>();
    let at = PartitionRef { context: Context::Inventory, partition: 0 };
    let begun = Instant::now();
    let answers = loop {
        let answers = system.stock.dead_letter_answers(at, 9).await.unwrap();
        if answers.len() == 2 {
            break answers;
        }
        assert!(begun.elapsed() < DEADLINE, "{answers:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let mut told: Vec<(u64, u64)> = answers.iter().map(|answer| (answer.resolved, answer.left)).collect();
    told.sort_unstable();
    assert_eq!(told, [(0, 2), (1, 2)]);
    assert_eq!(row(&system.stock("A").await), (1, 1));
    let (_, asked) = system.post("/v1/dead-letters/stock/A/redrive?wait=true", Value::Null).await;
    assert_eq!((&asked["requests"][0]["state"], &asked["requests"][0]["resolved"]), (&json!("done"), &json!(2)));
    let a = system.stock("A").await;
    assert_eq!((row(&a), a.parked), ((4, 4), false));
    system.publish("A", 5, 5).await;
    system.level().await;
    assert_eq!(row(&system.stock("A").await), (5, 5));
    let (_, queue) = system.get("/v1/dead-letters/stock/A").await;
    let discarded = &queue["history"]["discarded"];
    assert_eq!((discarded.as_array().unwrap().len(), &discarded[0]["reason"]), (1, &json!("cut off by a bad disk")));
    assert_eq!((&discarded[0]["by"], &discarded[0]["letter"]["sequence"]), (&json!("ann"), &json!(2)));

    // Records that are nobody's have no place in the order.
    let (_, asked) = system.post("/v1/dead-letters/stock/!foreign/redrive?wait=true", json!({})).await;
    assert_eq!(asked["requests"][0]["state"], "failed", "{asked}");
    let (_, asked) = system.post("/v1/dead-letters/stock/!foreign/discard?wait=true", json!({"reason": "noise"})).await;
    assert_eq!((&asked["requests"][0]["state"], &asked["requests"][0]["left"]), (&json!("done"), &json!(0)));
    assert_eq!(system.get("/v1/dead-letters").await.1, json!({"keys": []}));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_generation_that_serves_mirrors_what_it_parks() {
    let mut system = Fixture::new().await;
    system.publish("A", 1, 1).await;
    system.publish("A", 2, 13).await;
    system.publish("A", 3, 3).await;
    let (role, shadow_role) = watch::channel(Role::Shadow);
    let shadow = system.run_as::<Strict<true>>(2, shadow_role);
    let serving = system.run::<Strict<true>>();
    let second = system.stock.of_generation(2);
    system.parked(2, 2).await;
    assert_eq!(system.mirrored(2).await.len(), 2);
    let at = PartitionRef { context: Context::Inventory, partition: 0 };
    assert_eq!(second.mirrored(at).await.unwrap(), None, "a replay has no effect outside (invariant R3)");
    // It was its role alone that held it back.
    role.send(Role::Serving).unwrap();
    assert_eq!(system.mirrored(4).await.len(), 4);
    serving.stop().await;
    shadow.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_of_a_projection_is_done_in_every_generation_that_is_fed() {
    let mut system = Fixture::new().await;
    system.publish("A", 1, 1).await;
    system.publish("A", 2, POISON).await;
    system.publish("A", 3, 3).await;
    // What is begun first serves.
    let serving = system.run::<Strict<true>>();
    system.parked(1, 2).await;
    let running = [serving, system.run_as::<Strict<true>>(2, watch::channel(Role::Shadow).1)];
    system.parked(2, 2).await;
    system.add_second().await;

    let reason = json!({"reason": "a count of a broken scale", "first": true});
    let (status, asked) = system.post("/v1/dead-letters/stock/A/discard?wait=true", reason).await;
    let told = |asked: &Value| -> Vec<(Value, Value, Value)> {
        let requests = asked["requests"].as_array().unwrap().iter();
        requests.map(|asked| (asked["generation"].clone(), asked["state"].clone(), asked["resolved"].clone())).collect()
    };
    let done = |generation: u32| (json!(generation), json!("done"), json!(1));
    assert_eq!((status, told(&asked)), (200, vec![done(1), done(2)]), "{asked}");
    // One of them can be asked for, and shown.
    let (_, page) = system.get("/v1/dead-letters?projection=stock@2").await;
    assert_eq!((&page["keys"][0]["projection"], &page["keys"][0]["events"]), (&json!("stock@2"), &json!(1)), "{page}");
    let (_, page) = system.get("/v1/dead-letters/stock@2/A").await;
    assert_eq!(page["history"]["discarded"].as_array().unwrap().len(), 1, "{page}");
    for unknown in ["stock@9/A", "stock@x/A", "stok/A"] {
        assert_eq!(system.get(&format!("/v1/dead-letters/{unknown}")).await.0, 404, "{unknown}");
    }
    for running in running {
        running.stop().await;
    }

    // The fold is mended, and takes versions as they come.
    let running =
        [system.run::<StockProjection>(), system.run_as::<StockProjection>(2, watch::channel(Role::Shadow).1)];
    let (status, asked) = system.post("/v1/dead-letters/stock/A/redrive?wait=true", Value::Null).await;
    assert_eq!((status, told(&asked)), (200, vec![done(1), done(2)]), "{asked}");
    for generation in [1, 2] {
        system.parked(generation, 0).await;
    }
    for running in running {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discard_takes_nothing_out_of_another_generation_that_nobody_looked_at() {
    let mut system = Fixture::new().await;
    system.publish("A", 1, 1).await;
    system.publish("A", 2, POISON).await;
    // What serves could fold all of it but the last, which it has no place for.
    system.publish("A", 4, 4).await;
    // What is begun first serves.
    let serving = system.run::<Strict<false>>();
    system.parked(1, 1).await;
    let running = [serving, system.run_as::<Strict<true>>(2, watch::channel(Role::Shadow).1)];
    system.parked(2, 2).await;
    system.add_second().await;
    // Of what waits in the other one alone, nobody has seen anything either.
    system.publish("B", 1, POISON).await;
    system.parked(2, 3).await;
    let (status, asked) = system.post("/v1/dead-letters/stock/B/discard", json!({"reason": "lost"})).await;
    assert_eq!((status, &asked["title"]), (404, &json!("No dead letter")), "{asked}");

    let (_, asked) = system.post("/v1/dead-letters/stock/A/discard?wait=true", json!({"reason": "lost"})).await;
    let requests = asked["requests"].as_array().unwrap();
    assert_eq!((requests.len(), &requests[0]["generation"]), (1, &json!(1)), "{asked}");
    system.parked(1, 0).await;
    system.parked(2, 3).await;
    for running in running {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_folded_anew_is_left_out_and_named_and_the_others_are_folded() {
    let mut system = Fixture::new().await;
    for (sku, version, on_hand) in [("A", 1, 1), ("B", 1, 1), ("A", 2, POISON), ("B", 2, 2), ("C", 1, 3)] {
        system.publish(sku, version, on_hand).await;
    }
    // Folded by a build that can, and then folded anew by one that cannot.
    let running = system.run::<Strict<false>>();
    system.level().await;
    running.stop().await;
    let running = system.run::<Strict<true>>();
    system.level().await;
    let answer = system.refold(&["A", "B", "C", "D"]).await;
    assert_eq!((answer.outcome, answer.resolved, answer.left), (DeadLetterOutcome::Failed, 2, 1), "{answer:?}");
    assert!(answer.message.starts_with("2 rows folded anew from 3 events; event "), "{}", answer.message);
    assert!(answer.message.contains("of A (sequence 3) cannot be folded"), "{}", answer.message);
    assert!(answer.message.ends_with("the log has no event of 1 keys, whose rows stay"), "{}", answer.message);
    assert_eq!((row(&system.stock("A").await), row(&system.stock("B").await)), ((POISON, 2), (2, 2)));

    // One that is parked is left out, too.
    system.publish("C", 2, POISON).await;
    system.parked(1, 1).await;
    let answer = system.refold(&["B", "C"]).await;
    assert_eq!((answer.outcome, answer.resolved, answer.left), (DeadLetterOutcome::Failed, 1, 1), "{answer:?}");
    assert!(answer.message.contains("events of C are parked"), "{}", answer.message);
    let answer = system.refold(&["B"]).await;
    assert_eq!((answer.outcome, answer.resolved, answer.left), (DeadLetterOutcome::Done, 1, 0), "{answer:?}");
    running.stop().await;
}
