//! A comparison asked for over HTTP, on a real log and a real store, while events keep coming.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod fixture;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use fixture::Fixture;
use projectors::StockProjection;
use replay::http::{ReplaysApi, router};
use replay::{Ownership, Replayed};
use serde_json::{Value, json};
use tower::ServiceExt;

const DEADLINE: Duration = Duration::from_secs(60);
const NOW: i64 = 1_800_000_000_000;

/// Later each time.
fn ticking() -> i64 {
    static TICKS: AtomicI64 = AtomicI64::new(NOW);
    TICKS.fetch_add(1, Ordering::Relaxed)
}

async fn asked(routes: &Router, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = routes.clone().oneshot(request.body(body).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap())
}

async fn get(routes: &Router, path: &str) -> (u16, Value) {
    asked(routes, "GET", path, Value::Null).await
}

/// Asks for a comparison, and waits for its end.
async fn compared(routes: &Router, body: Value) -> Value {
    let (status, begun) = asked(routes, "POST", "/v1/replays/stock/verify", body).await;
    assert_eq!(status, 202, "{begun}");
    let since = Instant::now();
    loop {
        let (status, view) = get(routes, "/v1/replays/stock@2/parity?show=2").await;
        assert_eq!(status, 200, "{view}");
        if view["comparison"]["state"] != "running" {
            return view;
        }
        assert!(since.elapsed() < DEADLINE, "{view}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_is_made_beside_its_request_noted_and_read_back() {
    let fixture = Fixture::with_events(2_000).await;
    fixture.build::<StockProjection>(1, 1).await;
    let replayed = Replayed::stock(fixture.stock().clone(), Arc::new(Ownership::embedded().unwrap()));
    let api = ReplaysApi { replayed: vec![replayed], log: Some(fixture.log_reader()), now: ticking };
    let routes = router(api);

    let start = json!({ "read_model": "stock", "by": "ann", "fold": 2 });
    let (status, started) = asked(&routes, "POST", "/v1/replays", start).await;
    assert_eq!((status, &started["generation"]), (201, &json!("stock@2")), "{started}");
    let (status, none) = get(&routes, "/v1/replays/stock/parity").await;
    assert_eq!((status, &none["title"]), (404, &json!("Not compared yet")));

    // Nothing has begun to build it: that is told where the comparison is.
    let failed = compared(&routes, json!({ "by": "ann" })).await;
    assert_eq!(failed["comparison"]["state"], "failed", "{failed}");

    fixture.build::<StockProjection>(2, 2).await;
    let load = fixture.load();
    let differs = compared(&routes, json!({ "by": "ann" })).await;
    let report = &differs["comparison"]["report"];
    assert_eq!((&report["clean"], &report["differing"]), (&json!(false), &json!(fixture.rows())), "{differs}");
    assert_eq!(report["differences"].as_array().unwrap().len(), 2, "as many as were asked for");
    assert_eq!(differs["evidence"]["differing_keys"], json!(fixture.rows()));
    assert_eq!(differs["comparison"]["noted"]["done"]["action"], "verified");

    let rule = json!({ "projection": "stock", "field": "updated_at", "kind": "new", "reason": "fold 2" });
    let rules = json!({ "difference": [rule] });
    let dry = compared(&routes, json!({ "dry": true, "rules": rules.clone() })).await;
    assert_eq!((&dry["comparison"]["report"]["clean"], &dry["comparison"]["noted"]), (&json!(true), &Value::Null));
    assert_eq!(dry["evidence"]["differing_keys"], json!(fixture.rows()), "a dry one is not noted");
    let clean = compared(&routes, json!({ "by": "ann", "rules": rules })).await;
    load.stop().await;
    assert_eq!(clean["comparison"]["report"]["clean"], true, "{clean}");
    assert_eq!(clean["evidence"]["excused_keys"], json!(fixture.rows()));
    let (_, seen) = get(&routes, "/v1/replays/stock").await;
    assert_eq!(seen["replay"]["parity_clean"], true);
    // Decided when it was over: else one that was asked for before could pass for a newer one.
    let (_, history) = get(&routes, "/v1/replays/history?projection=stock").await;
    let decisions = history["read_models"][0]["decisions"].as_array().unwrap();
    let noted = decisions.iter().rfind(|decision| decision["action"] == "verified").unwrap();
    assert!(noted["at"].as_i64().unwrap() > clean["evidence"]["at"].as_i64().unwrap(), "{noted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_compared_is_refused_at_once() {
    let fixture = Fixture::with_events(100).await;
    fixture.build::<StockProjection>(1, 1).await;
    let replayed = Replayed::stock(fixture.stock().clone(), Arc::new(Ownership::embedded().unwrap()));
    let of = |log| router(ReplaysApi { replayed: vec![replayed.clone()], log, now: || NOW });
    let routes = of(Some(fixture.log_reader()));
    let ann = json!({ "by": "ann" });
    let verify = "/v1/replays/stock@1/verify";
    let (status, same) = asked(&routes, "POST", verify, ann.clone()).await;
    assert_eq!((status, &same["missing"][0]["code"]), (409, &json!("serves_already")));
    assert_eq!(asked(&routes, "POST", "/v1/replays/stock@7/verify", ann.clone()).await.0, 404);
    for (body, why) in [
        (json!({}), "name the person"),
        (json!({ "by": "ann", "queries": ["onion"] }), "for search"),
        (json!({ "by": "ann", "rules": { "difference": [{ "field": "f" }] } }), "rules: "),
        (json!({ "by": "ann", "dry_run": true }), "dry_run"),
    ] {
        let (status, problem) = asked(&routes, "POST", verify, body).await;
        assert_eq!(status, 422, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
    let (status, problem) = asked(&of(None), "POST", verify, ann).await;
    assert_eq!(status, 501, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("millrace project stock"), "{problem}");
}
