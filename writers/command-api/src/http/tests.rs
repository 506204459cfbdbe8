//! The routes, over a real handler and store.

use axum::body::to_bytes;
use axum::http::Request;
use event_store::{EventStore, SqliteEventStore, Topology};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::group::ID_REUSED;
use crate::handler::HandlerSettings;

struct Api {
    store: Arc<dyn EventStore>,
    routes: Router,
    _folder: tempfile::TempDir,
}

impl Api {
    async fn new() -> Self {
        Self::with(HandlerSettings::default()).await
    }

    async fn with(settings: HandlerSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn EventStore> = Arc::new(SqliteEventStore::open(folder.path().join("events.db")).unwrap());
        let topology = store.fix_topology(Topology { partitions: 4 }).await.unwrap();
        let (handler, _) = CommandHandler::start(store.clone(), topology, settings, CancellationToken::new());
        Self { store, routes: router(handler, || 1_700_000_000_000), _folder: folder }
    }

    async fn post(&self, content_type: &str, body: impl Into<Body>) -> (StatusCode, String, Vec<Value>) {
        let request = Request::post("/v1/commands").header("content-type", content_type).body(body.into()).unwrap();
        self.send(request).await
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, String, Vec<Value>) {
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let content_type = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        (status, content_type, lines.map(|line| serde_json::from_slice(line).unwrap()).collect())
    }
}

fn receive(number: u128, quantity: i64) -> Value {
    json!({
        "id": Uuid::from_u128(number), "type": "ReceiveStock",
        "data": { "sku": "TEA", "warehouse": "ham-1", "region": "north", "quantity": quantity },
    })
}

#[tokio::test]
async fn a_command_is_answered_with_its_outcome_and_found_by_its_id() {
    let api = Api::new().await;
    let (status, _, answer) = api.post("application/json", receive(1, 5).to_string()).await;
    assert_eq!((status, answer[0]["outcome"].as_str()), (StatusCode::OK, Some("accepted")));
    assert!(answer[0]["position"].as_str().unwrap().starts_with("inventory-"));
    let again = api.post("application/json", receive(1, 5).to_string()).await;
    assert_eq!(again.2, answer);
    let uri = format!("/v1/commands/{}", Uuid::from_u128(1));
    let found = api.send(Request::get(uri).body(Body::empty()).unwrap()).await;
    assert_eq!((found.0, found.2), (StatusCode::OK, answer));
    let unknown = format!("/v1/commands/{}", Uuid::from_u128(2));
    let missing = api.send(Request::get(unknown).body(Body::empty()).unwrap()).await;
    assert_eq!((missing.0, missing.1.as_str()), (StatusCode::NOT_FOUND, "application/problem+json"));
}

#[tokio::test]
async fn what_is_wrong_with_a_command_is_said_in_a_problem() {
    let api = Api::new().await;
    api.post("application/json", receive(1, 5).to_string()).await;
    let reserve = json!({
        "id": Uuid::from_u128(9), "type": "ReserveStock",
        "data": { "sku": "TEA", "warehouse": "ham-1", "quantity": 7, "reservation_id": "r", "expires_at": "2030-01-01T00:00:00Z" },
    });
    let mut unknown_field = receive(3, 1);
    unknown_field["data"]["colour"] = json!("red");
    let mut unknown_type = receive(4, 1);
    unknown_type["type"] = json!("BurnStock");
    let cases = [
        (reserve.to_string(), StatusCode::UNPROCESSABLE_ENTITY, "insufficient_stock", "7 asked, 5 available"),
        ("{\"id\":".to_owned(), StatusCode::BAD_REQUEST, "malformed_command", "EOF"),
        (unknown_field.to_string(), StatusCode::BAD_REQUEST, "invalid_data", "colour"),
        (unknown_type.to_string(), StatusCode::BAD_REQUEST, "unknown_command_type", "BurnStock"),
        (receive(1, 6).to_string(), StatusCode::CONFLICT, ID_REUSED, "new id"),
    ];
    for (body, wanted, code, said) in cases {
        let (status, content_type, answer) = api.post("application/json", body.clone()).await;
        assert_eq!((status, content_type.as_str()), (wanted, "application/problem+json"), "{body}");
        assert_eq!(answer[0]["reason"]["code"], code, "{body}");
        assert!(answer[0]["detail"].as_str().unwrap().contains(said), "{}", answer[0]["detail"]);
        assert_eq!(answer[0]["status"], wanted.as_u16());
    }
}

#[tokio::test]
async fn a_refusal_does_not_repeat_the_whole_of_what_was_sent() {
    let api = Api::new().await;
    let mut body = receive(1, 1);
    body["data"]["x".repeat(60_000)] = json!(1);
    for content_type in ["application/json", "application/x-ndjson"] {
        let answer = api.post(content_type, body.to_string()).await.2;
        let message = answer[0]["reason"]["message"].as_str().unwrap();
        assert!((1_000..1_100).contains(&message.chars().count()), "{} characters", message.len());
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_or_of_another_type_is_refused() {
    let api = Api::new().await;
    let large = api.post("application/json", vec![b' '; MAX_COMMAND_BYTES + 1]).await;
    assert_eq!(large.0, StatusCode::PAYLOAD_TOO_LARGE);
    let other = api.post("text/csv", "a,b").await;
    assert_eq!(other.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(other.2[0]["detail"].as_str().unwrap().contains("text/csv"));
}

#[tokio::test]
async fn bulk_answers_every_line_in_order_and_goes_on_after_a_bad_one() {
    let api = Api::new().await;
    let mut body = String::new();
    for number in 1..=1_200_u128 {
        body += &format!("{}\n", receive(number, 1));
        if number == 600 {
            body += &format!("{{\"broken\n{}\n", "x".repeat(MAX_COMMAND_BYTES + 1));
        }
    }
    let (status, content_type, answers) = api.post("application/x-ndjson", body).await;
    assert_eq!((status, content_type.as_str()), (StatusCode::OK, "application/x-ndjson"));
    assert_eq!(answers.len(), 1_202);
    assert_eq!(answers[599]["version"], 600);
    assert_eq!(answers[600]["outcome"], "invalid");
    assert!(answers[600]["reason"]["message"].as_str().unwrap().starts_with("line 601:"));
    assert_eq!(answers[601]["reason"]["code"], "command_too_large");
    assert_eq!((&answers[602]["version"], &answers[1_201]["version"]), (&json!(601), &json!(1_200)));
}

#[tokio::test]
async fn a_path_that_is_no_text_and_a_wrong_method_are_problems() {
    let api = Api::new().await;
    for (request, wanted) in [
        (Request::get("/v1/commands/%FF"), StatusCode::BAD_REQUEST),
        (Request::delete("/v1/commands/x"), StatusCode::METHOD_NOT_ALLOWED),
        (Request::get("/v1/commands"), StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let (status, content_type, answer) = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!((status, content_type.as_str()), (wanted, "application/problem+json"));
        assert!(!answer[0]["detail"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn commands_wait_while_the_relay_is_too_far_behind_and_go_on_once_it_has_caught_up() {
    let api = Api::with(HandlerSettings { max_relay_lag: Some(10), ..HandlerSettings::default() }).await;
    let lines = |numbers: std::ops::Range<u128>| -> String {
        numbers.map(|number| format!("{}\n", receive(number, 1))).collect()
    };
    // Nobody relays. What is taken before the first look is taken.
    api.post("application/x-ndjson", lines(1..30)).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut number = 1_000;
    let refused = loop {
        number += 1;
        let (status, content_type, answer) = api.post("application/json", receive(number, 1).to_string()).await;
        if status == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(content_type, "application/problem+json");
            break answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "the lag holds nothing");
        tokio::task::yield_now().await;
    };
    assert!(refused[0]["detail"].as_str().unwrap().contains("relay"), "{refused:?}");
    let missing = api.store.outcome(Uuid::from_u128(number)).await.unwrap();
    assert!(missing.is_none(), "a refused command was taken");

    // A bulk body waits, and its lines are decided once the relay has caught up. They are too few to hold what follows.
    let waiting = api.post("application/x-ndjson", lines(100_000..100_005));
    let catching_up = async {
        let lease = api.store.lease_relay().await.unwrap();
        let mut cursor = lease.cursor;
        while let Some(last) = api.store.read_committed(cursor.position, 1_000).await.unwrap().last() {
            cursor.position = last.position;
        }
        assert!(api.store.outcome(Uuid::from_u128(100_000)).await.unwrap().is_none(), "the body did not wait");
        api.store.save_cursor(lease.epoch, &cursor).await.unwrap();
    };
    let ((status, _, answers), ()) = tokio::join!(waiting, catching_up);
    assert_eq!((status, answers.len()), (StatusCode::OK, 5));
    assert!(answers.iter().all(|answer| answer["outcome"] == "accepted"), "{answers:?}");
    let (status, ..) = api.post("application/json", receive(number, 1).to_string()).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn lines_that_waited_for_all_of_their_time_are_overloaded_and_may_come_again() {
    let patience = Duration::from_millis(300);
    let settings = HandlerSettings { max_relay_lag: Some(10), held_patience: patience, ..HandlerSettings::default() };
    let api = Api::with(settings).await;
    let lines: String = (1..30).map(|number| format!("{}\n", receive(number, 1))).collect();
    api.post("application/x-ndjson", lines).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while api.post("application/json", receive(1, 1).to_string()).await.0 != StatusCode::TOO_MANY_REQUESTS {
        assert!(tokio::time::Instant::now() < deadline, "the lag holds nothing");
        tokio::task::yield_now().await;
    }
    let begun = tokio::time::Instant::now();
    let held = format!("{}\nno command\n{}\n", receive(100, 1), receive(101, 1));
    let (status, _, answers) = api.post("application/x-ndjson", held).await;
    assert!(begun.elapsed() >= patience);
    let told: Vec<_> = answers.iter().map(|answer| (&answer["outcome"], &answer["reason"]["code"])).collect();
    let held = (&json!("failed"), &json!("overloaded"));
    assert_eq!((status, told), (StatusCode::OK, vec![held, (&json!("invalid"), &json!("malformed_command")), held]));
    assert_eq!(answers[0]["id"], json!(Uuid::from_u128(100)));
    assert!(api.store.outcome(Uuid::from_u128(100)).await.unwrap().is_none(), "it was taken");
}

#[tokio::test]
async fn a_bulk_body_without_end_ends_with_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn EventStore> = Arc::new(SqliteEventStore::open(folder.path().join("events.db")).unwrap());
    let topology = store.fix_topology(Topology { partitions: 4 }).await.unwrap();
    let shutdown = CancellationToken::new();
    let (handler, running) = CommandHandler::start(store, topology, HandlerSettings::default(), shutdown.clone());
    let routes = router(handler, || 1_700_000_000_000);
    // One line, and then nothing more: the sender stays connected.
    let line = futures::stream::iter([Ok::<_, std::io::Error>(format!("{}\n", receive(1, 1)))]);
    let body = Body::from_stream(futures::StreamExt::chain(line, futures::stream::pending()));
    let request = Request::post("/v1/commands").header("content-type", "application/x-ndjson").body(body).unwrap();
    let answered = async {
        let response = routes.oneshot(request).await.unwrap();
        let mut outcomes = response.into_body().into_data_stream();
        let first = futures::StreamExt::next(&mut outcomes).await.unwrap().unwrap();
        shutdown.cancel();
        running.await.unwrap();
        (first, futures::StreamExt::next(&mut outcomes).await.is_none())
    };
    let (first, has_ended) = tokio::time::timeout(Duration::from_secs(20), answered).await.unwrap();
    assert!(String::from_utf8_lossy(&first).contains("accepted") && has_ended);
}
