//! Commands while Postgres is away: refused at once, taken again soon after it is back, and done once.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use command_api::{CommandHandler, HandlerSettings};
use event_store::{EventStore, PostgresEventStore, Topology};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

/// A database of its own: its server and its name.
async fn own_database() -> (String, String) {
    let url = std::env::var("MILLRACE_TEST_POSTGRES").expect("MILLRACE_TEST_POSTGRES is set by make test");
    let name = format!("store_away_{}", Uuid::new_v4().simple());
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    (url.rsplit_once('/').unwrap().0.to_owned(), name)
}

/// A way to the server that is closed by ending its task: then its port refuses.
async fn way(server: &str, port: u16) -> (u16, JoinHandle<()>) {
    let server = server.to_owned();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(&server).await.unwrap();
            connections.spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, open)
}

fn receive(number: u128) -> String {
    let data = json!({ "sku": "TEA", "warehouse": "ham-1", "region": "north", "quantity": 1 });
    json!({ "id": Uuid::from_u128(number), "type": "ReceiveStock", "data": data }).to_string()
}

/// Status, Retry-After and the lines of the body.
async fn send(routes: &Router, request: Request<Body>) -> (StatusCode, Option<u64>, Vec<Value>) {
    let response = routes.clone().oneshot(request).await.unwrap();
    let retry_after = response.headers().get(header::RETRY_AFTER);
    let (status, retry_after) =
        (response.status(), retry_after.map(|seconds| seconds.to_str().unwrap().parse().unwrap()));
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (status, retry_after, lines.map(|line| serde_json::from_slice(line).unwrap()).collect())
}

fn post(content_type: &str, body: String) -> Request<Body> {
    Request::post("/v1/commands").header("content-type", content_type).body(body.into()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs servers: run make test"]
async fn commands_are_refused_at_once_while_postgres_is_away_and_taken_soon_after() {
    let (server, database) = own_database().await;
    let (credentials, address) = server.split_once('@').unwrap();
    let (port, open) = way(address, 0).await;
    let url = format!("{credentials}@127.0.0.1:{port}/{database}");
    let store: Arc<dyn EventStore> = Arc::new(PostgresEventStore::connect(&url).await.unwrap());
    let topology = store.fix_topology(Topology { partitions: 4 }).await.unwrap();
    let settings = HandlerSettings { retry_for: Duration::from_secs(1), ..HandlerSettings::default() };
    let (handler, _) = CommandHandler::start(Arc::clone(&store), topology, settings, CancellationToken::new());
    let routes = command_api::http::router(handler, || 1_700_000_000_000);
    let single = async |number| send(&routes, post("application/json", receive(number))).await;
    assert_eq!(single(1).await.0, StatusCode::OK);

    open.abort();
    let _ = open.await;
    let begun = Instant::now();
    while store.refusal().is_none_or(|open| open.retry_after < Duration::from_secs(1)) {
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(single(2).await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
    let begun = Instant::now();
    for number in 100..120 {
        let (status, retry_after, answer) = single(number).await;
        assert_eq!((status, &answer[0]["outcome"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("failed")));
        assert!(retry_after.is_some_and(|seconds| (1..=2).contains(&seconds)), "{retry_after:?}");
    }
    let lines = format!("{}\n{}\n", receive(200), receive(201));
    let (_, _, outcomes) = send(&routes, post("application/x-ndjson", lines)).await;
    let told = outcomes.iter().map(|outcome| (&outcome["outcome"], &outcome["reason"]["code"]));
    assert_eq!(told.collect::<Vec<_>>(), [(&json!("failed"), &json!("not_decided")); 2]);
    let looked_up = Request::get(format!("/v1/commands/{}", Uuid::from_u128(1))).body(Body::empty()).unwrap();
    let (status, retry_after, _) = send(&routes, looked_up).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && retry_after.is_some());
    // Had they waited for the store, each would have taken a second.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    let (_, _open) = way(address, port).await;
    let begun = Instant::now();
    while single(2).await.0 != StatusCode::OK {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        tokio::task::yield_now().await;
    }
    // Each of the refused has its one effect now.
    let mut versions = vec![single(1).await.2[0]["version"].as_u64(), single(2).await.2[0]["version"].as_u64()];
    for number in (100..120).chain(200..202) {
        versions.push(single(number).await.2[0]["version"].as_u64());
    }
    assert_eq!(versions, (1..=24).map(Some).collect::<Vec<_>>());
}
