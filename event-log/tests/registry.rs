//! The contract of a schema registry, on every adapter; and what only the one over HTTP can show.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_log::{EmbeddedRegistry, EventLogError, HttpRegistry, SchemaRegistry, connect_registry};
use schemas::SchemaRef;
use schemas::contract::CONTRACTS;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use uuid::Uuid;

const TOPIC: &str = "inventory.events";

fn stock_updated() -> SchemaRef {
    SchemaRef::newest("millrace.inventory.StockUpdated").unwrap()
}

/// What every registry must do, on a topic that nobody else uses.
async fn contract(registry: Arc<dyn SchemaRegistry>, prefix: &str) {
    registry.ping().await.unwrap();
    for contract in CONTRACTS {
        for topic in contract.topics() {
            let topic = format!("{prefix}{topic}");
            assert_eq!(registry.check(&topic, contract).await.unwrap(), Ok(()), "{} on {topic}", contract.schema);
            let id = registry.register(&topic, contract).await.unwrap();
            assert_eq!(registry.register(&topic, contract).await.unwrap(), id, "registering again changes nothing");
            assert_eq!(registry.id_of(&topic, contract.schema).await.unwrap(), id);
            let schema = registry.schema(id).await.unwrap();
            assert_eq!((schema.known(), schema.name()), (Some(contract.schema), contract.schema.name));
        }
    }
    let unknown = registry.schema(987_654).await.unwrap_err();
    assert!(matches!(unknown, EventLogError::UnknownSchemaId { id: 987_654, .. }), "{unknown}");
    assert!(!unknown.is_transient());
}

#[tokio::test]
async fn the_contract_holds_compiled_in() {
    contract(Arc::new(EmbeddedRegistry::default()), "").await;
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn the_contract_holds_over_http() {
    let registry = HttpRegistry::new(&registry_url(), None).unwrap();
    contract(Arc::new(registry), &format!("{}.", Uuid::new_v4())).await;
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn what_is_not_registered_is_said_with_the_remedy_and_nothing_is_registered_by_asking() {
    let registry = HttpRegistry::new(&registry_url(), None).unwrap();
    let topic = format!("{}.{TOPIC}", Uuid::new_v4());
    for _ in 0..2 {
        let missing = registry.id_of(&topic, stock_updated()).await.unwrap_err();
        assert!(matches!(missing, EventLogError::NotRegistered { .. }), "{missing}");
        assert!(missing.to_string().contains("millrace contracts register") && missing.is_transient());
    }
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_schema_that_could_not_read_the_earlier_ones_is_refused() {
    let registry = HttpRegistry::new(&registry_url(), None).unwrap();
    let topic = format!("{}.{TOPIC}", Uuid::new_v4());
    let contract = stock_updated().contract();
    registry.register(&topic, contract).await.unwrap();
    let mut broken = *contract;
    let avsc = contract.avsc.replace("\"fields\": [", "\"fields\": [{\"name\": \"shelf\", \"type\": \"string\"},");
    assert_ne!(avsc, contract.avsc);
    broken.avsc = Box::leak(avsc.into_boxed_str());
    assert!(registry.check(&topic, &broken).await.unwrap().is_err());
    let refused = registry.register(&topic, &broken).await.unwrap_err();
    assert!(matches!(refused, EventLogError::Incompatible { .. }), "{refused}");
}

/// A subject's level goes with the subject, and the registry then takes anything, from anybody.
#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_schema_is_held_against_all_versions_whatever_the_level_at_the_registry() {
    let registry = HttpRegistry::new(&registry_url(), None).unwrap();
    let topic = format!("{}.{TOPIC}", Uuid::new_v4());
    let contract = stock_updated().contract();
    let subject = contract.subject(&topic);
    let ask = async |method: reqwest::Method, path: &str, body: serde_json::Value| {
        let url = format!("{}/{path}", registry_url());
        let request = reqwest::Client::new().request(method, url).header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
        answer.text().await.unwrap()
    };
    let put = reqwest::Method::PUT;
    let config = format!("config/{subject}");
    let none = serde_json::json!({ "compatibility": "NONE" });
    let wrong = r#"{"type":"record","name":"StockUpdated","namespace":"millrace.inventory",
        "fields":[{"name":"sku","type":"long"}]}"#;
    let versions = format!("subjects/{subject}/versions");
    ask(reqwest::Method::POST, &versions, serde_json::json!({ "schema": wrong })).await;
    ask(put.clone(), &config, none.clone()).await;

    let told = registry.check(&topic, contract).await.unwrap().unwrap_err();
    assert!(told.contains("sku") && told.contains("version 1"), "{told}");
    let refused = registry.register(&topic, contract).await.unwrap_err();
    assert!(matches!(refused, EventLogError::Incompatible { .. }) && refused.to_string().contains("sku"), "{refused}");
    assert!(!refused.is_transient());

    // What goes with it is taken, and its level is set again.
    let topic = format!("{}.{TOPIC}", Uuid::new_v4());
    let config = format!("config/{}", contract.subject(&topic));
    registry.register(&topic, contract).await.unwrap();
    ask(put, &config, none).await;
    let told = registry.check(&topic, contract).await.unwrap().unwrap_err();
    assert!(told.contains("NONE"), "{told}");
    registry.register(&topic, contract).await.unwrap();
    assert_eq!(registry.check(&topic, contract).await.unwrap(), Ok(()));
    assert!(ask(reqwest::Method::GET, &config, serde_json::Value::Null).await.contains("BACKWARD_TRANSITIVE"));
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn the_cache_file_answers_while_the_registry_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("schemas.json");
    let url = registry_url();
    let topic = format!("{}.{TOPIC}", Uuid::new_v4());
    let asked = HttpRegistry::new(&url, Some(cache.clone())).unwrap();
    let id = asked.register(&topic, stock_updated().contract()).await.unwrap();
    assert_eq!(asked.id_of(&topic, stock_updated()).await.unwrap(), id);
    // Another process looked up something else, and has the same file.
    let beside = HttpRegistry::new(&url, Some(folder.path().join("another.json"))).unwrap();
    beside.schema(id).await.unwrap();
    std::fs::rename(folder.path().join("another.json"), &cache).unwrap();
    let again = format!("{}.{TOPIC}", Uuid::new_v4());
    asked.register(&again, stock_updated().contract()).await.unwrap();
    asked.id_of(&again, stock_updated()).await.unwrap();
    // Nobody listens at the new address; the file is told that it is of that registry.
    let dead = "http://127.0.0.1:9/apis/ccompat/v7";
    let text = std::fs::read_to_string(&cache).unwrap().replace(url.trim_end_matches('/'), dead);
    std::fs::write(&cache, text).unwrap();
    let away = HttpRegistry::new(dead, Some(cache.clone())).unwrap();
    assert_eq!(away.id_of(&topic, stock_updated()).await.unwrap(), id);
    assert_eq!(away.schema(id).await.unwrap().known(), Some(stock_updated()));
    // Ids of one registry mean nothing at another.
    std::fs::write(&cache, std::fs::read_to_string(&cache).unwrap().replace(dead, "http://elsewhere:1")).unwrap();
    let other = HttpRegistry::new(dead, Some(cache)).unwrap();
    assert!(other.id_of(&topic, stock_updated()).await.unwrap_err().is_transient());
}

#[tokio::test]
async fn an_unreachable_registry_is_named_without_its_password() {
    let registry = HttpRegistry::new("http://user:secret@127.0.0.1:9", None).unwrap();
    let error = registry.ping().await.unwrap_err();
    let told = error.to_string();
    assert!(error.is_transient() && told.contains("127.0.0.1:9") && !told.contains("secret"), "{told}");
}

#[tokio::test]
async fn an_address_that_is_none_is_refused() {
    for bad in ["registry:8081", "ftp://host", "http://", "127.0.0.1:8081"] {
        let error = connect_registry(Some(bad), None).err().unwrap();
        assert!(error.to_string().contains("schema-registry"), "{bad}: {error}");
    }
    assert!(connect_registry(None, None).is_ok());
}

/// Answers every request the same, and closes.
async fn answering(status: &'static str, body: &'static str) -> HttpRegistry {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    answer_on(listener, status, body);
    HttpRegistry::new(&url, None).unwrap()
}

fn answer_on(listener: TcpListener, status: &'static str, body: &'static str) {
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !is_whole(&request) && connection.read_buf(&mut request).await.unwrap() > 0 {}
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            connection.write_all(answer.as_bytes()).await.unwrap();
        }
    });
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

const NO_SCHEMA: &str = r#"{"error_code":40403,"message":"Schema not found"}"#;

#[tokio::test]
async fn a_registry_that_is_away_is_not_waited_for_and_asked_again_when_it_is_back() {
    const DEADLINE: Duration = Duration::from_secs(60);
    // Bound, so that nobody else takes the port, and not listening: connections are refused.
    let away = TcpSocket::new_v4().unwrap();
    away.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = away.local_addr().unwrap();
    let registry = HttpRegistry::new(&format!("http://{address}"), None).unwrap();
    let is_refused = async || match registry.schema(7).await {
        Err(error @ EventLogError::RegistryUnavailable { .. }) => Some(error.to_string().contains("asked again in")),
        Err(EventLogError::UnknownSchemaId { .. }) => None,
        other => panic!("{other:?}"),
    };
    // Twenty in a row fit into the time until one looks again only when nobody waits.
    let (begun, mut refused) = (Instant::now(), 0);
    while refused < 20 {
        assert!(begun.elapsed() < DEADLINE, "a registry that is away is waited for");
        refused = if is_refused().await == Some(true) { refused + 1 } else { 0 };
    }

    answer_on(away.listen(64).unwrap(), "404 Not Found", NO_SCHEMA);
    let begun = Instant::now();
    while is_refused().await.is_some() {
        assert!(begun.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    // That it knows no such schema is an answer.
    for _ in 0..10 {
        assert_eq!(is_refused().await, None);
    }
}

#[tokio::test]
async fn only_the_registry_itself_can_say_that_it_does_not_know_a_schema() {
    const NO_SUBJECT: &str = r#"{"error_code":40401,"message":"Subject not found"}"#;
    let unknown = answering("404 Not Found", NO_SCHEMA).await.schema(7).await.unwrap_err();
    assert!(matches!(unknown, EventLogError::UnknownSchemaId { id: 7, .. }), "{unknown}");
    for body in [NO_SUBJECT, NO_SCHEMA] {
        let missing = answering("404 Not Found", body).await.id_of(TOPIC, stock_updated()).await.unwrap_err();
        assert!(matches!(missing, EventLogError::NotRegistered { .. }), "{missing}");
    }
    let others = [
        ("404 Not Found", "<html>no such page</html>", "address"),
        ("404 Not Found", r#"{"error_code":404,"message":"HTTP 404 Not Found"}"#, "address"),
        ("404 Not Found", NO_SUBJECT, "not one of a registry"),
        ("401 Unauthorized", "", "password"),
        ("403 Forbidden", r#"{"error_code":40301,"message":"denied"}"#, "password"),
        ("400 Bad Request", "<html>bad request</html>", "not as a registry does"),
        ("408 Request Timeout", r#"{"error_code":408,"message":"HTTP 408 Request Timeout"}"#, "408"),
        ("409 Conflict", r#"{"error":"conflict"}"#, "not as a registry does"),
        ("421 Misdirected Request", "", "not as a registry does"),
        ("431 Request Header Fields Too Large", "<html></html>", "not as a registry does"),
        ("200 OK", "<html>please log in</html>", "no JSON"),
        ("200 OK", "{}", "not one of a registry"),
    ];
    let mut asked = tokio::task::JoinSet::new();
    for (status, body, told) in others {
        asked.spawn(async move {
            let error = answering(status, body).await.schema(7).await.unwrap_err();
            assert!(matches!(error, EventLogError::RegistryUnavailable { .. }), "{status} {body}: {error}");
            assert!(error.is_transient() && error.to_string().contains(told), "{status} {body}: {error}");
        });
    }
    while let Some(one) = asked.join_next().await {
        one.unwrap();
    }
}

/// As Confluent's registry answers, and Apicurio's, which has errors without a code or a message.
#[tokio::test]
async fn what_the_registry_itself_refuses_is_refused_for_good() {
    for (status, body, told) in [
        (
            "422 Unprocessable Entity",
            r#"{"error_code":42201,"message":"Invalid schema"}"#,
            "Invalid schema (error 42201)",
        ),
        ("409 Conflict", r#"{"error_code":409,"message":"incompatible"}"#, "incompatible (error 409)"),
        ("400 Bad Request", r#"{"error_code":0,"message":null,"detail":"none"}"#, "400 Bad Request (error 0)"),
    ] {
        let error = answering(status, body).await.id_of(TOPIC, stock_updated()).await.unwrap_err();
        assert!(matches!(error, EventLogError::Refused { .. }), "{status} {body}: {error}");
        assert!(!error.is_transient() && error.to_string().contains(told), "{status} {body}: {error}");
    }
}

fn registry_url() -> String {
    std::env::var("MILLRACE_TEST_REGISTRY").expect("MILLRACE_TEST_REGISTRY is set by make test")
}
