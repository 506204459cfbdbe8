//! What only a real Redis shows: lost functions, lost data, a restart, a frozen server, full memory, eviction.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[cfg(test)]
mod dead_letters;
#[cfg(test)]
mod suite;

use std::net::TcpListener;
use std::time::Instant;

use read_models::stock::connect_stock;
use read_models::{Batch, Checkpoint, Generation, Head, ReadModelError};
use schemas::Sku;
use suite::own_server::{OwnServer, ask};
use suite::*;

/// Calls until it is no longer refused as transient; the reconnection takes a moment.
async fn until_available<T, F: Future<Output = Result<T, ReadModelError>>>(call: impl Fn() -> F) -> T {
    let begun = Instant::now();
    loop {
        match call().await {
            Ok(value) => return value,
            Err(error) => assert!(error.is_transient() && begun.elapsed() < DEADLINE, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// Every function is called, and does its work.
async fn goes_on(store: &Fixture, skus: &[Sku]) {
    let stock = &store.stock;
    let claimed = stock.claim(at(0)).await.unwrap();
    let step = claimed.checkpoint.sequence + 1;
    let written = Batch {
        changes: vec![(key(&skus[0], "north"), row(step as i64, step))],
        live: true,
        ..batch(0, &claimed, checkpoint(step))
    };
    stock.apply(&written).await.unwrap();
    let answer = stock.answers(skus).await.unwrap().remove(0);
    assert_eq!(answer.warehouses[0].1, row(step as i64, step));
    assert_eq!(answer.position, at(0).token(checkpoint(step).position));
}

async fn functions_come_back(store: &Fixture, nodes: &[String]) {
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(store, &skus).await;
    let flush = async || {
        for node in nodes {
            ask(node, &["FUNCTION", "FLUSH"]).await;
        }
    };
    flush().await;
    goes_on(store, &skus).await;
    flush().await;
    assert_eq!(store.stock.answers(&skus).await.unwrap()[0].warehouses.len(), 1);
    flush().await;
    assert_eq!(store.stock.load(at(0), &[key(&skus[0], "south")]).await.unwrap().rows, [None]);
    flush().await;
    assert_eq!(store.stock.status().await.unwrap().partitions[0].checkpoint, checkpoint(2));
    flush().await;
    assert!(store.stock.parked(at(0), None, 1).await.unwrap().is_empty());
    flush().await;
    store.stock.observe(&[(at(0), Head { next_offset: 1, seen_at: 1 })]).await.unwrap();
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn functions_that_were_flushed_come_back() {
    let server = OwnServer::start(&[]).await;
    functions_come_back(&Fixture::at(&server.url()).await, &[server.url()]).await;
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn functions_that_were_flushed_come_back_on_a_cluster() {
    let servers =
        std::env::var("MILLRACE_TEST_REDIS_CLUSTER").expect("MILLRACE_TEST_REDIS_CLUSTER is set by make test");
    let hosts = servers.strip_prefix("redis+cluster://").unwrap();
    let nodes: Vec<String> = hosts.split(',').map(|host| format!("redis://{host}")).collect();
    functions_come_back(&Fixture::redis_cluster().await, &nodes).await;
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn an_emptied_store_is_rebuilt_and_never_answers_zero() {
    let server = OwnServer::start(&[]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(&store, &skus).await;
    let owner = store.stock.claim(at(0)).await.unwrap();
    server.ask(&["FLUSHALL"]).await;
    assert!(matches!(store.stock.answers(&skus).await, Err(ReadModelError::Rebuilding { .. })));
    let refused = store.stock.apply(&batch(0, &owner, checkpoint(2))).await.unwrap_err();
    assert!(
        matches!(refused, ReadModelError::CheckpointMoved { found, .. } if found == Checkpoint::default()),
        "{refused}"
    );

    let again = store.stock.claim(at(0)).await.unwrap();
    assert_eq!((again.checkpoint, again.live), (Checkpoint::default(), false));
    assert!(again.epoch > owner.epoch, "{} after {}", again.epoch, owner.epoch);
    assert!(matches!(store.stock.answers(&skus).await, Err(ReadModelError::Rebuilding { .. })));
    goes_on(&store, &skus).await;
}

/// More digits is more, whatever the digits are; and what a floating-point number cannot tell apart is told apart.
#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn epochs_are_compared_as_numbers() {
    let server = OwnServer::start(&[]).await;
    let store = Fixture::at(&server.url()).await;
    store.live().await;
    let state = format!("{}:{{stock@1:inventory:0}}:state", store.url.split_once("prefix=").unwrap().1);
    for epoch in [9_999_999_999_999_999_u64, 10_000_000_000_000_000, 99_999_999_999_999_999] {
        assert_eq!(server.ask(&["HSET", &state, "epoch", &epoch.to_string()]).await, "int(0)");
        let owner = store.stock.claim(at(0)).await.unwrap();
        assert_eq!(owner.epoch, epoch + 1);
        let unmoved = batch(0, &owner, owner.checkpoint);
        let late = store.stock.apply(&Batch { epoch, ..unmoved.clone() }).await.unwrap_err();
        assert!(matches!(late, ReadModelError::Superseded { current, .. } if current == epoch + 1), "{late}");
        let lost = store.stock.apply(&Batch { epoch: epoch + 2, ..unmoved.clone() }).await.unwrap_err();
        assert!(matches!(lost, ReadModelError::CheckpointMoved { .. }), "{lost}");
        store.stock.apply(&unmoved).await.unwrap();
    }
}

/// Fault 9, where what is lost did not move the checkpoint: a redrive, and the claim that follows each one.
#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn an_owner_whose_claim_is_lost_writes_nothing() {
    let server = OwnServer::start(&[]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(&store, &skus).await;
    let before = store.stock.claim(at(0)).await.unwrap();
    let copy = |from: &str, to: &str| {
        format!(
            "for _, key in ipairs(redis.call('KEYS', '{from}*')) do
               redis.call('COPY', key, '{to}' .. string.sub(key, {}), 'REPLACE')
             end",
            from.len() + 1
        )
    };
    let prefix = store.url.split_once("prefix=").unwrap().1;
    server.ask(&["EVAL", &copy(prefix, "saved:"), "0"]).await;
    let checkpoint = before.checkpoint;
    let changes = vec![(key(&skus[0], "south"), row(9, 9))];
    store.stock.apply(&Batch { changes, ..batch(0, &before, checkpoint) }).await.unwrap();
    let owner = store.stock.claim(at(0)).await.unwrap();
    store.stock.apply(&batch(0, &owner, checkpoint)).await.unwrap();
    server.ask(&["EVAL", &copy("saved:", prefix), "0"]).await;
    let refused = store.stock.apply(&batch(0, &owner, checkpoint)).await.unwrap_err();
    assert!(matches!(refused, ReadModelError::CheckpointMoved { .. }), "{refused}");
    let again = store.stock.claim(at(0)).await.unwrap();
    store.stock.apply(&batch(0, &again, checkpoint)).await.unwrap();
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_lost_mark_of_the_generation_comes_back_while_its_partitions_go_on() {
    let server = OwnServer::start(&[]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(&store, &skus).await;
    let prefix = store.url.split_once("prefix=").unwrap().1;
    assert_eq!(server.ask(&["DEL", &format!("{prefix}:{{stock}}:generations")]).await, "int(1)");
    assert!(matches!(store.stock.answers(&skus).await, Err(ReadModelError::Rebuilding { .. })));
    store.stock.observe(&[]).await.unwrap();
    assert_eq!(store.stock.answers(&skus).await.unwrap()[0].warehouses.len(), 1);
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn reads_follow_the_pointer_at_once() {
    let server = OwnServer::start(&[]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(&store, &skus).await;
    let shadow = store.another().await;
    shadow.prepare(&Generation { number: 2, ..generation() }).await.unwrap();
    let claimed = shadow.claim(at(0)).await.unwrap();
    let changes = vec![(key(&skus[0], "north"), row(77, 1))];
    shadow.apply(&Batch { changes, live: true, ..batch(0, &claimed, checkpoint(9)) }).await.unwrap();

    let on_hand = async || store.stock.answers(&skus).await.unwrap()[0].warehouses[0].1.on_hand;
    let marks = format!("{}:{{stock}}:generations", store.url.split_once("prefix=").unwrap().1);
    for (serving, expected) in [("2", 77), ("1", 1), ("2", 77)] {
        server.ask(&["HSET", &marks, "serving", serving]).await;
        assert_eq!(on_hand().await, expected);
    }
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_killed_server_is_unavailable_and_then_goes_on() {
    let mut server = OwnServer::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(&store, &skus).await;
    server.kill();
    for _ in 0..3 {
        let begun = Instant::now();
        let down = store.stock.answers(&skus).await.unwrap_err();
        assert!(matches!(down, ReadModelError::Unavailable { .. }) && begun.elapsed().as_secs() < 6, "{down}");
    }
    assert!(matches!(connect_stock(&store.url).await, Err(ReadModelError::Unavailable { .. })));
    server.restart().await;
    let answer = until_available(|| store.stock.answers(&skus)).await.remove(0);
    assert_eq!(answer.position, at(0).token(checkpoint(1).position));
    goes_on(&store, &skus).await;
}

/// Its password is another one for a while, as when another instance answers. The client's own way back ends there.
#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_server_that_refused_the_password_for_a_while_is_used_again() {
    let server = OwnServer::start(&[]).await;
    let with = |password: &str| server.url().replace("redis://", &format!("redis://:{password}@"));
    server.ask(&["CONFIG", "SET", "requirepass", "right"]).await;
    let store = Fixture::at(&with("right")).await;
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(&store, &skus).await;
    ask(&with("right"), &["CONFIG", "SET", "requirepass", "another"]).await;
    ask(&with("another"), &["CLIENT", "KILL", "TYPE", "normal"]).await;
    let begun = Instant::now();
    // For longer than the client tries to connect again.
    while begun.elapsed().as_secs() < 3 {
        let refused = store.stock.claim(at(0)).await.unwrap_err();
        assert!(refused.is_transient(), "{refused}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(matches!(connect_stock(&store.url).await, Err(ReadModelError::Permanent { .. })));
    ask(&with("another"), &["CONFIG", "SET", "requirepass", "right"]).await;
    until_available(|| store.stock.claim(at(0))).await;
    until_available(|| store.stock.answers(&skus)).await;
    goes_on(&store, &skus).await;
}

/// Reads until they are refused without asking.
async fn until_refused(store: &Fixture, skus: &[Sku]) {
    let begun = Instant::now();
    loop {
        match store.stock.answers(skus).await {
            Err(ReadModelError::BreakerOpen { .. }) => return,
            Err(ReadModelError::Unavailable { .. }) => assert!(begun.elapsed() < DEADLINE),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn reads_are_refused_at_once_while_the_server_is_away_and_go_on_soon_after() {
    let mut server = OwnServer::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(&store, &skus).await;
    server.kill();
    until_refused(&store, &skus).await;
    let min = at(0).token(checkpoint(1).position);
    for _ in 0..20 {
        let read = store.stock.answers(&skus).await;
        assert!(matches!(read, Err(ReadModelError::BreakerOpen { .. })), "{read:?}");
        let waited = store.stock.wait_for(&min, any(), DEADLINE).await;
        assert!(matches!(waited, Err(ReadModelError::BreakerOpen { .. })), "{waited:?}");
        let status = store.stock.status().await;
        assert!(matches!(status, Err(ReadModelError::BreakerOpen { .. })), "{status:?}");
    }
    // A projector asks by itself.
    assert!(matches!(store.stock.claim(at(0)).await, Err(ReadModelError::Unavailable { .. })));

    server.restart().await;
    let begun = Instant::now();
    until_available(|| store.stock.answers(&skus)).await;
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    goes_on(&store, &skus).await;
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_frozen_server_costs_some_reads_their_time_and_the_others_nothing() {
    let server = OwnServer::start(&[]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(&store, &skus).await;
    server.signal("-STOP");
    let begun = Instant::now();
    futures::future::join_all((0..5).map(|_| store.stock.answers(&skus))).await;
    until_refused(&store, &skus).await;
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    server.signal("-CONT");
    until_available(|| store.stock.answers(&skus)).await;
    goes_on(&store, &skus).await;
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_server_that_forgot_everything_is_rebuilding() {
    let mut server = OwnServer::start(&["--appendonly", "no"]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    goes_on(&store, &skus).await;
    server.kill();
    server.restart().await;
    let claimed = until_available(|| store.stock.claim(at(0))).await;
    assert_eq!(claimed.checkpoint, Checkpoint::default());
    assert!(matches!(store.stock.answers(&skus).await, Err(ReadModelError::Rebuilding { .. })));
    goes_on(&store, &skus).await;
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_frozen_server_ends_every_call_in_time() {
    let server = OwnServer::start(&[]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    let claimed = store.stock.claim(at(0)).await.unwrap();
    server.signal("-STOP");
    let begun = Instant::now();
    let write = batch(0, &claimed, checkpoint(1));
    let min = at(0).token(checkpoint(1).position);
    let (read, write, wait) = tokio::join!(
        store.stock.answers(&skus),
        store.stock.apply(&write),
        store.stock.wait_for(&min, any(), std::time::Duration::from_millis(200)),
    );
    assert!(matches!(read, Err(ReadModelError::Unavailable { .. })));
    assert!(matches!(write, Err(ReadModelError::Unavailable { .. })));
    assert!(!wait.unwrap());
    assert!(begun.elapsed().as_secs() < 8);
    server.signal("-CONT");
    // Whether the late write was done or not: its owner finds out, and goes on.
    until_available(|| store.stock.claim(at(0))).await;
    goes_on(&store, &skus).await;
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn full_memory_refuses_the_whole_batch_and_passes() {
    let server = OwnServer::start(&[]).await;
    let store = Fixture::at(&server.url()).await;
    let skus = skus_of(0, 1);
    store.live().await;
    let claimed = store.stock.claim(at(0)).await.unwrap();
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let written = Batch { changes: vec![(key(&skus[0], "north"), row(1, 1))], ..batch(0, &claimed, checkpoint(1)) };
    let refused = store.stock.apply(&written).await.unwrap_err();
    assert!(matches!(refused, ReadModelError::Unavailable { .. }), "{refused}");
    assert!(store.stock.answers(&skus).await.unwrap()[0].warehouses.is_empty());
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    store.stock.apply(&written).await.unwrap();
    assert_eq!(store.stock.answers(&skus).await.unwrap()[0].warehouses.len(), 1);
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_server_that_evicts_keys_is_refused() {
    let server = OwnServer::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]).await;
    let Err(refused) = connect_stock(&server.url()).await else { panic!("connected") };
    assert!(
        matches!(&refused, ReadModelError::Setting { problem, .. } if problem.contains("allkeys-lru")),
        "{refused}"
    );
}

#[tokio::test]
async fn an_address_of_no_store_is_refused() {
    for wrong in ["stock.db", "http://localhost:1", "redis:/x", ""] {
        let Err(refused) = connect_stock(wrong).await else { panic!("connected to {wrong}") };
        assert!(matches!(refused, ReadModelError::Setting { key: "stock-store", .. }), "{wrong}: {refused}");
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_transient() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for url in [format!("redis://127.0.0.1:{port}"), format!("redis+cluster://127.0.0.1:{port}")] {
        let Err(refused) = connect_stock(&url).await else { panic!("connected to {url}") };
        assert!(matches!(refused, ReadModelError::Unavailable { .. }), "{url}: {refused}");
    }
}
