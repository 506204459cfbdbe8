//! Fault 4, from inside: the limits of our own sessions, and whom a held horizon is blamed on.

use std::time::Instant;

use super::*;

const DEADLINE: Duration = Duration::from_secs(60);

/// The test server, with a database that this test may have to itself.
async fn own_database() -> Server {
    let url = std::env::var("MILLRACE_TEST_POSTGRES").expect("MILLRACE_TEST_POSTGRES is set by make test");
    let name = format!("event_store_{}", Uuid::new_v4().simple());
    let administration = Server::of(&url).unwrap().connect().await.unwrap();
    administration.client.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    Server::of(&format!("{server}/{name}")).unwrap()
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn a_session_of_ours_that_sits_in_a_transaction_is_ended_by_the_server() {
    let server = own_database().await;
    let connection = server.connect().await.unwrap();
    let shown = connection.client.query_one("SHOW idle_in_transaction_session_timeout", &[]).await.unwrap();
    assert_eq!(shown.get::<_, &str>(0), "20s");

    // The same with less to wait for.
    let frozen = "SET idle_in_transaction_session_timeout = '200ms'; BEGIN; SELECT pg_current_xact_id();";
    connection.client.batch_execute(frozen).await.unwrap();
    let begun = Instant::now();
    while !connection.client.is_closed() {
        assert!(begun.elapsed() < DEADLINE, "the server lets it sit");
        tokio::task::yield_now().await;
    }
    let Err(error) = connection.client.batch_execute("COMMIT").await else { panic!("committed") };
    let error = Failure::from(error).into_error(server.address());
    assert!(matches!(error, EventStoreError::Unavailable { .. }), "{error}");
}

#[tokio::test]
#[ignore = "needs servers: run make test"]
async fn whoever_holds_the_horizon_is_named() {
    let server = own_database().await;
    let connection = server.connect().await.unwrap();
    migrate::migrate(&connection.client).await.unwrap();
    let session = server.session().await.unwrap();
    let foreign = server.connect().await.unwrap();
    let name = format!("report-{}", Uuid::new_v4().simple());
    let open = format!("SET application_name = '{name}'; BEGIN; SELECT pg_current_xact_id();");
    foreign.client.batch_execute(&open).await.unwrap();
    // Other tests may have older transactions open on this server for a moment.
    let begun = Instant::now();
    loop {
        let (holder, seconds) = horizon::holder(&session).await.unwrap();
        if holder.contains(&name) {
            assert!(seconds.is_some_and(|seconds| seconds >= 0.0), "{holder} {seconds:?}");
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "{holder}");
        tokio::task::yield_now().await;
    }
    foreign.client.batch_execute("COMMIT").await.unwrap();
    assert!(!horizon::holder(&session).await.unwrap().0.contains(&name), "it holds nothing any more");
}
