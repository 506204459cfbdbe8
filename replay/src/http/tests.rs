use axum::body::{Body as HttpBody, to_bytes};
use axum::http::Request;
use read_models::Generation;
use read_models::search::SearchReader;
use read_models::stock::{SharedStock, connect_stock};
use serde_json::Value;
use tower::ServiceExt;

use super::*;
use crate::ownership::Ownership;

struct Given {
    router: Router,
    stock: SharedStock,
    _folder: tempfile::TempDir,
}

/// A stock store whose first generation serves.
async fn given() -> Given {
    let folder = tempfile::tempdir().unwrap();
    let stock = connect_stock(&format!("sqlite:{}", folder.path().join("stock.db").display())).await.unwrap();
    let first = Generation { name: "stock".to_owned(), number: 1, fold_version: 1, partitions: 2 };
    stock.of_generation(1).prepare(&first).await.unwrap();
    let ownership = Arc::new(Ownership::embedded().unwrap());
    let search = SearchReader::open(folder.path().join("search")).await.unwrap();
    let replayed = vec![Replayed::stock(stock.clone(), Arc::clone(&ownership)), Replayed::search(search, ownership)];
    let api = ReplaysApi { replayed, log: None, now: || 1_800_000_000_000 };
    Given { router: router(api), stock, _folder: folder }
}

impl Given {
    async fn asked(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { HttpBody::empty() } else { HttpBody::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.asked("GET", path, Value::Null).await
    }
}

#[tokio::test]
async fn a_replay_is_started_seen_refused_and_given_up() {
    let given = given().await;
    let started = given.asked("POST", "/v1/replays", json!({ "read_model": "stock", "by": "ann", "fold": 1 })).await;
    assert_eq!((started.0, &started.1["generation"]), (201, &json!("stock@2")), "{started:?}");
    let (status, seen) = given.get("/v1/replays/stock").await;
    assert_eq!((status, &seen["generation"], &seen["role"]), (200, &json!("stock@2"), &json!("beside")));
    assert_eq!(seen["replay"]["started_by"], "ann");
    let (_, listed) = given.get("/v1/replays").await;
    assert_eq!(listed["read_models"][0]["generations"].as_array().unwrap().len(), 2);
    assert_eq!((&listed["read_models"][0]["serving"], &listed["problems"]), (&json!("stock@1"), &json!([])));

    let (status, refused) = given.asked("POST", "/v1/replays/stock@2/cutover", json!({ "by": "ann" })).await;
    assert_eq!((status, &refused["title"]), (409, &json!("Refused")));
    let codes: Vec<&str> =
        refused["missing"].as_array().unwrap().iter().map(|missing| missing["code"].as_str().unwrap()).collect();
    assert!(codes.contains(&"no_parity") && codes.contains(&"rebuilding"), "{codes:?}");
    let (status, refused) = given.asked("POST", "/v1/replays/stock@2/approve", json!({ "by": "ann" })).await;
    assert_eq!((status, &refused["missing"][0]["code"]), (409, &json!("self_approved")));

    let (status, _) = given.asked("POST", "/v1/replays/stock@2/abort", json!({ "by": "ann", "reason": "r" })).await;
    assert_eq!(status, 200);
    let (_, history) = given.get("/v1/replays/history").await;
    let of_stock = &history["read_models"][0];
    let actions: Vec<&str> =
        of_stock["decisions"].as_array().unwrap().iter().map(|decision| decision["action"].as_str().unwrap()).collect();
    assert_eq!((actions, &of_stock["tampered"]), (vec!["started", "aborted"], &json!([])));
}

#[tokio::test]
async fn what_cannot_be_taken_says_why() {
    let given = given().await;
    for (body, why) in [
        (json!({ "read_model": "stock" }), "name the person"),
        (json!({ "by": "ann" }), "read_model"),
        (json!({ "read_model": "stock@2", "by": "ann", "fold": 1 }), "names a generation"),
        (json!({ "read_model": "stock", "by": "ann", "until": "yesterday" }), "position token"),
        (json!({ "read_model": "stock", "by": "ann", "plan": { "stage": [] } }), "at least one"),
    ] {
        let (status, problem) = given.asked("POST", "/v1/replays", body.clone()).await;
        assert_eq!(status, 422, "{body} {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
    let (_, history) = given.get("/v1/replays/history?projection=stock").await;
    assert_eq!(history["read_models"][0]["decisions"], json!([]), "nothing is begun");
    for path in ["/v1/replays/stock", "/v1/replays/stock@7", "/v1/replays/orders@1"] {
        let (status, problem) = given.get(path).await;
        assert_eq!((status, &problem["title"]), (404, &json!("Unknown generation")), "{path}");
    }
    let unknown = given.asked("POST", "/v1/replays", json!({ "read_model": "stock", "by": "ann", "fold": 99 })).await;
    assert_eq!((unknown.0, &unknown.1["missing"][0]["code"]), (409, &json!("unknown_fold")));
}

#[tokio::test]
async fn the_history_comes_in_pages() {
    let given = given().await;
    for _ in 0..2 {
        let start = json!({ "read_model": "stock", "by": "ann", "fold": 1 });
        assert_eq!(given.asked("POST", "/v1/replays", start).await.0, 201);
        let (status, _) = given.asked("POST", "/v1/replays/stock/abort", json!({ "by": "ann" })).await;
        assert_eq!(status, 200);
    }
    let page = async |query: &str| {
        let (status, history) = given.get(&format!("/v1/replays/history?projection=stock&{query}")).await;
        assert_eq!((status, history["read_models"].as_array().unwrap().len()), (200, 1), "{history}");
        let page = history["read_models"][0].clone();
        let numbers: Vec<u64> =
            page["decisions"].as_array().unwrap().iter().map(|decision| decision["number"].as_u64().unwrap()).collect();
        assert_eq!(page["tampered"], json!([]));
        (numbers, page["next"].as_u64())
    };
    assert_eq!(page("limit=3").await, (vec![1, 2, 3], Some(3)));
    assert_eq!(page("limit=3&after=3").await, (vec![4], None));
    for wrong in ["limit=0", "limit=2001", "limits=1", "after=x"] {
        assert_eq!(given.get(&format!("/v1/replays/history?{wrong}")).await.0, 422, "{wrong}");
    }
    assert_eq!(given.get("/v1/replays/history?projection=orders").await.0, 404);
}

#[tokio::test]
async fn what_is_damaged_is_no_matter_of_trying_again() {
    let given = given().await;
    assert_eq!(
        given.asked("POST", "/v1/replays", json!({ "read_model": "stock", "by": "ann", "fold": 1 })).await.0,
        201
    );
    let catalogue = given.stock.catalogue().await.unwrap();
    let mut to = catalogue.clone();
    to.version += 1;
    to.generations.get_mut(&2).unwrap().replay = json!({ "started_by": 7 });
    given.stock.change(&to, &[]).await.unwrap();
    let (status, problem) = given.get("/v1/replays/stock@2").await;
    assert_eq!((status, &problem["title"]), (500, &json!("Replay is damaged")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("trying again does not help"), "{problem}");

    // The other read model is listed as it is.
    let (status, listed) = given.get("/v1/replays").await;
    assert_eq!((status, listed["read_models"].as_array().unwrap().len()), (200, 1), "{listed}");
    assert_eq!(listed["read_models"][0]["projection"], "search");
    let problems = listed["problems"].as_array().unwrap();
    assert_eq!((problems.len(), &problems[0]["projection"]), (1, &json!("stock")), "{listed}");
    assert!(problems[0]["problem"].as_str().unwrap().contains("trying again does not help"), "{listed}");
    let stock = Replayed::stock(given.stock.clone(), Arc::new(Ownership::embedded().unwrap()));
    let alone = ReplaysApi { replayed: vec![stock], log: None, now: || 1_800_000_000_000 };
    let alone = Given { router: router(alone), ..given };
    let (status, problem) = alone.get("/v1/replays").await;
    assert_eq!((status, &problem["title"]), (500, &json!("Replay is damaged")), "none is left to list: {problem}");
}

#[test]
fn every_step_declares_how_it_is_refused() {
    let document = serde_json::to_value(ReplaysDoc::openapi()).unwrap();
    let declares = |method: &str, path: &str, status: &str| {
        let responses = document["paths"][path][method]["responses"].as_object().unwrap();
        assert!(responses.contains_key(status), "{method} {path} declares no {status}");
    };
    let steps = ["verify", "approve", "cutover", "rollback", "retire", "abort"];
    let steps = steps.map(|step| format!("/v1/replays/{{name}}/{step}"));
    for path in steps.iter().map(String::as_str).chain(["/v1/replays"]) {
        for status in ["404", "409", "422", "500", "503"] {
            declares("post", path, status);
        }
    }
    for status in ["404", "409", "422", "500", "503"] {
        declares("get", "/v1/replays/{name}/parity", status);
    }
}
