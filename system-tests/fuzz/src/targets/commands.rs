//! Commands: JSON over HTTP, alone and in bulk, and records of command topics.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use bytes::Bytes;
use command_api::{CommandHandler, HandlerSettings};
use event_log::frame::frame;
use event_log::{CommandDecoder, DecodeError, EmbeddedRegistry, Headers, Record, TopicPartition};
use event_store::{EventStore, SqliteEventStore, Topology};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use schemas::{CommandEnvelope, SchemaRef, contract};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use super::events::{headers_of, headers_text, record_text, split};
use crate::mutation::{number, one_of, text};
use crate::target::{Target, reads_back, refusal};

const WORDS: &[&str] = &[
    "\"type\":",
    "\"data\":",
    "\"id\":",
    "\"sku\":",
    "\"quantity\":",
    "\"expires_at\":",
    "RegisterProduct",
    "ReviseProduct",
    "ReceiveStock",
    "AdjustStock",
    "CountStock",
    "ReserveStock",
    "ReleaseReservation",
    "ShipReservation",
    "SetPrice",
    "DiscontinueProduct",
    "RecordDecision",
    "\"evidence\":",
    "\"hash\":",
    "millrace.inventory.commands.ReceiveStock",
    "2030-01-01T00:00:00Z",
    "262143-12-31T23:59:60Z",
    "00000000-0000-0000-0000-000000000007",
    "application/avro",
    "application/json",
    "application/x-ndjson",
    "\"tags\":[",
];

/// A command of every type.
fn commands() -> Vec<Value> {
    let data = [
        (
            "RegisterProduct",
            json!({"sku":"TEA","name":"Tea","brand":"B","category_path":["A","B"],"description":"d","pack_size":"500 g","tags":["x"]}),
        ),
        ("ReviseProduct", json!({"sku":"TEA","name":null,"tags":["a","b"],"category_path":["A"]})),
        ("DiscontinueProduct", json!({"sku":"TEA","reason":"gone"})),
        ("ReceiveStock", json!({"sku":"TEA","warehouse":"ham-1","region":"north","quantity":12})),
        ("AdjustStock", json!({"sku":"TEA","warehouse":"ham-1","delta":-3,"reason":"broken"})),
        ("CountStock", json!({"sku":"TEA","warehouse":"ham-1","region":"north","counted":9})),
        (
            "ReserveStock",
            json!({"sku":"TEA","warehouse":"ham-1","reservation_id":"r-1","quantity":2,"expires_at":"2030-01-01T00:00:00Z"}),
        ),
        ("ReleaseReservation", json!({"sku":"TEA","warehouse":"ham-1","reservation_id":"r-1","reason":"no"})),
        ("ShipReservation", json!({"sku":"TEA","warehouse":"ham-1","reservation_id":"r-1"})),
        ("SetPrice", json!({"sku":"TEA","region":"north","currency":"EUR","amount_minor":349})),
        (
            "RecordDecision",
            json!({"projection":"stock","catalogue_id":Uuid::from_u128(9),"number":1,"at":"2030-01-01T00:00:00Z","who":"ada","action":"cut_over","generation":"stock@2","reason":"","evidence":"{}","previous":"","hash":"0f".repeat(32)}),
        ),
    ];
    let command = |(at, (kind, data))| json!({"id": Uuid::from_u128(at as u128 + 7), "type": kind, "data": data, "correlation_id": "c", "actor": "till"});
    data.into_iter().enumerate().map(command).collect()
}

fn lines() -> Vec<Vec<u8>> {
    commands().iter().map(|command| command.to_string().into_bytes()).collect()
}

/// A command with some of its values replaced by hostile ones, so that it comes past the parser.
fn hostile_command(random: &mut ChaCha8Rng) -> Value {
    let mut commands = commands();
    let mut command = commands.swap_remove(random.random_range(0..commands.len()));
    if random.random_range(0..4_u32) == 0 {
        command["id"] = json!(Uuid::from_u128(random.random_range(0..9)));
    }
    for _ in 0..random.random_range(1..3_u32) {
        let hostile = match random.random_range(0..6_u32) {
            0 => json!(number(random)),
            1 => json!(text(random)),
            2 => json!(null),
            3 => json!(vec![text(random); random.random_range(0..40)]),
            4 => json!({ text(random): number(random) }),
            _ => json!(random.random::<f64>() * 1e300),
        };
        let data = command["data"].as_object_mut();
        let keys: Vec<String> = data.map(|data| data.keys().cloned().collect()).unwrap_or_default();
        match keys.get(random.random_range(0..keys.len() + 1)) {
            Some(key) => command["data"][key.as_str()] = hostile,
            None => command[one_of(random, &["actor", "correlation_id", "causation_id", "type", "data"])] = hostile,
        }
    }
    command
}

pub struct CommandJson;

impl Target for CommandJson {
    fn name(&self) -> &'static str {
        "command-json"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        lines()
    }

    fn words(&self) -> &'static [&'static str] {
        WORDS
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        Some(hostile_command(random).to_string().into_bytes())
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        match CommandEnvelope::from_json(input, None, 5) {
            Ok(read) => {
                let mut json = serde_json::to_value(&read.command).map_err(|error| error.to_string())?;
                json["id"] = json!(read.id);
                let again = CommandEnvelope::from_json(json.to_string().as_bytes(), None, 5);
                let again = again.map_err(|error| format!("{json} is refused: {error}"))?;
                reads_back(&read.command, Ok::<_, String>(again.command.clone()))?;
                match again.command.digest() == read.command.digest() {
                    true => Ok(()),
                    false => Err("one command has two digests".to_owned()),
                }
            }
            Err(error) => refusal(error, &["line ", "column ", "field ", "command type"]),
        }
    }
}

/// The routes over a real handler and store. An input is a content type on a line of its own, and a body; or a path.
pub struct CommandApi {
    runtime: Runtime,
    routes: Router,
    _folder: tempfile::TempDir,
}

impl CommandApi {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
        let folder = tempfile::tempdir().expect("a folder is made");
        let routes = runtime.block_on(async {
            let store = SqliteEventStore::open(folder.path().join("events.db")).expect("a store opens");
            let store: Arc<dyn EventStore> = Arc::new(store);
            let topology = store.fix_topology(Topology { partitions: 4 }).await.expect("a new store has no topology");
            let settings = HandlerSettings::default();
            let (handler, _) = CommandHandler::start(store, topology, settings, CancellationToken::new());
            command_api::http::router(handler, || 1_700_000_000_000)
        });
        Self { runtime, routes, _folder: folder }
    }
}

impl Target for CommandApi {
    fn name(&self) -> &'static str {
        "command-api"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let one = lines().into_iter().map(|line| [b"application/json\n".as_slice(), &line].concat());
        let bulk = [b"application/x-ndjson\n".to_vec(), lines().join(&b'\n')].concat();
        let path = |path: &str| path.as_bytes().to_vec();
        one.chain([bulk, path("/v1/commands/00000000-0000-0000-0000-000000000007"), path("/v1/commands/%C3%A9")])
            .collect()
    }

    fn words(&self) -> &'static [&'static str] {
        WORDS
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        let kind = one_of(random, &["application/json", "application/x-ndjson; charset=utf-8"]);
        let lines = (0..random.random_range(1..4_u32)).map(|_| hostile_command(random).to_string()).collect::<Vec<_>>();
        Some(format!("{kind}\n{}", lines.join("\n")).into_bytes())
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let (first, body) = match input.iter().position(|byte| *byte == b'\n') {
            Some(end) => (&input[..end], &input[end + 1..]),
            None => (input, &input[..0]),
        };
        let request = if first.starts_with(b"/") {
            Request::get(String::from_utf8_lossy(first).as_ref()).body(Body::empty())
        } else {
            Request::post("/v1/commands").header("content-type", first).body(Body::from(body.to_vec()))
        };
        // What is no HTTP request does not come so far.
        let Ok(request) = request else { return Ok(()) };
        let has_route = has_route(request.uri().path(), &["/v1/commands", "/v1/commands/"]);
        self.runtime.block_on(async {
            let response = self.routes.clone().oneshot(request).await.map_err(|error| error.to_string())?;
            match response.status().as_u16() {
                404 if !has_route => Ok(()),
                _ => well_answered(response).await,
            }
        })
    }
}

/// Whether a path is one of `known`; one with a slash at its end takes one more segment. What has no route is answered by
/// the process, which is not here.
pub fn has_route(path: &str, known: &[&str]) -> bool {
    known.iter().any(|known| match known.ends_with('/') {
        true => path.strip_prefix(known).is_some_and(|rest| !rest.is_empty() && !rest.contains('/')),
        false => path == *known,
    })
}

/// An answer has a status that is meant, and an error is a problem document that says what was wrong.
pub async fn well_answered(response: axum::response::Response) -> Result<(), String> {
    let status = response.status().as_u16();
    let kind =
        response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
    let body = to_bytes(response.into_body(), usize::MAX).await.map_err(|error| error.to_string())?;
    match status {
        200 if kind == "application/x-ndjson" => {
            for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let outcome: schemas::Outcome =
                    serde_json::from_slice(line).map_err(|error| format!("outcome: {error}"))?;
                if outcome.reason.is_some_and(|reason| reason.message.is_empty()) {
                    return Err("an outcome without a reason".to_owned());
                }
            }
            Ok(())
        }
        200 | 304 => Ok(()),
        400..=499 => {
            let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
            let detail = problem["detail"].as_str().unwrap_or_default();
            if kind != "application/problem+json" || detail.is_empty() || problem["status"] != status {
                return Err(format!("{status} as {kind:?}: {}", String::from_utf8_lossy(&body[..body.len().min(300)])));
            }
            match detail.len() > 16_000 {
                true => Err(format!("the refusal has {} bytes", detail.len())),
                false => Ok(()),
            }
        }
        other => Err(format!("status {other}: {}", String::from_utf8_lossy(&body[..body.len().min(300)]))),
    }
}

/// A record of a command topic: header lines, a blank line, the value.
pub struct CommandRecord {
    runtime: Runtime,
    decoder: CommandDecoder,
}

impl CommandRecord {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
        Self { runtime, decoder: CommandDecoder::new(Arc::new(EmbeddedRegistry::default())) }
    }
}

fn command_headers(kind: &str, content_type: &str) -> Headers {
    headers_of(&[
        ("ce_specversion", "1.0"),
        ("ce_id", "00000000-0000-0000-0000-000000000007"),
        ("ce_type", kind),
        ("ce_source", "/till-7"),
        ("ce_correlationid", "basket-1"),
        ("content-type", content_type),
    ])
}

impl Target for CommandRecord {
    fn name(&self) -> &'static str {
        "command-record"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let json = commands().into_iter().map(|command| {
            let kind = command["type"].as_str().unwrap_or_default().to_owned();
            record_text(&command_headers(&kind, "application/json"), command["data"].to_string().as_bytes())
        });
        // sku, warehouse, null region, quantity 12; and sku, region, currency, amount.
        let avro = [
            (
                "millrace.inventory.commands.ReceiveStock",
                [b"\x06TEA".as_slice(), b"\x0aham-1", b"\x00", b"\x18"].concat(),
            ),
            ("millrace.pricing.commands.SetPrice", [b"\x06TEA".as_slice(), b"\x0anorth", b"\x06EUR", b"\x18"].concat()),
            (
                "millrace.catalogue.commands.RegisterProduct",
                [b"\x06TEA".as_slice(), b"\x06Tea", b"\x00", b"\x02\x02A\x00", b"\x00\x00", b"\x00"].concat(),
            ),
        ];
        let avro = avro.into_iter().filter_map(|(name, body)| {
            let id = contract::embedded_id(SchemaRef::newest(name)?);
            Some(record_text(&command_headers(name, "application/avro"), &frame(id, &body)))
        });
        json.chain(avro).collect()
    }

    fn words(&self) -> &'static [&'static str] {
        WORDS
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        let command = hostile_command(random);
        let kind = command["type"].as_str().unwrap_or_default();
        Some(record_text(&command_headers(kind, "application/json"), command["data"].to_string().as_bytes()))
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let (headers, value) = split(input);
        debug_assert!(headers_text(&headers).len() <= input.len() * 4 + 16);
        let record = Record {
            at: TopicPartition::new("inventory.commands", 0),
            offset: 3,
            key: Bytes::from_static(b"TEA"),
            headers,
            value: Bytes::copy_from_slice(value),
            timestamp: 0,
        };
        match self.runtime.block_on(self.decoder.decode(&record, 5)) {
            Ok(envelope) => envelope.check().map_err(|error| format!("taken and wrong: {error}")),
            Err(error) if error.is_transient() => Err(format!("waits for ever: {error}")),
            Err(error @ DecodeError::Envelope(_)) => refusal(error, &["header"]),
            Err(error) => refusal(error, &[]),
        }
    }
}
