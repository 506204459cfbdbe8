//! Decisions on a read model's generations, from commands to `platform.events`: over HTTP and by command topic, through a
//! real handler, event store, relay and log, all in files, on a log of an earlier release that lacks the topics.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::Request;
use command_api::{CommandHandler, HandlerSettings, TopicIntakeSettings, run_topic_intake};
use event_log::{
    DecodedEvent, EmbeddedRegistry, EventDecoder, EventLog, EventLogError, NewRecord, SqliteEventLog, TopicPartition,
    TopicSpec,
};
use event_store::{EventStore, SqliteEventStore, Topology};
use outbox_relay::{Relay, RelaySettings, topic_specs};
use schemas::codec::decode_outcome;
use schemas::{Event, OutcomeKind, WriterSchema, partition_of};
use serde_json::{Value, json};
use telemetry::Health;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

const TOPOLOGY: Topology = Topology { partitions: 3 };
const NOW: i64 = 1_700_000_000_000;
const DEADLINE: Duration = Duration::from_secs(20);
const CATALOGUE: Uuid = Uuid::from_u128(0x9);

fn hash(of: u8) -> String {
    format!("{of:02x}").repeat(32)
}

/// Data of decision `number`, behind the one whose hash is made of `previous`.
fn decision(number: u8, previous: u8) -> Value {
    json!({
        "projection": "stock", "catalogue_id": CATALOGUE, "number": number, "at": NOW, "who": "ada", "action": "approved",
        "generation": "stock@2", "reason": "it is as it should be", "evidence": "{\"differing\":0}",
        "previous": if number == 1 { String::new() } else { hash(previous) }, "hash": hash(number),
    })
}

/// All roles of the write side on two files.
struct System {
    log: Arc<dyn EventLog>,
    routes: axum::Router,
    shutdown: CancellationToken,
    roles: Vec<tokio::task::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl System {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn EventStore> = Arc::new(SqliteEventStore::open(folder.path().join("events.db")).unwrap());
        store.fix_topology(TOPOLOGY).await.unwrap();
        let log: Arc<dyn EventLog> = Arc::new(SqliteEventLog::open(folder.path().join("log.db")).unwrap());
        let earlier: Vec<TopicSpec> =
            topic_specs(TOPOLOGY).into_iter().filter(|topic| !topic.name.starts_with("platform.")).collect();
        assert_eq!(earlier.len(), 12);
        log.ensure_topics(&earlier).await.unwrap();
        assert!(matches!(log.ends("platform.events").await, Err(EventLogError::UnknownTopic { .. })));

        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let registry = Arc::new(EmbeddedRegistry::default());
        let (handler, _) = CommandHandler::start(store.clone(), TOPOLOGY, HandlerSettings::default(), shutdown.clone());
        let intake = run_topic_intake(
            handler.clone(),
            store.clone(),
            log.clone(),
            registry.clone(),
            TopicIntakeSettings { topology: TOPOLOGY, outcome_retention: Duration::from_secs(3600) },
            health.component("command topics"),
            || NOW,
            shutdown.clone(),
        );
        let settings = RelaySettings::default();
        let relay = Relay::new(store, log.clone(), registry, TOPOLOGY, settings, health.component("relay"));
        let relayed = relay.run(shutdown.clone());
        let roles = vec![
            tokio::spawn(async move { intake.await.unwrap() }),
            tokio::spawn(async move { relayed.await.unwrap() }),
        ];
        Self { log, routes: command_api::http::router(handler, || NOW), shutdown, roles, _folder: folder }
    }

    /// Status and answer of a command over HTTP.
    async fn post(&self, id: u128, command_type: &str, data: Value) -> (u16, Value) {
        let command = json!({ "id": Uuid::from_u128(id), "type": command_type, "data": data });
        let request = Request::post("/v1/commands").header("content-type", "application/json");
        let request = request.body(Body::from(command.to_string())).unwrap();
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn publish(&self, id: u128, data: &Value) {
        let headers = [
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", Uuid::from_u128(id).to_string()),
            ("ce_type", "millrace.platform.commands.RecordDecision".to_owned()),
            ("ce_source", "/test".to_owned()),
            ("content-type", "application/json".to_owned()),
        ];
        let record = NewRecord {
            at: TopicPartition::new("platform.commands", partition_of(b"stock", TOPOLOGY.partitions)),
            key: b"stock".to_vec(),
            headers: headers.into_iter().collect(),
            value: data.to_string().into_bytes(),
            timestamp: NOW,
        };
        self.log.publish(vec![record]).await.unwrap();
    }

    /// The first `count` records of the partition that decisions on stock go to.
    async fn records(&self, topic: &str, count: u64) -> Vec<event_log::Record> {
        let at = TopicPartition::new(topic, partition_of(b"stock", TOPOLOGY.partitions));
        let begun = Instant::now();
        loop {
            let ends = self.log.ends(topic).await.unwrap_or_default();
            if ends.iter().any(|ends| ends.partition == at.partition && ends.next >= count) {
                return self.log.read(&at, 0, count as usize).await.unwrap();
            }
            assert!(begun.elapsed() < DEADLINE, "{topic} never has {count} records");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        for role in self.roles {
            role.await.unwrap();
        }
    }
}

#[tokio::test]
async fn decisions_become_events_in_their_order_whichever_way_they_come() {
    let system = System::start().await;
    let price = json!({ "sku": "stock", "region": "north", "currency": "EUR", "amount_minor": 5 });
    assert_eq!(system.post(90, "SetPrice", price).await.0, 200);
    let (status, first) = system.post(1, "RecordDecision", decision(1, 0)).await;
    assert_eq!((status, first["outcome"].as_str()), (200, Some("accepted")), "{first}");
    assert_eq!(first["stream"], format!("decisions-stock-{CATALOGUE}"));
    let partition = partition_of(b"stock", TOPOLOGY.partitions);
    assert!(first["position"].as_str().unwrap().starts_with(&format!("platform-{partition}-")), "{first}");

    // By topic, as a replay sends them: the next one, one that skips, and one behind a decision that is not recorded.
    system.records("platform.events", 1).await;
    system.publish(2, &decision(2, 1)).await;
    system.publish(3, &decision(4, 3)).await;
    system.publish(4, &decision(3, 9)).await;
    let outcomes: Vec<(OutcomeKind, Option<String>)> = system
        .records("platform.command-outcomes", 3)
        .await
        .iter()
        .map(|record| {
            let schema = schemas::SchemaRef::find("millrace.platform.CommandOutcome", 1).unwrap();
            // Behind the magic byte and the schema's id.
            let outcome = decode_outcome(WriterSchema::of(schema).unwrap(), &record.value[5..]).unwrap();
            (outcome.outcome, outcome.reason_code)
        })
        .collect();
    let rejected = |code: &str| (OutcomeKind::Rejected, Some(code.to_owned()));
    assert_eq!(outcomes, [(OutcomeKind::Accepted, None), rejected("decision_gap"), rejected("decision_chain_broken")]);

    // Given again under another id, long after: accepted, and no event.
    assert_eq!(system.post(5, "RecordDecision", decision(1, 0)).await.0, 200);
    assert_eq!(system.post(6, "RecordDecision", decision(3, 2)).await.0, 200);
    let decoder = EventDecoder::new(Arc::new(EmbeddedRegistry::default()));
    let mut events: Vec<DecodedEvent> = Vec::new();
    for record in system.records("platform.events", 3).await {
        events.push(decoder.decode(&record).await.unwrap());
    }
    for (number, DecodedEvent { envelope, event }) in (1..).zip(&events) {
        let Event::DecisionRecorded(event) = event else { panic!("{event:?}") };
        assert_eq!((event.number, event.hash.as_str()), (number, hash(number as u8).as_str()));
        assert_eq!((event.evidence.as_str(), event.at), ("{\"differing\":0}", NOW));
        assert_eq!((envelope.sequence, envelope.stream_version), (number as u64, number as u64));
        assert_eq!((envelope.partition_key.as_str(), envelope.source.as_str()), ("stock", "/millrace/platform"));
    }
    assert_eq!(system.records("pricing.events", 1).await.len(), 1);
    system.stop().await;
}
