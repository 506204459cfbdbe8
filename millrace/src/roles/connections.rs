//! Connections of HTTP callers: no more than a bound, and none that is held by saying nothing.
//!
//! axum's own server sets no clock, so a caller that sends half a head would be waited for without end. How long a body
//! may take is for the routes to say.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Most connections of one process; further ones wait in the system's queue. Half of the file descriptors that most
/// systems give a process: the stores need some, too.
pub const MOST_CONNECTIONS: usize = 512;
/// How long a caller may take for the head of a request, and be idle before the next one. Longer than the 60 and 90 s
/// for which proxies and clients keep an idle connection: closed from here just when one sends a request, that request
/// would fail.
pub const HEAD_TIME: Duration = Duration::from_secs(100);
/// Pause when the system gives no connection, for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long callers may hold up the end of the process: one that has sent half a head would otherwise do so for its
/// time. Below the time that the parts of a process have for their end, so that such a caller does not make it a
/// failure.
const END_TIME: Duration = Duration::from_secs(3);

struct Bounds {
    connections: usize,
    head_time: Duration,
    end_time: Duration,
}

/// Serves until `shutdown`, and then what was begun.
pub async fn serve(listener: TcpListener, routes: Router, shutdown: CancellationToken) -> io::Result<()> {
    let bounds = Bounds { connections: MOST_CONNECTIONS, head_time: HEAD_TIME, end_time: END_TIME };
    serve_within(listener, routes, shutdown, bounds).await
}

async fn serve_within(
    listener: TcpListener,
    routes: Router,
    shutdown: CancellationToken,
    bounds: Bounds,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(bounds.connections));
    let mut connections = JoinSet::new();
    let graceful = GracefulShutdown::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((listener.accept().await?.0, place))
        };
        let next = tokio::select! {
            next = next => next,
            () = shutdown.cancelled() => break,
        };
        match next {
            Ok((stream, place)) => {
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(bounds.head_time);
                let service = TowerToHyperService::new(routes.clone());
                let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
                connections.spawn(async move {
                    // A connection that ends badly is its caller's affair.
                    let _ = connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "no connection is accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(bounds.end_time, graceful.shutdown()).await.is_err() {
        tracing::debug!("callers that did not end in time are cut off");
    }
    connections.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    async fn answer(stream: &mut TcpStream) -> String {
        let mut answer = [0; 512];
        let length = tokio::time::timeout(SOON, stream.read(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    #[tokio::test]
    async fn a_caller_that_says_nothing_makes_room_for_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/", get(|| async { "here" }));
        let shutdown = CancellationToken::new();
        let bounds = Bounds { connections: 2, head_time: Duration::from_millis(300), end_time: SOON };
        let serving = tokio::spawn(serve_within(listener, routes, shutdown.clone(), bounds));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut halting = TcpStream::connect(address).await.unwrap();
        halting.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n").await.unwrap();
        let mut third = TcpStream::connect(address).await.unwrap();
        third.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let answered = answer(&mut third).await;
        assert!(answered.starts_with("HTTP/1.1 200") && answered.ends_with("here"), "{answered}");
        // One of them at least made room; in the end both are closed, and so is one that is idle after an answer.
        for stream in [&mut silent, &mut halting, &mut third] {
            while !answer(stream).await.is_empty() {}
        }
        shutdown.cancel();
        tokio::time::timeout(SOON, serving).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_was_begun_is_answered_after_the_end_has_come() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let ends = shutdown.clone();
        let routes = Router::new().route(
            "/",
            get(|| async move {
                ends.cancel();
                "still"
            }),
        );
        let serving = tokio::spawn(serve(listener, routes, shutdown));
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        assert!(answer(&mut caller).await.ends_with("still"));
        tokio::time::timeout(SOON, serving).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn half_a_head_does_not_hold_up_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let routes = Router::new().route("/", get(|| async { "here" }));
        let bounds = Bounds { connections: 2, head_time: SOON * 9, end_time: Duration::from_millis(100) };
        let serving = tokio::spawn(serve_within(listener, routes, shutdown.clone(), bounds));
        let mut halting = TcpStream::connect(address).await.unwrap();
        // The second head comes with the first: what is answered tells that half of it was read.
        halting.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\nGET / HTTP/1.1\r\n").await.unwrap();
        assert!(answer(&mut halting).await.ends_with("here"));
        shutdown.cancel();
        tokio::time::timeout(SOON, serving).await.unwrap().unwrap().unwrap();
        assert_eq!(answer(&mut halting).await, "");
    }
}
